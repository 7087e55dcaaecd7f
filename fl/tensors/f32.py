"""Encoding f32: the flat vector as it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.tensors import floats
from fl.tensors.layout import Bytes, Layout, StoredTensor, array_at


class F32:
    name = "f32"

    def stored(self, layout: Layout) -> tuple[StoredTensor, ...]:
        return tuple(StoredTensor(each.name, "F32", each.shape) for each in layout.segments)

    def check(self, layout: Layout, range_bits: int, part: Bytes, start: int) -> None:
        floats.check_range(array_at(part, "F32", len(part) // 4, 0), range_bits)

    def encode(self, layout: Layout, range_bits: int, flat: NDArray[np.float32]) -> bytes:
        return flat.astype("<f4", copy=False).tobytes()

    def decode(self, layout: Layout, payload: Bytes, offset: int) -> NDArray[np.float32]:
        return self.values(layout, payload, offset).copy()

    def values(self, layout: Layout, payload: Bytes, offset: int) -> NDArray[np.float32]:
        return array_at(payload, "F32", layout.parameters, offset).view(np.float32)
