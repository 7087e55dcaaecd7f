"""What the encodings share that write every value of the flat vector as one float."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.tensors import floats
from fl.tensors.coding import Coding
from fl.tensors.layout import Bytes, Layout, Rows, StoredTensor, array_at, numpy_dtype

_PIECE = 1 << 18
"""Values encoded together: a mebibyte."""


class Dense(ABC):
    dtype: ClassVar[str]
    """As safetensors names it."""
    infinity: ClassVar[int]
    """Its bits."""

    def __init__(self, layout: Layout, coding: Coding) -> None:
        self._layout = layout
        self._range_bits = coding.range_bits
        self.limit = min(self.power_of_two(coding.range_bits), self.infinity - 1)
        """The bits of the largest magnitude that a payload may hold."""

    @staticmethod
    @abstractmethod
    def power_of_two(exponent: int) -> int:
        """The bits of 2^exponent, an exponent of 0 or more; any number from `infinity` on if there is none."""

    @abstractmethod
    def written(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """The nearest values of this type, little-endian, of canonical ones within ±2^R. Ties go to the even one,
        never beyond `limit`."""

    @abstractmethod
    def meant(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Exactly what was written."""

    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(StoredTensor(each.name, self.dtype, each.shape) for each in self._layout.segments)

    def check(self, part: Bytes, start: int) -> None:
        values = array_at(part, self.dtype, len(part) // numpy_dtype(self.dtype).itemsize, 0)
        floats.check_magnitude(floats.largest(values), self.limit, self.infinity, self._range_bits)

    def check_joints(self, payload: Bytes, offset: int, part_bytes: int) -> None:
        """Every value stands for itself."""
        return

    def all_good(self, payloads: Sequence[bytes], offset: int) -> bool:
        values = b"".join([payload[offset:] for payload in payloads])
        return floats.largest(np.frombuffer(values, numpy_dtype(self.dtype))) <= self.limit

    def encode(self, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        for tensor in tensors:
            values = tensor.ravel()
            for start in range(0, values.size, _PIECE):
                piece = floats.canonical(values[start : start + _PIECE])
                floats.check_range(piece, self._range_bits)
                yield self.written(piece).data.cast("B")

    def decode(self, payload: Bytes, offset: int, first: int, last: int) -> NDArray[np.float32]:
        return self.meant(self.values(payload, offset)[self._layout.edges[first] : self._layout.edges[last]])

    def values(self, payload: Bytes | Rows, offset: int) -> NDArray[Any]:
        return array_at(payload, self.dtype, self._layout.parameters, offset)
