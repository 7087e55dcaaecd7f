"""What the handlers work with: the store, the permits, and the memory that bodies may take while they come."""

from __future__ import annotations

import asyncio
from collections import Counter
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
BUFFERS_A_STREAM = 2
_SPARE = 8

Obtain: TypeAlias = Callable[[bytes, BlobKind, bytes], Awaitable[Blob]]
"""A blob by its CID, its kind and its owner, from wherever it can be had; for ever, if it cannot be had."""


class LeafBuffers:
    """Room for leaves that are arriving or being written: their number bounds the memory of all bodies together."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._spare: list[bytearray] = []

    @property
    def left(self) -> int:
        return self._left

    def take(self) -> bytearray:
        """Raises BUSY."""
        if not self._left:
            raise Problem("BUSY", "Too many leaves are being received at this time.")
        self._left -= 1
        return self._spare.pop() if self._spare else bytearray(LEAF_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Nobody reads or writes it any more."""
        self._left += 1
        if len(self._spare) < _SPARE:
            self._spare.append(buffer)


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
    _streams: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.buffers = LeafBuffers(self.reception.limits.bodies_bytes // LEAF_BYTES)
        self.streaming = ThreadPoolExecutor(STREAMS_AT_ONCE, thread_name_prefix="door")

    @contextmanager
    def stream_place(self) -> Iterator[StreamPlace]:
        """One of few. It is free again when the request is over and the thread that works for it is done."""
        if self._streams == STREAMS_AT_ONCE:
            raise Problem("BUSY", "Too many whole blobs are being received at this time; send leaves.")
        place = StreamPlace()
        self._streams += 1
        try:
            for _ in range(BUFFERS_A_STREAM):
                place.buffers.append(self.buffers.take())
            yield place
        finally:
            if place.working is None:
                self._leave(place)
            else:
                place.working.add_done_callback(lambda _: self._leave(place))

    def _leave(self, place: StreamPlace) -> None:
        self._streams -= 1
        for buffer in place.buffers:
            self.buffers.give(buffer)
