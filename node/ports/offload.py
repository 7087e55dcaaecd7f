"""Threads for work that is too long for the event loop and gives up the interpreter lock: hashing,
kernels, LevelDB."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Condition
from typing import Generic, ParamSpec, TypeVar, cast

from node.ports.threads import Threads

_P = ParamSpec("_P")
_T = TypeVar("_T")

BACKLOG = 64
"""Calls running or queued; further callers wait their turn in `run`."""


class _Shared(Generic[_T]):
    """Work of one call that several threads take pieces of."""

    def __init__(self, pieces: Sequence[Callable[[], _T]]) -> None:
        self._pieces = pieces
        self._results: dict[int, _T] = {}
        self._begun = self._ended = 0
        self._failure: BaseException | None = None
        self._turn = Condition()

    def take(self) -> bool:
        """Does the next piece. False if there is none, or one of them failed."""
        with self._turn:
            place = self._begun
            if place == len(self._pieces) or self._failure is not None:
                return False
            self._begun += 1
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = self._pieces[place]()
        except BaseException as error:
            failure = error
        with self._turn:
            if failure is None:
                self._results[place] = cast(_T, result)
            self._failure = self._failure or failure
            self._ended += 1
            self._turn.notify_all()
        return True

    def results(self) -> list[_T]:
        """Once all that was begun has ended."""
        with self._turn:
            self._turn.wait_for(lambda: self._ended == self._begun)
            if self._failure is not None:
                raise self._failure
            return [self._results[place] for place in range(len(self._pieces))]


class ThreadOffload:
    def __init__(self, workers: int = 2, backlog: int = BACKLOG) -> None:
        self._workers = workers
        self._threads = Threads(workers, "offload")
        self._slots = asyncio.Semaphore(backlog)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        await self._slots.acquire()

        # A cancelled caller does not stop the thread: its slot is free when the work is over, not before.
        def over(_: bool) -> None:
            self._slots.release()

        try:
            ended = self._threads.run(partial(function, *args, **kwargs), over)
        except BaseException:
            self._slots.release()
            raise
        return await ended

    def spread(self, pieces: Sequence[Callable[[], _T]]) -> list[_T]:
        """The call that has this work keeps its own thread. The others take a piece each time that it is their turn:
        whoever waits for a thread waits for one piece at most."""
        if len(pieces) < 2:
            return [piece() for piece in pieces]
        shared = _Shared(pieces)
        for _ in range(min(self._workers, len(pieces)) - 1):
            self._help(shared)
        while shared.take():
            pass
        return shared.results()

    def _help(self, shared: _Shared[_T]) -> None:
        def turn() -> None:
            if shared.take():
                self._help(shared)

        # Closed: whoever has the work does the rest of it.
        with suppress(RuntimeError):
            self._threads.add(turn)

    def close(self) -> None:
        """Drops what is queued and waits for what is running: it may use a port that is closed next, and LevelDB
        does not survive that."""
        self._threads.close(drop=True)
