"""Canonical F32: finite, no negative zero, no denormals.

Every F32 that is written anywhere is canonical, so that processors which flush denormals and arithmetic that
yields −0 leave no trace in a blob. Looking at bits instead of values keeps these checks exact whatever the
processor's modes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused

INFINITY_BITS = 0x7F800000
TINY_BITS = 0x00800000
"""Bits of the smallest normal F32, 2^−126; smaller ones are denormal."""

SIGN_BIT = 0x80000000

_INTEGERS = {size: (np.dtype(f"u{size}"), np.dtype(f"i{size}")) for size in (2, 4)}
"""By the bytes of a float: as what its bits are read."""

_CHUNK = 1 << 16
"""Values looked at together, so that a check of a large blob needs little memory, most of it in a core's cache."""


def range_bits_as_f32(range_bits: int) -> int:
    """The bits of 2^R as an F32. Magnitudes of finite F32 order as their bits do."""
    return (127 + range_bits) << 23


def canonical(values: NDArray[Any]) -> NDArray[np.float32]:
    """The nearest canonical F32 of each value of a flat array; infinities and NaN stay what they are."""
    array = np.empty(values.size, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start in range(0, values.size, _CHUNK):
            chunk = array[start : start + _CHUNK]
            chunk[...] = values[start : start + _CHUNK]
            bits = chunk.view(np.uint32)
            np.copyto(bits, np.uint32(0), where=(bits & np.uint32(SIGN_BIT - 1)) < np.uint32(TINY_BITS))
    return array


def largest(values: NDArray[Any]) -> int:
    """The largest magnitude, as the bits of a float of 2 or 4 bytes; 0 of no values. Nothing is copied: read as signed
    integers, positive floats are ordered by magnitude and above all negative ones; read as unsigned ones, it is the
    other way round."""
    if not values.size:
        return 0
    unsigned, signed = _INTEGERS[values.itemsize]
    positive, negative = np.maximum.reduce(values.view(signed)), np.maximum.reduce(values.view(unsigned))
    return max(0, int(positive), int(negative) - (1 << 8 * values.itemsize - 1))


def check_range(values: NDArray[Any], range_bits: int) -> None:
    """Raises `Refused` with NON_FINITE or OUT_OF_RANGE unless every |x| ≤ 2^R."""
    check_magnitude(largest(values), range_bits_as_f32(range_bits), INFINITY_BITS, range_bits)


def check_magnitude(top: int, limit: int, infinity: int, range_bits: int) -> None:
    """The same of bits: of the largest magnitude, of 2^R and of infinity, as one float type has them."""
    if top >= infinity:
        raise Refused("NON_FINITE", "The update holds NaN or infinity; look at the learning rate and the loss.")
    if top > limit:
        raise Refused("OUT_OF_RANGE", f"The update holds a value beyond ±2^{range_bits}, the job's range.")


def is_canonical(values: NDArray[Any]) -> bool:
    if largest(values) >= INFINITY_BITS:
        return False
    bits = values.view(np.uint32)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        small = (chunk & np.uint32(SIGN_BIT - 1)) < np.uint32(TINY_BITS)
        if bool(chunk[small].any()):
            return False
    return True
