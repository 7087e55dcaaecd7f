"""Exact squared distances and norms of updates on the grid.

y = RNE(x·2^G0), |y| ≤ 2^P ≤ 2^50. Of a pair, d = |a − b| ≤ 2^(P+1) ≤ 2^51 is split into h = d >> 26 ≤ 2^25 and
l = d − h·2^26 < 2^26, and d² = l² + 2^27·h·l + 2^52·h². Over a strip of at most 2^10 coordinates the three sums stay
within 2^62, 2^61 and 2^60. After each strip they are carried into three limbs in base 2^52,

    low + 2^52·middle + 2^104·high        low and middle below 2^52, high ≥ 0,

where no step exceeds 2^62 + 2^53 and high stays below 2^63 for any number of coordinates that memory holds: a sum is
exact whatever the size of the model, and sums over several ranges of coordinates are added as integers (`exact`).

The mask on h takes nothing away: it tells the compiler that factors have 26 bits, so that it multiplies these alone.

A strip of every update is turned into y once: 8 KiB an update. Pairs are made block by block of updates, so that what
they are made of is in a core's cache, however many updates there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

LIMBS = 3

_SHIFT = 6755399441055744.0
_SHIFT_BITS = 0x4338000000000000
_HALF = 26
_LOW_HALF = (1 << _HALF) - 1
_HIGH_HALF = (1 << 25) - 1
_CROSS = 25
_LOW_CROSS = (1 << _CROSS) - 1
_LIMB = 52
_LOW_LIMB = (1 << _LIMB) - 1
_STRIP = 1 << 10
_BLOCK = 32
"""Updates of which a strip stays in a core's second cache, 256 KiB, while they are compared with as many others."""


def pairs_of(count: int) -> int:
    """Of that many updates. The pair of a and b, b < a, is number a·(a−1)/2 + b."""
    return count * (count - 1) // 2


def exact(limbs: NDArray[np.int64]) -> list[int]:
    """The sum that each row of limbs stands for."""
    return [low + (middle << _LIMB) + (high << 2 * _LIMB) for low, middle, high in limbs.tolist()]


@kernel
def add_distances(limbs: NDArray[np.int64], values: NDArray[np.float32], factor: float) -> None:
    """Adds Σ (y_a − y_b)² over the columns to the limbs of every pair of rows, factor = 2^G0."""
    count, width = values.shape
    grid = np.empty((count, _STRIP), np.int64)
    for start in range(0, width, _STRIP):
        size = min(_STRIP, width - start)
        for row in range(count):
            part = values[row, start : start + size]
            steps = grid[row]
            for i in range(size):
                steps[i] = np.float64(np.float64(part[i]) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS
        for rows in range(0, count, _BLOCK):
            for columns in range(0, rows + 1, _BLOCK):
                for row in range(rows, min(rows + _BLOCK, count)):
                    one = grid[row]
                    for column in range(columns, min(columns + _BLOCK, row)):
                        other = grid[column]
                        low = cross = high = np.int64(0)
                        for i in range(size):
                            distance = abs(one[i] - other[i])
                            upper = (distance >> _HALF) & _LOW_HALF
                            lower = distance & _LOW_HALF
                            low += lower * lower
                            cross += upper * lower
                            high += upper * upper
                        pair = row * (row - 1) // 2 + column
                        low += limbs[pair, 0] + ((cross & _LOW_CROSS) << (_LIMB - _CROSS))
                        high += limbs[pair, 1] + (cross >> _CROSS) + (low >> _LIMB)
                        limbs[pair, 0] = low & _LOW_LIMB
                        limbs[pair, 1] = high & _LOW_LIMB
                        limbs[pair, 2] += high >> _LIMB


@kernel
def add_norms(limbs: NDArray[np.int64], values: NDArray[np.float32], factor: float) -> None:
    """Adds Σ y² over the columns to the limbs of every row: as `add_distances` does, of a row and zeros. Rounding to
    nearest goes as far on either side of zero, so it is |x| that is scaled: |y| ≤ 2^50 is then the lowest 51 bits of
    what adding 1.5·2^52 gives, with nothing to take away."""
    count, width = values.shape
    for row in range(count):
        for start in range(0, width, _STRIP):
            part = values[row, start : start + min(_STRIP, width - start)]
            low = cross = high = np.int64(0)
            for i in range(part.size):
                bits = np.float64(np.float64(abs(part[i])) * factor + _SHIFT).view(np.int64)
                upper = (bits >> _HALF) & _HIGH_HALF
                lower = bits & _LOW_HALF
                low += lower * lower
                cross += upper * lower
                high += upper * upper
            low += limbs[row, 0] + ((cross & _LOW_CROSS) << (_LIMB - _CROSS))
            high += limbs[row, 1] + (cross >> _CROSS) + (low >> _LIMB)
            limbs[row, 0] = low & _LOW_LIMB
            limbs[row, 1] = high & _LOW_LIMB
            limbs[row, 2] += high >> _LIMB


@kernel
def sum_chosen(sums: NDArray[np.int64], values: NDArray[np.float32], rows: NDArray[np.int32], factor: float) -> None:
    """Writes Σ y over these rows, for each column."""
    sums[:] = 0
    for row in rows:
        part = values[row]
        for i in range(part.size):
            sums[i] += np.float64(np.float64(part[i]) * factor + _SHIFT).view(np.int64) - _SHIFT_BITS
