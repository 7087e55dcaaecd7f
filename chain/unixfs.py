"""Files as IPFS knows them: a blob's leaves, the tree above them and the one CID that names it all.

The tree is that of the profile `unixfs-v1-2025` (IPIP-499): leaves of 1 MiB, each a raw block; a file of one leaf,
or of nothing, is that block; above more leaves stand nodes of at most 1,024 links, each level filled from the left,
until one node is left. Every byte of every node follows from the file's size and the digests of its leaves, so those
two are all that is kept and sent: the *manifest*. Nodes are built again when an IPFS client asks for one.

A node is a dag-pb block, two small protobuf messages, one within the other:

    PBNode  links 2: PBLink ... , data 1: Data          the links stand first
    PBLink  hash 1: CID, name 2: "", tsize 3: bytes of all blocks from there downwards
    Data    type 1: 2 (a file), filesize 3, blocksizes 4: file bytes below each link

Files that others built may be cut and layered otherwise, and `parse_node` reads their nodes too. It takes each field
once, in its shortest form, and nothing that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, TypeAlias

from chain.cid import CID_BYTES, LEAF_BYTES, RAW_PREFIX, TREE_PREFIX, CidError, version_1
from chain.codec import U64, Length
from chain.varint import VarintError, read_varint, to_varint

__all__ = [
    "LEAF_BYTES",
    "LINKS",
    "MAX_BLOCK_BYTES",
    "MAX_FILE_BYTES",
    "MAX_LEAVES",
    "Buffer",
    "Hasher",
    "Manifest",
    "Node",
    "block_of",
    "check_manifest",
    "cid_of",
    "inner_blocks",
    "leaf_cid",
    "leaf_count",
    "leaf_range",
    "manifest_cid",
    "manifest_of",
    "node_cid",
    "parse_node",
    "walk",
    "zeros_manifest",
]

LINKS = 1024
MAX_LEAVES = 65_536
MAX_FILE_BYTES = MAX_LEAVES * LEAF_BYTES
MAX_BLOCK_BYTES = 2 * 1024 * 1024
"""The largest block that IPFS nodes pass to one another."""
DIGEST_BYTES = 32

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that has to be known of a file before its first leaf can be verified."""

    size_bytes: U64
    digests: Annotated[bytes, Length(DIGEST_BYTES, DIGEST_BYTES * MAX_LEAVES)]
    """sha2-256 of each leaf, one after another."""

    @property
    def count(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def leaf(self, index: int) -> bytes:
        if not 0 <= index < self.count:
            raise IndexError(f"no leaf {index} among {self.count}")
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


def leaf_count(size_bytes: int) -> int:
    """An empty file has one leaf too, of no bytes."""
    return max(1, -(-size_bytes // LEAF_BYTES))


def leaf_range(size_bytes: int, index: int) -> tuple[int, int]:
    """Where leaf `index` of a file of this size begins and ends."""
    if not 0 <= index < leaf_count(size_bytes):
        raise IndexError(f"no leaf {index} in a file of {size_bytes} bytes")
    start = index * LEAF_BYTES
    return start, min(start + LEAF_BYTES, size_bytes)


def check_manifest(manifest: Manifest) -> None:
    if not 0 <= manifest.size_bytes <= MAX_FILE_BYTES:
        raise CidError(f"a file has at most {MAX_FILE_BYTES} bytes, not {manifest.size_bytes}")
    if len(manifest.digests) != DIGEST_BYTES * leaf_count(manifest.size_bytes):
        raise CidError(
            f"a file of {manifest.size_bytes} bytes has {leaf_count(manifest.size_bytes)} leaves, "
            f"but there are {len(manifest.digests)} bytes of digests"
        )


class Hasher:
    """Takes a file's bytes in pieces of any size; ends in its manifest."""

    __slots__ = ("_digests", "_filled", "_leaf", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self._digests = bytearray()
        self._leaf = sha256()
        self._filled = 0

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        if self.size_bytes + len(view) > MAX_FILE_BYTES:
            raise CidError(f"a file has at most {MAX_FILE_BYTES} bytes")
        self.size_bytes += len(view)
        while view:
            if self._filled == LEAF_BYTES:
                self._end_leaf()
            taken = view[: LEAF_BYTES - self._filled]
            self._leaf.update(taken)
            self._filled += len(taken)
            view = view[len(taken) :]

    def finish(self) -> Manifest:
        """Once, after the last byte."""
        self._end_leaf()
        return Manifest(self.size_bytes, bytes(self._digests))

    def _end_leaf(self) -> None:
        self._digests += self._leaf.digest()
        self._leaf = sha256()
        self._filled = 0


def manifest_of(data: Buffer) -> Manifest:
    hasher = Hasher()
    hasher.update(data)
    return hasher.finish()


def zeros_manifest(header: bytes, size_bytes: int) -> Manifest:
    """Of a file that is this header and then zeros, without making the zeros."""
    if not len(header) <= size_bytes <= MAX_FILE_BYTES:
        raise CidError(f"{size_bytes} bytes do not hold a header of {len(header)}, or are too many")
    same: dict[int, bytes] = {}

    def digest_of(start: int, stop: int) -> bytes:
        if start < len(header):
            return sha256(header[start:stop].ljust(stop - start, b"\0")).digest()
        if stop - start not in same:
            same[stop - start] = sha256(bytes(stop - start)).digest()
        return same[stop - start]

    digests = (digest_of(*leaf_range(size_bytes, index)) for index in range(leaf_count(size_bytes)))
    return Manifest(size_bytes, b"".join(digests))


def leaf_cid(digest: bytes) -> bytes:
    return RAW_PREFIX + digest


def node_cid(block: bytes) -> bytes:
    return TREE_PREFIX + sha256(block).digest()


def manifest_cid(manifest: Manifest) -> bytes:
    check_manifest(manifest)
    if manifest.count == 1:
        return leaf_cid(manifest.digests)
    return _levels(manifest)[-1][0].cid


def cid_of(data: Buffer) -> bytes:
    return manifest_cid(manifest_of(data))


# The tree above the leaves.


@dataclass(frozen=True, slots=True)
class _Inner:
    cid: bytes
    block: bytes
    size_bytes: int
    """Of the part of the file below it."""
    tree_bytes: int
    """Of this block and all below it, which its parent's link says."""


def _levels(manifest: Manifest) -> list[list[_Inner]]:
    """The inner nodes, level by level: those above the leaves first, the root alone in the last."""
    sizes = [LEAF_BYTES] * manifest.count
    sizes[-1] = manifest.size_bytes - (manifest.count - 1) * LEAF_BYTES
    cids = [leaf_cid(manifest.leaf(index)) for index in range(manifest.count)]
    tree_sizes = sizes
    levels: list[list[_Inner]] = []
    while len(cids) > 1:
        level = []
        for start in range(0, len(cids), LINKS):
            part = slice(start, start + LINKS)
            level.append(_inner(cids[part], sizes[part], tree_sizes[part]))
        levels.append(level)
        cids = [node.cid for node in level]
        sizes = [node.size_bytes for node in level]
        tree_sizes = [node.tree_bytes for node in level]
    return levels


def _inner(cids: list[bytes], sizes: list[int], tree_sizes: list[int]) -> _Inner:
    # Most children are alike in all but their CIDs.
    ends = {each: b"\x12\x00\x18" + to_varint(each) for each in set(tree_sizes)}
    begins = {each: b"\x12" + to_varint(2 + CID_BYTES + len(end)) + b"\x0a\x24" for each, end in ends.items()}
    parts = [begins[each] + cid + ends[each] for cid, each in zip(cids, tree_sizes, strict=True)]
    size_bytes = sum(sizes)
    lengths = {each: b"\x20" + to_varint(each) for each in set(sizes)}
    data = b"\x08\x02\x18" + to_varint(size_bytes) + b"".join([lengths[each] for each in sizes])
    block = b"".join(parts) + b"\x0a" + to_varint(len(data)) + data
    return _Inner(node_cid(block), block, size_bytes, len(block) + sum(tree_sizes))


def walk(manifest: Manifest, first: int = 0, last: int | None = None) -> Iterator[tuple[bytes, bytes | int]]:
    """The file's blocks by CID, a parent before its children and these from left to right: a node as its bytes, a leaf
    as its index. Only those that lead to the leaves `first` to `last`, both included."""
    check_manifest(manifest)
    last = manifest.count - 1 if last is None else last
    levels = _levels(manifest)

    def below(level: int, index: int) -> Iterator[tuple[bytes, bytes | int]]:
        if level < 0:
            yield leaf_cid(manifest.leaf(index)), index
            return
        node = levels[level][index]
        yield node.cid, node.block
        span = LINKS**level
        """Leaves below each child."""
        length = len(levels[level - 1]) if level else manifest.count
        for child in range(index * LINKS, min((index + 1) * LINKS, length)):
            if child * span <= last and (child + 1) * span > first:
                yield from below(level - 1, child)

    return below(len(levels) - 1, 0)


def inner_blocks(manifest: Manifest) -> Iterator[tuple[bytes, bytes]]:
    """The file's nodes by CID, a parent before its children; none for a file of one leaf."""
    for cid, block in walk(manifest):
        if isinstance(block, bytes):
            yield cid, block


def block_of(manifest: Manifest, cid: bytes) -> bytes | int | None:
    """What `cid` names in this file: a node, as its bytes; a leaf, as its index; nothing."""
    if cid.startswith(RAW_PREFIX):
        return next((index for index in range(manifest.count) if manifest.leaf(index) == cid[4:]), None)
    return next((block for each, block in inner_blocks(manifest) if each == cid), None)


# Nodes that anyone built.


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a file's tree. The file below it is `data` and then what the links lead to, in order."""

    links: tuple[tuple[bytes, int], ...]
    """(CID, bytes of all blocks from there downwards, as claimed); a CID of version 0 is given as version 1."""
    data: bytes
    size: int
    """Bytes of the file below this node."""
    blocksizes: tuple[int, ...]
    """Of them, those below each link."""


_TYPE_RAW = 0
_TYPE_FILE = 2


def parse_node(block: bytes) -> Node:
    """Raises CidError unless the block is a node of a file's tree, and coherent in itself."""
    if len(block) > MAX_BLOCK_BYTES:
        raise CidError(f"a block has at most {MAX_BLOCK_BYTES} bytes, not {len(block)}")
    try:
        return _parse_node(block)
    except VarintError as error:
        raise CidError(f"a node is not well-formed: {error}") from None


def _parse_node(block: bytes) -> Node:
    links: list[tuple[bytes, int]] = []
    data: bytes | None = None
    last_field = 0
    for field, value in _fields(block):
        if not isinstance(value, bytes):
            raise CidError("a dag-pb node is made of links and data only")
        if field == 2:
            if last_field == 1 and links:
                raise CidError("a node's links stand apart from one another")
            links.append(_parse_link(value))
        elif field == 1 and data is None:
            data = value
        else:
            raise CidError("a dag-pb node is made of links and data only, the data once")
        last_field = field
    if data is None:
        raise CidError("a node without data is not part of a file")
    return _parse_data(data, tuple(links))


def _parse_link(message: bytes) -> tuple[bytes, int]:
    cid, tree_bytes = b"", 0
    last_field = 0
    for field, value in _fields(message):
        if field <= last_field:
            raise CidError("a link's fields are in order, each once")
        last_field = field
        if field == 1 and isinstance(value, bytes):
            cid = value
        elif field == 3 and isinstance(value, int):
            tree_bytes = value
        elif field != 2 or not isinstance(value, bytes):
            raise CidError("a link has a hash, a name and a size")
    return version_1(cid), tree_bytes


def _parse_data(message: bytes, links: tuple[tuple[bytes, int], ...]) -> Node:
    kind: int | None = None
    data = b""
    size: int | None = None
    blocksizes: list[int] = []
    last_field = 0
    for field, value in _fields(message):
        if field < last_field or (field == last_field and field != 4):
            raise CidError("the fields of a file's node are in order, each once")
        last_field = field
        if isinstance(value, bytes):
            if field == 2:
                data = value
            elif field != 8:
                raise CidError(f"a file's node has no field {field} of bytes")
        elif field == 1:
            kind = value
        elif field == 3:
            size = value
        elif field == 4:
            blocksizes.append(value)
        elif field != 7:
            raise CidError(f"a file's node has no field {field} of a number")
    if kind not in (_TYPE_RAW, _TYPE_FILE):
        raise CidError("the node is not part of a file: a directory, perhaps, or a link")
    if len(blocksizes) != len(links):
        raise CidError(f"a node of {len(links)} links says the sizes of {len(blocksizes)}")
    total = len(data) + sum(blocksizes)
    if (total if size is None else size) != total:
        raise CidError(f"a node says that it is {size} bytes of a file, and its parts are {total}")
    return Node(links, data, total, tuple(blocksizes))


# Protobuf, as much of it as this takes.


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value, in the order in which they stand."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = read_varint(message, at)
            yield field, value
        elif wire == 2:
            length, at = read_varint(message, at)
            if length > len(message) - at:
                raise CidError("a field is cut short")
            yield field, message[at : at + length]
            at += length
        else:
            raise CidError(f"no field has wire type {wire}")
