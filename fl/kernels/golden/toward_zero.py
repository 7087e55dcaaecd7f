"""Golden vectors of sums that are rounded toward zero, by factors of up to 29 significant bits."""

from __future__ import annotations

import numpy as np

from fl.kernels.golden.compare import REPEATS, compare, compare_top, read_only, stacks
from fl.kernels.sums import sum_f32, sum_q8

# fmt: off
_F32_CASES = (
    (1, 42, (
        (0x00000000, 0), (0x80000000, 0), (0x00000001, 0), (0x80000001, 0), (0x007FFFFF, 0), (0x00800000, 0),
        (0x3F800000, 4398046511104), (0xBF800000, -4398046511104), (0x43800000, 1125899906842624),
        (0xC3800000, -1125899906842624), (0x3DCCCCCD, 439804657664), (0xBDCCCCCD, -439804657664),
        (0x3EAAAAAB, 1466015547392), (0xBEAAAAAB, -1466015547392), (0x437FFFFF, 1125899839733760),
        (0xC37FFFFF, -1125899839733760), (0x2B000000, 2), (0xAB000000, -2), (0x2AFFFFFF, 1), (0x2B2AAAAB, 2),
        (0xAB2AAAAB, -2),
    )),
    (1, 0, (
        (0x3E800000, 0), (0xBE800000, 0), (0x3F000000, 0), (0xBF000000, 0), (0x3F400000, 0), (0xBF400000, 0),
        (0x3F7FFFFF, 0), (0xBF7FFFFF, 0), (0x3F800001, 1), (0xBF800001, -1), (0x3FA00000, 1), (0xBFA00000, -1),
        (0x3FBFFFFF, 1), (0xBFBFFFFF, -1), (0x3FC00000, 1), (0xBFC00000, -1), (0x4B7FFFFF, 16777215),
        (0xCB7FFFFF, -16777215),
    )),
    (1, 1, (
        (0x3E800000, 0), (0xBE800000, 0), (0x3F000000, 1), (0xBF000000, -1), (0x3F400000, 1), (0xBF400000, -1),
        (0x3F7FFFFF, 1), (0xBF7FFFFF, -1), (0x3F800001, 2), (0xBF800001, -2), (0x3FA00000, 2), (0xBFA00000, -2),
        (0x3FBFFFFF, 2), (0xBFBFFFFF, -2), (0x3FC00000, 3), (0xBFC00000, -3), (0x4B7FFFFF, 33554430),
        (0xCB7FFFFF, -33554430),
    )),
    (536870911, 13, (
        (0x00000000, 0), (0x80000000, 0), (0x00000001, 0), (0x80000001, 0), (0x007FFFFF, 0), (0x00800000, 0),
        (0x3F800000, 4398046502912), (0xBF800000, -4398046502912), (0x43800000, 1125899904745472),
        (0xC3800000, -1125899904745472), (0x3DCCCCCD, 439804656844), (0xBDCCCCCD, -439804656844),
        (0x3EAAAAAB, 1466015544661), (0xBEAAAAAB, -1466015544661), (0x437FFFFF, 1125899837636608),
        (0xC37FFFFF, -1125899837636608), (0x2B000000, 1), (0xAB000000, -1), (0x2AFFFFFF, 1), (0x2B2AAAAB, 2),
        (0xAB2AAAAB, -2),
    )),
    (268435457, 14, (
        (0x00000000, 0), (0x80000000, 0), (0x00000001, 0), (0x80000001, 0), (0x007FFFFF, 0), (0x00800000, 0),
        (0x3F800000, 4398046527488), (0xBF800000, -4398046527488), (0x43800000, 1125899911036928),
        (0xC3800000, -1125899911036928), (0x3DCCCCCD, 439804659302), (0xBDCCCCCD, -439804659302),
        (0x3EAAAAAB, 1466015552853), (0xBEAAAAAB, -1466015552853), (0x437FFFFF, 1125899843928063),
        (0xC37FFFFF, -1125899843928063), (0x2B000000, 2), (0xAB000000, -2), (0x2AFFFFFF, 1), (0x2B2AAAAB, 2),
        (0xAB2AAAAB, -2),
    )),
)
# fmt: on
"""c as a factor and the exponent of a power of two, and pairs of an F32's bits with the grid steps it makes."""

_STEPS = (-128, -127, -77, -3, -1, 0, 1, 2, 3, 63, 77, 127)

# fmt: off
_Q8_CASES = (
    (1, 42, 0x3DCCCCCD, (
        -56294996180992, -55855189852160, -33864959393792, -1319414005760, -439804657664, 0, 439804657664,
        879609315328, 1319414005760, 27707693858816, 33864959393792, 55855189852160,
    )),
    (536870911, 13, 0x3DCCCCCD, (
        -56294996076134, -55855189748121, -33864959330713, -1319414003302, -439804656844, 0, 439804656844,
        879609313689, 1319414003302, 27707693807206, 33864959330713, 55855189748121,
    )),
    (268435457, 14, 0x40000000, (
        -1125899911036928, -1117103817981952, -677299165233152, -26388279164928, -8796093054976, 0, 8796093054976,
        17592186109952, 26388279164928, 554153862463488, 677299165233152, 1117103817981952,
    )),
    (3, 42, 0x2A800000, (
        -384, -381, -231, -9, -3, 0, 3, 6, 9, 189, 231, 381,
    )),
    (5, 40, 0x2A000000, (
        -80, -79, -48, -1, 0, 0, 0, 1, 1, 39, 48, 79,
    )),
    (1, 42, 0x00000001, (
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    )),
)
# fmt: on
"""c likewise, the bits of a scale, and the grid steps of each of `_STEPS` at that scale."""


def check() -> None:
    for factor, exponent, pairs in _F32_CASES:
        _check_f32(float(factor << exponent), pairs)
    for factor, exponent, scale, expected in _Q8_CASES:
        _check_q8(float(factor << exponent), scale, expected)


def _check_f32(factor: float, pairs: tuple[tuple[int, int], ...]) -> None:
    values = read_only(np.array([value for value, _ in pairs] * REPEATS, np.uint32).view(np.float32))
    expected = np.array([steps for _, steps in pairs] * REPEATS, np.int64)
    edges = read_only(np.array([0, 3, values.size // 2, values.size], np.int64))
    for count, (updates,) in stacks(values):
        sums = np.zeros(values.size, np.int64)
        top = sum_f32(sums, updates, np.full(count, factor), edges, 0, 3, True)
        compare("sum_f32 toward zero", sums, expected * count)
        compare_top("sum_f32 toward zero", top, max(value & 0x7FFFFFFF for value, _ in pairs))


def _check_q8(factor: float, scale: int, steps: tuple[int, ...]) -> None:
    values = read_only(np.array(_STEPS * REPEATS, np.int8))
    expected = np.array(steps * REPEATS, np.int64)
    blocks = read_only(np.array([0, 3, values.size // 2, values.size], np.int64))
    tiles = read_only(np.array([0, 1, 3], np.int64))
    scales = read_only(np.array([scale] * 3, np.uint32).view(np.float32))
    for count, (updates, by_update) in stacks(values, scales):
        sums = np.zeros(values.size, np.int64)
        top = sum_q8(sums, updates, by_update, np.full(count, factor), tiles, blocks, 0, 2, True)
        compare("sum_q8 toward zero", sums, expected * count)
        compare_top("sum_q8 toward zero", top, scale)
