"""Encoding topk: the K largest values of the flat vector, each 8 bits with its index; the others are zero.

    #scale  F32 [⌈K/4096⌉]   one for each 4,096 entries, as in q8
    #index  U32 [K]          strictly rising
    #value  I8  [K]

K follows from the job and the number of parameters alone, K = max(1, ⌈share·D⌉), so no payload's length says anything.
Whoever has fewer values to tell leaves the last entries unused: index 0 and value 0. The first entry is always used,
and only there may 0 be an index; so the used entries end before the first index 0 that stands anywhere else, and every
payload means exactly one vector.

Whether indices rise is a matter of neighbours, and two of these may lie in different parts of a payload: that, and the
zeros at the end, are looked at once the payload is whole (`check_joints`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.coding import Coding
from fl.tensors.layout import BLOCK, Bytes, Layout, StoredTensor, array_at
from fl.tensors.q8 import check_scales, quantised

WHOLE_PPM = 1_000_000

_PIECE = 1 << 18
_CHUNK = 1 << 16
_LOW_BITS = 15
"""Of the 31 of a magnitude. Magnitudes are counted by the others, and where the K-th largest lies by these."""


class TopK:
    name = "topk"

    def __init__(self, layout: Layout, coding: Coding) -> None:
        if not 1 <= coding.share_ppm <= WHOLE_PPM:
            raise Refused(
                "BAD_RULES",
                f"topk needs a share of the values: above 0, at most 1, not {coding.share_ppm / WHOLE_PPM:g}.",
            )
        self._layout = layout
        self._range_bits = coding.range_bits
        self.limit = floats.range_bits_as_f32(coding.range_bits - 7)
        """The bits of the largest scale that a payload may hold."""
        self.entries = -(-coding.share_ppm * layout.parameters // WHOLE_PPM)
        """K."""
        self._blocks = -(-self.entries // BLOCK)
        self._index_start = 4 * self._blocks
        self._index_stop = self._index_start + 4 * self.entries

    def stored(self) -> tuple[StoredTensor, ...]:
        return (
            StoredTensor("#scale", "F32", (self._blocks,)),
            StoredTensor("#index", "U32", (self.entries,)),
            StoredTensor("#value", "I8", (self.entries,)),
        )

    def check(self, part: Bytes, start: int) -> None:
        stop = start + len(part)
        if start < self._index_start and part:
            check_scales(array_at(part, "F32", (min(stop, self._index_start) - start) // 4, 0), self._range_bits)
        low, high = max(start, self._index_start), min(stop, self._index_stop)
        if low < high:
            indices = array_at(part, "U32", (high - low) // 4, low - start)
            self._check_indices(indices, (low - self._index_start) // 4)

    def check_joints(self, payload: Bytes, offset: int, part_bytes: int) -> None:
        indices = array_at(payload, "U32", self.entries, offset + self._index_start)
        begin = offset + self._index_start
        borders = np.arange((begin // part_bytes + 1) * part_bytes, offset + self._index_stop, part_bytes)
        joints = (borders - begin) // 4
        _check_rising(indices[joints - 1], indices[joints], bool(joints.size and joints[0] == 1))
        if np.count_nonzero(self._values(payload, offset)[self._used(indices) :]):
            raise Refused("BAD_INDEX", "An entry of the update that is not used holds a value.")

    def all_good(self, payloads: Sequence[bytes], offset: int) -> bool:
        """Each has to be asked."""
        return False

    def _check_indices(self, indices: NDArray[Any], place: int) -> None:
        """`place` is that of the first one among all."""
        for start in range(0, indices.size, _CHUNK):
            some = indices[start : start + _CHUNK + 1]
            if int(some.max()) >= self._layout.parameters:
                raise Refused("BAD_INDEX", f"The update has an index beyond its {self._layout.parameters} values.")
            _check_rising(some[:-1], some[1:], place + start == 0)

    def encode(self, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        indices, chosen = self._chosen(tensors)
        scales, steps = quantised(chosen, self._range_bits)
        yield _filled(scales, self._blocks, "<f4")
        yield _filled(indices, self.entries, "<u4")
        yield _filled(steps, self.entries, "|i1")

    def decode(self, payload: Bytes, offset: int, first: int, last: int) -> NDArray[np.float32]:
        indices, steps, scales = self.used(payload, offset)
        start, stop = self._layout.edges[first], self._layout.edges[last]
        flat = np.zeros(stop - start, np.float32)
        low, high = np.searchsorted(indices, (start, stop))
        by_value = scales[np.arange(low, high) // BLOCK]
        flat[indices[low:high] - start] = steps[low:high].astype(np.float32) * by_value
        return flat

    def used(self, payload: Bytes, offset: int) -> tuple[NDArray[np.uint32], NDArray[np.int8], NDArray[np.float32]]:
        """Indices and values of the entries that are used, and the scales of all."""
        indices = array_at(payload, "U32", self.entries, offset + self._index_start).view(np.uint32)
        scales = array_at(payload, "F32", self._blocks, offset).view(np.float32)
        count = self._used(indices)
        return indices[:count], self._values(payload, offset)[:count], scales

    def _values(self, payload: Bytes, offset: int) -> NDArray[np.int8]:
        return array_at(payload, "I8", self.entries, offset + self._index_stop).view(np.int8)

    def _used(self, indices: NDArray[Any]) -> int:
        low, high = 1, self.entries
        while low < high:
            middle = (low + high) // 2
            if indices[middle]:
                low = middle + 1
            else:
                high = middle
        return low

    # Which values are the largest

    def _chosen(self, tensors: Iterable[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Indices and values; of equal ones the first. The tensors are gone through three times, so that nothing is
        held but what is chosen."""
        floor, ties = self._floor(tensors)
        indices: list[NDArray[np.int64]] = []
        values: list[NDArray[np.float32]] = []
        for start, piece in _pieces(tensors):
            magnitudes = _magnitudes(piece)
            wanted = magnitudes > floor
            equal = np.flatnonzero(magnitudes == floor)[:ties]
            wanted[equal] = True
            ties -= equal.size
            places = np.flatnonzero(wanted)
            indices.append(places + start)
            values.append(piece[places])
        if not any(each.size for each in indices):
            return np.zeros(1, np.int64), np.zeros(1, np.float32)
        return np.concatenate(indices), np.concatenate(values)

    def _floor(self, tensors: Iterable[NDArray[Any]]) -> tuple[int, int]:
        """A magnitude, such that all larger ones are chosen, and how many that are equal to it."""
        counts = np.zeros(1 << 31 - _LOW_BITS, np.int64)
        for _, piece in _pieces(tensors):
            floats.check_range(piece, self._range_bits)
            counts += np.bincount(_magnitudes(piece) >> _LOW_BITS, minlength=counts.size)
        # Canonical values have no magnitude so small but zero, which there is no need to tell.
        counts[0] = 0
        upper, left = _reaching(counts, self.entries)
        if left > counts[upper]:
            return 0, 0
        counts = np.zeros(1 << _LOW_BITS, np.int64)
        for _, piece in _pieces(tensors):
            magnitudes = _magnitudes(piece)
            near = magnitudes[magnitudes >> _LOW_BITS == upper]
            counts += np.bincount(near & (1 << _LOW_BITS) - 1, minlength=counts.size)
        lower, left = _reaching(counts, left)
        return upper << _LOW_BITS | lower, left


