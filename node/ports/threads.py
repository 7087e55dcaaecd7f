"""Threads that work for event loops: one queue, and one call into the loop when a piece of work is over.

`concurrent.futures` does the same with a future, a condition and several locks for each piece, which costs more than
what most pieces do here.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")

_Piece = tuple[Callable[[], None], Callable[[], None]]
"""What a thread is to do, and what to do instead if none will."""


class Threads:
    """At most so many, each begun when there is work for it."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: SimpleQueue[_Piece | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        """Pieces that are queued or being done."""
        self._closed = False
        # The threads are daemons, or a process whose ports were never closed would not end.
        atexit.register(self.close)

    def run(self, function: Callable[[], _T], over: Callable[[bool], None]) -> asyncio.Future[_T]:
        """What the function gives, or raises. Whoever stops waiting does not stop the thread: `over(failed)` is called
        on the loop once the work has ended, before anybody learns of it. Raises RuntimeError once closed."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[_T] = loop.create_future()

        def finish(result: Any, failure: BaseException | None) -> None:
            over(failure is not None)
            if ended.done():
                return
            if failure is None:
                ended.set_result(result)
            else:
                ended.set_exception(failure)

        def drop() -> None:
            over(True)
            ended.cancel()

        def work() -> None:
            try:
                result = function()
            except BaseException as failure:
                _tell(loop, finish, None, failure)
            else:
                _tell(loop, finish, result, None)

        self.add(work, lambda: _tell(loop, drop))
        return ended

    def add(self, work: Callable[[], None], dropped: Callable[[], None] = lambda: None) -> None:
        """The work must not raise. From any thread; raises RuntimeError once closed."""
        with self._guard:
            if self._closed:
                raise RuntimeError("the threads have ended")
            self._under_way += 1
            if self._under_way > len(self._threads) < self._most:
                name = f"{self._name}_{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._queue.put((work, dropped))

    def close(self, drop: bool = False) -> None:
        """Waits for what is queued, or drops it and waits for what is being done."""
        with self._guard:
            self._closed = True
            pieces: list[_Piece] = []
            with suppress(Empty):
                while drop and (piece := self._queue.get_nowait()) is not None:
                    pieces.append(piece)
            for _ in self._threads:
                self._queue.put(None)
        for _, dropped in pieces:
            dropped()
        for thread in self._threads:
            thread.join()
        atexit.unregister(self.close)

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            piece[0]()
            # What it held is not held on to while there is nothing to do.
            del piece
            with self._guard:
                self._under_way -= 1


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    # A loop that is closed wants to know of nothing.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
