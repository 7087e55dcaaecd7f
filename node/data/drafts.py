"""Blobs that are made here: their CID is known only once the last byte is written."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from chain.unixfs import Hasher, Manifest, manifest_cid
from fl.blobs import BlobKind
from node.data.blanks import DIRECTORY, PART
from node.data.errors import room
from node.data.staging import Reserve
from node.ports import Buffer, Clock, Disk, NoSuchFile, PortError

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


class Drafts:
    """Writes them, and knows those that are neither kept nor dropped yet."""

    def __init__(self, disk: Disk, clock: Clock, reserve: Reserve) -> None:
        self._disk = disk
        self._clock = clock
        self._reserve = reserve
        self._guard = threading.Lock()
        self._count = 0
        self._finished: dict[str, int] = {}
        """By file name, when; those too that failed and could not be removed."""

    def write(
        self,
        kind: BlobKind,
        chunks: Iterable[Buffer],
        account: bytes,
        *,
        expected_bytes: int = 0,
        from_reserve: bool = False,
    ) -> Draft:
        """Hashes and writes in one pass. If the chunks raise, or there is no room, no file is left."""
        with self._guard:
            self._count += 1
            name = f"{DIRECTORY}draft-{self._count}{PART}"
        hasher = Hasher()
        try:
            self._reserve.blanks.take(name, expected_bytes)
            with room():
                self._disk.write_at(name, 0, b"")
            for chunk in chunks:
                for piece in _pieces(chunk):
                    if not from_reserve:
                        self._reserve.check(len(piece))
                    with room():
                        self._disk.write_at(name, hasher.size_bytes, piece)
                    hasher.update(piece)
            manifest = hasher.finish()
            if (self._disk.size(name) or 0) > manifest.size_bytes:
                self._disk.truncate(name, manifest.size_bytes)
            draft = Draft(name, manifest_cid(manifest), manifest, kind, account)
        except Exception:
            try:
                self._disk.unlink(name)
            except NoSuchFile:
                pass
            except PortError:
                self._finish(name)
            raise
        self._finish(name)
        return draft

    def _finish(self, name: str) -> None:
        with self._guard:
            self._finished[name] = self._clock.now().mono_ms

    def take(self, name: str) -> bool:
        """False if it was taken before."""
        with self._guard:
            return self._finished.pop(name, None) is not None

    def idle(self, idle_ms: int) -> list[str]:
        """Those that nobody has taken for so long."""
        now_ms = self._clock.now().mono_ms
        with self._guard:
            return [name for name, finished_ms in self._finished.items() if now_ms - finished_ms >= idle_ms]


def _pieces(chunk: Buffer) -> Iterable[memoryview]:
    view = memoryview(chunk)
    if view.nbytes:
        view = view.cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
