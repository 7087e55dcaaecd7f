"""Rounds looked at again by a client: verified, explained, replayed, from what nodes have recorded of them."""
