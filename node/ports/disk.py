"""Files below one directory: appends go to the page cache at once, and become durable in threads of their
own.

Threads of their own, because a sync that waits behind a kernel or a LevelDB compaction would hold back votes.
A file whose sync failed is failed for good, and so is a directory: Linux reports a lost page once and then
forgets it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import ReferenceType, ref

from node.ports import TEMPORARY, AlreadyLocked, Buffer, DiskFailure, DiskFull, NoSuchFile, check_name
from node.ports.threads import Threads

_OPEN_FILES = 64
"""Descriptors kept open; beyond, the one used longest ago is closed unless it waits for a sync."""

_UNSYNCED_FILES = 256
"""Of these, that wait for a sync while others are written in bulk; whoever writes to one more syncs an old one."""

_SYNC_THREADS = 4
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True)
class _Open:
    descriptor: int
    size: int
    above: tuple[str, ...]
    """The directories on the way to it."""
    unsynced: bool
    in_use: int = 0
    """Syncs and writes under way in other threads."""
    orphan: bool = False
    """Unlinked or replaced while in use: closed when that ends."""


def _failure(error: OSError, what: str) -> DiskFailure:
    if error.errno in _FULL:
        return DiskFull(f"{what}: no space left on the device; free some and restart")
    return DiskFailure(f"{what}: {error.strerror or error}")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


class FileDisk:
    """What is known of files is guarded, for bytes in bulk are written and viewed from any thread; the writing itself
    is not, so that a large file's pieces are written side by side."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard = threading.RLock()
        absent = [each for each in (root, *root.parents) if not each.exists()]
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in absent:
            _sync_directory(each.parent)
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._changed: dict[str, int] = {}
        self._settled: dict[str, int] = {}
        """How often this process changed the entries of a directory, and which of these changes are
        durable. A directory that is not named here may hold entries that a killed process created and
        never synced: it counts as changed."""
        self._failed: dict[str, DiskFailure] = {}
        """Files and directories (these with a slash at the end) whose sync failed."""
        self._writing: set[str] = set()
        self._maps: dict[str, list[ReferenceType[mmap.mmap]]] = {}
        """Of files that were viewed."""
        self._locks: dict[str, int] = {}
        self._threads = Threads(_SYNC_THREADS, "disk")

    def append(self, name: str, *pieces: bytes) -> None:
        size_bytes = sum(map(len, pieces))
        with self._guard:
            self._check(name)
            file = self._file(name, create=True)
            file.unsynced = True
            written = 0
            try:
                written = os.pwritev(file.descriptor, pieces, file.size)
                while written < size_bytes:
                    rest = memoryview(b"".join(pieces))[written:]
                    written += os.pwritev(file.descriptor, (rest,), file.size + written)
            except OSError as error:
                failure = _failure(error, f"cannot append to {name}")
                try:
                    if written:
                        os.ftruncate(file.descriptor, file.size)
                except OSError as worse:
                    failure = _failure(worse, f"cannot take back a part of a write to {name}")
                    self._failed[name] = failure
                raise failure from error
            file.size += written

    def write_at(self, name: str, offset: int, data: Buffer) -> None:
        self._sync_one(keep=name)
        with self._guard:
            self._check(name)
            file = self._file(name, create=True)
            file.unsynced = True
            file.in_use += 1
        view = memoryview(data).cast("B")
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(file.descriptor, view[written:], offset + written)
        except OSError as error:
            raise _failure(error, f"cannot write to {name}") from error
        finally:
            with self._guard:
                # A sync that began meanwhile did not see all of it.
                file.unsynced = True
                if written:
                    file.size = max(file.size, offset + written)
                self._let_go(file)

    def view(self, name: str) -> memoryview:
        with self._guard:
            file = self._file(name)
            if not file.size:
                return memoryview(b"")
            try:
                mapped = mmap.mmap(file.descriptor, file.size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DiskFailure(f"cannot map {name}: {error}") from error
            self._maps[name] = [*self._mapped(name), ref(mapped)]
            return memoryview(mapped)

    def in_use(self, name: str) -> bool:
        with self._guard:
            return bool(self._file(name).in_use or self._mapped(name))

    def _mapped(self, name: str) -> list[ReferenceType[mmap.mmap]]:
        """A map lasts for as long as any part of its view does."""
        return [each for each in self._maps.get(name, ()) if each() is not None]

    async def sync(self, *names: str) -> None:
        begun: list[tuple[str, _Open, dict[str, int]]] = []

        def over(failed: bool) -> None:
            with self._guard:
                for _, file, directories in begun:
                    file.unsynced |= failed
                    self._let_go(file)
                    if not failed:
                        self._settle(directories)

        with self._guard:
            try:
                for name in names:
                    self._check(name)
                    file = self._file(name)
                    file.unsynced = False
                    file.in_use += 1
                    begun.append((name, file, self._unsettled(file.above)))
            except DiskFailure:
                over(True)
                raise
        await self._threads.run(partial(self._sync_now, begun), over)

    async def write_whole(self, name: str, data: bytes) -> None:
        with self._guard:
            self._check(name)
            if name in self._writing:
                raise ValueError(f"{name} is being written already")
            self._make_parent(name)
            self._forget(name)
            self._touch(_parent(name))
            directories = self._unsettled(self._above(name))
            self._writing.add(name)

        def over(failed: bool) -> None:
            with self._guard:
                self._writing.discard(name)
                self._forget(name)
                if not failed:
                    self._settle(directories)

        await self._threads.run(partial(self._write_now, name, data, tuple(directories)), over)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        with self._guard:
            file = self._file(name)
            file.in_use += 1
        size = max(0, file.size - offset) if size is None else size
        pieces: list[bytes] = []
        try:
            while size > 0 and (piece := os.pread(file.descriptor, size, offset)):
                pieces.append(piece)
                offset += len(piece)
                size -= len(piece)
        except OSError as error:
            raise _failure(error, f"cannot read {name}") from error
        finally:
            with self._guard:
                self._let_go(file)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def size(self, name: str) -> int | None:
        with self._guard:
            try:
                return self._file(name).size
            except NoSuchFile:
                return None

    def truncate(self, name: str, size: int) -> None:
        with self._guard:
            self._check(name)
            file = self._file(name)
            if size > file.size:
                raise ValueError(f"{name} has {file.size} bytes; it cannot be cut to {size}")
            file.unsynced = True
            try:
                os.ftruncate(file.descriptor, size)
            except OSError as error:
                raise _failure(error, f"cannot truncate {name}") from error
            file.size = size

    def rename(self, old: str, new: str) -> None:
        check_name(new)
        if _parent(old) != _parent(new):
            raise ValueError(f"{old} and {new} are in different directories")
        with self._guard:
            self._check(old)
            file = self._file(old)
            try:
                os.rename(self._path(old), self._path(new))
            except OSError as error:
                raise _failure(error, f"cannot rename {old} to {new}") from error
            self._forget(new)
            self._failed.pop(new, None)
            self._open[new] = self._open.pop(old)
            if maps := self._maps.pop(old, None):
                self._maps[new] = maps
            file.unsynced = True
            self._touch(_parent(new))

    def unlink(self, name: str) -> None:
        check_name(name)
        with self._guard:
            try:
                os.unlink(self._path(name))
            except FileNotFoundError as error:
                raise NoSuchFile(f"there is no file {name}") from error
            except OSError as error:
                raise _failure(error, f"cannot remove {name}") from error
            self._forget(name)
            self._failed.pop(name, None)
            self._touch(_parent(name))

    def list(self, prefix: str = "") -> list[str]:
        parent, slash, _ = prefix.rpartition("/")
        names: list[str] = []
        try:
            with os.scandir(self._path(parent)) as entries:
                for entry in entries:
                    name = parent + slash + entry.name
                    if entry.is_dir() and not parent:
                        names += self.list(f"{name}/") if name.startswith(prefix) else []
                    elif name.startswith(prefix) and not name.endswith(TEMPORARY):
                        names.append(name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure(error, f"cannot list {parent or self._root}") from error
        return sorted(names)

    def free_bytes(self) -> int:
        try:
            numbers = os.statvfs(self._root)
        except OSError as error:
            raise _failure(error, f"cannot look at {self._root}") from error
        return numbers.f_bavail * numbers.f_frsize

    def lock(self, name: str) -> None:
        check_name(name)
        descriptor = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise AlreadyLocked(
                f"another process works in {self._root} (it holds the lock file {name}); stop it first"
            ) from error
        self._locks[name] = descriptor

    def close(self) -> None:
        self._threads.close()
        for file in self._open.values():
            os.close(file.descriptor)
        self._open.clear()
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()

    def _path(self, name: str) -> Path:
        return self._root / name

    def _check(self, name: str) -> None:
        if name not in self._open:
            check_name(name)
        if not self._failed:
            return
        for failed in (name, *(f"{directory}/" for directory in self._above(name))):
            if failed in self._failed:
                raise DiskFailure(f"{name} failed before: {self._failed[failed]}; restart after mending the disk")

    @staticmethod
    def _above(name: str) -> tuple[str, ...]:
        parent = _parent(name)
        return (parent, "") if parent else ("",)

    def _touch(self, directory: str) -> None:
        self._changed[directory] = self._changed.get(directory, 0) + 1

    def _unsettled(self, above: tuple[str, ...]) -> dict[str, int]:
        """Those of the directories above a file that a sync must include, each with its newest change."""
        found: dict[str, int] = {}
        for directory in above:
            change = self._changed.get(directory, 0)
            if self._settled.get(directory, -1) < change:
                found[directory] = change
        return found

    def _settle(self, directories: Mapping[str, int]) -> None:
        for directory, change in directories.items():
            self._settled[directory] = max(change, self._settled.get(directory, -1))

    def _make_parent(self, name: str) -> None:
        parent = _parent(name)
        if not parent or self._path(parent).is_dir():
            return
        try:
            self._path(parent).mkdir(mode=0o700)
        except OSError as error:
            raise _failure(error, f"cannot create the directory {parent}") from error
        self._touch("")

    def _file(self, name: str, create: bool = False) -> _Open:
        file = self._open.get(name)
        if file is not None:
            self._open.move_to_end(name)
            return file
        check_name(name)
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            try:
                descriptor = os.open(self._path(name), flags)
            except FileNotFoundError:
                if not create:
                    raise
                self._make_parent(name)
                descriptor = os.open(self._path(name), flags | os.O_CREAT | os.O_EXCL, 0o600)
                self._touch(_parent(name))
        except FileNotFoundError as error:
            raise NoSuchFile(f"there is no file {name}") from error
        except OSError as error:
            raise _failure(error, f"cannot open {name}") from error
        file = self._open[name] = _Open(descriptor, os.fstat(descriptor).st_size, self._above(name), unsynced=create)
        if len(self._open) > _OPEN_FILES:
            self._close_one(keep=name)
        return file

    def _close_one(self, keep: str) -> None:
        for name, file in self._open.items():
            if name != keep and not file.unsynced and not file.in_use:
                os.close(file.descriptor)
                del self._open[name]
                return

    def _sync_one(self, keep: str) -> None:
        """Closing an unsynced file could lose the news that its bytes were lost, so with too many of them open the one
        used longest ago is synced, and closed."""
        with self._guard:
            if len(self._open) < _UNSYNCED_FILES:
                return
            idle = (each for each in self._open if not self._open[each].in_use and each not in self._failed)
            name = next((each for each in idle if each != keep), None)
            if name is None:
                return
            file = self._open[name]
            file.unsynced = False
            file.in_use += 1
        failure: DiskFailure | None = None
        try:
            os.fdatasync(file.descriptor)
        except OSError as error:
            failure = _failure(error, f"cannot sync {name}")
        with self._guard:
            self._let_go(file)
            # It may have another name by now, under which its failure must be known.
            name = next((each for each, one in self._open.items() if one is file), None)
            if name is None:
                return
            if failure is not None:
                file.unsynced = True
                self._failed[name] = failure
            elif not file.unsynced and not file.in_use:
                os.close(file.descriptor)
                del self._open[name]

    def _forget(self, name: str) -> None:
        self._maps.pop(name, None)
        file = self._open.pop(name, None)
        if file is None:
            return
        if file.in_use:
            file.orphan = True
        else:
            os.close(file.descriptor)

    @staticmethod
    def _let_go(file: _Open) -> None:
        file.in_use -= 1
        if file.orphan and not file.in_use:
            os.close(file.descriptor)

    def _sync_now(self, begun: Iterable[tuple[str, _Open, Iterable[str]]]) -> None:
        for name, file, directories in begun:
            try:
                os.fdatasync(file.descriptor)
            except OSError as error:
                self._failed[name] = _failure(error, f"cannot sync {name}")
                raise self._failed[name] from error
            self._sync_directories(directories)

    def _sync_directories(self, directories: Iterable[str]) -> None:
        for directory in directories:
            try:
                _sync_directory(self._path(directory))
            except OSError as error:
                failure = _failure(error, f"cannot sync the directory {directory or self._root}")
                self._failed[f"{directory}/"] = failure
                raise failure from error

    def _write_now(self, name: str, data: bytes, directories: Iterable[str]) -> None:
        path = self._path(name)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            with open(temporary, "wb", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _failure(error, f"cannot write {name}") from error
        self._sync_directories(directories)
