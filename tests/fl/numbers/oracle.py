"""The formulas of the numbers, slow and obviously right: fractions and Python integers, no floating point."""

from __future__ import annotations

import struct
from fractions import Fraction


def nearest_even(value: Fraction) -> int:
    floor = value.numerator // value.denominator
    rest = value - floor
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1):
        return floor + 1
    return floor


def rounded(value: Fraction, digits: int, lowest: int, highest: int) -> Fraction | None:
    """The nearest number with `digits` binary digits whose last one is worth at least 2^lowest; None where
    that is beyond 2^highest, an infinity."""
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, lowest)
    result = nearest_even(value / unit) * unit
    return None if abs(result) >= Fraction(2) ** highest else result


def single(value: Fraction) -> Fraction | None:
    return rounded(value, 24, -149, 128)


def double(value: Fraction) -> Fraction:
    result = rounded(value, 53, -1074, 1024)
    assert result is not None
    return result


def from_bits(bits: int) -> Fraction:
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def to_bits(value: Fraction) -> int:
    packed = struct.pack("<f", float(value))
    assert Fraction(struct.unpack("<f", packed)[0]) == value
    return int.from_bytes(packed, "little")


def canonical(value: Fraction) -> Fraction:
    return value if abs(value) >= Fraction(2) ** -126 else Fraction(0)


HALVES = {"f16": (10, 15), "bf16": (7, 127)}
"""Bits of the fraction, and what the exponent is biased by."""


def half_value(encoding: str, bits: int) -> Fraction:
    digits, bias = HALVES[encoding]
    fraction, exponent = bits & (1 << digits) - 1, (bits & 0x7FFF) >> digits
    if exponent:
        fraction += 1 << digits
    return (-1) ** (bits >> 15) * fraction * Fraction(2) ** (max(exponent, 1) - bias - digits)


def half(encoding: str, value: Fraction) -> Fraction | None:
    """The nearest number of this encoding."""
    digits, bias = HALVES[encoding]
    return rounded(value, digits + 1, 1 - bias - digits, bias + 1)


def toward_zero(value: Fraction) -> int:
    steps = abs(value.numerator) // value.denominator
    return steps if value >= 0 else -steps


def step_bits(range_bits: int, weight_cap: int, max_updates: int) -> int:
    """G, with the logarithms taken by trying."""

    def ceil_log2(value: int) -> int:
        return next(bits for bits in range(64) if 2**bits >= value)

    return min(50, 62 - ceil_log2(max_updates)) - range_bits - ceil_log2(weight_cap)


def steps(value: Fraction, weight: int, bits: int) -> int:
    """q of one value of an update."""
    return nearest_even(value * weight * 2**bits)


def q8_value(step: int, scale: Fraction) -> Fraction:
    product = single(step * scale)
    assert product is not None
    return product


def applied(old: Fraction, total: int, denominator: int) -> Fraction | None:
    """x' of one parameter; None where it is not finite."""
    mean = double(double(Fraction(total)) / double(Fraction(denominator)))
    new = single(double(old + mean))
    if new is not None and abs(new) < Fraction(2) ** -126:
        return Fraction(0)
    return new
