"""Being told that something moved. Nobody is believed: whoever is woken looks at the proven state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time

from fl.client.nodes import Nodes, Unusable

log = logging.getLogger("quorate.client")

_AGAIN_S = 0.5
_FRESH_S = 2.0
"""How long it is waited for the proof of a height that an event spoke of."""


class Wakeup:
    """Counts the events of a job, from whichever node streams them; without one it only ever times out."""

    def __init__(self, nodes: Nodes, job: str) -> None:
        self._nodes = nodes
        self._job = job
        self._count = 0
        self._height = 0
        self._told_at = float("-inf")
        self._moved = asyncio.Condition()
        self._listening: asyncio.Task[None] | None = None

    def seen(self) -> int:
        """The count to wait beyond: ask before looking at the state, so that nothing falls between."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        return self._count

    def rumoured_height(self) -> int:
        """Of the newest event: it happens at execution, a little before anyone can prove it."""
        return self._height if time.monotonic() - self._told_at < _FRESH_S else 0

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
                async for text in self._nodes.listen("/v1/events/ws", {"job": self._job}):
                    await self._move(_height(text))
            except Unusable as error:
                log.debug("no events: %s", error)
            await self._move(0)
            await asyncio.sleep(_AGAIN_S)

    async def _move(self, height: int) -> None:
        async with self._moved:
            self._count += 1
            self._height, self._told_at = height, time.monotonic()
            self._moved.notify_all()


def _height(text: str) -> int:
    try:
        height = json.loads(text)["height"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return height if isinstance(height, int) else 0
