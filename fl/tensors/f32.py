"""Encoding f32: the values as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.tensors import floats
from fl.tensors.dense import Dense


class F32(Dense):
    name = "f32"
    dtype = "F32"
    infinity = floats.INFINITY_BITS

    @staticmethod
    def power_of_two(exponent: int) -> int:
        return floats.range_bits_as_f32(exponent)

    def written(self, values: NDArray[np.float32]) -> NDArray[Any]:
        return values.astype("<f4", copy=False)

    def meant(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32)
