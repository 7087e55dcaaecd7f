"""What the kernels do with the payloads of each encoding: one entry of the table an encoding.

`PAYLOADS[name](form, payloads)` takes payloads with the offset of their values behind the header: each for itself, or
many small ones of one length as rows, which one call of a kernel then sums. What sums and reads returns the largest
magnitude that it met, in the terms of `limit`: more than that breaks the bound on which the exact sums rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.kernels.distances import add_norms
from fl.kernels.norms import add_norm_half, add_norm_q8
from fl.kernels.reading import read_bf16, read_f16, read_f32, read_q8
from fl.kernels.sums import BROKEN, FUSED, Stack, sum_bf16, sum_f16, sum_f32, sum_q8, sum_topk
from fl.tensors.dense import Dense
from fl.tensors.encodings import UpdateForm
from fl.tensors.floats import largest
from fl.tensors.layout import BLOCK, Bytes, Rows
from fl.tensors.q8 import Q8
from fl.tensors.topk import TopK

Placed: TypeAlias = Sequence[tuple[Bytes, int]]


class InRows(NamedTuple):
    """Payloads whose values all begin at one offset."""

    rows: Rows
    offset: int


def _stacked(read: Callable[[Bytes | Rows, int], NDArray[Any]], payloads: Placed | InRows) -> Stack:
    if isinstance(payloads, InRows):
        return read(*payloads)
    return tuple(read(*each) for each in payloads)


def _calls(stack: Stack) -> list[slice]:
    """Which of them a kernel sums in one call. A number of arrays is compiled on its own, a number of rows is not."""
    if isinstance(stack, np.ndarray):
        return [slice(None)]
    fused = len(stack) - len(stack) % FUSED
    together = [slice(start, start + FUSED) for start in range(0, fused, FUSED)]
    return together + [slice(each, each + 1) for each in range(fused, len(stack))]


class Payloads(ABC):
    limit: int

    @abstractmethod
    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int, truncated: bool) -> int:
        """Adds q = x·c of tiles `first` to `last` of every payload, each with its own c: rounded to nearest with ties
        to even, or toward zero."""

    @abstractmethod
    def add_norm(self, limbs: NDArray[np.int64], each: int, first: int, last: int, factor: float) -> None:
        """Adds Σ y² of tiles `first` to `last` of one payload to the limbs of `fl.kernels.distances`, factor = 2^G0."""

    @abstractmethod
    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        """Writes the values from `start` on of one payload, as many as there is room for."""


class DensePayloads(Payloads):
    def __init__(
        self,
        form: UpdateForm,
        payloads: Placed | InRows,
        dtype: type[np.generic],
        sum_values: Callable[..., int],
        norm_values: Callable[..., None],
        read_values: Callable[..., int],
    ) -> None:
        encoding = form.encoding
        assert isinstance(encoding, Dense)
        self.limit = encoding.limit
        self._edges = form.layout.edges
        self._values = _stacked(lambda *each: encoding.values(*each).view(dtype), payloads)
        self._calls = _calls(self._values)
        self._sum = sum_values
        self._norm = norm_values
        self._read = read_values

    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int, truncated: bool) -> int:
        return max(
            self._sum(sums, self._values[some], factors[some], self._edges, first, last, truncated)
            for some in self._calls
        )

    def add_norm(self, limbs: NDArray[np.int64], each: int, first: int, last: int, factor: float) -> None:
        self._norm(limbs, self._values[each][self._edges[first] : self._edges[last]], factor)

    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        return self._read(out, self._values[each][start : start + out.size])


def _f32(form: UpdateForm, payloads: Placed | InRows) -> Payloads:
    return DensePayloads(form, payloads, np.float32, sum_f32, _add_norm_f32, read_f32)


def _add_norm_f32(limbs: NDArray[np.int64], values: NDArray[np.float32], factor: float) -> None:
    add_norms(limbs.reshape(1, -1), values.reshape(1, -1), factor)


def _f16(form: UpdateForm, payloads: Placed | InRows) -> Payloads:
    return DensePayloads(form, payloads, np.uint16, sum_f16, _add_norm_f16, read_f16)


def _add_norm_f16(limbs: NDArray[np.int64], values: NDArray[np.uint16], factor: float) -> None:
    add_norm_half(limbs, values, factor, False)


def _bf16(form: UpdateForm, payloads: Placed | InRows) -> Payloads:
    return DensePayloads(form, payloads, np.uint16, sum_bf16, _add_norm_bf16, read_bf16)


def _add_norm_bf16(limbs: NDArray[np.int64], values: NDArray[np.uint16], factor: float) -> None:
    add_norm_half(limbs, values, factor, True)


class Q8Payloads(Payloads):
    def __init__(self, form: UpdateForm, payloads: Placed | InRows) -> None:
        encoding = form.encoding
        assert isinstance(encoding, Q8)
        self.limit = encoding.limit
        self._layout = form.layout
        self._values = _stacked(encoding.values, payloads)
        self._scales = _stacked(encoding.scales, payloads)
        self._calls = _calls(self._values)

    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int, truncated: bool) -> int:
        cuts = self._layout.tiles, self._layout.blocks, first, last, truncated
        return max(sum_q8(sums, self._values[some], self._scales[some], factors[some], *cuts) for some in self._calls)

    def add_norm(self, limbs: NDArray[np.int64], each: int, first: int, last: int, factor: float) -> None:
        tiles, blocks = self._layout.tiles, self._layout.blocks
        add_norm_q8(limbs, self._values[each], self._scales[each], blocks, tiles[first], tiles[last], factor)

    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        blocks = self._layout.blocks
        first = int(blocks.searchsorted(start, "right")) - 1
        return read_q8(out, self._values[each], self._scales[each], blocks, first, start)


class TopKPayloads(Payloads):
    def __init__(self, form: UpdateForm, payloads: Placed | InRows) -> None:
        encoding = form.encoding
        assert isinstance(encoding, TopK)
        self.limit = encoding.limit
        self._edges = form.layout.edges
        if isinstance(payloads, InRows):
            # Each has entries of its own number in use.
            payloads = [(row.data, payloads.offset) for row in payloads.rows]
        used = [encoding.used(*each) for each in payloads]
        self._indices = tuple(indices for indices, _, _ in used)
        self._values = tuple(values for _, values, _ in used)
        self._scales = tuple(scales for _, _, scales in used)
        self._calls = _calls(self._values)

    def sum(self, sums: NDArray[np.int64], factors: NDArray[np.float64], first: int, last: int, truncated: bool) -> int:
        cuts = self._edges, BLOCK, first, last, truncated
        return max(
            sum_topk(sums, self._indices[some], self._values[some], self._scales[some], factors[some], *cuts)
            for some in self._calls
        )

    def add_norm(self, limbs: NDArray[np.int64], each: int, first: int, last: int, factor: float) -> None:
        """All but the entries are zeros."""
        low, high = self._between(each, self._edges[first], self._edges[last])
        if low < high:
            cuts = np.array([low, *range(low // BLOCK * BLOCK + BLOCK, high, BLOCK), high])
            cuts.flags.writeable = False
            add_norm_q8(limbs, self._values[each], self._scales[each][low // BLOCK :], cuts, 0, cuts.size - 1, factor)

    def _between(self, each: int, start: int, stop: int) -> tuple[int, int]:
        """Entries with these indices, if indices rise. Of another type than theirs, all of them would be copied."""
        low, high = self._indices[each].searchsorted(np.array((start, stop), np.uint32)).tolist()
        return low, high

    def read(self, each: int, start: int, out: NDArray[np.float32]) -> int:
        indices, scales = self._indices[each], self._scales[each]
        low, high = self._between(each, start, start + out.size)
        places = indices[low:high].astype(np.int64) - start
        if places.size and (places[0] < 0 or places[-1] >= out.size or (np.diff(places) <= 0).any()):
            return BROKEN
        out[:] = 0
        by_value = scales[np.arange(low, high) // BLOCK]
        out[places] = self._values[each][low:high].astype(np.float32) * by_value
        return largest(scales)


PAYLOADS: dict[str, Callable[[UpdateForm, Placed | InRows], Payloads]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q8": Q8Payloads,
    "topk": TopKPayloads,
}
