"""Being told that something moved. Nobody is believed: whoever is woken looks at the proven state."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from fl.client.nodes import Nodes, Unusable

log = logging.getLogger("quorate.client")

_AGAIN_S = 2.0


class Wakeup:
    """Counts the events of a job, from whichever node streams them; without one it only ever times out."""

    def __init__(self, nodes: Nodes, job: str) -> None:
        self._nodes = nodes
        self._job = job
        self._count = 0
        self._moved = asyncio.Condition()
        self._listening: asyncio.Task[None] | None = None

    def seen(self) -> int:
        """The count to wait beyond: ask before looking at the state, so that nothing falls between."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        return self._count

    async def wait(self, seen: int, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._count > seen)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._nodes.listen("/v1/events/ws", {"job": self._job}):
                    await self._move()
            except Unusable as error:
                log.debug("no events: %s", error)
            await self._move()
            await asyncio.sleep(_AGAIN_S)

    async def _move(self) -> None:
        async with self._moved:
            self._count += 1
            self._moved.notify_all()
