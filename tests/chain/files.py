"""Files of any size that are made as they are read."""

from __future__ import annotations

from collections.abc import Iterator

from chain.unixfs import Hasher, Manifest, leaf_count, leaf_range


def pattern(size_bytes: int) -> Iterator[bytearray]:
    """Leaf by leaf: eight marks at its beginning, then zeros. `tests/ipfs/import.mjs` makes the same."""
    for index in range(leaf_count(size_bytes)):
        start, stop = leaf_range(size_bytes, index)
        leaf = bytearray(stop - start)
        for place in range(min(8, len(leaf))):
            leaf[place] = (index * (place + 1) + 1) & 0xFF
        yield leaf


def manifest_of_pattern(size_bytes: int) -> Manifest:
    hasher = Hasher()
    for leaf in pattern(size_bytes):
        hasher.update(leaf)
    return hasher.finish()
