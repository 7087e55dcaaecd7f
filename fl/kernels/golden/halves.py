"""Golden vectors of the sums of f16 and bf16, rounded both ways.

Those of f16 hold its denormals, which must not pass through ones of F32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from fl.kernels.golden.compare import REPEATS, compare, compare_top, read_only, stacks
from fl.kernels.reading import read_bf16, read_f16
from fl.kernels.sums import sum_bf16, sum_f16

_Case: TypeAlias = tuple[int, int, tuple[tuple[int, int, int], ...]]
"""c as a factor and the exponent of a power of two, and triples of a value's bits, the grid steps that it makes, and
those that it makes toward zero."""

# fmt: off
_F16_CASES: tuple[_Case, ...] = (
    (1, 42, (
        (0x0000, 0, 0), (0x8000, 0, 0), (0x0001, 262144, 262144), (0x8001, -262144, -262144),
        (0x0002, 524288, 524288), (0x8002, -524288, -524288), (0x0003, 786432, 786432), (0x8003, -786432, -786432),
        (0x03FF, 268173312, 268173312), (0x83FF, -268173312, -268173312), (0x0400, 268435456, 268435456),
        (0x8400, -268435456, -268435456), (0x0401, 268697600, 268697600), (0x8401, -268697600, -268697600),
        (0x07BF, 519831552, 519831552), (0x87BF, -519831552, -519831552), (0x3C00, 4398046511104, 4398046511104),
        (0xBC00, -4398046511104, -4398046511104), (0x3C01, 4402341478400, 4402341478400),
        (0xBC01, -4402341478400, -4402341478400), (0x3555, 1465657589760, 1465657589760),
        (0xB555, -1465657589760, -1465657589760), (0x2E66, 439697276928, 439697276928),
        (0xAE66, -439697276928, -439697276928), (0x5C00, 1125899906842624, 1125899906842624),
        (0xDC00, -1125899906842624, -1125899906842624), (0x5BFF, 1125350151028736, 1125350151028736),
        (0xDBFF, -1125350151028736, -1125350151028736),
    )),
    (1, 20, (
        (0x0000, 0, 0), (0x8000, 0, 0), (0x0001, 0, 0), (0x8001, 0, 0), (0x03FF, 64, 63), (0x83FF, -64, -63),
        (0x0400, 64, 64), (0x8400, -64, -64), (0x1000, 512, 512), (0x9000, -512, -512), (0x1400, 1024, 1024),
        (0x9400, -1024, -1024), (0x1600, 1536, 1536), (0x9600, -1536, -1536), (0x3555, 349440, 349440),
        (0xB555, -349440, -349440), (0x7BFF, 68685922304, 68685922304), (0xFBFF, -68685922304, -68685922304),
        (0x7BFE, 68652367872, 68652367872), (0xFBFE, -68652367872, -68652367872),
    )),
    (3, 24, (
        (0x0001, 3, 3), (0x8001, -3, -3), (0x8003, -9, -9), (0x03FF, 3069, 3069), (0x83FF, -3069, -3069),
        (0x2E66, 5031936, 5031936),
    )),
    (536870911, 5, (
        (0x0001, 1024, 1023), (0x8001, -1024, -1023), (0x03FF, 1047552, 1047551), (0x3555, 5725224949, 5725224949),
        (0xB555, -5725224949, -5725224949), (0x5C00, 4398046502912, 4398046502912),
    )),
    (1000003, 14, (
        (0x0000, 0, 0), (0x8000, 0, 0), (0x0001, 977, 976), (0x8001, -977, -976), (0x03FF, 999026, 999026),
        (0x83FF, -999026, -999026), (0x0400, 1000003, 1000003), (0x8400, -1000003, -1000003),
        (0x1000, 8000024, 8000024), (0x9000, -8000024, -8000024), (0x1400, 16000048, 16000048),
        (0x9400, -16000048, -16000048), (0x1600, 24000072, 24000072), (0x9600, -24000072, -24000072),
        (0x3555, 5460016380, 5460016380), (0xB555, -5460016380, -5460016380),
        (0x7BFF, 1073220755652608, 1073220755652608), (0xFBFF, -1073220755652608, -1073220755652608),
        (0x7BFE, 1072696466079744, 1072696466079744), (0xFBFE, -1072696466079744, -1072696466079744),
    )),
)

_BF16_CASES: tuple[_Case, ...] = (
    (1, 42, (
        (0x0000, 0, 0), (0x8000, 0, 0), (0x0001, 0, 0), (0x8001, 0, 0), (0x007F, 0, 0), (0x807F, 0, 0),
        (0x0080, 0, 0), (0x8080, 0, 0), (0x2A00, 0, 0), (0xAA00, 0, 0), (0x2AC0, 2, 1), (0xAAC0, -2, -1),
        (0x2B20, 2, 2), (0xAB20, -2, -2), (0x3DCD, 440234147840, 440234147840),
        (0xBDCD, -440234147840, -440234147840), (0x3EAB, 1468878815232, 1468878815232),
        (0xBEAB, -1468878815232, -1468878815232), (0x3F80, 4398046511104, 4398046511104),
        (0xBF80, -4398046511104, -4398046511104), (0x3F81, 4432406249472, 4432406249472),
        (0xBF81, -4432406249472, -4432406249472), (0x4380, 1125899906842624, 1125899906842624),
        (0xC380, -1125899906842624, -1125899906842624), (0x437F, 1121501860331520, 1121501860331520),
        (0xC37F, -1121501860331520, -1121501860331520),
    )),
    (1, 1, (
        (0x0000, 0, 0), (0x8000, 0, 0), (0x0001, 0, 0), (0x8001, 0, 0), (0x3E80, 0, 0), (0xBE80, 0, 0),
        (0x3F40, 2, 1), (0xBF40, -2, -1), (0x3FA0, 2, 2), (0xBFA0, -2, -2), (0x4B80, 33554432, 33554432),
        (0xCB80, -33554432, -33554432), (0x4B7F, 33423360, 33423360), (0xCB7F, -33423360, -33423360), (0x3D4D, 0, 0),
        (0xBD4D, 0, 0),
    )),
    (536870911, 13, (
        (0x2A00, 0, 0), (0xAA00, 0, 0), (0x3DCD, 440234147020, 440234147020), (0xBDCD, -440234147020, -440234147020),
        (0x3EAB, 1468878812496, 1468878812496), (0x4380, 1125899904745472, 1125899904745472),
        (0xC380, -1125899904745472, -1125899904745472),
    )),
    (1048575, 1, (
        (0x0000, 0, 0), (0x8000, 0, 0), (0x0001, 0, 0), (0x8001, 0, 0), (0x3E80, 524288, 524287),
        (0xBE80, -524288, -524287), (0x3F40, 1572862, 1572862), (0xBF40, -1572862, -1572862),
        (0x3FA0, 2621438, 2621437), (0xBFA0, -2621438, -2621437), (0x4B80, 35184338534400, 35184338534400),
        (0xCB80, -35184338534400, -35184338534400), (0x4B7F, 35046899712000, 35046899712000),
        (0xCB7F, -35046899712000, -35046899712000), (0x3D4D, 104960, 104959), (0xBD4D, -104960, -104959),
    )),
)
# fmt: on

_F16_VALUES = (
    (0x0000, 0x00000000), (0x8000, 0x80000000), (0x0001, 0x33800000), (0x8001, 0xB3800000), (0x03FF, 0x387FC000),
    (0x0400, 0x38800000), (0x8400, 0xB8800000), (0x3C01, 0x3F802000), (0xB555, 0xBEAAA000), (0x7BFF, 0x477FE000),
)  # fmt: skip
_BF16_VALUES = (
    (0x0000, 0x00000000), (0x8000, 0x80000000), (0x0001, 0x00010000), (0x807F, 0x807F0000), (0x3F81, 0x3F810000),
    (0xC380, 0xC3800000), (0x4B80, 0x4B800000),
)  # fmt: skip
"""Bits of a value, and of the F32 that it is."""


def check() -> None:
    for name, kernel, cases in (("sum_f16", sum_f16, _F16_CASES), ("sum_bf16", sum_bf16, _BF16_CASES)):
        for case in cases:
            _check_sum(name, kernel, case)
    _check_read("read_f16", read_f16, _F16_VALUES)
    _check_read("read_bf16", read_bf16, _BF16_VALUES)


def _check_sum(name: str, kernel: Callable[..., int], case: _Case) -> None:
    factor, exponent, vectors = case
    values = read_only(np.array([bits for bits, _, _ in vectors] * REPEATS, np.uint16))
    edges = read_only(np.array([0, 3, values.size // 2, values.size], np.int64))
    for truncated in (False, True):
        expected = np.array([steps[truncated] for _, *steps in vectors] * REPEATS, np.int64)
        for count, (updates,) in stacks(values):
            sums = np.zeros(values.size, np.int64)
            top = kernel(sums, updates, np.full(count, float(factor << exponent)), edges, 0, 3, truncated)
            compare(name, sums, expected * count)
            compare_top(name, top, max(bits & 0x7FFF for bits, _, _ in vectors))


def _check_read(name: str, kernel: Callable[..., int], pairs: tuple[tuple[int, int], ...]) -> None:
    values = read_only(np.array([bits for bits, _ in pairs] * REPEATS, np.uint16))
    expected = np.array([bits for _, bits in pairs] * REPEATS, np.uint32)
    for size in (values.size, 3):
        out = np.empty(size, np.float32)
        top = kernel(out, values[:size])
        compare(name, out.view(np.uint32), expected[:size])
        compare_top(name, top, int((values[:size] & 0x7FFF).max()))
