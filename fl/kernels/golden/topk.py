"""Golden vectors of sums over the entries of topk, rounded both ways."""

from __future__ import annotations

import numpy as np

from fl.kernels.golden.compare import REPEATS, GoldenMismatch, compare, compare_top, read_only
from fl.kernels.sums import BROKEN, FUSED, sum_topk

_STEPS = (-128, -127, -77, -3, -1, 0, 1, 2, 3, 63, 77, 127)

# fmt: off
_CASES = (
    (1, 42, 0x3DCCCCCD, (
        (-56294996180992, -56294996180992), (-55855189852160, -55855189852160), (-33864959393792, -33864959393792),
        (-1319414005760, -1319414005760), (-439804657664, -439804657664), (0, 0), (439804657664, 439804657664),
        (879609315328, 879609315328), (1319414005760, 1319414005760), (27707693858816, 27707693858816),
        (33864959393792, 33864959393792), (55855189852160, 55855189852160),
    )),
    (536870911, 13, 0x3EAAAAAB, (
        (-187649989716651, -187649989716650), (-186183979808085, -186183979808085),
        (-112883199167147, -112883199167146), (-4398046502912, -4398046502912), (-1466015544661, -1466015544661),
        (0, 0), (1466015544661, 1466015544661), (2932031089323, 2932031089322), (4398046502912, 4398046502912),
        (92358976561152, 92358976561152), (112883199167147, 112883199167146), (186183979808085, 186183979808085),
    )),
    (1048575, 1, 0x47FFFFFF, (
        (-35184336437250, -35184336437250), (-34909458792450, -34909458792450), (-21165576552450, -21165576552450),
        (-824632868864, -824632868864), (-274877628416, -274877628416), (0, 0), (274877628416, 274877628416),
        (549755256832, 549755256832), (824632868864, 824632868864), (17317290573825, 17317290573825),
        (21165576552450, 21165576552450), (34909458792450, 34909458792450),
    )),
    (5, 40, 0x2A000000, (
        (-80, -80), (-79, -79), (-48, -48), (-2, -1), (-1, 0), (0, 0), (1, 0), (1, 1), (2, 1), (39, 39), (48, 48),
        (79, 79),
    )),
    (1, 42, 0x00000001, (
        (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0),
    )),
)
# fmt: on
"""c as a factor and the exponent of a power of two, the bits of a scale, and for each of `_STEPS` at that scale the
grid steps that it makes, and those that it makes toward zero."""

_APART = 3
"""Places from one entry to the next."""
_BLOCK = 16


def check() -> None:
    for fused in (1, FUSED):
        for factor, exponent, scale, expected in _CASES:
            _check(fused, float(factor << exponent), scale, expected)
    _check_order()


def _check(fused: int, factor: float, scale: int, expected: tuple[tuple[int, int], ...]) -> None:
    values = read_only(np.array(_STEPS * REPEATS, np.int8))
    size = values.size * _APART
    index = read_only(np.arange(1, size, _APART, dtype=np.uint32))
    scales = read_only(np.full(-(-values.size // _BLOCK), scale, np.uint32).view(np.float32))
    edges = read_only(np.array([0, 10, 11, size // 2, size], np.int64))
    given = (index,) * fused, (values,) * fused, (scales,) * fused, np.full(fused, factor), edges, _BLOCK
    for truncated in (False, True):
        wanted = np.zeros(size, np.int64)
        wanted[index] = np.array([steps[truncated] for steps in expected] * REPEATS, np.int64) * fused
        sums = np.zeros(size, np.int64)
        top = max(sum_topk(sums, *given, first, last, truncated) for first, last in ((1, 3), (0, 1), (3, 4)))
        compare("sum_topk", sums, wanted)
        compare_top("sum_topk", top, scale)


def _check_order() -> None:
    values, scales = read_only(np.ones(4, np.int8)), read_only(np.ones(1, np.float32))
    edges = read_only(np.array([0, 8], np.int64))
    for indices in ((0, 2, 2, 5), (3, 2, 5, 6)):
        given = (read_only(np.array(indices, np.uint32)),), (values,), (scales,), np.ones(1), edges, _BLOCK
        if sum_topk(np.zeros(8, np.int64), *given, 0, 1, False) != BROKEN:
            raise GoldenMismatch("sum_topk does not see that indices do not rise.")
