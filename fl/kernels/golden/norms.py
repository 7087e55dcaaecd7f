"""Golden vectors of squared norms, from encoded values. Repeated often, so that carries are among them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.distances import LIMBS, exact
from fl.kernels.golden.compare import compare, read_only
from fl.kernels.norms import add_norm_half, add_norm_q8

_BITS = 42

# fmt: off
_F16 = (0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C01, 0xB555, 0x5BFF, 0xDC00)
_F16_NORM = 0x1FFC120EE491FF803000000000
_BF16 = (0x0000, 0x8000, 0x0001, 0x807F, 0x2A80, 0xAB20, 0x3F81, 0xBEAB, 0x437F, 0xC380)
_BF16_NORM = 0x1FE02209240000000000000005
_STEPS = (-128, -127, -3, -1, 0, 1, 63, 127)
_Q8_NORMS = (
    (0x3DCCCCCD, 0x20E3851C3547B0A480000000), (0x40000000, 0x33638000000000000000000000), (0x2A800000, 0xCD8E),
    (0x00000001, 0),
)
# fmt: on
"""Bits of values with Σ y², y on the grid of G0 = `_BITS`; of q8 the bits of a scale, for `_STEPS` at that scale."""

_REPEATS = 1000


def check() -> None:
    _check_halves(_F16, False, _F16_NORM)
    _check_halves(_BF16, True, _BF16_NORM)
    _check_q8()


def _check_halves(values: tuple[int, ...], brain: bool, norm: int) -> None:
    many = read_only(np.array(values * _REPEATS, np.uint16))
    limbs = np.zeros(LIMBS, np.int64)
    for _ in range(2):
        add_norm_half(limbs, many, 2.0**_BITS, brain)
    _compare("add_norm_half", limbs, 2 * _REPEATS * norm)


def _check_q8() -> None:
    """A block for each scale, and between them some that are left out."""
    width = len(_STEPS) * _REPEATS
    values = read_only(np.array(_STEPS * (_REPEATS * len(_Q8_NORMS)), np.int8))
    scales = read_only(np.array([scale for scale, _ in _Q8_NORMS], np.uint32).view(np.float32))
    blocks = read_only(np.arange(0, values.size + 1, width))
    for block, (_, norm) in enumerate(_Q8_NORMS):
        limbs = np.zeros(LIMBS, np.int64)
        add_norm_q8(limbs, values, scales, blocks, block, block + 1, 2.0**_BITS)
        _compare("add_norm_q8", limbs, _REPEATS * norm)
    limbs = np.zeros(LIMBS, np.int64)
    add_norm_q8(limbs, values, scales, blocks, 0, len(_Q8_NORMS), 2.0**_BITS)
    _compare("add_norm_q8", limbs, _REPEATS * sum(norm for _, norm in _Q8_NORMS))


def _compare(name: str, limbs: NDArray[np.int64], expected: int) -> None:
    compare(name, np.array(exact(limbs.reshape(1, -1))), np.array([expected]))
