"""The step every rule ends in: x' = canon(f32(f64(x) + f64(A)/f64(den)))."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_MAGNITUDE = np.int32(0x7FFFFFFF)
_TINY_BITS = np.int32(0x00800000)


@kernel
def apply_mean(
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    sums: NDArray[np.int64],
    denominator: float,
) -> int:
    """Writes `new`; −0 and denormals become +0. Returns the largest magnitude written, as F32 bits: one of
    infinity or above means that the model has left the range of F32."""
    top = np.int32(0)
    for i in range(new.size):
        value = np.float32(np.float64(old[i]) + np.float64(sums[i]) / denominator)
        magnitude = np.int32(value.view(np.int32) & _MAGNITUDE)
        new[i] = value if magnitude >= _TINY_BITS else np.float32(0.0)
        top = max(top, magnitude)
    return int(top)
