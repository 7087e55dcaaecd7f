"""Files of deleted blobs that are kept to be written again.

A new file's pages are memory that nobody had. On a virtual machine the host has often taken such memory back and must
supply it first, which costs ten times what writing costs; the pages of a file that was here a moment ago are at hand.

    blobs/blank-<n>.part    what it holds is nobody's

The way from one blob to another, safe wherever the power fails:

    1. the blob's row is deleted with sync: the store has done it before it retires the file
    2. the file gets a blank's name, so that nobody opens it as that blob any more
    3. the name is made durable. A crash could else leave the file in its old place as well as in its next one
    4. it is cut to the next blob's size, gets its name as a staged file, and is written over

A file that somebody still reads or has mapped does not become a blank. What a staged file holds counts for nothing
until its leaves were put or hashed, so old bytes in it do no harm; and a start, which knows no blanks, removes them.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from contextlib import suppress

from chain.unixfs import LEAF_BYTES
from node.ports import Disk, DiskFailure, NoSuchFile

DIRECTORY = "blobs/"
PART = ".part"

_Blank = tuple[int, int]
"""Its size and its number."""


class Blanks:
    """For any thread, but for `settle`."""

    def __init__(self, disk: Disk, most_bytes: int) -> None:
        self._disk = disk
        self._most_bytes = most_bytes
        self._guard = threading.Lock()
        self._count = 0
        self._unsettled: list[_Blank] = []
        self._settled: list[_Blank] = []
        """The smallest first, of equal ones the oldest."""
        self._stuck: list[str] = []
        """Could not be removed; the next `settle` tries again, or the next start."""
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def retire(self, name: str, size_bytes: int) -> bool:
        """Whether the file is gone from this name, for nothing that is durable speaks of it any more. Small ones, and
        those that there is no place for, are for the caller to remove."""
        with self._guard:
            if size_bytes < LEAF_BYTES or self._size_bytes + size_bytes > self._most_bytes:
                return False
            self._count += 1
            blank = (size_bytes, self._count)
            try:
                if self._disk.in_use(name):
                    return False
                self._disk.rename(name, _name(blank))
            except DiskFailure:
                return False
            self._size_bytes += size_bytes
            if self._disk.in_use(_name(blank)):
                # Somebody has opened it in the last moment.
                self._remove(blank)
            else:
                self._unsettled.append(blank)
            return True

    async def settle(self) -> None:
        """What was retired may be taken from here on."""
        with self._guard:
            unsettled, stuck = list(self._unsettled), self._stuck
            self._stuck = []
            for name in stuck:
                self._unlink(name)
        for blank in unsettled:
            durable = False
            with suppress(DiskFailure):
                await self._disk.sync(_name(blank))
                durable = True
            with self._guard:
                if blank not in self._unsettled:
                    # Given back meanwhile.
                    continue
                self._unsettled.remove(blank)
                if durable:
                    insort(self._settled, blank)
                else:
                    self._remove(blank)

    def take(self, name: str, size_bytes: int) -> None:
        """A blank, if there is one, becomes the file of this name: it holds anything, and no more than the size. Of
        those that fit alike it is the newest, whose pages are the likeliest to be in memory."""
        if size_bytes < LEAF_BYTES:
            return
        with self._guard:
            if not self._settled:
                return
            fits = min(bisect_left(self._settled, (size_bytes, 0)), len(self._settled) - 1)
            of_one_size = bisect_right(self._settled, (self._settled[fits][0], self._count))
            blank = self._settled.pop(of_one_size - 1)
            try:
                if blank[0] > size_bytes:
                    self._disk.truncate(_name(blank), size_bytes)
                self._disk.rename(_name(blank), name)
            except DiskFailure:
                self._remove(blank)
            else:
                self._size_bytes -= blank[0]

    def give_back(self, size_bytes: int) -> int:
        """Frees at least so much, if there is so much; says how much it was."""
        given = 0
        with self._guard:
            while given < size_bytes and (blanks := self._settled or self._unsettled):
                blank = blanks.pop()
                self._remove(blank)
                given += blank[0]
        return given

    def _remove(self, blank: _Blank) -> None:
        self._size_bytes -= blank[0]
        self._unlink(_name(blank))

    def _unlink(self, name: str) -> None:
        try:
            self._disk.unlink(name)
        except NoSuchFile:
            pass
        except DiskFailure:
            self._stuck.append(name)


def _name(blank: _Blank) -> str:
    return f"{DIRECTORY}blank-{blank[1]}{PART}"
