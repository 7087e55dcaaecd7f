"""Blobs: content-addressed files of one leaf each, durable before anything names them."""

from __future__ import annotations

from chain.cid import cid_text, raw_cid
from node.ports import Disk, NoSuchFile

DIRECTORY = "blobs"


class Blobs:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._size_bytes: int | None = None

    @staticmethod
    def _name(cid: bytes) -> str:
        return f"{DIRECTORY}/{cid_text(cid)}"

    def has(self, cid: bytes) -> bool:
        return self._disk.size(self._name(cid)) is not None

    async def put(self, cid: bytes, data: bytes) -> None:
        """Returns once the blob is durable. The same bytes twice are written once."""
        if not self.has(cid):
            await self._disk.write_whole(self._name(cid), data)
            if self._size_bytes is not None:
                self._size_bytes += len(data)

    @property
    def size_bytes(self) -> int:
        """Of all blobs here. Asked for the first time, it looks at each of them."""
        if self._size_bytes is None:
            names = self._disk.list(f"{DIRECTORY}/")
            self._size_bytes = sum(self._disk.size(name) or 0 for name in names)
        return self._size_bytes

    def get(self, cid: bytes) -> bytes | None:
        """None if it is not here, or no longer what it was."""
        try:
            data = self._disk.read(self._name(cid))
        except NoSuchFile:
            return None
        return data if raw_cid(data) == cid else None
