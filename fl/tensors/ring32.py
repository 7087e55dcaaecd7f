"""Encoding ring32: fixed-point numbers modulo 2^32, whose sum survives masks that cancel.

An update of weight w holds y = clamp(RNE(clip(x, ±C)·(w/cap)·S), ±⌊(2^31−1)/N⌋) mod 2^32 with S = ⌊(2^31−1)/(N·C)⌋.
Sums of up to N updates stay within ±(2^31−1), so the sum modulo 2^32, which is all that anyone gets to see, read as a
signed number is the sum itself: A = Σy·cap and den = W·S give the mean. A masked payload is any numbers whatever, and
none that is well-formed is refused; what bounds it is the clamp of honest members alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.coding import Coding
from fl.tensors.grid import Grid
from fl.tensors.layout import Bytes, Layout, StoredTensor, array_at

_HALF = 2**31 - 1
_PIECE = 1 << 18


class Ring32:
    name = "ring32"

    def __init__(self, layout: Layout, coding: Coding) -> None:
        self._layout = layout
        self._range_bits = coding.range_bits
        self._cap = coding.cap
        bits = Grid(coding.range_bits, coding.cap, coding.updates).unweighted_bits
        if not 1 <= coding.clip <= 2 ** (bits + coding.range_bits):
            raise Refused("BAD_RULES", "The clip of masked updates must be above 0 and within the job's range.")
        self.scale = (_HALF << bits) // (coding.updates * coding.clip)
        """S, at least 1: N·C is at most 2^17·2^24."""
        self.clip = coding.clip / 2**bits
        self.most = _HALF // coding.updates
        if not self.scale:
            raise Refused("BAD_RULES", "So many masked updates of such a range have no step to be told in.")

    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(StoredTensor(each.name, "U32", each.shape) for each in self._layout.segments)

    def check(self, part: Bytes, start: int) -> None:
        """Masked numbers look like any."""

    def check_joints(self, payload: Bytes, offset: int, part_bytes: int) -> None:
        """Nor do they depend on each other."""

    def all_good(self, payloads: Sequence[bytes], offset: int) -> bool:
        return True

    def encode(self, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        """Of the largest weight, without masks."""
        return (steps.data.cast("B") for steps in self.steps(tensors, self._cap))

    def steps(self, tensors: Iterable[NDArray[Any]], weight: int) -> Iterator[NDArray[Any]]:
        """The numbers of an update of this weight in flat order, to which masks are added."""
        if not 1 <= weight <= self._cap:
            raise ValueError(f"the weight {weight} is outside 1 to {self._cap}")
        factor = weight * self.scale / self._cap
        for tensor in tensors:
            values = tensor.ravel()
            for start in range(0, values.size, _PIECE):
                piece = floats.canonical(values[start : start + _PIECE])
                floats.check_range(piece, self._range_bits)
                exact = np.clip(piece.astype(np.float64), -self.clip, self.clip) * factor
                steps = np.clip(np.rint(exact), -self.most, self.most).astype(np.int64)
                yield (steps & 0xFFFFFFFF).astype("<u4")

    def decode(self, payload: Bytes, offset: int, first: int, last: int) -> NDArray[np.float32]:
        """Of one update that bears no masks."""
        numbers = self.numbers(payload, offset)[self._layout.edges[first] : self._layout.edges[last]]
        sums, denominator = self.decode_sum(numbers, self._cap)
        return (sums / denominator).astype(np.float32)

    def decode_sum(self, total: NDArray[Any], weight: int) -> tuple[NDArray[np.int64], int]:
        """A and den of the mean, from a sum modulo 2^32 and the weight of all that was summed."""
        return total.astype(np.uint32).view(np.int32).astype(np.int64) * self._cap, weight * self.scale

    def numbers(self, payload: Bytes, offset: int) -> NDArray[Any]:
        return array_at(payload, "U32", self._layout.parameters, offset)
