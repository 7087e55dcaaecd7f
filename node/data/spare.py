"""The sums that a round is done with, for the next one to begin with: their memory is at hand, where that of new ones
must be found first, which takes a large model longer than adding an update to it.

One round's array at most, and for a minute: it is within the budget, for a round that needs one takes this or has it
thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

KEPT_MS = 60_000


class Spare:
    """`take` is for any thread, everything else for the event loop."""

    def __init__(self, fresh: Callable[[int], NDArray[np.int64]]) -> None:
        self._fresh = fresh
        self._kept: list[NDArray[np.int64]] = []
        self._since_ms: int | None = None

    @property
    def held_bytes(self) -> int:
        return sum(each.nbytes for each in self._kept)

    def take(self, count: int) -> NDArray[np.int64]:
        """As many zeros."""
        kept, self._kept = self._kept, []
        for each in kept:
            if each.size == count:
                each.fill(0)
                return each
        del kept
        return self._fresh(count)

    def give(self, arrays: Iterable[NDArray[np.int64]]) -> None:
        """Nobody looks at these any more."""
        largest = max(arrays, key=lambda each: each.size, default=None)
        self._kept = [] if largest is None else [largest]
        self._since_ms = None

    def tidy(self, now_ms: int) -> None:
        """Said every so often."""
        if self._since_ms is None:
            self._since_ms = now_ms
        elif now_ms - self._since_ms >= KEPT_MS:
            self._kept = []
