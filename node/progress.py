"""Waiting for a node to come further."""

from __future__ import annotations

import asyncio


class Progress:
    """Lets anyone wait until something has moved: heights, certificates, events."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def moved(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            pass
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
