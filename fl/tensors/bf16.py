"""Encoding bf16: the upper half of an F32, 8 bits of precision over its whole range.

numpy has no such float: values are integers here, and reading one is a shift by 16. Writing rounds to nearest, ties to
even, in integers: half of the last place is added, or just less than that if the last bit is even. A carry out of the
fraction runs into the exponent, as it should; 2^R itself has such bits, so nothing is rounded beyond the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.tensors.dense import Dense


class BF16(Dense):
    name = "bf16"
    dtype = "BF16"
    infinity = 0x7F80

    @staticmethod
    def power_of_two(exponent: int) -> int:
        return (127 + exponent) << 7

    def written(self, values: NDArray[np.float32]) -> NDArray[Any]:
        bits = values.view(np.uint32)
        rounded = bits + ((bits >> 16 & 1) + np.uint32(0x7FFF))
        return (rounded >> 16).astype("<u2")

    def meant(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return (values.astype(np.uint32) << 16).view(np.float32)