def _check_rising(before: NDArray[Any], after: NDArray[Any], first: bool) -> None:
    """Of neighbours; `first` if the first of them is that of the payload."""
    unused = before == 0
    if first:
        unused[:1] = False
    if bool(((after != 0) & ((after <= before) | unused)).any()):
        raise Refused("BAD_INDEX", "The update's indices do not rise strictly, up to zeros at the end.")


def _pieces(tensors: Iterable[NDArray[Any]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    place = 0
    for tensor in tensors:
        values = tensor.ravel()
        for start in range(0, values.size, _PIECE):
            piece = floats.canonical(values[start : start + _PIECE])
            yield place + start, piece
        place += values.size


def _magnitudes(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    magnitudes: NDArray[np.uint32] = values.view(np.uint32) & np.uint32(floats.SIGN_BIT - 1)
    return magnitudes


def _reaching(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Counted from the end, the place at which there are as many as wanted, and how many of those there are wanted;
    or the first place, and more than there are."""
    above = np.cumsum(counts[::-1])
    at = min(int(np.searchsorted(above, wanted)), counts.size - 1)
    place = counts.size - 1 - at
    return place, wanted - int(above[at] - counts[place])


def _filled(values: NDArray[Any], size: int, dtype: str) -> Bytes:
    filled = np.zeros(size, dtype)
    filled[: values.size] = values
    return filled.data.cast("B")
