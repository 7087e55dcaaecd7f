"""Exact squared norms of updates on the grid, straight from their encoded values: as `fl.kernels.distances.add_norms`
gives them of F32, limbs and all.

Of a value beyond the job's range nothing sensible comes out, but nothing negative either: the sum of the same values
refuses the update.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_SHIFT = 6755399441055744.0
_HALF = 26
_LOW_HALF = (1 << _HALF) - 1
_HIGH_HALF = (1 << 25) - 1
_CROSS = 25
_LOW_CROSS = (1 << _CROSS) - 1
_LIMB = 52
_LOW_LIMB = (1 << _LIMB) - 1
_STRIP = 1 << 10

_HALF_MAGNITUDE = np.int32(0x7FFF)
_HALF_NORMAL = np.int32(0x0400)
_HALF_STEP = np.float32(2.0**-24)
_REBIASED = np.int32(0x38000000)


@kernel
def add_norm_half(limbs: NDArray[np.int64], values: NDArray[np.uint16], factor: float, brain: bool) -> None:
    """Adds Σ y² to the limbs, of the bits of f16 or, if `brain`, of bf16; factor = 2^G0."""
    for start in range(0, values.size, _STRIP):
        part = values[start : start + min(_STRIP, values.size - start)]
        low = cross = high = np.int64(0)
        for i in range(part.size):
            magnitude = np.int32(np.int32(part[i]) & _HALF_MAGNITUDE)
            if brain:
                size = np.int32(magnitude << 16).view(np.float32)
            else:
                normal = np.int32((magnitude << 13) + _REBIASED).view(np.float32)
                size = normal if magnitude >= _HALF_NORMAL else np.float32(magnitude) * _HALF_STEP
            bits = np.float64(np.float64(size) * factor + _SHIFT).view(np.int64)
            upper = (bits >> _HALF) & _HIGH_HALF
            lower = bits & _LOW_HALF
            low += lower * lower
            cross += upper * lower
            high += upper * upper
        low += limbs[0] + ((cross & _LOW_CROSS) << (_LIMB - _CROSS))
        high += limbs[1] + (cross >> _CROSS) + (low >> _LIMB)
        limbs[0] = low & _LOW_LIMB
        limbs[1] = high & _LOW_LIMB
        limbs[2] += high >> _LIMB


@kernel
def add_norm_q8(
    limbs: NDArray[np.int64],
    values: NDArray[np.int8],
    scales: NDArray[np.float32],
    blocks: NDArray[np.int64],
    first: int,
    last: int,
    factor: float,
) -> None:
    """Of blocks `first` to `last`; `values` and `scales` are the whole update."""
    for block in range(first, last):
        scale = abs(scales[block])
        end = blocks[block + 1]
        for start in range(blocks[block], end, _STRIP):
            part = values[start : min(start + _STRIP, end)]
            low = cross = high = np.int64(0)
            for i in range(part.size):
                size = np.float64(abs(np.float32(part[i])) * scale)
                bits = np.float64(size * factor + _SHIFT).view(np.int64)
                upper = (bits >> _HALF) & _HIGH_HALF
                lower = bits & _LOW_HALF
                low += lower * lower
                cross += upper * lower
                high += upper * upper
            low += limbs[0] + ((cross & _LOW_CROSS) << (_LIMB - _CROSS))
            high += limbs[1] + (cross >> _CROSS) + (low >> _LIMB)
            limbs[0] = low & _LOW_LIMB
            limbs[1] = high & _LOW_LIMB
            limbs[2] += high >> _LIMB
