"""Blobs that are made here: their CID is known only once the last byte is written."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from chain.unixfs import Hasher, Manifest, manifest_cid
from fl.blobs import BlobKind
from node.data.errors import room
from node.data.staging import Reserve
from node.ports import Buffer, Disk, PortError

PIECE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Draft:
    """A file with all its bytes, not yet durable and not yet named by its CID."""

    name: str
    cid: bytes
    manifest: Manifest
    kind: BlobKind
    account: bytes

    @property
    def size_bytes(self) -> int:
        return self.manifest.size_bytes


def write_draft(
    disk: Disk, reserve: Reserve, name: str, kind: BlobKind, chunks: Iterable[Buffer], account: bytes
) -> Draft:
    """Hashes and writes in one pass. If the chunks raise, or there is no room, no file is left."""
    hasher = Hasher()
    try:
        with room():
            disk.write_at(name, 0, b"")
            for chunk in chunks:
                for piece in _pieces(chunk):
                    reserve.check(len(piece))
                    disk.write_at(name, hasher.size_bytes, piece)
                    hasher.update(piece)
        manifest = hasher.finish()
        return Draft(name, manifest_cid(manifest), manifest, kind, account)
    except Exception:
        with suppress(PortError):
            disk.unlink(name)
        raise


def _pieces(chunk: Buffer) -> Iterable[memoryview]:
    view = memoryview(chunk)
    if view.nbytes:
        view = view.cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
