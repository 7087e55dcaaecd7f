"""Values of an update as the F32 that they mean, for rules that look at more than a sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.compiled import kernel

_MAGNITUDE = np.int32(0x7FFFFFFF)
_HALF_MAGNITUDE = np.int32(0x7FFF)
_HALF_NORMAL = np.int32(0x0400)
_HALF_STEP = np.float32(2.0**-24)
_REBIASED = np.int32(0x38000000)


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
def read_f16(out: NDArray[np.float32], values: NDArray[np.uint16]) -> int:
    """From the bits of f16, without a denormal F32 on the way. Returns the largest magnitude seen, as f16 bits."""
    top = np.int32(0)
    for i in range(out.size):
        bits = np.int32(values[i])
        magnitude = np.int32(bits & _HALF_MAGNITUDE)
        normal = np.int32((magnitude << 13) + _REBIASED).view(np.float32)
        size = normal if magnitude >= _HALF_NORMAL else np.float32(magnitude) * _HALF_STEP
        out[i] = size if bits == magnitude else -size
        top = max(top, magnitude)
    return int(top)


@kernel
def read_bf16(out: NDArray[np.float32], values: NDArray[np.uint16]) -> int:
    """From the bits of bf16. Returns the largest magnitude seen, as bf16 bits."""
    top = np.int32(0)
    for i in range(out.size):
        bits = np.int32(values[i])
        out[i] = np.int32(bits << 16).view(np.float32)
        top = max(top, np.int32(bits & _HALF_MAGNITUDE))
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
