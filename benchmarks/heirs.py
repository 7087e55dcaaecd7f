"""Processor time of everything that was begun from here, whoever began it: programs of others begin programs, detach
them, and leave nobody who could be asked. All of them have inherited a mark in their environment."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from benchmarks.processes import cpu_seconds

_MARK = "QUORATE_BENCH_MARK"
_EVERY_S = 0.1
_LOOKS = 50


class Heirs:
    """Those that are begun, and what they use, while this is on. What one uses after the last look at it is lost."""

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._every_s = every_s
        self._mark = uuid4().hex
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._strangers = Counter[int]()
        """How often each was looked at in vain."""
        self._used: dict[int, float] = {}
        self._moments: list[float] = []
        self._totals: list[float] = []

    def __enter__(self) -> Heirs:
        os.environ[_MARK] = self._mark
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.environ.pop(_MARK, None)

    def between(self, start_s: float, stop_s: float) -> float:
        """Seconds of all of them, from one moment of the wall's clock to another."""
        return self._at(stop_s) - self._at(start_s)

    def _at(self, moment_s: float) -> float:
        place = bisect_right(self._moments, moment_s)
        return self._totals[place - 1] if place else 0.0

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()
            self._moments.append(time.time())
            self._totals.append(sum(self._used.values()))

    def _look(self) -> None:
        mine = f"{_MARK}={self._mark}".encode()
        for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
            # Between fork and exec a process still has the environment that the one before it was begun with.
            if self._strangers[pid] == _LOOKS:
                continue
            with suppress(OSError, ValueError, IndexError):
                if pid not in self._used and mine not in Path(f"/proc/{pid}/environ").read_bytes():
                    self._strangers[pid] += 1
                    continue
                self._used[pid] = max(self._used.get(pid, 0.0), cpu_seconds(pid))
