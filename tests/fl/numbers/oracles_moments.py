"""Rules with a memory, and clipping, by fractions and Python integers: every float64 step rounds as IEEE-754 says."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from tests.fl.numbers import oracle
from tests.fl.numbers.oracle import double

ONE = Fraction(1)


def root(value: Fraction) -> Fraction:
    """√ of a float64 as a float64, to the nearest: found among integers of which the square is known."""
    if value == 0:
        return value
    # Scaled by an even power of two, so that the integer root has 60 digits or more; the rest is below its last one.
    shift = max(0, 130 - (value.numerator.bit_length() - value.denominator.bit_length()))
    shift += shift % 2
    scaled = value * 2**shift
    whole = scaled.numerator // scaled.denominator
    found = isqrt(whole)
    exact = found * found == scaled
    # Half a step more says that the true root is above, without reaching what could be rounded to.
    result = Fraction(found) + (0 if exact else Fraction(1, 2))
    return double(result / 2 ** (shift // 2))


def mean_of(total: int, denominator: int) -> Fraction:
    return double(double(Fraction(total)) / double(Fraction(denominator)))


def stored(value: Fraction) -> Fraction | None:
    """canon(f32(·)); None where it is not finite."""
    single = oracle.single(value)
    if single is not None and abs(single) < Fraction(2) ** -126:
        return Fraction(0)
    return single


def blend(old: Fraction, mean: Fraction, keep: Fraction, take: Fraction) -> Fraction | None:
    return stored(double(double(keep * old) + double(take * mean)))


def blend_squares(old: Fraction, mean: Fraction, keep: Fraction, take: Fraction) -> Fraction | None:
    return stored(double(double(keep * old) + double(take * double(mean * mean))))


def approach_squares(old: Fraction, mean: Fraction, take: Fraction) -> Fraction | None:
    square = double(mean * mean)
    sign = (old > square) - (old < square)
    return stored(double(old - sign * double(take * square)))


def move(old: Fraction, first: Fraction, rate: Fraction) -> Fraction | None:
    return stored(double(old + double(rate * first)))


def move_scaled(old: Fraction, first: Fraction, second: Fraction, rate: Fraction, tau: Fraction) -> Fraction | None:
    step = double(double(rate * first) / double(root(second) + tau))
    return stored(double(old + step))


def power(base: Fraction, exponent: int) -> Fraction:
    result = ONE
    for _ in range(exponent):
        result = double(result * base)
    return result


def adam_rate(rate: Fraction, first: Fraction, second: Fraction, step: int) -> Fraction:
    """η·√(1−β2^t)/(1−β1^t)."""
    numerator = double(rate * root(double(ONE - power(second, step))))
    return double(numerator / double(ONE - power(first, step)))


def clipped(values: Sequence[Fraction], weight: int, norm: Fraction, step_bits: int, weighted_bits: int) -> list[int]:
    """The steps that an update adds, none longer than its weight times the norm."""
    steps = [oracle.steps(value, 1, step_bits) for value in values]
    length = isqrt(sum(step * step for step in steps)) + 1 + isqrt(len(values))
    bound = (norm * 2**step_bits).__floor__()
    factor = Fraction(weight)
    if length > bound:
        factor = Fraction(weight * bound, length)
        unit = Fraction(1)
        while factor / unit >= 2**29:
            unit *= 2
        while factor and factor / unit < 2**28:
            unit /= 2
        factor = (factor / unit).__floor__() * unit
    return [int(value * factor * 2**weighted_bits) for value in values]
