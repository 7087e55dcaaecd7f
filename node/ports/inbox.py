"""What the links have received and the node has not yet taken: votes overtake bulk, and bulk is never
starved."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from node.ports import Channel, LinkEvent

CONSENSUS_RUN = 16
"""After so many consensus events in a row, one of the data channel has its turn."""


_Entry = tuple[LinkEvent, Callable[[int], None] | None, int]


class Inbox:
    """Unbounded by itself: whoever puts stops reading from its peer until `taken` has been called often
    enough."""

    def __init__(self) -> None:
        self._consensus: deque[_Entry] = deque()
        self._data: deque[_Entry] = deque()
        self._run = 0
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._consensus) + len(self._data)

    def put(
        self, channel: Channel, event: LinkEvent, taken: Callable[[int], None] | None = None, size_bytes: int = 0
    ) -> None:
        """`taken` is told the size when the event has its turn."""
        (self._consensus if channel is Channel.CONSENSUS else self._data).append((event, taken, size_bytes))
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def get(self) -> LinkEvent:
        while not self._consensus and not self._data:
            if self._waiter is not None:
                raise RuntimeError("two tasks receive from the same links")
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        if self._consensus and (self._run < CONSENSUS_RUN or not self._data):
            self._run += 1
            event, taken, size_bytes = self._consensus.popleft()
        else:
            self._run = 0
            event, taken, size_bytes = self._data.popleft()
        if taken is not None:
            taken(size_bytes)
        return event
