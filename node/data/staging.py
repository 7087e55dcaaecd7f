"""A blob on its way: its manifest, and those of its leaves that are here.

Leaves come in any order, from several receiving threads at once, while the event loop reads which are missing and
peers ask for those that are here. Each is hashed before it is written and counts once it is written; a restart
forgets which were, so they are hashed again when somebody resumes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Set
from hashlib import sha256

from chain.cid import cid_text
from chain.unixfs import Manifest, leaf_range
from fl.blobs import BlobKind
from node.data.blanks import DIRECTORY, PART, Blanks
from node.data.errors import Discarded, NoSpace, room
from node.ports import Buffer, Clock, Disk, NoSuchFile, PortError


def whole_name(cid: bytes) -> str:
    return DIRECTORY + cid_text(cid)


def part_name(cid: bytes) -> str:
    return whole_name(cid) + PART


class Reserve:
    """What must stay free on the disk, so that blobs never take the room that ordering needs. Blanks are given up
    before anything is refused."""

    def __init__(self, disk: Disk, reserve_bytes: int, blanks: Blanks) -> None:
        self.blanks = blanks
        self._disk = disk
        self._reserve_bytes = reserve_bytes

    @property
    def free_bytes(self) -> int:
        return self._disk.free_bytes()

    @property
    def used_up(self) -> bool:
        return self._spare_bytes(0) < 0

    def holds(self, size_bytes: int) -> bool:
        """Whether there is room for so much without giving up a blank."""
        return self._disk.free_bytes() - self._reserve_bytes >= size_bytes

    def check(self, size_bytes: int) -> None:
        spare = self._spare_bytes(size_bytes)
        if spare < size_bytes:
            raise NoSpace(
                f"{size_bytes} bytes more would leave less free on the disk than its reserve of "
                f"{self._reserve_bytes} ({spare} are to spare); free some or lower the reserve"
            )

    def _spare_bytes(self, wanted_bytes: int) -> int:
        spare = self._disk.free_bytes() - self._reserve_bytes
        if spare < wanted_bytes and self.blanks.give_back(wanted_bytes - spare):
            spare = self._disk.free_bytes() - self._reserve_bytes
        return spare


class Staging:
    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        reserve: Reserve,
        cid: bytes,
        manifest: Manifest,
        kind: BlobKind,
        account: bytes = b"",
    ) -> None:
        self.cid = cid
        self.manifest = manifest
        self.kind = kind
        self.account = account
        self.lost = False
        """It was whole once, and is wanted back."""
        self.begun = False
        """Whether it has a file."""
        self._disk = disk
        self._clock = clock
        self._reserve = reserve
        self._name = part_name(cid)
        self._has = bytearray(manifest.count)
        self._missing_bytes = manifest.size_bytes
        self._missing = manifest.count
        self._writing: set[int] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._used_ms = clock.now().mono_ms

    # Which leaves are here

    @property
    def size_bytes(self) -> int:
        return self.manifest.size_bytes

    @property
    def whole(self) -> bool:
        return self._missing == 0

    @property
    def empty(self) -> bool:
        return self._missing == self.manifest.count

    @property
    def missing_bytes(self) -> int:
        return self._missing_bytes

    @property
    def missing_count(self) -> int:
        return self._missing

    def has(self, index: int) -> bool:
        return 0 <= index < len(self._has) and bool(self._has[index])

    def missing(self) -> list[int]:
        return [index for index, here in enumerate(bytes(self._has)) if not here]

    def bitmap(self) -> bytes:
        """A bit a leaf, the first leaf in the lowest bit of the first byte."""
        bits = bytearray(-(-len(self._has) // 8))
        for index, here in enumerate(bytes(self._has)):
            bits[index >> 3] |= here << (index & 7)
        return bytes(bits)

    # Leaves coming and going

    def put(self, index: int, data: Buffer) -> bool:
        """False if these are not the bytes of that leaf. From any thread. Raises NoSpace, Discarded, DiskFailure."""
        if not 0 <= index < self.manifest.count:
            return False
        start, stop = leaf_range(self.manifest.size_bytes, index)
        if memoryview(data).nbytes != stop - start or sha256(data).digest() != self.manifest.leaf(index):
            return False
        with self._changed:
            # The same leaf twice at once is common at the end of a download: the second waits for the first, for a
            # write that came after the publishing would make a new file.
            self._changed.wait_for(lambda: index not in self._writing)
            self._used_ms = self._clock.now().mono_ms
            if self._has[index]:
                return True
            if self._closed:
                raise Discarded("this blob was thrown away meanwhile")
            if not self.begun:
                self.begun = True
                self._reserve.blanks.take(self._name, self.size_bytes)
            self._writing.add(index)
        done = False
        try:
            self._reserve.check(stop - start)
            with room():
                self._disk.write_at(self._name, start, data)
            done = True
        finally:
            with self._changed:
                if done:
                    self._here(index)
                self._writing.discard(index)
                self._changed.notify_all()
        return True

    def leaf(self, index: int) -> Buffer | None:
        """The bytes of a leaf that is here."""
        if not self.has(index):
            return None
        start, stop = leaf_range(self.manifest.size_bytes, index)
        name = self._name
        try:
            data = self._disk.read(name, start, stop - start)
        except NoSuchFile:
            return self.leaf(index) if name != self._name else None
        return data if len(data) == stop - start else None

    def check(self, indexes: Iterable[int]) -> list[int]:
        """Hashes what the file holds in these places, counts as here what is good, and says what is not."""
        bad = []
        for index in indexes:
            if self.has(index):
                continue
            if sound(self._disk, self._name, self.manifest, index):
                with self._changed:
                    # While it is being written again it is not counted: whole means that nobody writes any more.
                    if index not in self._writing:
                        self._here(index)
            else:
                bad.append(index)
        return bad

    def _here(self, index: int) -> None:
        if not self._has[index]:
            self._has[index] = 1
            self._missing -= 1
            start, stop = leaf_range(self.manifest.size_bytes, index)
            self._missing_bytes -= stop - start

    # For the store

    @property
    def name(self) -> str:
        return self._name

    @property
    def idle_ms(self) -> int:
        return self._clock.now().mono_ms - self._used_ms

    def touch(self) -> None:
        self._used_ms = self._clock.now().mono_ms

    def moved(self, name: str) -> None:
        """The file has another name from here on."""
        with self._changed:
            self._name = name

    def filled(self, name: str, but: Set[int] = frozenset()) -> None:
        """All its leaves but these are in the file of this name."""
        with self._changed:
            self._name = name
            self.begun = True
            for index in range(self.manifest.count):
                if index not in but:
                    self._here(index)

    def emptied(self) -> None:
        """Its file is gone, and it begins again."""
        with self._changed:
            self._name = part_name(self.cid)
            self.begun = False
            self._has = bytearray(self.manifest.count)
            self._missing = self.manifest.count
            self._missing_bytes = self.manifest.size_bytes
            self._closed = False

    def close(self) -> None:
        """Takes no more leaves; returns when those being written are."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._writing)


def sound(disk: Disk, name: str, manifest: Manifest, index: int) -> bool:
    """Does the file hold this leaf? Read and not mapped: a broken sector is an error here, and a fatal signal there."""
    start, stop = leaf_range(manifest.size_bytes, index)
    try:
        data = disk.read(name, start, stop - start)
    except PortError:
        return False
    return len(data) == stop - start and sha256(data).digest() == manifest.leaf(index)


def unsound(disk: Disk, cid: bytes, manifest: Manifest, indexes: Iterable[int]) -> list[int]:
    """Of a whole blob's leaves, those that are not what they were."""
    return [index for index in indexes if not sound(disk, whole_name(cid), manifest, index)]
