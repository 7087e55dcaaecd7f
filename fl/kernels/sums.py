"""Exact sums of updates: int64 sums of q = x·c, rounded to nearest with ties to even, or toward zero.

Rounding. x·c is exact in float64, c having at most 29 significant bits, and |x·c| ≤ 2^50. Adding 1.5·2^52 puts it where
float64 has a step of exactly 1, so that one addition rounds it to nearest, ties to even; the integer is then the
difference of the bit patterns. A fused multiply-add would give the same, the product being exact. This form is vector
code on every processor, where converting float64 to int64 is vector code on few. Toward zero, the product is cut to
an integer first, which the addition then leaves as it is.

Values. x is the F32 that an update means, exactly: that of an f16 comes about without a denormal on the way, so no mode
of the processor can take it.

Several updates are summed in one call, strip by strip: the sums of a strip stay in the nearest cache until all updates
are added, and the processor fetches the next strip of one update while it works on another's. Each kernel returns the
largest magnitude that it met, so that the caller can assert what the bound rests on without another pass.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

FUSED = 4
"""Updates in one call where there are as many: what pays for quantised ones, and hardly less than more would.
Calls take this many or one, since each number of arrays is compiled on its own."""

Stack: TypeAlias = tuple[NDArray[Any], ...] | NDArray[Any]
"""Of each update an array of its own, or a row of one. Calls take any number of rows, for of small updates the
calls are what takes time."""

_STRIP = 512
"""Values of each update between which the updates take turns. With 2,048 or more, a sum of f32 takes twice as long."""

_SHIFT = 6755399441055744.0
_SHIFT_BITS = 0x4338000000000000
_MAGNITUDE = np.int32(0x7FFFFFFF)

_HALF_MAGNITUDE = np.int32(0x7FFF)
_HALF_NORMAL = np.int32(0x0400)
_HALF_STEP = np.float32(2.0**-24)
_REBIASED = np.int32(0x38000000)
"""What the exponents of F32 and f16 differ by, in the place that F32 has it."""

BROKEN = 0x7FFFFFFF
"""Of indices that do not rise, instead of a magnitude: more than any."""


@kernel
def sum_f32(
    sums: NDArray[np.int64],
    updates: Stack,
    factors: NDArray[np.float64],
    edges: NDArray[np.int64],
    first: int,
    last: int,
    truncated: bool,
) -> int:
    """Adds tiles `first` to `last` of every update. The magnitude is one of F32."""
    top = np.int32(0)
    end = edges[last]
    for start in range(edges[first], end, _STRIP):
        stop = min(start + _STRIP, end)
        for each in range(len(updates)):
            factor = factors[each]
            part = sums[start:stop]
            values = updates[each][start:stop]
            for i in range(part.size):
                value = values[i]
                exact = np.float64(value) * factor
                if truncated:
                    exact = np.trunc(exact)
                part[i] += np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS
                top = max(top, np.int32(np.float32(value).view(np.int32) & _MAGNITUDE))
    return int(top)


@kernel
def sum_f16(
    sums: NDArray[np.int64],
    updates: Stack,
    factors: NDArray[np.float64],
    edges: NDArray[np.int64],
    first: int,
    last: int,
    truncated: bool,
) -> int:
    """Of the bits of f16. The magnitude is one of f16."""
    top = np.int32(0)
    end = edges[last]
    for start in range(edges[first], end, _STRIP):
        stop = min(start + _STRIP, end)
        for each in range(len(updates)):
            factor = factors[each]
            part = sums[start:stop]
            values = updates[each][start:stop]
            for i in range(part.size):
                bits = np.int32(values[i])
                magnitude = np.int32(bits & _HALF_MAGNITUDE)
                normal = np.int32((magnitude << 13) + _REBIASED).view(np.float32)
                size = normal if magnitude >= _HALF_NORMAL else np.float32(magnitude) * _HALF_STEP
                exact = np.float64(size if bits == magnitude else -size) * factor
                if truncated:
                    exact = np.trunc(exact)
                part[i] += np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS
                top = max(top, magnitude)
    return int(top)


@kernel
def sum_bf16(
    sums: NDArray[np.int64],
    updates: Stack,
    factors: NDArray[np.float64],
    edges: NDArray[np.int64],
    first: int,
    last: int,
    truncated: bool,
) -> int:
    """Of the bits of bf16. The magnitude is one of bf16."""
    top = np.int32(0)
    end = edges[last]
    for start in range(edges[first], end, _STRIP):
        stop = min(start + _STRIP, end)
        for each in range(len(updates)):
            factor = factors[each]
            part = sums[start:stop]
            values = updates[each][start:stop]
            for i in range(part.size):
                bits = np.int32(values[i])
                exact = np.float64(np.int32(bits << 16).view(np.float32)) * factor
                if truncated:
                    exact = np.trunc(exact)
                part[i] += np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS
                top = max(top, np.int32(bits & _HALF_MAGNITUDE))
    return int(top)


@kernel
def sum_q8(
    sums: NDArray[np.int64],
    updates: Stack,
    scales: Stack,
    factors: NDArray[np.float64],
    tiles: NDArray[np.int64],
    blocks: NDArray[np.int64],
    first: int,
    last: int,
    truncated: bool,
) -> int:
    """x = f32(q)·scale of its block. The magnitude is that of a scale, one of F32."""
    top = np.int32(0)
    for block in range(tiles[first], tiles[last]):
        end = blocks[block + 1]
        for start in range(blocks[block], end, _STRIP):
            stop = min(start + _STRIP, end)
            for each in range(len(updates)):
                factor = factors[each]
                scale = scales[each][block]
                top = max(top, np.int32(np.float32(scale).view(np.int32) & _MAGNITUDE))
                part = sums[start:stop]
                values = updates[each][start:stop]
                for i in range(part.size):
                    exact = np.float64(np.float32(values[i]) * scale) * factor
                    if truncated:
                        exact = np.trunc(exact)
                    part[i] += np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS
    return int(top)


@kernel
def sum_topk(
    sums: NDArray[np.int64],
    indices: tuple[NDArray[np.uint32], ...],
    updates: tuple[NDArray[np.int8], ...],
    scales: tuple[NDArray[np.float32], ...],
    factors: NDArray[np.float64],
    edges: NDArray[np.int64],
    block: int,
    first: int,
    last: int,
    truncated: bool,
) -> int:
    """Of entries in use, of which each `block` share a scale. The magnitude is that of a scale, one of F32, or `BROKEN`
    if indices among those of these tiles do not rise: then nothing was written outside of these tiles."""
    top = np.int32(0)
    start, stop = edges[first], edges[last]
    steps = np.empty(block, np.int64)
    for each in range(len(updates)):
        factor = factors[each]
        index = indices[each]
        low, high = 0, index.size
        while low < high:
            middle = (low + high) // 2
            if index[middle] < start:
                low = middle + 1
            else:
                high = middle
        end = index.size
        while high < end:
            middle = (high + end) // 2
            if index[middle] < stop:
                high = middle + 1
            else:
                end = middle
        while low < end:
            number = low // block
            cut = min((number + 1) * block, end)
            scale = scales[each][number]
            top = max(top, np.int32(np.float32(scale).view(np.int32) & _MAGNITUDE))
            places = index[low:cut]
            values = updates[each][low:cut]
            falling = np.int64(places[0] < start) | np.int64(places[places.size - 1] >= stop)
            for i in range(1, places.size):
                falling |= np.int64(places[i] <= places[i - 1])
            if falling:
                return BROKEN
            for i in range(places.size):
                exact = np.float64(np.float32(values[i]) * scale) * factor
                if truncated:
                    exact = np.trunc(exact)
                steps[i] = np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS
            for i in range(places.size):
                sums[places[i]] += steps[i]
            low = cut
    return int(top)
