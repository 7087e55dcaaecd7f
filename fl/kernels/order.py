"""Order statistics of each coordinate across updates, exact in int64.

Values are sorted as ordered int32 keys: the bits of an F32, the magnitude inverted where the sign is set. Keys order
as the values do, −0 just below +0 and denormals where they belong, whatever the processor does to denormals in
arithmetic. A grid value y = RNE(x·2^G0) never falls as x rises, so sorted values are sorted y; where keys differ and y
do not (−0 and +0, denormals), the order of the two leaves no trace in a sum of y.

Updates are sorted by Batcher's odd-even merge network: a list of comparators that depends on the number of updates
alone. A comparator is a minimum and a maximum of two rows, vector code along the coordinates; sorting one column after
the other would be branches. Rows are gathered into strips that stay in a core's cache while the network runs over them.

Bounds: |x| ≤ 2^R gives |y| ≤ 2^P, P ≤ 50 (`fl.tensors.grid`), and x·2^G0 is exact in float64, where adding 1.5·2^52
rounds it (`fl.kernels.sums` says why). A sum of at most N of them stays within N·2^P ≤ 2^62.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_SHIFT = 6755399441055744.0
_SHIFT_BITS = 0x4338000000000000
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(31)
_SCRATCH = 1 << 17
"""Keys of a strip, all updates together: 512 KiB, within a core's second cache."""
_NARROWEST, _WIDEST = 16, 512


@lru_cache(maxsize=16)
def network(count: int, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The comparators that put the sorted values `first` to `last` − 1 of `count` on their wires, in order: the wires
    that take the lower value and those that take the higher. What cannot reach a wanted wire is left out."""
    wanted = set(range(first, last))
    kept = []
    for low, high in reversed(_comparators(count)):
        if low in wanted or high in wanted:
            wanted |= {low, high}
            kept.append((low, high))
    pairs = np.array(kept[::-1], np.int32).reshape(-1, 2)
    lows, highs = pairs[:, 0].copy(), pairs[:, 1].copy()
    lows.flags.writeable = highs.flags.writeable = False
    return lows, highs


def _comparators(count: int) -> list[tuple[int, int]]:
    pairs = []
    run = 1
    while run < count:
        step = run
        while step:
            for start in range(step % run, count - step, 2 * step):
                for low in range(start, min(start + step, count - step)):
                    if low // (2 * run) == (low + step) // (2 * run):
                        pairs.append((low, low + step))
            step //= 2
        run *= 2
    return pairs


@kernel
def sum_ordered(
    sums: NDArray[np.int64],
    values: NDArray[np.float32],
    lows: NDArray[np.int32],
    highs: NDArray[np.int32],
    first: int,
    last: int,
    factor: float,
) -> None:
    """Writes Σ y of the sorted values `first` to `last` − 1 of each column, factor = 2^G0, with the comparators of
    `network` for these. Rows of `values` are updates."""
    count, width = values.shape
    strip = max(_NARROWEST, min(_WIDEST, _SCRATCH // count // _NARROWEST * _NARROWEST))
    keys = np.empty((count, strip), np.int32)
    for start in range(0, width, strip):
        size = min(strip, width - start)
        for row in range(count):
            bits = values[row, start : start + size].view(np.int32)
            key = keys[row]
            for i in range(size):
                key[i] = bits[i] ^ ((bits[i] >> _SIGN) & _MAGNITUDE)
        for each in range(lows.size):
            lower = keys[lows[each]]
            higher = keys[highs[each]]
            for i in range(size):
                one = lower[i]
                other = higher[i]
                lower[i] = min(one, other)
                higher[i] = max(one, other)
        part = sums[start : start + size]
        part[:] = 0
        for row in range(first, last):
            key = keys[row]
            for i in range(size):
                value = np.int32(key[i] ^ ((key[i] >> _SIGN) & _MAGNITUDE)).view(np.float32)
                part[i] += np.float64(np.float64(value) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS


@kernel
def sum_closest(
    sums: NDArray[np.int64],
    values: NDArray[np.float32],
    rows: NDArray[np.int32],
    lows: NDArray[np.int32],
    highs: NDArray[np.int32],
    wanted: int,
    factor: float,
) -> None:
    """Writes, for each column, Σ y over the window of `wanted` = β consecutive sorted values that is closest to the
    column's median, the lowest of equally close ones. It looks at θ `rows` of `values` alone; the comparators are those
    of `network` for all of these.

    With m = y[(θ−1)//2] + y[θ//2], twice the median, window i is y[i] to y[i+β−1] and its distance is
    Σ |2·y[j] − m| over it. A step from i to i+1 changes the distance by δ[i] = |2·y[i+β] − m| − |2·y[i] − m|. Once one
    δ is positive none is negative any more: y[i+β] is then above the median and y[i] nearer to it than y[i+β] is, so
    that y[i+1], between the two, is no further away than y[i+β], which is no further away than y[i+β+1]. The closest
    window is therefore the one after the last negative δ, and windows before it are further away. |2·y − m| ≤ 2^(P+2).
    """
    count = rows.size
    width = values.shape[1]
    strip = max(_NARROWEST, min(_WIDEST, _SCRATCH // count // _NARROWEST * _NARROWEST))
    keys = np.empty((count, strip), np.int32)
    medians = np.empty(strip, np.int64)
    window = np.empty(strip, np.int64)
    for start in range(0, width, strip):
        size = min(strip, width - start)
        for row in range(count):
            bits = values[rows[row], start : start + size].view(np.int32)
            key = keys[row]
            for i in range(size):
                key[i] = bits[i] ^ ((bits[i] >> _SIGN) & _MAGNITUDE)
        for each in range(lows.size):
            lower = keys[lows[each]]
            higher = keys[highs[each]]
            for i in range(size):
                one = lower[i]
                other = higher[i]
                lower[i] = min(one, other)
                higher[i] = max(one, other)
        part = sums[start : start + size]
        medians[:] = 0
        window[:] = 0
        for row in ((count - 1) // 2, count // 2):
            key = keys[row]
            for i in range(size):
                value = np.int32(key[i] ^ ((key[i] >> _SIGN) & _MAGNITUDE)).view(np.float32)
                medians[i] += np.float64(np.float64(value) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS
        for row in range(wanted):
            key = keys[row]
            for i in range(size):
                value = np.int32(key[i] ^ ((key[i] >> _SIGN) & _MAGNITUDE)).view(np.float32)
                window[i] += np.float64(np.float64(value) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS
        for i in range(size):
            part[i] = window[i]
        for row in range(count - wanted):
            left = keys[row]
            entered = keys[row + wanted]
            for i in range(size):
                value = np.int32(left[i] ^ ((left[i] >> _SIGN) & _MAGNITUDE)).view(np.float32)
                old = np.float64(np.float64(value) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS
                value = np.int32(entered[i] ^ ((entered[i] >> _SIGN) & _MAGNITUDE)).view(np.float32)
                new = np.float64(np.float64(value) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS
                window[i] += new - old
                if abs(2 * new - medians[i]) < abs(2 * old - medians[i]):
                    part[i] = window[i]
