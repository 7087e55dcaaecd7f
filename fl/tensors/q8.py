"""Encoding q8: 8-bit integers with one F32 scale for each block of the flat vector.

Decoding is one F32 multiplication, f32(q)·scale. The scales alone decide whether a payload is finite and in
range, since |q| ≤ 128 and 128·scale ≤ 2^R is required. A value near the end of the range is therefore
saturated by the encoder rather than refused by the chain: +2^R comes back as 127/128 of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.coding import Coding
from fl.tensors.layout import BLOCK, Bytes, Layout, Rows, StoredTensor, array_at

SCALE_SUFFIX = "#scale"
"""No tensor's own name holds a '#', and it sorts before every character that a name may hold: the scales come
in the order of their tensors."""

_FEW = 64
"""Scales, of a small payload."""

_BITS = [Struct(f"<{count}I") for count in range(_FEW + 1)]
"""By how many there are: what takes them as integers."""

_PIECE = 16 * BLOCK
"""Values encoded together, most of the work within a core's cache."""


class Q8:
    name = "q8"

    def __init__(self, layout: Layout, coding: Coding) -> None:
        self._layout = layout
        self._range_bits = coding.range_bits
        self.limit = floats.range_bits_as_f32(coding.range_bits - 7)
        """The bits of the largest scale that a payload may hold."""

    def stored(self) -> tuple[StoredTensor, ...]:
        values = [StoredTensor(each.name, "I8", each.shape) for each in self._layout.segments]
        scales = [
            StoredTensor(each.name + SCALE_SUFFIX, "F32", (-(-(each.stop - each.start) // BLOCK),))
            for each in self._layout.segments
        ]
        return (*values, *scales)

    def check(self, part: Bytes, start: int) -> None:
        count = max(0, min(len(part) // 4, self._layout.block_count - start // 4))
        if count and _largest(part, count) > self.limit:
            # A positive float is at most another one if its bits are; what is not looks closer.
            check_scales(array_at(part, "F32", count, 0), self._range_bits)

    def check_joints(self, payload: Bytes, offset: int, part_bytes: int) -> None:
        """Every scale stands for itself."""

    def all_good(self, payloads: Sequence[bytes], offset: int) -> bool:
        stop = offset + 4 * self._layout.block_count
        scales = b"".join([payload[offset:stop] for payload in payloads])
        return _largest(scales, len(scales) // 4) <= self.limit

    def encode(self, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        scales = np.empty(self._layout.block_count, np.float32)
        values = np.empty(self._layout.parameters, np.int8)
        block = place = 0
        for tensor in tensors:
            flat = tensor.ravel()
            for start in range(0, flat.size, _PIECE):
                piece = floats.canonical(flat[start : start + _PIECE])
                floats.check_range(piece, self._range_bits)
                found, steps = quantised(piece, self._range_bits)
                scales[block : block + found.size] = found
                values[place : place + steps.size] = steps
                block, place = block + found.size, place + steps.size
        yield scales.astype("<f4", copy=False).data.cast("B")
        yield values.data.cast("B")

    def decode(self, payload: Bytes, offset: int, first: int, last: int) -> NDArray[np.float32]:
        scales = self.scales(payload, offset)
        values = self.values(payload, offset)
        edges, tiles = self._layout.edges, self._layout.tiles
        flat = np.empty(edges[last] - edges[first], np.float32)
        for tile in range(first, last):
            borders = self._layout.blocks[tiles[tile] : tiles[tile + 1] + 1]
            by_value = np.repeat(scales[tiles[tile] : tiles[tile + 1]], np.diff(borders))
            decoded = flat[edges[tile] - edges[first] : edges[tile + 1] - edges[first]]
            np.multiply(values[edges[tile] : edges[tile + 1]], by_value, out=decoded)
        return flat

    def scales(self, payload: Bytes | Rows, offset: int) -> NDArray[np.float32]:
        return array_at(payload, "F32", self._layout.block_count, offset).view(np.float32)

    def values(self, payload: Bytes | Rows, offset: int) -> NDArray[np.int8]:
        start = offset + 4 * self._layout.block_count
        return array_at(payload, "I8", self._layout.parameters, start).view(np.int8)


def _largest(part: Bytes, count: int) -> int:
    """Of the bits of so many scales, as numbers."""
    # numpy takes long to begin.
    return int(max(_BITS[count].unpack_from(part)) if count <= _FEW else np.frombuffer(part, "<u4", count).max())


def check_scales(scales: NDArray[Any], range_bits: int) -> None:
    top = floats.largest(scales)
    if top >= floats.INFINITY_BITS:
        raise Refused("NON_FINITE", "A scale of the update is NaN or infinite.")
    # −0 is the one negative that is let through: it decodes to zeros.
    negative = int(scales.view(np.uint32).max()) > floats.SIGN_BIT
    if negative or top > floats.range_bits_as_f32(range_bits - 7):
        raise Refused("OUT_OF_RANGE", f"A scale of the update is negative or beyond 2^{range_bits} / 128.")


def quantised(piece: NDArray[np.float32], range_bits: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The scales and the steps of values that begin with a block; the last block may be a short one."""
    starts = np.arange(0, piece.size, BLOCK)
    largest = np.maximum(np.maximum.reduceat(piece, starts), -np.minimum.reduceat(piece, starts))
    scales = np.minimum(floats.canonical(largest.astype(np.float64) / 127), np.float32(2.0 ** (range_bits - 7)))
    # A block without a scale holds zeros only; any divisor leaves those as they are.
    divisors = np.where(scales > 0, scales, np.float32(1)).astype(np.float64)
    if piece.size % BLOCK:
        steps = piece / np.repeat(divisors, BLOCK)[: piece.size]
    else:
        steps = (piece.reshape(-1, BLOCK) / divisors[:, np.newaxis]).ravel()
    np.rint(steps, out=steps)
    np.clip(steps, -128, 127, out=steps)
    return scales, steps
