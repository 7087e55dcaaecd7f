"""What the handlers work with: the store, the permits, and the memory that bodies may take while they come."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from chain.unixfs import LEAF_BYTES
from fl.blobs import BlobKind
from node.data.blobs import Blob, BlobStore
from node.data.door.permits import Permits
from node.ports import Offload
from node.rpc.desk import Reception
from node.rpc.problems import Problem
from node.rpc.tally import Answered

STREAMS_AT_ONCE = 4
"""Whole blobs arriving as one body: each has a thread of its own, for a slow sender holds up whoever writes."""
STREAMS_AN_ACCOUNT = 2
LEAVES_AN_ACCOUNT = 6
"""Arriving at once: who sends slowly holds up nobody but itself."""
TURN_S = 5.0
"""Shorter than clients wait for an answer."""
BUFFERS_A_STREAM = 2
_SPARE = 8

Obtain: TypeAlias = Callable[[bytes, BlobKind, bytes], Awaitable[Blob]]
"""A blob by its CID, its kind and its owner, from wherever it can be had; for ever, if it cannot be had."""


class LeafBuffers:
    """Room for leaves that are arriving or being written: their number bounds the memory of all bodies together. Who
    finds none waits in line, its body unread, so that nothing is sent twice."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._held: Counter[bytes] = Counter()
        self._spare: list[bytearray] = []
        self._line: deque[tuple[bytes, asyncio.Future[bytearray]]] = deque()

    @property
    def left(self) -> int:
        return self._left

    def take(self, account: bytes) -> bytearray:
        """Raises BUSY."""
        if not self._is_free_for(account):
            raise Problem("BUSY", "Too many leaves are being received at this time.")
        return self._taken(account)

    async def in_turn(self, account: bytes) -> bytearray:
        """Raises BUSY when its turn does not come in time."""
        if self._is_free_for(account):
            return self._taken(account)
        turn: asyncio.Future[bytearray] = asyncio.get_running_loop().create_future()
        self._line.append((account, turn))
        try:
            async with asyncio.timeout(TURN_S):
                return await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # Its turn came as it left.
                self.give(account, turn.result())
            else:
                self._line.remove((account, turn))
            if isinstance(error, TimeoutError):
                raise Problem("BUSY", "Too many leaves are being received at this time.") from None
            raise

    def give(self, account: bytes, buffer: bytearray) -> None:
        """Nobody reads or writes it any more."""
        self._left += 1
        self._held[account] -= 1
        if not self._held[account]:
            del self._held[account]
        if len(self._spare) < _SPARE:
            self._spare.append(buffer)
        for waiting in self._line:
            other, turn = waiting
            if not turn.done() and self._is_free_for(other):
                self._line.remove(waiting)
                turn.set_result(self._taken(other))
                return

    def _is_free_for(self, account: bytes) -> bool:
        return self._left > 0 and self._held[account] < LEAVES_AN_ACCOUNT

    def _taken(self, account: bytes) -> bytearray:
        self._left -= 1
        self._held[account] += 1
        return self._spare.pop() if self._spare else bytearray(LEAF_BYTES)


class DoorTally:
    """Figures that the data process says with its own."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._connections = 0

    def connected(self) -> None:
        self._connections += 1

    def left(self) -> None:
        self._connections -= 1

    def turned_away(self, reason: str) -> None:
        self._counts["turned_away"] += 1

    def answered(self, answered: Answered) -> None:
        counts = self._counts
        counts["requests"] += 1
        counts["refusals"] += 400 <= answered.status < 500
        counts["failures"] += answered.status >= 500
        counts["bytes_in"] += answered.bytes_in
        counts["bytes_out"] += answered.bytes_out

    def figures(self) -> dict[str, int]:
        names = ("turned_away", "requests", "refusals", "failures", "bytes_in", "bytes_out")
        figures = {f"door_{name}": self._counts[name] for name in names}
        return figures | {"door_connections": self._connections}


@dataclass(slots=True)
class StreamPlace:
    account: bytes
    buffers: list[bytearray] = field(default_factory=list)
    working: asyncio.Future[Any] | None = None

    def until(self, working: asyncio.Future[Any]) -> None:
        """The buffers are in use by others until then."""
        self.working = working


@dataclass(slots=True)
class DoorApi:
    store: BlobStore
    offload: Offload
    permits: Permits
    reception: Reception
    obtain: Obtain
    openapi: bytes = b""
    buffers: LeafBuffers = field(init=False)
    streaming: ThreadPoolExecutor = field(init=False)
    _streams: Counter[bytes] = field(init=False, default_factory=Counter)
    """Under way, by account."""

    def __post_init__(self) -> None:
        self.buffers = LeafBuffers(self.reception.limits.bodies_bytes // LEAF_BYTES)
        self.streaming = ThreadPoolExecutor(STREAMS_AT_ONCE, thread_name_prefix="door")

    @contextmanager
    def stream_place(self, account: bytes) -> Iterator[StreamPlace]:
        """One of few. It is free again when the request is over and the thread that works for it is done."""
        if self._streams.total() == STREAMS_AT_ONCE or self._streams[account] == STREAMS_AN_ACCOUNT:
            raise Problem("BUSY", "Too many whole blobs are being received at this time; send leaves.")
        place = StreamPlace(account)
        self._streams[account] += 1
        try:
            for _ in range(BUFFERS_A_STREAM):
                place.buffers.append(self.buffers.take(account))
            yield place
        finally:
            if place.working is None:
                self._leave(place)
            else:
                place.working.add_done_callback(lambda _: self._leave(place))

    def _leave(self, place: StreamPlace) -> None:
        self._streams[place.account] -= 1
        if not self._streams[place.account]:
            del self._streams[place.account]
        for buffer in place.buffers:
            self.buffers.give(place.account, buffer)
