"""A process beside the one that measures: it does the load's work and ends with the scenario."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from fl.client.errors import QuorateError, TimedOut


class Child:
    """`work` is a function of a module, called there with the other end of a pipe and the arguments. What it raises is
    raised here by the next `hear`."""

    def __init__(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._theirs = theirs
        self._process = context.Process(target=_performed, args=(work, theirs, *arguments), name=name)
        self._heard: list[Any] = []

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def __enter__(self) -> Child:
        self._process.start()
        # Held by the child alone: its end is then the pipe's end.
        self._theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def tell(self, message: object) -> None:
        self._pipe.send(message)

    def hear(self, within_s: float) -> Any:
        """What it says next. Raises TimedOut."""
        if not self._heard:
            if not self._pipe.poll(within_s):
                what = f"The process of the {self.name} said nothing for {within_s:g} s."
                raise TimedOut("LOAD_STUCK", what, "Look at the logs.")
            self._receive()
        return self._heard.pop()

    def check(self) -> None:
        """Raises if it has ended without a word that is still to be heard."""
        if not self._heard and not self._process.is_alive():
            self._receive()

    def _receive(self) -> None:
        try:
            said = self._pipe.recv()
        except EOFError:
            what = f"The process of the {self.name} ended before its time."
            raise QuorateError("LOAD_ENDED", what, "Look at its output.") from None
        if isinstance(said, BaseException):
            raise said
        self._heard.append(said)


def _performed(work: Callable[..., None], told: Connection, *arguments: object) -> None:
    # Linux shares the processors among sessions: whoever measures shall not share with the load.
    os.setsid()
    try:
        work(told, *arguments)
    except BaseException as error:
        told.send(error if isinstance(error, QuorateError) else RuntimeError(f"{type(error).__name__}: {error}"))
