"""Blocks of files, held in memory, as a node's gateway and a foreign one would give them."""

from __future__ import annotations

from hashlib import sha256

from chain.unixfs import Buffer, inner_blocks, leaf_cid, leaf_range, manifest_cid, manifest_of, node_cid
from chain.varint import to_varint


class Shelf:
    """Files cut as Quorate cuts them."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, Buffer] = {}

    def add(self, data: bytes) -> bytes:
        manifest = manifest_of(data)
        self.blocks |= dict(inner_blocks(manifest))
        for index in range(manifest.count):
            start, stop = leaf_range(len(data), index)
            self.blocks[leaf_cid(manifest.leaf(index))] = memoryview(data)[start:stop]
        return manifest_cid(manifest)

    def block(self, cid: bytes) -> Buffer | None:
        return self.blocks.get(cid)


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """The same every time, and no leaf like another."""
    pad = b"".join(sha256(seed.to_bytes(8, "big") + index.to_bytes(8, "big")).digest() for index in range(1024))
    marked = bytearray((pad * (size_bytes // len(pad) + 1))[:size_bytes])
    for at in range(0, size_bytes, 65_536):
        mark = at.to_bytes(8, "big")[: size_bytes - at]
        marked[at : at + len(mark)] = mark
    return bytes(marked)


# Files as others cut them.


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return to_varint(number << 3) + to_varint(value)
    return to_varint(number << 3 | 2) + to_varint(len(value)) + value


def foreign_node(links: list[tuple[bytes, int]], data: bytes = b"", kind: int = 2) -> bytes:
    """Of children by CID with the bytes of the file below each; `data` stands before them."""
    head = b"".join(field(2, field(1, cid) + field(2, b"") + field(3, size)) for cid, size in links)
    inner = field(1, kind)
    if data:
        inner += field(2, data)
    inner += field(3, len(data) + sum(size for _, size in links))
    return head + field(1, inner + b"".join(field(4, size) for _, size in links))


def foreign_file(data: bytes, leaf_bytes: int, width: int, raw_leaves: bool) -> tuple[bytes, dict[bytes, bytes]]:
    """Root and blocks of a file with other leaves and other nodes."""
    blocks: dict[bytes, bytes] = {}
    level: list[tuple[bytes, int]] = []
    for at in range(0, max(1, len(data)), leaf_bytes):
        part = data[at : at + leaf_bytes]
        block = part if raw_leaves else foreign_node([], part)
        cid = leaf_cid(sha256(block).digest()) if raw_leaves else node_cid(block)
        blocks[cid] = block
        level.append((cid, len(part)))
    while len(level) > 1:
        above = []
        for at in range(0, len(level), width):
            links = level[at : at + width]
            block = foreign_node(links)
            blocks[node_cid(block)] = block
            above.append((node_cid(block), sum(size for _, size in links)))
        level = above
    return level[0][0], blocks
