"""The one format of everything that is appended and must survive: numbered records in segment files, synced
in groups.

segment: magic 8 | version u32 | mark 4 | first number u64 | durable u64 | crc u32 record: mark 4 | length u32
| crc u32 | kind u8 | number u64 | durable u64 | payload (little endian)

The journal (own votes, certificates, bodies) and the log of batches are both of this form. Records are
numbered 1, 2, … through all segments. Each says up to which number the log was known to be durable when it
was written, and so does each new segment. This is what tells a crash from a broken disk. A crash may lose or
mangle any of the records that no sync had covered, and keep later ones; nothing that depends on any of them
has left the process. So, where the first bad record has number k:

- no intact record after it says that k was durable: everything from k on was written after the last sync that
returned. It is torn, and is cut off. - one says that k was durable: bytes were lost that others may depend
on. The log refuses to open and names file and offset.

The mark is four bytes drawn for each log. It lets the search for intact records behind a bad one run at the
speed of `bytes.find`, and nobody who does not know it can hide bytes in a payload that look like a record.

Since what was synced last is the most precious, a record without payload says so once nobody has asked for a
sync for a tenth of a second. Only damage that takes this receipt too is not seen here. Whoever keeps a number of this
log elsewhere (the state's rows do) compares it with `last` after opening.

Logs that belong together have one writer, and are synced in one go, in the order in which they joined.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

from chain.codec import U32, U64
from node.ports import Disk, DiskFailure, DiskFull, PortError

SEGMENT_BYTES = 32 * 1024 * 1024
RECORD_LIMIT_BYTES = 16 * 1024 * 1024

_MAGIC = b"quorate\x00"
_VERSION = 1
_SEGMENT = struct.Struct("<8sI4sQQI")
_RECORD = struct.Struct("<4sIIBQQ")
_CHECKED = struct.Struct("<IBQQ")
_MARK_BYTES = 4
IDLE_S = 0.1
"""Nobody asks for a sync for so long before a receipt is written: the records of a burst say it themselves."""
_RECEIPT = 255
"""A record without number and payload of its own that says what the last sync of a burst made durable."""


class CorruptLog(PortError):
    """Records that were durable are damaged. Restore the file, or let the validator rejoin with another
    journal."""

    code = "CORRUPT_LOG"


class LogMissing(PortError):
    """Starting never creates a log: a validator that lost its journal might vote against its own votes."""

    code = "LOG_MISSING"


class LogExists(PortError):
    code = "LOG_EXISTS"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a record's payload stands; stable as long as its segment is kept."""

    segment: U64
    offset: U64
    size_bytes: U32


@dataclass(frozen=True, slots=True)
class _Record:
    number: int
    kind: int
    durable: int
    start: int
    payload_at: int
    end: int

    @property
    def next_number(self) -> int:
        return self.number + (self.kind != _RECEIPT)


@dataclass(slots=True)
class _Segment:
    name: str
    index: int
    first: int
    size: int


def _checksum(size_bytes: int, kind: int, number: int, durable: int, *payload: bytes | memoryview) -> int:
    checksum = crc32(_CHECKED.pack(size_bytes, kind, number, durable))
    for piece in payload:
        checksum = crc32(piece, checksum)
    return checksum


def _record_at(data: bytes, offset: int, mark: bytes) -> _Record | None:
    """The record that begins there, if it is intact."""
    payload_at = offset + _RECORD.size
    if payload_at > len(data):
        return None
    found, size_bytes, checksum, kind, number, durable = _RECORD.unpack_from(data, offset)
    end = payload_at + size_bytes
    if found != mark or size_bytes > RECORD_LIMIT_BYTES or end > len(data) or durable >= number:
        return None
    if _checksum(size_bytes, kind, number, durable, memoryview(data)[payload_at:end]) != checksum:
        return None
    return _Record(number, kind, durable, offset, payload_at, end)


def _records_from(data: bytes, offset: int, mark: bytes, number: int) -> Iterator[_Record]:
    """Intact records one after the other, numbered from `number`; ends where the next one is not."""
    while (record := _record_at(data, offset, mark)) is not None and record.number == number:
        yield record
        offset, number = record.end, record.next_number


def _claims_behind(data: bytes, offset: int, mark: bytes) -> Iterator[int]:
    """What the intact records anywhere after a bad one say of how much was durable."""
    while (offset := data.find(mark, offset)) >= 0:
        record = _record_at(data, offset, mark)
        if record is not None:
            yield record.durable
        offset = record.end if record is not None else offset + 1


@dataclass(frozen=True, slots=True)
class _Head:
    mark: bytes
    first: int
    durable: int


