"""Golden vectors of the sums and of the step that every rule ends in.

Each kernel meets them in vector code and in the scalar remainder, alone, with updates fused and in rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.apply import apply_mean
from fl.kernels.golden.compare import REPEATS, compare, compare_top, read_only, stacks
from fl.kernels.sums import sum_f32, sum_q8

# fmt: off
_F32_CASES: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...] = (
    (1, 42, (
        (0x00000000, 0), (0x80000000, 0), (0x00000001, 0), (0x80000001, 0), (0x007FFFFF, 0),
        (0x00800000, 0), (0x3F800000, 4398046511104), (0xBF800000, -4398046511104),
        (0x43800000, 1125899906842624), (0xC3800000, -1125899906842624), (0x2A000000, 0), (0xAA000000, 0),
        (0x2AC00000, 2), (0xAAC00000, -2), (0x2B200000, 2), (0x3DCCCCCD, 439804657664),
        (0xBDCCCCCD, -439804657664), (0x3EAAAAAB, 1466015547392), (0x437FFFFF, 1125899839733760),
        (0xC37FFFFF, -1125899839733760),
    )),
    (1, 1, (
        (0x3E800000, 0), (0xBE800000, 0), (0x3F400000, 2), (0xBF400000, -2), (0x3FA00000, 2),
        (0x4B800000, 33554432), (0xCB800000, -33554432), (0x3E800001, 1), (0x3E7FFFFF, 0), (0x3F3FFFFF, 1),
        (0xBFA00000, -2),
    )),
    (1048575, 1, (
        (0x3F000000, 1048575), (0xBF000000, -1048575), (0x4B7FFFFF, 35184336437250),
        (0xCB7FFFFF, -35184336437250), (0x3F000001, 1048575), (0x00000001, 0), (0x3E800000, 524288),
        (0xBE800000, -524288), (0x3EC00000, 786431), (0x3DCCCCCD, 209715),
    )),
    (1048576, 1, (
        (0x4B800000, 35184372088832), (0xCB800000, -35184372088832), (0x4B7FFFFF, 35184369991680),
        (0x35800000, 2), (0x34800000, 0), (0x34800001, 1), (0xB4800000, 0), (0x34C00000, 1),
    )),
    (1000003, 17, (
        (0x3DCCCCCD, 13107239517), (0xBF9D70A4, -161219046156), (0x40490FDB, 411776079075),
        (0x2F000000, 15), (0xB7D1B717, -3276810), (0x437FFFFF, 33554530663290), (0x34000000, 15625),
    )),
)
# fmt: on
"""Weight, G, and pairs of an F32's bits with the grid steps it makes."""

_Q8_STEPS = (-128, -127, -77, -3, -1, 0, 1, 2, 3, 63, 77, 127)

# fmt: off
_Q8_CASES: tuple[tuple[int, int, int, tuple[int, ...]], ...] = (
    (
        1, 42, 0x3F800000,
        (
            -562949953421312, -558551906910208, -338649581355008, -13194139533312, -4398046511104, 0,
            4398046511104, 8796093022208, 13194139533312, 277076930199552, 338649581355008, 558551906910208,
        ),
    ),
    (
        1, 42, 0x3DCCCCCD,
        (
            -56294996180992, -55855189852160, -33864959393792, -1319414005760, -439804657664, 0,
            439804657664, 879609315328, 1319414005760, 27707693858816, 33864959393792, 55855189852160,
        ),
    ),
    (
        1, 42, 0x40000000,
        (
            -1125899906842624, -1117103813820416, -677299162710016, -26388279066624, -8796093022208, 0,
            8796093022208, 17592186044416, 26388279066624, 554153860399104, 677299162710016,
            1117103813820416,
        ),
    ),
    (
        1, 42, 0x00000001,
        (
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ),
    ),
    (
        1, 42, 0x00800000,
        (
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ),
    ),
    (
        1048576, 1, 0x48000000,
        (
            -35184372088832, -34909494181888, -21165598834688, -824633720832, -274877906944, 0,
            274877906944, 549755813888, 824633720832, 17317308137472, 21165598834688, 34909494181888,
        ),
    ),
    (
        1048575, 1, 0x47FFFFFF,
        (
            -35184336437250, -34909458792450, -21165576552450, -824632868864, -274877628416, 0,
            274877628416, 549755256832, 824632868864, 17317290573825, 21165576552450, 34909458792450,
        ),
    ),
    (
        3, 42, 0x2B2AAAAB,
        (
            -1024, -1016, -616, -24, -8, 0, 8, 16, 24, 504, 616, 1016,
        ),
    ),
    (
        3, 42, 0x2A800000,
        (
            -384, -381, -231, -9, -3, 0, 3, 6, 9, 189, 231, 381,
        ),
    ),
    (
        1, 42, 0x2A000000,
        (
            -64, -64, -38, -2, 0, 0, 0, 1, 2, 32, 38, 64,
        ),
    ),
    (
        1, 42, 0x00000000,
        (
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ),
    ),
)
# fmt: on
"""Weight, G, the bits of a scale, and the grid steps of each of `_Q8_STEPS` at that scale."""

