"""A blob on this machine's disk: read leaf by leaf to be sent, or written leaf by leaf as it comes.

Nothing here holds more than a leaf of a file at a time. Every leaf that is written is compared with the manifest, and a
half that is left from before is taken up again for as much of it as is right. A leaf that is read is compared by the
node that gets it; when one is refused there, it is looked at here, for somebody may have changed the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from chain.unixfs import LEAF_BYTES, Buffer, Hasher, Manifest, leaf_range, manifest_cid
from fl.client.errors import BadFile
from fl.client.keyfile import sync_directory

Told = Callable[[int, int], None]
"""Hears how many bytes of how many are done."""


def untold(done: int, total: int) -> None:
    pass


class Source:
    """The bytes of a file or of a buffer, by leaves. Its methods may be called from several threads at once."""

    def __init__(self, origin: Path | Buffer) -> None:
        self._origin = origin
        self._descriptor: int | None = None
        self._view = memoryview(b"")
        if not isinstance(origin, Path):
            self._view = memoryview(origin).cast("B")
            self.size_bytes = len(self._view)
            return
        try:
            self._descriptor = os.open(origin, os.O_RDONLY | os.O_CLOEXEC)
            self.size_bytes = os.fstat(self._descriptor).st_size
            os.pread(self._descriptor, 1, 0)
        except OSError as error:
            self.close()
            if error.errno == errno.ESPIPE:
                raise BadFile(
                    "NOT_A_FILE", f"{origin} can be read only once.", "Write what comes out of it to a file first."
                ) from error
            raise _unreadable(origin, error) from error

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def manifest(self, told: Told = untold) -> Manifest:
        """In one pass over all bytes."""
        hasher, room = Hasher(), self._room()
        for start in range(0, self.size_bytes, LEAF_BYTES):
            hasher.update(self._part(start, min(start + LEAF_BYTES, self.size_bytes), room))
            told(hasher.size_bytes, self.size_bytes)
        return hasher.finish()

    def leaf(self, manifest: Manifest, index: int, room: bytearray) -> Buffer:
        """A file's is read into the room, which has place for a leaf."""
        return self._part(*leaf_range(manifest.size_bytes, index), room)

    def check_leaf(self, manifest: Manifest, index: int, part: Buffer) -> None:
        """Raises BadFile when what was read is not what the manifest says."""
        if sha256(part).digest() != manifest.leaf(index):
            raise BadFile("FILE_CHANGED", f"{self._name()} was changed while it was sent.", "Put it again.")

    def _room(self) -> bytearray:
        return bytearray(0 if self._descriptor is None else min(self.size_bytes, LEAF_BYTES))

    def _part(self, start: int, stop: int, room: bytearray) -> Buffer:
        if self._descriptor is None:
            return self._view[start:stop]
        part, at = memoryview(room)[: stop - start], 0
        while at < len(part):
            try:
                taken = os.preadv(self._descriptor, [part[at:]], start + at)
            except OSError as error:
                raise _unreadable(self._name(), error) from error
            if taken == 0:
                raise BadFile("FILE_CHANGED", f"{self._name()} became shorter while it was read.", "Try again.")
            at += taken
        return part

    def _name(self) -> object:
        return self._origin if isinstance(self._origin, Path) else "the buffer"


class Partial:
    """A file that is being received beside the place where it belongs, from `open` to `finish` or `close`.

    Whatever a broken transfer has left there is kept, as far as its leaves are right. Two processes may receive one
    blob in one place: both write the same bytes.
    """

    def __init__(self, path: Path, cid: bytes, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._beside = path.with_name(f".{path.name}.{cid[-8:].hex()}.part")
        self._descriptor = -1
        self._writing = threading.Lock()
        """A thread that is left over from a cancelled transfer must not write to what its descriptor has become."""
        self.missing: set[int] = set()

    def open(self, told: Told = untold) -> None:
        try:
            self._descriptor = os.open(self._beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            before = os.fstat(self._descriptor).st_size
            os.ftruncate(self._descriptor, self.manifest.size_bytes)
            self.missing = set(wrong_leaves(self._descriptor, self.manifest, before, told))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def put(self, index: int, data: Buffer) -> bool:
        """False if these are not the leaf's bytes, or nobody waits for them any more. From any thread."""
        start, stop = leaf_range(self.manifest.size_bytes, index)
        if len(data) != stop - start or sha256(data).digest() != self.manifest.leaf(index):
            return False
        view, at = memoryview(data), 0
        with self._writing:
            if self._descriptor == -1:
                return False
            try:
                while at < len(view):
                    at += os.pwrite(self._descriptor, view[at:], start + at)
            except OSError as error:
                raise _unwritable(self.path, error) from error
        return True

    def finish(self) -> None:
        """All leaves are there: durable, and in its place, when this returns."""
        assert not self.missing, "a file is finished with its last leaf"
        try:
            os.fsync(self._descriptor)
            try:
                os.replace(self._beside, self.path)
            except FileNotFoundError:
                if not self.path.exists():
                    raise
            sync_directory(self.path.parent)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        with self._writing:
            if self._descriptor != -1:
                os.close(self._descriptor)
                self._descriptor = -1


def wrong_leaves(descriptor: int, manifest: Manifest, written_bytes: int, told: Told = untold) -> Iterable[int]:
    """Which leaves of an open file, of which only so many bytes were ever written, are not those of the manifest."""
    total = manifest.size_bytes
    if not written_bytes:
        told = untold
    buffer = memoryview(bytearray(min(LEAF_BYTES, total)))
    for index in range(manifest.count):
        start, stop = leaf_range(total, index)
        part = buffer[: stop - start]
        there = start < written_bytes or start == stop
        right = there and os.preadv(descriptor, [part], start) == len(part)
        if not (right and sha256(part).digest() == manifest.leaf(index)):
            yield index
        told(stop, total)


def manifest_of_file(path: Path, told: Told = untold) -> Manifest:
    with Source(path) as source:
        return source.manifest(told)


def is_file(path: Path, cid: bytes, size_bytes: int) -> bool:
    """Whether there is a file here that is this blob, every byte of it."""
    try:
        if path.stat().st_size != size_bytes:
            return False
    except OSError:
        return False
    return manifest_cid(manifest_of_file(path)) == cid


def mapped(path: Path, *, own: bool = False) -> memoryview:
    """A whole file, not copied: its pages belong to the system's cache. Read-only; or one's `own`, where a page that is
    written to is copied then, and the file stays as it is."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if own else mmap.ACCESS_READ))
    except OSError as error:
        raise _unreadable(path, error) from error


def origin_of(given: str | os.PathLike[str] | Buffer) -> Path | Buffer:
    """What a caller names: a path, or the bytes themselves."""
    return given if isinstance(given, bytes | bytearray | memoryview) else Path(given)


def _unreadable(path: object, error: OSError) -> BadFile:
    return BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path and its rights.")


def _unwritable(path: Path, error: OSError) -> BadFile:
    return BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Make room, or name another file.")