def _head(disk: Disk, name: str) -> _Head | None:
    """What a segment says of itself, unless its head is damaged."""
    data = disk.read(name, 0, _SEGMENT.size)
    if len(data) < _SEGMENT.size:
        return None
    magic, version, mark, first, durable, checksum = _SEGMENT.unpack(data)
    if magic != _MAGIC or checksum != crc32(data[:-4]):
        return None
    if version != _VERSION:
        raise CorruptLog(f"{name}: written in format {version}, this program reads {_VERSION}")
    return _Head(mark, first, durable)


class Writer:
    """Syncs some logs: whoever asks while a sync is under way waits for the next, together with all others. Of what was
    appended when one begins, that of a log is durable before anything of the log that joined after it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._logs: list[SegmentedLog] = []
        self._syncing = False
        self._waiters: list[asyncio.Future[None]] = []
        """For the end of the sync that is under way."""
        self._pause: asyncio.TimerHandle | None = None
        self._synced_at = 0.0

    def join(self, log: SegmentedLog) -> None:
        self._logs.append(log)

    async def durable(self, log: SegmentedLog, number: int) -> None:
        while log.synced < number:
            if log.failure is not None:
                raise log.failure
            if not self._syncing:
                await self._sync()
                continue
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def rest(self) -> None:
        for log in self._logs:
            log.acknowledge()

    def fail(self, failure: DiskFailure) -> None:
        for log in self._logs:
            log.failure = log.failure or failure
        self._wake(failure)

    async def _sync(self) -> None:
        """By whoever comes first. If that one gives up, another who waits begins anew."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        begun = [(log, log.last, names) for log in self._logs if (names := log.take_unsynced())]
        self._syncing = True
        try:
            await self._disk.sync(*[name for _, _, names in begun for name in names])
        except DiskFailure as failure:
            self.fail(failure)
            raise
        except BaseException:
            for log, _, names in begun:
                log.put_back(names)
            raise
        else:
            self._synced_at = loop.time()
            for log, last, _ in begun:
                log.has_synced(last, self._synced_at - began)
            if self._pause is None:
                self._pause = loop.call_at(self._synced_at + IDLE_S, self._paused)
        finally:
            self._syncing = False
            self._wake()

    def _wake(self, failure: DiskFailure | None = None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(failure)

    def _paused(self) -> None:
        """Once it is so long that a sync has ended; a timer of its own for each would cost more than the receipt."""
        loop = asyncio.get_running_loop()
        self._pause = None
        if self._syncing:
            return
        rests_at = self._synced_at + IDLE_S
        if loop.time() < rests_at:
            self._pause = loop.call_at(rests_at, self._paused)
            return
        # Whoever appends next is told of the failure.
        with suppress(DiskFailure):
            self.rest()


class SegmentedLog:
    """Opened by `create` or `open`; one owner, one event loop."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        mark: bytes,
        segments: list[_Segment],
        last: int,
        limit: int,
        writer: Writer | None = None,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._mark = mark
        self._segments = segments
        self._last = last
        self._synced = last
        self._segment_bytes = limit
        self._acknowledged = 0
        """What the newest record says to be durable."""
        self._unsynced: dict[str, None] = {}
        self._writer = writer or Writer(disk)
        self._writer.join(self)
        self.failure: DiskFailure | None = None
        self.on_sync: Callable[[float], None] = lambda seconds: None
        """Told how long each sync took, with what was synced in the same go."""

    @classmethod
    async def create(
        cls, disk: Disk, directory: str, entropy: Callable[[int], bytes], segment_bytes: int = SEGMENT_BYTES
    ) -> SegmentedLog:
        """An empty log, durable. Raises LogExists."""
        names = disk.list(f"{directory}/")
        first = _name(directory, 1)
        if names == [first] and disk.size(first) in range(_SEGMENT.size + 1) and _head(disk, first) is None:
            # An earlier attempt, cut short: it never held a record.
            disk.unlink(first)
        elif names:
            raise LogExists(f"there is a log in {directory} already; it must not be replaced")
        log = cls(disk, directory, entropy(_MARK_BYTES), [], 0, segment_bytes)
        log._roll()
        await disk.sync(first)
        return log

    @classmethod
    async def open(
        cls, disk: Disk, directory: str, segment_bytes: int = SEGMENT_BYTES, writer: Writer | None = None
    ) -> SegmentedLog:
        """Cuts off a torn tail and makes durable what a killed process left in the page cache.

        The segments before the tail are checked as they are replayed. Raises LogMissing, CorruptLog,
        DiskFailure.
        """
        names = disk.list(f"{directory}/")
        if not names:
            raise LogMissing(f"there is no log in {directory}; restore it, or see `quorate node init`")
        log = cls(disk, directory, b"", [], 0, segment_bytes, writer)
        await log._recover([_index(directory, name) for name in names])
        return log

    @property
    def first(self) -> int:
        """Number of the oldest record kept, or of the next one if there is none."""
        return self._segments[0].first

    @property
    def last(self) -> int:
        """Number of the newest record; first - 1 if there is none."""
        return self._last

    @property
    def synced(self) -> int:
        """Number of the newest record that is durable."""
        return self._synced

    @property
    def size_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    def append(self, kind: int, payload: bytes) -> int:
        """Returns the record's number. Raises DiskFull with the log as it was: a later append may succeed."""
        return self.append_at(kind, payload)[0]

    def append_at(self, kind: int, *payload: bytes) -> tuple[int, Location]:
        """The payload may come in pieces."""
        self._check()
        if not 0 <= kind < _RECEIPT:
            raise ValueError(f"kinds are 0 to {_RECEIPT - 1}, not {kind}")
        size_bytes = sum(map(len, payload))
        if size_bytes > RECORD_LIMIT_BYTES:
            raise ValueError(f"a record of {size_bytes} bytes is over the limit of {RECORD_LIMIT_BYTES}")
        if self._segments[-1].size >= self._segment_bytes:
            self._roll()
        location = self._put(kind, size_bytes, *payload)
        self._last += 1
        return self._last, location

    async def durable(self, number: int) -> None:
        """Returns once every record up to `number` is durable. After one DiskFailure, raises it for good."""
        self._check()
        if number <= self._synced:
            return
        if number > self._last:
            raise ValueError(f"record {number} was never appended; the last is {self._last}")
        await self._writer.durable(self, number)

    def read(self, location: Location) -> bytes:
        """The payload there. Raises CorruptLog."""
        name = _name(self._directory, location.segment)
        start = location.offset - _RECORD.size
        data = self._disk.read(name, start, _RECORD.size + location.size_bytes)
        record = _record_at(data, 0, self._mark)
        if record is None or record.end != len(data):
            raise CorruptLog(f"{name}: the record at offset {start} is damaged")
        return data[record.payload_at :]

    def replay(self, start: int = 1) -> Iterator[tuple[int, int, bytes, Location]]:
        """Number, kind, payload and location of each record from `start` to the newest. Raises CorruptLog."""
        stops = [segment.first for segment in self._segments[1:]] + [self._last + 1]
        for segment, stop in zip(self._segments[:], stops, strict=True):
            if stop <= start:
                continue
            data = self._disk.read(segment.name, 0, segment.size)
            number, end = segment.first, _SEGMENT.size
            for record in _records_from(data, end, self._mark, number):
                if number == stop:
                    break
                if number >= start and record.kind != _RECEIPT:
                    payload = data[record.payload_at : record.end]
                    yield number, record.kind, payload, Location(segment.index, record.payload_at, len(payload))
                number, end = record.next_number, record.end
            if number != stop:
                raise self._damaged(segment.index, end, number)

    async def drop_before(self, number: int) -> None:
        """Removes the segments all of whose records are older than `number`; the newest segment always
        stays."""
        self._check()
        while len(self._segments) > 1 and self._segments[1].first <= number:
            if self._synced < self._segments[1].first - 1:
                await self.durable(self._segments[1].first - 1)
                continue
            self._disk.unlink(self._segments.pop(0).name)
            # One by one: a crash that undid the removal of an older segment only would leave a gap.
            await self._sync_file(self._segments[-1].name)

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _put(self, kind: int, size_bytes: int, *payload: bytes) -> Location:
        segment, number = self._segments[-1], self._last + 1
        checksum = _checksum(size_bytes, kind, number, self._synced, *payload)
        head = _RECORD.pack(self._mark, size_bytes, checksum, kind, number, self._synced)
        self._write(segment.name, head, *payload)
        location = Location(segment.index, segment.size + _RECORD.size, size_bytes)
        segment.size += _RECORD.size + size_bytes
        return location

    def _write(self, name: str, *pieces: bytes) -> None:
        try:
            self._disk.append(name, *pieces)
        except DiskFull:
            raise
        except DiskFailure as failure:
            self._writer.fail(failure)
            raise
        self._unsynced[name] = None
        self._acknowledged = self._synced

    def rest(self) -> None:
        """Nothing is to come: leave receipts, in the logs of the same writer as well."""
        self._writer.rest()

    # What the writer does

    def take_unsynced(self) -> list[str]:
        """Files to be synced, the older ones first; the caller syncs them."""
        names, self._unsynced = list(self._unsynced), {}
        return names

    def put_back(self, names: list[str]) -> None:
        """What was taken and not synced after all."""
        self._unsynced = dict.fromkeys([*names, *self._unsynced])

    def has_synced(self, last: int, seconds: float) -> None:
        self._synced = max(self._synced, last)
        self.on_sync(seconds)

    def acknowledge(self) -> None:
        """Write a receipt if no record says yet how far the log is durable."""
        if self._acknowledged < self._synced:
            with suppress(DiskFull):
                self._put(_RECEIPT, 0)

    def _roll(self) -> None:
        index = self._segments[-1].index + 1 if self._segments else 1
        first = self._last + 1
        head = _SEGMENT.pack(_MAGIC, _VERSION, self._mark, first, self._synced, 0)
        head = head[:-4] + crc32(head[:-4]).to_bytes(4, "little")
        name = _name(self._directory, index)
        self._write(name, head)
        self._segments.append(_Segment(name, index, first, _SEGMENT.size))

    async def _sync_file(self, name: str) -> None:
        try:
            await self._disk.sync(name)
        except DiskFailure as failure:
            self._writer.fail(failure)
            raise

    async def _recover(self, indices: list[int]) -> None:
        heads = [_head(self._disk, _name(self._directory, index)) for index in indices]
        tail = self._tail_begins(indices, heads)
        for index, head in zip(indices[:tail], heads[:tail], strict=True):
            assert head is not None
            name = _name(self._directory, index)
            size = self._disk.size(name) or 0
            self._segments.append(_Segment(name, index, head.first, size))
        number = self._scan(indices[tail:], heads[tail:])
        self._last = self._synced = number - 1
        for segment in self._segments[tail:]:
            await self._sync_file(segment.name)

    def _tail_begins(self, indices: list[int], heads: list[_Head | None]) -> int:
        """Position of the oldest segment that holds records of which no later head says that they were
        durable."""
        for earlier, later in pairwise(indices):
            if later != earlier + 1:
                raise CorruptLog(f"{_name(self._directory, earlier + 1)}: the segment is missing")
        known = [head for head in heads if head is not None]
        durable = max((head.durable for head in known), default=0)
        tail = max((place for place, head in enumerate(heads) if head and head.first <= durable + 1), default=0)
        for index, head in zip(indices, heads[: tail + 1], strict=False):
            if head is None:
                raise CorruptLog(f"{_name(self._directory, index)}: the head at offset 0 is damaged")
        self._mark = known[0].mark
        return tail

    def _scan(self, indices: list[int], heads: list[_Head | None]) -> int:
        """Reads the tail up to its first bad record and cuts off the rest; returns the number to come."""
        first = heads[0]
        assert first is not None
        number = first.first
        for position, (index, head) in enumerate(zip(indices, heads, strict=True)):
            name = _name(self._directory, index)
            data = self._disk.read(name)
            if head is None or head.first != number:
                self._cut(indices[position:], 0, number)
                break
            end = _SEGMENT.size
            for record in _records_from(data, end, self._mark, number):
                number, end = record.next_number, record.end
            self._segments.append(_Segment(name, index, head.first, end))
            if end != len(data):
                self._cut(indices[position:], end, number)
                break
        return number

    def _cut(self, indices: list[int], end: int, number: int) -> None:
        """Record `number` is bad, at `end` of the first of these segments: takes off all the rest, or
        refuses."""
        offset = end
        for index in indices:
            name = _name(self._directory, index)
            head = _head(self._disk, name)
            claims = list(_claims_behind(self._disk.read(name), offset, self._mark))
            if max(claims, default=0) >= number or (head is not None and head.durable >= number):
                raise self._damaged(indices[0], end, number)
            offset = 0
        for index in reversed(indices[1:] if end else indices):
            self._disk.unlink(_name(self._directory, index))
        if end:
            self._disk.truncate(_name(self._directory, indices[0]), end)

    def _damaged(self, index: int, offset: int, number: int) -> CorruptLog:
        return CorruptLog(
            f"{_name(self._directory, index)}: record {number} at offset {offset} is damaged, and later records show "
            f"that it was durable; restore the file from a copy of this machine, or rejoin with a new journal"
        )


def _name(directory: str, index: int) -> str:
    return f"{directory}/{index:010d}"


def _index(directory: str, name: str) -> int:
    tail = name.removeprefix(f"{directory}/")
    if not tail.isdecimal() or len(tail) != 10:
        raise CorruptLog(f"{name}: not a segment; nothing else may lie in {directory}")
    return int(tail)
