"""Each kernel on data that lie in a core's nearest cache: seconds a value of an update, or of the model where that is
all there is to it. `benchmarks.bounds` says how they are called.

Values are normally distributed, as those of updates are; what the kernels do takes as long whatever they are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bounds import in_cache
from fl.kernels.apply import apply_mean
from fl.kernels.distances import LIMBS, add_distances, add_norms, pairs_of, sum_chosen
from fl.kernels.moments import approach_squares, blend, blend_squares, move, move_scaled
from fl.kernels.norms import add_norm_half, add_norm_q8
from fl.kernels.order import network, sum_closest, sum_ordered
from fl.kernels.reading import read_bf16, read_f16, read_f32, read_q8
from fl.kernels.sums import FUSED, sum_bf16, sum_f16, sum_f32, sum_q8, sum_topk
from fl.tensors.layout import BLOCK

CACHE_BYTES = 24 * 1024
FACTOR = 7 * 2.0**30
_DENOMINATOR = 3 * 2.0**42
_REPEATS = 9
_SUMMED, _READ, _STEPPED = 1024, 2048, 1024
"""Values of each update in a call of a sum, of a call that reads, of one that makes a moment or a model."""
_ONE_IN = 4
"""Of the sums there, which each topk update adds to."""


def _values(count: int, encoding: str = "f32") -> NDArray[Any]:
    """Read-only, as the views over payloads are."""
    normal = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    made: NDArray[Any] = normal
    if encoding == "f16":
        made = normal.astype(np.float16).view(np.uint16)
    elif encoding == "bf16":
        made = (normal.view(np.uint32) >> 16).astype(np.uint16)
    elif encoding in ("q8", "topk"):
        made = np.rint(normal * 30).astype(np.int8)
    return _fixed(made)


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _scales() -> NDArray[Any]:
    return _fixed(np.full(1, 2.0**-5, np.float32))


def _cuts(count: int) -> NDArray[Any]:
    return _fixed(np.array([0, count], np.int64))


@lru_cache
def sum_s(encoding: str, truncated: bool) -> float:
    """Of topk a value is an entry."""
    width = _SUMMED
    sums, factors, tile = np.zeros(width, np.int64), np.full(FUSED, FACTOR), _cuts(width)
    if encoding == "topk":
        index = _fixed(np.arange(0, width, _ONE_IN, dtype=np.uint32))
        values = (_values(index.size, "topk"),) * FUSED
        entries = (sums, (index,) * FUSED, values, (_scales(),) * FUSED, factors, tile, BLOCK, 0, 1, truncated)
        return in_cache(sum_topk, entries, index.size * FUSED, _REPEATS)
    updates = tuple(_values(width, encoding).copy() for _ in range(FUSED))
    updates = tuple(map(_fixed, updates))
    if encoding == "q8":
        given = (sums, updates, (_scales(),) * FUSED, factors, _cuts(1), tile, 0, 1, truncated)
        return in_cache(sum_q8, given, width * FUSED, _REPEATS)
    of = {"f32": sum_f32, "f16": sum_f16, "bf16": sum_bf16}[encoding]
    return in_cache(of, (sums, updates, factors, tile, 0, 1, truncated), width * FUSED, _REPEATS)


@lru_cache
def norm_s(encoding: str) -> float:
    """Of topk a value is an entry."""
    limbs, values = np.zeros(LIMBS, np.int64), _values(_READ, encoding)
    if encoding == "f32":
        return in_cache(add_norms, (limbs.reshape(1, -1), values.reshape(1, -1), FACTOR), _READ, _REPEATS)
    if encoding in ("q8", "topk"):
        return in_cache(add_norm_q8, (limbs, values, _scales(), _cuts(_READ), 0, 1, FACTOR), _READ, _REPEATS)
    return in_cache(add_norm_half, (limbs, values, FACTOR, encoding == "bf16"), _READ, _REPEATS)


@lru_cache
def read_s(encoding: str) -> float:
    out, values = np.empty(_READ, np.float32), _values(_READ, encoding)
    if encoding == "q8":
        return in_cache(read_q8, (out, values, _scales(), _cuts(_READ), 0, 0), _READ, _REPEATS)
    of = {"f32": read_f32, "f16": read_f16, "bf16": read_bf16}[encoding]
    return in_cache(of, (out, values), _READ, _REPEATS)


@lru_cache
def ordered_s(count: int, first: int, last: int) -> float:
    """Of `count` updates, summing the sorted ones from `first` to `last`."""
    width = _width(8 * count + 8)
    sums, rows = np.zeros(width, np.int64), _rows(count, width)
    given = (sums, rows, *network(count, first, last), first, last, FACTOR)
    return in_cache(sum_ordered, given, count * width, _REPEATS)


@lru_cache
def closest_s(count: int, wanted: int) -> float:
    width = _width(8 * count + 24)
    rows, chosen = _rows(count, width), np.arange(count, dtype=np.int32)
    given = (np.zeros(width, np.int64), rows, chosen, *network(count, 0, count), wanted, FACTOR)
    return in_cache(sum_closest, given, count * width, _REPEATS)


@lru_cache
def distances_s(count: int) -> float:
    """All pairs of `count` rows. Two or three rows are what the cache holds: from what these take follows what one row
    and one pair do."""
    width = 1024
    taken = [
        in_cache(
            add_distances,
            (np.zeros((pairs_of(rows), LIMBS), np.int64), _rows(rows, width), FACTOR),
            width,
            _REPEATS,
        )
        for rows in (2, 3)
    ]
    pair = (taken[1] - 1.5 * taken[0]) / 1.5
    row = (taken[0] - pair) / 2
    return (count * row + pairs_of(count) * pair) / count


@lru_cache
def chosen_s(count: int) -> float:
    """Of the chosen rows alone."""
    width = _width(4 * count + 8)
    given = (np.zeros(width, np.int64), _rows(count, width), np.arange(count, dtype=np.int32), FACTOR)
    return in_cache(sum_chosen, given, count * width, _REPEATS)


def _rows(count: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, width)).astype(np.float32)


def _width(bytes_a_column: int) -> int:
    return max(16, CACHE_BYTES // bytes_a_column // 16 * 16)


@lru_cache
def apply_s() -> float:
    """A value is one of the model, here and below."""
    new, old = np.empty(_STEPPED, np.float32), _values(_STEPPED)
    return in_cache(apply_mean, (new, old, _sums(), _DENOMINATOR), _STEPPED, _REPEATS)


@lru_cache
def moments_s(rule: str) -> float:
    """What an optimiser computes beside the sums: its moments and the model."""
    new, old, first, second = (
        np.empty(_STEPPED, np.float32),
        _values(_STEPPED),
        _values(_STEPPED),
        abs(_values(_STEPPED)),
    )
    _fixed(second)
    mean = (new, old, _sums(), _DENOMINATOR)
    seconds = in_cache(blend, (*mean, 0.9, 0.1), _STEPPED, _REPEATS)
    if rule == "fedavgm":
        return seconds + in_cache(move, (new, old, first, 0.1), _STEPPED, _REPEATS)
    if rule == "fedyogi":
        seconds += in_cache(approach_squares, (*mean, 0.01), _STEPPED, _REPEATS)
    else:
        seconds += in_cache(blend_squares, (*mean, 0.99, 0.01), _STEPPED, _REPEATS)
    return seconds + in_cache(move_scaled, (new, old, first, second, 0.1, 1e-3), _STEPPED, _REPEATS)


def _sums() -> NDArray[np.int64]:
    return np.random.default_rng(7).integers(-(2**50), 2**50, _STEPPED)
