"""Threads for work that is too long for the event loop and gives up the interpreter lock: hashing,
kernels, LevelDB."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

BACKLOG = 64
"""Calls running or queued; further callers wait their turn in `run`."""


class ThreadOffload:
    def __init__(self, workers: int = 2, backlog: int = BACKLOG) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="offload")
        self._slots = asyncio.Semaphore(backlog)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = self._threads.submit(function, *args, **kwargs)
        except BaseException:
            self._slots.release()
            raise

        # A cancelled caller does not stop the thread: its slot is free when the work is over, not before.
        def over(_: Future[_T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._slots.release)

        future.add_done_callback(over)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drops what is queued and waits for what is running: it may use a port that is closed next, and LevelDB
        does not survive that."""
        self._threads.shutdown(wait=True, cancel_futures=True)
