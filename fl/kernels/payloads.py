"""What the kernels do with the payloads of each encoding: one entry of the table an encoding.

`PAYLOADS[name](form, range_bits, payloads)` takes payloads with the offset of their values behind the header. Both of
its methods return the largest magnitude that they met, as F32 bits, in the terms of `limit`: more than that breaks the
bound on which the exact sums rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.kernels.fedavg import sum_f32, sum_q8
from fl.kernels.reading import read_f32, read_q8
from fl.tensors.encodings import UpdateForm
from fl.tensors.f32 import F32
from fl.tensors.floats import range_bits_as_f32
from fl.tensors.layout import Bytes
from fl.tensors.q8 import Q8


class Payloads(Protocol):
    limit: int

    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int) -> int:
        """Adds q = RNE(x·c) of tiles `first` to `last` of every payload, each with its own c."""

    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        """Writes the values from `start` on of one payload, as many as there is room for."""


Placed: TypeAlias = Sequence[tuple[Bytes, int]]


class F32Payloads:
    def __init__(self, form: UpdateForm, range_bits: int, payloads: Placed) -> None:
        encoding = form.encoding
        assert isinstance(encoding, F32)
        self.limit = range_bits_as_f32(range_bits)
        self._layout = form.layout
        self._values = tuple(encoding.values(*each) for each in payloads)

    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int) -> int:
        return sum_f32(sums, self._values, factors, self._layout.edges, first, last)

    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        return read_f32(out, self._values[each][start : start + out.size])


class Q8Payloads:
    def __init__(self, form: UpdateForm, range_bits: int, payloads: Placed) -> None:
        encoding = form.encoding
        assert isinstance(encoding, Q8)
        self.limit = range_bits_as_f32(range_bits - 7)
        self._layout = form.layout
        self._values = tuple(encoding.values(*each) for each in payloads)
        self._scales = tuple(encoding.scales(*each) for each in payloads)

    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int) -> int:
        tiles, blocks = self._layout.tiles, self._layout.blocks
        return sum_q8(sums, self._values, self._scales, factors, tiles, blocks, first, last)

    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        blocks = self._layout.blocks
        first = int(np.searchsorted(blocks, start, "right")) - 1
        return read_q8(out, self._values[each], self._scales[each], blocks, first, start)


PAYLOADS: dict[str, Callable[[UpdateForm, int, Placed], Payloads]] = {"f32": F32Payloads, "q8": Q8Payloads}
