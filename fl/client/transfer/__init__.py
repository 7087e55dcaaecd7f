"""Blobs between this machine and others: nodes, and whoever speaks IPFS."""
