"""Encoding f16: half precision, 11 bits from 2^−14 to 65504 and steps of 2^−24 below.

Every f16 is exactly an F32 and a normal one, f16's own denormals included. A value beyond 65504, which only a range of
2^16 or more admits, is saturated rather than refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.tensors.dense import Dense

_NEGATIVE_ZERO = 0x8000
_LARGEST = np.float32(65504)


class F16(Dense):
    name = "f16"
    dtype = "F16"
    infinity = 0x7C00

    @staticmethod
    def power_of_two(exponent: int) -> int:
        return (15 + exponent) << 10

    def written(self, values: NDArray[np.float32]) -> NDArray[Any]:
        # What rounds to zero is no fault here.
        with np.errstate(under="ignore"):
            written = np.clip(values, -_LARGEST, _LARGEST).astype("<f2")
        bits = written.view("<u2")
        bits[bits == _NEGATIVE_ZERO] = 0
        return written

    def meant(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32)
