"""Archives of blocks (CAR, version 1): how a whole IPFS tree travels in one stream.

    varint length, header        DAG-CBOR: {"roots": [CID ...], "version": 1}
    varint length, CID, block    again and again

Written without copying the blocks. Read in pieces of any size, and strictly: one form of header, CIDs of the kinds
that files are made of, each block checked against its CID before anyone sees it, no more than one block held back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chain.cid import CID_BYTES, TREE_PREFIX, CidError, is_named, version_1
from chain.unixfs import MAX_BLOCK_BYTES, Buffer
from chain.varint import VarintError, read_varint, to_varint

MAX_HEADER_BYTES = 8 * 1024
MAX_ROOTS = 15
MAX_ROOT_BYTES = 128

_LENGTH_BYTES = 4
"""Of the longest length that is taken."""
_ROOTS = b"\xa2\x65roots"
_VERSION = b"\x67version\x01"
_LINK = b"\xd8\x2a"
_OLD_PREFIX = TREE_PREFIX[2:]


class CarError(ValueError):
    """Not an archive of this kind, or a block in it is not what its CID says."""


def car_header(roots: Sequence[bytes]) -> bytes:
    if len(roots) > MAX_ROOTS or any(not 0 < len(root) <= MAX_ROOT_BYTES for root in roots):
        raise CarError(f"an archive has at most {MAX_ROOTS} roots, each a CID")
    header = _ROOTS + bytes((0x80 | len(roots),)) + b"".join([_link(root) for root in roots]) + _VERSION
    return to_varint(len(header)) + header


def _link(cid: bytes) -> bytes:
    length = len(cid) + 1
    head = bytes((0x40 | length,)) if length < 24 else bytes((0x58, length))
    return _LINK + head + b"\0" + cid


def write_car(roots: Sequence[bytes], blocks: Iterable[tuple[bytes, Buffer]]) -> Iterator[Buffer]:
    """The archive of these blocks in this order, in pieces."""
    yield car_header(roots)
    for cid, block in blocks:
        yield to_varint(len(cid) + len(block)) + cid
        yield block


class CarReader:
    """Takes an archive in pieces, and gives its blocks as they become whole."""

    __slots__ = ("_held", "roots")

    def __init__(self) -> None:
        self.roots: tuple[bytes, ...] | None = None
        """None until the header has come. What they mean is for nobody to say: a reader looks for the CID that it
        asked for."""
        self._held = bytearray()

    def feed(self, data: Buffer) -> list[tuple[bytes, bytes]]:
        """The blocks that `data` completes, each with its CID in version 1."""
        self._held += data
        blocks: list[tuple[bytes, bytes]] = []
        at = 0
        while (section := self._section(at)) is not None:
            start, at = section
            whole = bytes(memoryview(self._held)[start:at])
            if self.roots is None:
                self.roots = _read_header(whole)
            else:
                blocks.append(_read_block(whole))
        del self._held[:at]
        return blocks

    def finish(self) -> None:
        """Raises CarError if the archive is cut short."""
        if self._held or self.roots is None:
            raise CarError("the archive is cut short")

    def _section(self, at: int) -> tuple[int, int] | None:
        """Where the section that is announced at `at` begins and ends; None while it is not whole."""
        head = self._held[at : at + _LENGTH_BYTES]
        if len(head) < _LENGTH_BYTES and all(byte > 0x7F for byte in head):
            return None
        try:
            length, start = read_varint(head, 0)
        except VarintError as error:
            raise CarError(f"a section's length is not one that is taken: {error}") from None
        most = MAX_HEADER_BYTES if self.roots is None else CID_BYTES + MAX_BLOCK_BYTES
        if not 0 < length <= most:
            raise CarError(f"a section of {length} bytes, where 1 to {most} are taken")
        start += at
        return (start, start + length) if start + length <= len(self._held) else None


def _read_header(header: bytes) -> tuple[bytes, ...]:
    """By writing it again: there is one form, so whatever is read wrongly does not come out the same."""
    roots = []
    at = len(_ROOTS) + 1
    while header.startswith(_LINK, at):
        at += len(_LINK)
        long = header[at : at + 1] == b"\x58"
        length = int.from_bytes(header[at + 1 : at + 2] if long else header[at : at + 1]) & (0xFF if long else 0x1F)
        at += 3 if long else 2
        roots.append(header[at : at + length - 1])
        at += max(0, length - 1)
    try:
        again = car_header(roots)
    except CarError:
        again = b""
    if again != to_varint(len(header)) + header:
        raise CarError("the archive does not begin with a header of version 1 in its one form")
    return tuple(roots)


def _read_block(section: bytes) -> tuple[bytes, bytes]:
    length = CID_BYTES - 2 if section.startswith(_OLD_PREFIX) else CID_BYTES
    try:
        cid = version_1(section[:length])
    except CidError as error:
        raise CarError(f"a block's name is {error}") from None
    block = section[length:]
    if not is_named(block, cid):
        raise CarError("a block is not what its CID says")
    return cid, block
