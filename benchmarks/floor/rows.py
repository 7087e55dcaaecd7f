"""Sums of many small updates in one call: what a loop over calls of the product's kernels would spend on calling them.

The arithmetic is that of `fl.kernels.sums`, and so are the sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_SHIFT = 6755399441055744.0
_SHIFT_BITS = 0x4338000000000000


@kernel
def sum_q8_rows(
    sums: NDArray[np.int64],
    data: NDArray[np.int8],
    scales: NDArray[np.float32],
    factors: NDArray[np.float64],
    width: int,
    start: int,
    block: int,
) -> None:
    """Values of update number r begin at r·width + start."""
    for row in range(factors.size):
        factor = factors[row]
        for first in range(0, sums.size, block):
            scale = scales[row, first // block]
            part = sums[first : first + block]
            place = row * width + start + first
            values = data[place : place + part.size]
            for i in range(part.size):
                exact = np.float64(np.float32(values[i]) * scale) * factor
                part[i] += np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS


@kernel
def sum_f32_rows(sums: NDArray[np.int64], values: NDArray[np.float32], factors: NDArray[np.float64]) -> None:
    for row in range(factors.size):
        factor = factors[row]
        part = values[row]
        for i in range(sums.size):
            exact = np.float64(part[i]) * factor
            sums[i] += np.float64(exact + _SHIFT).view(np.int64) - _SHIFT_BITS
