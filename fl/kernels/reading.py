"""Values of an update as the F32 that they mean, for rules that look at more than a sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_MAGNITUDE = np.int32(0x7FFFFFFF)


@kernel
def read_f32(out: NDArray[np.float32], values: NDArray[np.float32]) -> int:
    """Returns the largest magnitude seen, as F32 bits."""
    top = np.int32(0)
    for i in range(out.size):
        value = values[i]
        out[i] = value
        top = max(top, np.int32(np.float32(value).view(np.int32) & _MAGNITUDE))
    return int(top)


@kernel
def read_q8(
    out: NDArray[np.float32],
    values: NDArray[np.int8],
    scales: NDArray[np.float32],
    blocks: NDArray[np.int64],
    first: int,
    start: int,
) -> int:
    """`values` is the whole update; of it, those from `start` on, which lies in block `first`. Returns the largest
    magnitude of a scale seen, as F32 bits."""
    top = np.int32(0)
    stop = start + out.size
    block = first
    place = start
    while place < stop:
        end = min(blocks[block + 1], stop)
        scale = scales[block]
        top = max(top, np.int32(np.float32(scale).view(np.int32) & _MAGNITUDE))
        part = out[place - start : end - start]
        steps = values[place:end]
        for i in range(part.size):
            part[i] = np.float32(steps[i]) * scale
        place = end
        block += 1
    return int(top)
