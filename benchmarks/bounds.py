"""What bounds a kernel, measured in the same run: what memory moves, and what the loop itself does.

*Memory.* Bytes are counted by what is done to them, each kind at the rate of a bare loop that does as little as can be
to as much memory, on pages as the kernel finds them. The payloads themselves are looked at, which lie on small pages as
in mapped files.

    read      looked at once: payloads, the base model, sums when the round closes. The better rate of two: one payload
              after the other, or four in turn by 2 KiB
    changed   read and written in place, 16 bytes for 8
    summed    four payloads looked at in turn, 512 values of each, and as many sums changed beside them: what adding
              updates must do, whatever it computes; 16 bytes for each sum
    touched   values here and there read and written in place: what a topk update does to the sums
    fresh     given by the system as zeros and written for the first time: the sums of a round. It is the system that
              this measures: what the host has taken back before, it gives at a tenth of the rate

Memory that is written while it stays in the cache, as a chunk of the model, is not counted.

*Loops.* `in_cache` calls the same compiled kernel again and again, from compiled code, on arguments of the same types
that lie in a core's nearest cache together (`benchmarks.loops` makes them, 24 KiB at the most). What the kernel does
for each value, and at the borders of its strips, it does there as well; only the waiting for memory is gone. A loop
that divides or takes roots is bounded by the divider, wherever its data lie: that is in this figure too.

A core reads ahead while it computes, so the bound is the slower of the two, not their sum. What is done in stages is
bound by the slower one of each: memory that a later stage waits for cannot be read ahead in an earlier one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import SPAN_TILES
from fl.kernels.compiled import OPTIONS, Kernel, kernel
from fl.rules.rule import Spread
from fl.tensors.layout import TILE

STRIP = 512
_CALLS = 2000


@dataclass(frozen=True, slots=True)
class Memory:
    """10^9 bytes a core-second."""

    read: float
    changed: float
    summed: float
    fresh: float

    def seconds(self, read: float = 0, changed: float = 0, summed: float = 0, fresh: float = 0) -> float:
        """That so many bytes take."""
        return (read / self.read + changed / self.changed + summed / self.summed + fresh / self.fresh) / 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """One figure with what bounds it, in 10^9 values of updates a core-second."""

    what: str
    encoding: str
    rate: float
    """The median; of whole rounds the best."""
    low: float
    high: float
    from_memory: float | None = None
    from_cache: float | None = None
    counted_bytes: float = 0
    """Of a value, that memory moves: `from_memory` is what it allows."""
    working_set_bytes: int = 0
    """That the loop goes over between two visits of the same byte."""
    held_bytes: int = 0
    """Of whole rounds: what Python and numpy held at the most, beyond updates, base and moments."""
    by_stages: float | None = None
    """What the slower of the two allows, of work that is done in stages one after the other: of each by itself."""

    @property
    def share(self) -> float | None:
        """Of the slower of the two bounds."""
        if self.from_memory is None or self.from_cache is None:
            return None
        return self.rate / (self.by_stages or min(self.from_memory, self.from_cache))


@kernel
def _look(words: NDArray[np.int64]) -> int:
    seen = np.int64(0)
    for i in range(words.size):
        seen += words[i]
    return int(seen)


@kernel
def _look_in_turn(payloads: tuple[NDArray[np.int64], ...], words: int, first: int, last: int) -> int:
    """`words` at a time, from the strip `first` to the strip `last`."""
    seen = np.int64(0)
    for strip in range(first, last):
        for each in range(len(payloads)):
            part = payloads[each][strip * words : (strip + 1) * words]
            for i in range(part.size):
                seen += part[i]
    return int(seen)


@kernel
def _sum_bare(
    sums: NDArray[np.int64], payloads: tuple[NDArray[np.int64], ...], words: int, first: int, last: int
) -> None:
    """The same, and 512 sums a strip."""
    for strip in range(first, last):
        seen = np.int64(0)
        for each in range(len(payloads)):
            part = payloads[each][strip * words : (strip + 1) * words]
            for i in range(part.size):
                seen += part[i]
        changed = sums[strip * STRIP : (strip + 1) * STRIP]
        for i in range(changed.size):
            changed[i] += seen


@kernel
def _change(words: NDArray[np.int64]) -> None:
    for i in range(words.size):
        words[i] += 1


@kernel
def _touch(words: NDArray[np.int64], places: NDArray[np.uint32]) -> None:
    for i in range(places.size):
        words[places[i]] += 1


def timed(repeats: int, run: Callable[[], object]) -> list[float]:
    """Processor time of each repetition after the first, the shortest first."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return sorted(seconds)


def memory_of(payloads: Sequence[bytes], parameters: int, repeats: int, spread: Spread) -> Memory:
    words = tuple(np.frombuffer(each, np.int64, len(each) // 8) for each in payloads)
    sums = np.ones(parameters, np.int64)
    strips = -(-parameters // STRIP)
    of_strip = max(1, words[0].size // strips)
    size = sum(each.nbytes for each in words)

    def over(count: int, act: Callable[[int, int], object]) -> float:
        """Seconds for all of `count`, in pieces as the node's."""
        step = -(-count * SPAN_TILES * TILE // parameters)

        def piece(first: int) -> int:
            act(first, min(first + step, count))
            return 0

        pieces = [partial(piece, first) for first in range(0, count, step)]
        return timed(repeats, lambda: spread(pieces))[0]

    def one_by_one(first: int, last: int) -> None:
        for each in words:
            _look(each[first:last])

    apart = over(words[0].size, one_by_one)
    in_turn = over(-(-words[0].size // 256), lambda first, last: _look_in_turn(words, 256, first, last))
    summed = over(strips, lambda first, last: _sum_bare(sums, words, of_strip, first, last))
    changed = over(parameters, lambda first, last: _change(sums[first:last]))
    fresh = timed(repeats, lambda: _change(np.zeros(parameters, np.int64)))[0]
    return Memory(
        read=size / min(apart, in_turn) / 1e9,
        changed=2 * sums.nbytes / changed / 1e9,
        summed=(size + 2 * sums.nbytes) / summed / 1e9,
        fresh=sums.nbytes / fresh / 1e9,
    )


def touched_s(places: Sequence[NDArray[np.uint32]], parameters: int, repeats: int) -> float:
    """What reading and writing the sums at these places takes, of one update after the other."""
    sums = np.ones(parameters, np.int64)

    def run() -> None:
        for each in places:
            _touch(sums, each)

    return timed(repeats, run)[0]


def in_cache(of: Any, arguments: tuple[Any, ...], values: int, repeats: int) -> float:
    """Seconds a value, of `values` a call. `of` is a kernel."""
    assert isinstance(of, Kernel)
    many = _again(of)
    return timed(repeats, lambda: many(_CALLS, arguments))[0] / _CALLS / values


@cache
def _again(of: Kernel) -> Callable[..., None]:
    import numba

    compiled = of.compiled

    def many(calls: int, arguments: Any) -> None:
        for _ in range(calls):
            compiled(*arguments)

    again: Callable[..., None] = numba.njit(**OPTIONS)(many)
    return again
