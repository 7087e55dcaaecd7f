"""Golden vectors of reading: the bits of values are kept, and products are rounded to F32 once."""

from __future__ import annotations

import numpy as np

from fl.kernels.golden.compare import REPEATS, compare, compare_top, read_only
from fl.kernels.reading import read_f32, read_q8

_BITS = (0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x3F800001, 0xC3800000, 0x43800000)

_STEPS = (-128, -127, -1, 0, 1, 3, 127)
# fmt: off
_PRODUCTS = (
    (0x3F800000, (0xC3000000, 0xC2FE0000, 0xBF800000, 0x00000000, 0x3F800000, 0x40400000, 0x42FE0000)),
    (0x3DCCCCCD, (0xC14CCCCD, 0xC14B3333, 0xBDCCCCCD, 0x00000000, 0x3DCCCCCD, 0x3E99999A, 0x414B3333)),
    (0x00000001, (0x80000080, 0x8000007F, 0x80000001, 0x00000000, 0x00000001, 0x00000003, 0x0000007F)),
    (0x40000000, (0xC3800000, 0xC37E0000, 0xC0000000, 0x00000000, 0x40000000, 0x40C00000, 0x437E0000)),
)
# fmt: on
"""The bits of a scale, and of each of `_STEPS` at that scale."""


def check() -> None:
    values = np.array(_BITS * REPEATS, np.uint32)
    for size in (values.size, 3):
        out = np.empty(size, np.float32)
        top = read_f32(out, read_only(values[:size].view(np.float32)))
        compare("read_f32", out.view(np.uint32), values[:size])
        compare_top("read_f32", top, int((values[:size] & 0x7FFFFFFF).max()))
    _check_q8()


def _check_q8() -> None:
    scales = np.array([scale for scale, _ in _PRODUCTS], np.uint32)
    width = len(_STEPS) * REPEATS
    values = read_only(np.array(_STEPS * REPEATS * scales.size, np.int8))
    expected = np.array([products * REPEATS for _, products in _PRODUCTS], np.uint32).ravel()
    blocks = read_only(np.arange(0, values.size + 1, width))
    for start, stop in ((0, values.size), (3, 5), (width - 1, 3 * width + 1), (2 * width, 3 * width)):
        out = np.empty(stop - start, np.float32)
        block = start // width
        top = read_q8(out, values, read_only(scales.view(np.float32)), blocks, block, start)
        compare("read_q8", out.view(np.uint32), expected[start:stop])
        compare_top("read_q8", top, int(scales[block : (stop - 1) // width + 1].max()))
