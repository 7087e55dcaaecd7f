"""Inline updates that wait for the end of their round, one after another in a file: bytes in hand are bounded, and the
file's are the system's to keep in memory as long as there is room.

Nothing of it is durable. After a restart the core says all updates again, and files that no row knows are removed.
"""

from __future__ import annotations

from contextlib import suppress

from node.data.blanks import DIRECTORY, PART
from node.data.errors import room
from node.data.staging import Reserve
from node.ports import Buffer, Disk, DiskFailure


class Pile:
    def __init__(self, disk: Disk, reserve: Reserve, number: int) -> None:
        self._disk = disk
        self._reserve = reserve
        self._name = f"{DIRECTORY}pile-{number}{PART}"
        self._size_bytes = 0

    def put(self, payloads: Buffer) -> int:
        """Where they begin. Raises NoSpace."""
        start = self._size_bytes
        self._reserve.check(len(payloads))
        with room():
            self._disk.write_at(self._name, start, payloads)
        self._size_bytes += len(payloads)
        return start

    def view(self) -> memoryview:
        """All of it, once nothing more is put there. It stays after the file is gone."""
        return self._disk.view(self._name) if self._size_bytes else memoryview(b"")

    def drop(self) -> None:
        # One that stays is removed at the next start.
        with suppress(DiskFailure):
            self._disk.unlink(self._name)
