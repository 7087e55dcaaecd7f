"""Rules with a memory: what the moments become, and the model that follows from them.

d = f64(A)/f64(den) is the mean that the round has brought. A moment is stored as F32, so a step in float64 ends in
canon(f32(·)) like one of the model: −0 and what is smaller than 2^−126 becomes +0. Every kernel returns the largest
magnitude that it wrote, as F32 bits; one of infinity or above means that the range of F32 was left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_MAGNITUDE = np.int32(0x7FFFFFFF)
_TINY_BITS = np.int32(0x00800000)


@kernel
def blend(
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    sums: NDArray[np.int64],
    denominator: float,
    keep: float,
    take: float,
) -> int:
    """keep·m + take·d."""
    top = np.int32(0)
    for i in range(new.size):
        mean = np.float64(sums[i]) / denominator
        value = np.float32(keep * np.float64(old[i]) + take * mean)
        magnitude = np.int32(value.view(np.int32) & _MAGNITUDE)
        new[i] = value if magnitude >= _TINY_BITS else np.float32(0.0)
        top = max(top, magnitude)
    return int(top)


@kernel
def blend_squares(
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    sums: NDArray[np.int64],
    denominator: float,
    keep: float,
    take: float,
) -> int:
    """keep·v + take·(d·d)."""
    top = np.int32(0)
    for i in range(new.size):
        mean = np.float64(sums[i]) / denominator
        value = np.float32(keep * np.float64(old[i]) + take * (mean * mean))
        magnitude = np.int32(value.view(np.int32) & _MAGNITUDE)
        new[i] = value if magnitude >= _TINY_BITS else np.float32(0.0)
        top = max(top, magnitude)
    return int(top)


@kernel
def approach_squares(
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    sums: NDArray[np.int64],
    denominator: float,
    take: float,
) -> int:
    """v − take·(d·d)·sign(v − d·d): toward d·d, by a step that does not depend on how far it is."""
    top = np.int32(0)
    for i in range(new.size):
        mean = np.float64(sums[i]) / denominator
        square = mean * mean
        before = np.float64(old[i])
        step = take * square
        signed = step if before > square else (-step if before < square else 0.0)
        value = np.float32(before - signed)
        magnitude = np.int32(value.view(np.int32) & _MAGNITUDE)
        new[i] = value if magnitude >= _TINY_BITS else np.float32(0.0)
        top = max(top, magnitude)
    return int(top)


@kernel
def move(new: NDArray[np.float32], old: NDArray[np.float32], first: NDArray[np.float32], rate: float) -> int:
    """x + rate·m."""
    top = np.int32(0)
    for i in range(new.size):
        value = np.float32(np.float64(old[i]) + rate * np.float64(first[i]))
        magnitude = np.int32(value.view(np.int32) & _MAGNITUDE)
        new[i] = value if magnitude >= _TINY_BITS else np.float32(0.0)
        top = max(top, magnitude)
    return int(top)


@kernel
def move_scaled(
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    rate: float,
    tau: float,
) -> int:
    """x + (rate·m)/(√v + tau)."""
    top = np.int32(0)
    for i in range(new.size):
        step = (rate * np.float64(first[i])) / (np.sqrt(np.float64(second[i])) + tau)
        value = np.float32(np.float64(old[i]) + step)
        magnitude = np.int32(value.view(np.int32) & _MAGNITUDE)
        new[i] = value if magnitude >= _TINY_BITS else np.float32(0.0)
        top = max(top, magnitude)
    return int(top)
