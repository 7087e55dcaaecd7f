"""Golden vectors of the kernels that compare updates: order statistics and distances."""

from __future__ import annotations

import numpy as np

from fl.kernels.distances import LIMBS, add_distances, add_norms, exact, pairs_of, sum_chosen
from fl.kernels.golden.compare import REPEATS, compare, read_only
from fl.kernels.order import network, sum_closest, sum_ordered

# fmt: off
_COLUMNS: tuple[tuple[int, tuple[int, ...], int, int, int, int, int], ...] = (
    (42, (0x43800000,), 1125899906842624, 0, 1125899906842624, 1, 1125899906842624),
    (42, (0xC3800000, 0x43800000), 0, 0, 0, 1, -1125899906842624),
    (42, (
        0x80000000, 0x00000000, 0x00000001, 0x80000001, 0x807FFFFF, 0x007FFFFF, 0x80800000,
    ), 0, 1, 0, 3, 0),
    (42, (
        0x2A000000, 0xAA000000, 0x2AC00000, 0xAAC00000, 0x2B200000, 0x2A000001, 0xAA000001, 0x80000000,
    ), 0, 1, 2, 4, -1),
    (42, (
        0x3F800000, 0xBF800000, 0x3F800000, 0x43800000, 0xC3800000, 0x3F800001, 0xBF800001, 0x437FFFFF,
        0xC37FFFFF,
    ), 4398046511104, 1, 4398046511104, 4, 8796093546496),
    (42, (
        0x3DCCCCCD, 0xBDCCCCCD, 0x3EAAAAAB, 0x40490FDB, 0xC0490FDB, 0x00000000, 0x80000000, 0x3F000000,
        0x40490FDB, 0x3DCCCCCD, 0xBE4CCCCD,
    ), 439804657664, 2, 4104843460608, 5, 439804657664),
    (21, (
        0x4B800000, 0xCB800000, 0x4B7FFFFF, 0xCB7FFFFF, 0x4B7FFFFF, 0x34800000, 0xB4800000, 0x35400000,
        0x4B800000, 0x34800001,
    ), 3, 2, 70368739983363, 5, 35184369991683),
)
# fmt: on
"""G0, the bits of a value of each update, A of the median, how many values a trimmed mean leaves out at either end and
its A, how many values the closest window has and its A."""

_ROWS = (
    (0x43800000, 0x3DCCCCCD, 0x2A000000),
    (0xC3800000, 0xBDCCCCCD, 0x2A000001),
    (0x437FFFFF, 0x80000001, 0x40490FDB),
    (0xC37FFFFF, 0x37800000, 0xBF800000),
)
_ROWS_BITS = 42
_DISTANCES = (
    0x400000A3D70A8F5C2900000001,
    0x9E12DCA419300A40000000,
    0x40009DD2DCA41916E844A00001,
    0x40000FE8F28F90A30A40000000,
    0x1028F8F5F7130A40000001,
    0x400111F1D461B5590000000000,
)
_NORMS = (
    0x10000028F5C2A3D70A40000000,
    0x10000028F5C2A3D70A40000001,
    0x10009DC9E6E175590000000000,
    0x10000FE0000020000000000000,
)
_CHOSEN, _CHOSEN_SUMS = (0, 1, 3), (-1125899839733760, 67108864, -4398046511103)
"""Of values of these bits on the grid of G0: squared distances of each with those before it, squared norms, and sums
over some rows."""


def check() -> None:
    for bits, column, median, cut, trimmed, wanted, closest in _COLUMNS:
        count = len(column)
        _check_ordered(bits, column, (count - 1) // 2, count // 2 + 1, median)
        _check_ordered(bits, column, cut, count - cut, trimmed)
        _check_closest(bits, column, wanted, closest)
    _check_distances()


def _turned(column: tuple[int, ...]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Columns of the same values, each beginning with another update."""
    width = 8 * REPEATS + 3
    turns = [[column[(row + place) % len(column)] for place in range(width)] for row in range(len(column))]
    return np.array(turns, np.uint32).view(np.float32)


def _check_ordered(bits: int, column: tuple[int, ...], first: int, last: int, expected: int) -> None:
    values = _turned(column)
    sums = np.empty(values.shape[1], np.int64)
    sum_ordered(sums, values, *network(len(column), first, last), first, last, 2.0**bits)
    compare("sum_ordered", sums, np.full(sums.size, expected, np.int64))


def _check_closest(bits: int, column: tuple[int, ...], wanted: int, expected: int) -> None:
    values = _turned(column)
    sums = np.empty(values.shape[1], np.int64)
    rows = np.arange(len(column), dtype=np.int32)
    sum_closest(sums, values, rows, *network(len(column), 0, len(column)), wanted, 2.0**bits)
    compare("sum_closest", sums, np.full(sums.size, expected, np.int64))


def _check_distances() -> None:
    repeats = 1000
    values = np.array([row * repeats for row in _ROWS], np.uint32).view(np.float32)
    for name, kernel, given, count, expected in (
        ("add_distances", add_distances, values, pairs_of(len(_ROWS)), _DISTANCES),
        ("add_norms", add_norms, read_only(values.copy()), len(_ROWS), _NORMS),
    ):
        limbs = np.zeros((count, LIMBS), np.int64)
        for _ in range(2):
            kernel(limbs, given, 2.0**_ROWS_BITS)
        compare(name, np.array(exact(limbs)), np.array([2 * repeats * each for each in expected]))
    sums = np.empty(values.shape[1], np.int64)
    sum_chosen(sums, values, np.array(_CHOSEN, np.int32), 2.0**_ROWS_BITS)
    compare("sum_chosen", sums, np.array(_CHOSEN_SUMS * repeats))