_APPLY_CASES: tuple[tuple[int, int, int, int], ...] = (
    (0x3F800000, 0, 4398046511104, 0x3F800000),
    (0x3F800000, 1, 4398046511104, 0x3F800000),
    (0x3F800000, 262144, 4398046511104, 0x3F800000),
    (0x3F800000, 262145, 4398046511104, 0x3F800001),
    (0x3F800000, 786432, 4398046511104, 0x3F800002),
    (0x3F800000, -262144, 4398046511104, 0x3F7FFFFF),
    (0x3F800000, -4398046511104, 4398046511104, 0x00000000),
    (0xBF800000, 4398046511104, 4398046511104, 0x00000000),
    (0x00000000, 0, 13194139533312, 0x00000000),
    (0x80000000, 0, 4398046511104, 0x00000000),
    (0x00000001, 0, 4398046511104, 0x00000000),
    (0x807FFFFF, 0, 4398046511104, 0x00000000),
    (0x00800000, 0, 4398046511104, 0x00800000),
    (0x80800000, 0, 4398046511104, 0x80800000),
    (0x00000000, 4611686018427387904, 274877906944, 0x4B800000),
    (0x00000000, 4611686018427387903, 4611686018426339327, 0x3F800000),
    (0x00000000, 9007199254740993, 21990232555520, 0x43CCCCCD),
    (0x00000000, -9007199254740995, 30786325577728, 0xC3924925),
    (0x00000000, 1152921504606847104, 3298534883328, 0x48AAAAAB),
    (0x00000000, 1, 4611686018427387904, 0x20800000),
    (0x3F800000, -4611686018427387904, 4611686018427387904, 0x00000000),
    (0x3DCCCCCD, 123456789012345678, 35184372088832, 0x455B4F3F),
    (0xBDCCCCCD, -98765432109876543, 35184372088832, 0xC52F72EB),
    (0x7F7FFFFF, 1125899906842624, 4398046511104, 0x7F7FFFFF),
    (0x7F7FFFFF, 0, 4398046511104, 0x7F7FFFFF),
    (0xFF7FFFFF, -2305843009213693952, 137438953472, 0xFF7FFFFF),
    (0x43800001, -1125899906842624, 4398046511104, 0x38000000),
    (0x3F800001, -4398046511104, 4398046511104, 0x34000000),
    (0x33000000, 4398046511104, 4398046511104, 0x3F800000),
    (0x33800000, 4398046511104, 4398046511104, 0x3F800000),
    (0x33800001, 4398046511104, 4398046511104, 0x3F800001),
    (0x33C00000, 4398046511104, 4398046511104, 0x3F800001),
)
"""An old value's bits, A, den, and the new value's bits."""


def check() -> None:
    for weight, bits, pairs in _F32_CASES:
        _check_f32(weight, bits, pairs)
    for weight, bits, scale, expected in _Q8_CASES:
        _check_q8(weight, bits, scale, expected)
    for case in _APPLY_CASES:
        _check_apply(*case)


def _check_f32(weight: int, bits: int, pairs: tuple[tuple[int, int], ...]) -> None:
    values = read_only(np.array([value for value, _ in pairs] * REPEATS, np.uint32).view(np.float32))
    expected = np.array([steps for _, steps in pairs] * REPEATS, np.int64)
    edges = read_only(np.array([0, 3, values.size // 2, values.size], np.int64))
    for count, (updates,) in stacks(values):
        sums = np.zeros(values.size, np.int64)
        top = sum_f32(sums, updates, _factors(count, weight, bits), edges, 0, 3, False)
        compare("sum_f32", sums, expected * count)
        compare_top("sum_f32", top, max(value & 0x7FFFFFFF for value, _ in pairs))


def _check_q8(weight: int, bits: int, scale: int, steps: tuple[int, ...]) -> None:
    values = read_only(np.array(_Q8_STEPS * REPEATS, np.int8))
    expected = np.array(steps * REPEATS, np.int64)
    blocks = read_only(np.array([0, 3, values.size // 2, values.size], np.int64))
    tiles = read_only(np.array([0, 1, 3], np.int64))
    scales = read_only(np.array([scale] * 3, np.uint32).view(np.float32))
    for count, (updates, by_update) in stacks(values, scales):
        sums = np.zeros(values.size, np.int64)
        top = sum_q8(sums, updates, by_update, _factors(count, weight, bits), tiles, blocks, 0, 2, False)
        compare("sum_q8", sums, expected * count)
        compare_top("sum_q8", top, scale)


def _check_apply(old: int, total: int, denominator: int, expected: int) -> None:
    size = 8 * REPEATS + 3
    new = np.empty(size, np.float32)
    old_values = read_only(np.full(size, old, np.uint32).view(np.float32))
    top = apply_mean(new, old_values, np.full(size, total, np.int64), float(denominator))
    compare("apply_mean", new.view(np.uint32), np.full(size, expected, np.uint32))
    if expected:
        compare_top("apply_mean", top, expected & 0x7FFFFFFF)


def _factors(count: int, weight: int, bits: int) -> NDArray[np.float64]:
    return np.full(count, float(weight << bits), np.float64)
