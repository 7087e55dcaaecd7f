"""Encoding q8: 8-bit integers with one F32 scale for each block of the flat vector.

Decoding is one F32 multiplication, f32(q)·scale. The scales alone decide whether a payload is finite and in
range, since |q| ≤ 128 and 128·scale ≤ 2^R is required. A value near the end of the range is therefore
saturated by the encoder rather than refused by the chain: +2^R comes back as 127/128 of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.layout import BLOCK, Bytes, Layout, StoredTensor, array_at

SCALE_SUFFIX = "#scale"
"""No tensor's own name holds a '#', and it sorts before every character that a name may hold: the scales come
in the order of their tensors."""


class Q8:
    name = "q8"

    def stored(self, layout: Layout) -> tuple[StoredTensor, ...]:
        values = [StoredTensor(each.name, "I8", each.shape) for each in layout.segments]
        scales = [
            StoredTensor(each.name + SCALE_SUFFIX, "F32", (-(-(each.stop - each.start) // BLOCK),))
            for each in layout.segments
        ]
        return (*values, *scales)

    def check(self, layout: Layout, range_bits: int, part: Bytes, start: int) -> None:
        count = max(0, min(len(part) // 4, layout.blocks.size - 1 - start // 4))
        if not count:
            return
        scales = array_at(part, "F32", count, 0)
        top = floats.largest(scales)
        if top >= floats.INFINITY_BITS:
            raise Refused("NON_FINITE", "A scale of the update is NaN or infinite.")
        # −0 is the one negative that is let through: it decodes to zeros.
        negative = int(scales.view(np.uint32).max()) > floats.SIGN_BIT
        if negative or top > floats.range_bits_as_f32(range_bits - 7):
            raise Refused("OUT_OF_RANGE", f"A scale of the update is negative or beyond 2^{range_bits} / 128.")

    def encode(self, layout: Layout, range_bits: int, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        flat = np.empty(layout.parameters, np.float32)
        for segment, tensor in zip(layout.segments, tensors, strict=True):
            flat[segment.start : segment.stop] = floats.canonical(tensor.ravel())
        floats.check_range(flat, range_bits)
        largest = np.maximum.reduceat(np.abs(flat), layout.blocks[:-1]).astype(np.float64)
        scales = np.minimum(floats.canonical(largest / 127), np.float32(2.0 ** (range_bits - 7)))
        # A block without a scale holds zeros and denormals only; any divisor rounds those to 0.
        divisors = np.where(scales > 0, scales, np.float32(1)).astype(np.float64)
        values = np.empty(layout.parameters, np.int8)
        for first, last in zip(layout.tiles[:-1], layout.tiles[1:], strict=True):
            borders = layout.blocks[first : last + 1]
            start, stop = borders[0], borders[-1]
            steps = flat[start:stop] / np.repeat(divisors[first:last], np.diff(borders))
            values[start:stop] = np.clip(np.rint(steps), -128, 127)
        yield scales.astype("<f4").data.cast("B")
        yield values.data.cast("B")

    def decode(self, layout: Layout, payload: Bytes, offset: int) -> NDArray[np.float32]:
        scales = self.scales(layout, payload, offset)
        values = self.values(layout, payload, offset)
        flat = np.empty(layout.parameters, np.float32)
        for first, last in zip(layout.tiles[:-1], layout.tiles[1:], strict=True):
            borders = layout.blocks[first : last + 1]
            start, stop = borders[0], borders[-1]
            by_value = np.repeat(scales[first:last], np.diff(borders))
            flat[start:stop] = values[start:stop].astype(np.float32) * by_value
        return flat

    def scales(self, layout: Layout, payload: Bytes, offset: int) -> NDArray[np.float32]:
        return array_at(payload, "F32", layout.blocks.size - 1, offset).view(np.float32)

    def values(self, layout: Layout, payload: Bytes, offset: int) -> NDArray[np.int8]:
        start = offset + 4 * (layout.blocks.size - 1)
        return array_at(payload, "I8", layout.parameters, start).view(np.int8)
