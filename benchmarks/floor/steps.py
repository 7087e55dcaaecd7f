"""Processor time of threads, by what they were doing."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Steps:
    def __init__(self) -> None:
        self.cpu_s: defaultdict[str, float] = defaultdict(float)
        self._guard = threading.Lock()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.add(name, time.thread_time() - began)

    def add(self, name: str, seconds: float) -> None:
        with self._guard:
            self.cpu_s[name] += seconds

    def taken(self) -> dict[str, float]:
        """Since the last time."""
        with self._guard:
            found, self.cpu_s = dict(self.cpu_s), defaultdict(float)
        return found


class Threads:
    """Threads of a process of the floor; the first failure of one is raised to whoever waits for them."""

    def __init__(self) -> None:
        self._failure: BaseException | None = None
        self._moved = threading.Condition()
        self.guard = threading.Lock()
        """Of what they change together."""

    def start(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=self._run, args=(work, arguments), daemon=True).start()

    def tell(self) -> None:
        with self._moved:
            self._moved.notify_all()

    def wait_for(self, reached: Callable[[], bool]) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._failure is not None or reached())
        if self._failure is not None:
            raise self._failure

    def _run(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            work(*arguments)
        except BaseException as failure:
            self._failure = self._failure or failure
            self.tell()
