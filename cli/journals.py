"""Journals of stopped nodes, read and left exactly as they are."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fl.client.errors import BadInput
from node.node import JOURNAL, LOCK
from node.ports import AlreadyLocked, Buffer, DiskFailure, NoSuchFile
from node.records import read_journal_entry
from node.segments import SegmentedLog


def journal_records(place: Path) -> Iterator[object]:
    """The records of the journal in a data directory, or of the journal's own directory. Raises PortError."""
    root = place.parent if place.name == JOURNAL else place
    if not (root / JOURNAL).is_dir():
        raise BadInput("NO_JOURNAL", f"There is no {JOURNAL} in {root}.", "Name a node's data directory.")
    disk = ReadOnlyDisk(root)
    try:
        disk.lock(LOCK)
        journal = asyncio.run(SegmentedLog.open(disk, JOURNAL))
        for _, kind, payload, _ in journal.replay(journal.first):
            yield read_journal_entry(kind, payload)
    finally:
        disk.close()


class ReadOnlyDisk:
    """Opening a log takes off its torn tail. Here that is remembered and not done: evidence must not be altered."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cut: dict[str, int] = {}
        self._gone: set[str] = set()
        self._lock: int | None = None

    def append(self, name: str, *pieces: bytes) -> None:
        raise DiskFailure(f"{name} is only to be read")

    async def sync(self, *names: str) -> None:
        """Nothing was changed."""

    async def write_whole(self, name: str, data: bytes) -> None:
        raise DiskFailure(f"{name} is only to be read")

    def write_at(self, name: str, offset: int, data: Buffer) -> None:
        raise DiskFailure(f"{name} is only to be read")

    def view(self, name: str) -> memoryview:
        return memoryview(self.read(name))

    def in_use(self, name: str) -> bool:
        return True

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        end = self.size(name)
        if end is None:
            raise NoSuchFile(f"there is no file {name}")
        wanted = end - offset if size is None else min(size, end - offset)
        try:
            with open(self._root / name, "rb") as file:
                file.seek(offset)
                return file.read(max(0, wanted))
        except OSError as error:
            raise DiskFailure(f"cannot read {name}: {error.strerror}") from error

    def size(self, name: str) -> int | None:
        if name in self._gone:
            return None
        try:
            real = (self._root / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskFailure(f"cannot look at {name}: {error.strerror}") from error
        return min(real, self._cut.get(name, real))

    def truncate(self, name: str, size: int) -> None:
        self._cut[name] = size

    def rename(self, old: str, new: str) -> None:
        raise DiskFailure(f"{old} is only to be read")

    def unlink(self, name: str) -> None:
        self._gone.add(name)

    def list(self, prefix: str = "") -> list[str]:
        directory = prefix.rpartition("/")[0]
        try:
            names = [f"{directory}/{entry.name}" for entry in (self._root / directory).iterdir() if entry.is_file()]
        except OSError as error:
            raise DiskFailure(f"cannot list {directory}: {error.strerror}") from error
        return sorted(name for name in names if name.startswith(prefix) and name not in self._gone)

    def free_bytes(self) -> int:
        return 0

    def lock(self, name: str) -> None:
        """Raises AlreadyLocked while the node runs. A copy need not have the file."""
        try:
            self._lock = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyLocked(f"a node works in {self._root}; stop it first, or scan a copy") from error

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
