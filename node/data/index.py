"""The rows that say which blobs are here. A blob exists because its head row does: the row is written last and deleted
first, and it is all that `find` looks at.

    b: cid            Head: size, kind, account
    m: cid            the digests of its leaves, 32 bytes a MiB, for staged blobs too
    s: cid            Staged: begun, or lost and wanted back
    x: block owner    a leaf (its index) or inner node (nothing) of the public blob `owner`
    l: account cid    a lease
    p: cid            a pin

Nothing of this grows in memory with the number or the size of blobs, but for a few manifests used last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from chain.cid import CID_BYTES
from chain.codec import U8, U64, Length, decode, encode
from chain.unixfs import Manifest, inner_blocks, leaf_cid
from fl.blobs import PUBLIC_KINDS, BlobKind
from node.ports import Kv, after

HEAD, MANIFEST, STAGED, BLOCK, LEASE, PIN = b"b:", b"m:", b"s:", b"x:", b"l:", b"p:"

_ROW_BYTES = 256
_CACHED_BYTES = 8 * 1024 * 1024
"""Of manifests: a hundred blobs of 2 GiB."""

Puts = dict[bytes, bytes]
Account = Annotated[bytes, Length(0, 32)]


@dataclass(frozen=True, slots=True)
class Head:
    size_bytes: U64
    kind: U8
    account: Account


@dataclass(frozen=True, slots=True)
class Staged:
    size_bytes: U64
    kind: U8
    account: Account
    lost: bool
    """It was whole once, and this disk has lost some of it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list of blobs says of each."""

    cid: bytes
    size_bytes: int
    kind: BlobKind
    account: bytes
    """Whose it is; empty if it is nobody's."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A whole blob, verified and durable here."""

    cid: bytes
    size_bytes: int
    kind: BlobKind
    manifest: Manifest
    account: bytes = b""

    @property
    def public(self) -> bool:
        return self.kind in PUBLIC_KINDS


class BlobIndex:
    """May be read from any thread."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._guard = threading.Lock()
        self._cached: OrderedDict[bytes, Blob] = OrderedDict()
        self._cached_bytes = 0

    # Whole blobs

    def find(self, cid: bytes) -> Blob | None:
        with self._guard:
            if (blob := self._cached.get(cid)) is not None:
                self._cached.move_to_end(cid)
                return blob
            listed = self.listed(cid)
            manifest = None if listed is None else self.manifest(cid, listed.size_bytes)
            if listed is None or manifest is None:
                return None
            # Under the guard, so that a blob forgotten between the reading and here does not stay.
            blob = self._cached[cid] = Blob(cid, listed.size_bytes, listed.kind, manifest, listed.account)
            self._cached_bytes += len(manifest.digests)
            while self._cached_bytes > _CACHED_BYTES and len(self._cached) > 1:
                _, oldest = self._cached.popitem(last=False)
                self._cached_bytes -= len(oldest.manifest.digests)
            return blob

    def forget(self, cid: bytes) -> None:
        """Its row is deleted or changed."""
        with self._guard:
            if (blob := self._cached.pop(cid, None)) is not None:
                self._cached_bytes -= len(blob.manifest.digests)

    def listed(self, cid: bytes) -> Listed | None:
        row = self._kv.get(HEAD + cid)
        return None if row is None else _listed(cid, row)

    def page(self, beyond: bytes | None, limit: int) -> list[Listed]:
        """In the order of their CIDs."""
        start = HEAD if beyond is None else HEAD + beyond + b"\0"
        rows = self._kv.iterate(start, after(HEAD))
        return [_listed(key[len(HEAD) :], row) for (key, row), _ in zip(rows, range(limit), strict=False)]

    def manifest(self, cid: bytes, size_bytes: int) -> Manifest | None:
        digests = self._kv.get(MANIFEST + cid)
        return None if digests is None else Manifest(size_bytes, digests)

    def rows_of(self, blobs: Iterable[Listed]) -> list[bytes]:
        manifests = ((each, self.manifest(each.cid, each.size_bytes)) for each in blobs)
        return [row for each, manifest in manifests for row in vanish(each.cid, each.kind, manifest)]

    def owners(self, block: bytes) -> Iterator[tuple[bytes, int | None]]:
        """Public blobs of which this CID names a block; with the index if it is a leaf."""
        prefix = BLOCK + block
        for key, row in self._kv.iterate(prefix, after(prefix)):
            yield key[len(prefix) :], int.from_bytes(row, "big") if row else None

    # Staged ones, leases, pins

    def staged(self) -> Iterator[tuple[bytes, Staged]]:
        for key, row in self._kv.iterate(STAGED, after(STAGED)):
            yield key[len(STAGED) :], decode(Staged, row, _ROW_BYTES)

    def leases(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Account, CID, row."""
        for key, row in self._kv.iterate(LEASE, after(LEASE)):
            yield key[len(LEASE) : -CID_BYTES], key[-CID_BYTES:], row

    def pins(self) -> Iterator[bytes]:
        for key, _ in self._kv.iterate(PIN, after(PIN)):
            yield key[len(PIN) :]


# What is written and deleted together


def begin(cid: bytes, manifest: Manifest, kind: BlobKind, account: bytes) -> Puts:
    return {
        STAGED + cid: encode(Staged(manifest.size_bytes, kind, account, False)),
        MANIFEST + cid: manifest.digests,
    }


def appear(blob: Blob) -> tuple[Puts, list[bytes]]:
    """From here on it is whole."""
    puts = {
        HEAD + blob.cid: encode(Head(blob.size_bytes, blob.kind, blob.account)),
        MANIFEST + blob.cid: blob.manifest.digests,
    }
    if blob.public:
        puts |= _blocks(blob.cid, blob.manifest)
    return puts, [STAGED + blob.cid]


def lose(cid: bytes, size_bytes: int, kind: BlobKind, account: bytes) -> tuple[Puts, list[bytes]]:
    """It is staged from here on, and wanted back."""
    return {STAGED + cid: encode(Staged(size_bytes, kind, account, True))}, [HEAD + cid]


def vanish(cid: bytes, kind: BlobKind, manifest: Manifest | None) -> list[bytes]:
    rows = [HEAD + cid, STAGED + cid, MANIFEST + cid]
    if kind in PUBLIC_KINDS and manifest is not None:
        rows += _blocks(cid, manifest)
    return rows


def _blocks(cid: bytes, manifest: Manifest) -> Puts:
    """A blob of one leaf is a block by its own name, and so is every root; they need no rows."""
    rows: Puts = {}
    if manifest.count > 1:
        for index in range(manifest.count):
            rows.setdefault(BLOCK + leaf_cid(manifest.leaf(index)) + cid, index.to_bytes(4, "big"))
        rows |= {BLOCK + block + cid: b"" for block, _ in inner_blocks(manifest) if block != cid}
    return rows


def _listed(cid: bytes, row: bytes) -> Listed:
    head = decode(Head, row, _ROW_BYTES)
    return Listed(cid, head.size_bytes, BlobKind(head.kind), head.account)
