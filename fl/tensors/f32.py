"""Encoding f32: the flat vector as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.tensors import floats
from fl.tensors.coding import Coding
from fl.tensors.layout import Bytes, Layout, StoredTensor, array_at

_PIECE = 1 << 18
"""Values encoded together."""


class F32:
    name = "f32"

    def __init__(self, layout: Layout, coding: Coding) -> None:
        self._layout = layout
        self._range_bits = coding.range_bits

    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(StoredTensor(each.name, "F32", each.shape) for each in self._layout.segments)

    def check(self, part: Bytes, start: int) -> None:
        floats.check_range(array_at(part, "F32", len(part) // 4, 0), self._range_bits)

    def encode(self, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        for tensor in tensors:
            values = tensor.ravel()
            for start in range(0, values.size, _PIECE):
                piece = floats.canonical(values[start : start + _PIECE])
                floats.check_range(piece, self._range_bits)
                yield piece.astype("<f4", copy=False).data.cast("B")

    def decode(self, payload: Bytes, offset: int) -> NDArray[np.float32]:
        return self.values(payload, offset).copy()

    def values(self, payload: Bytes, offset: int) -> NDArray[np.float32]:
        return array_at(payload, "F32", self._layout.parameters, offset).view(np.float32)
