"""FedAvg: int64 sums of q = RNE(x·c) over updates, c = w·2^G.

x·c is exact in float64 and |x·c| ≤ 2^50. Adding 1.5·2^52 puts it where float64 has a step of exactly 1, so
that one addition rounds it to nearest, ties to even; the integer is then the difference of the bit patterns.
A fused multiply-add would give the same, the product being exact. This form is vector code on every
processor, where converting float64 to int64 is vector code on few.

Several updates are summed in one call, tile by tile, so that a tile's sums are read from and written to
memory once. The return value lets the caller assert what the bound rests on, without another pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

FUSED = 4
"""Updates in one call where there are as many: what pays for quantised ones, and hardly less than more would.
Calls take this many or one, since each number is compiled on its own."""

_SHIFT = 6755399441055744.0
_SHIFT_BITS = 0x4338000000000000
_MAGNITUDE = np.int32(0x7FFFFFFF)


@kernel
def sum_f32(
    sums: NDArray[np.int64],
    updates: tuple[NDArray[np.float32], ...],
    factors: NDArray[np.float64],
    edges: NDArray[np.int64],
    first: int,
    last: int,
) -> int:
    """Adds tiles `first` to `last` of every update. Returns the largest magnitude seen, as F32 bits."""
    top = np.int32(0)
    for tile in range(first, last):
        for each in range(len(updates)):
            factor = factors[each]
            part = sums[edges[tile] : edges[tile + 1]]
            values = updates[each][edges[tile] : edges[tile + 1]]
            for i in range(part.size):
                value = values[i]
                shifted = np.float64(np.float64(value) * factor + _SHIFT)
                part[i] += shifted.view(np.int64) - _SHIFT_BITS
                top = max(top, np.int32(np.float32(value).view(np.int32) & _MAGNITUDE))
    return int(top)


@kernel
def sum_q8(
    sums: NDArray[np.int64],
    updates: tuple[NDArray[np.int8], ...],
    scales: tuple[NDArray[np.float32], ...],
    factors: NDArray[np.float64],
    tiles: NDArray[np.int64],
    blocks: NDArray[np.int64],
    first: int,
    last: int,
) -> int:
    """Adds tiles `first` to `last` of every update, x = f32(q)·scale of its block. Returns the largest
    magnitude of a scale seen, as F32 bits."""
    top = np.int32(0)
    for tile in range(first, last):
        for each in range(len(updates)):
            factor = factors[each]
            for block in range(tiles[tile], tiles[tile + 1]):
                scale = scales[each][block]
                top = max(top, np.int32(np.float32(scale).view(np.int32) & _MAGNITUDE))
                part = sums[blocks[block] : blocks[block + 1]]
                values = updates[each][blocks[block] : blocks[block + 1]]
                for i in range(part.size):
                    value = np.float32(values[i]) * scale
                    shifted = np.float64(np.float64(value) * factor + _SHIFT)
                    part[i] += shifted.view(np.int64) - _SHIFT_BITS
    return int(top)
