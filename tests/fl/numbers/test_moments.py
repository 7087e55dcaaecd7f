"""The kernels of rules with a memory, and the norm that updates are clipped to, against fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt, nextafter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.kernels.golden import GoldenMismatch, check_golden
from fl.kernels.golden import moments as golden
from fl.kernels.moments import approach_squares, blend, blend_squares, move, move_scaled
from fl.rules.adaptive import FedAdam
from fl.rules.clipped_mean import ClippedMean
from fl.rules.rule import BELOW_ONE, RATES
from fl.tensors.floats import INFINITY_BITS
from fl.tensors.grid import Grid
from tests.fl.numbers import oracle
from tests.fl.numbers import oracles_moments as oracles

NORMAL = st.integers(0x00800000, INFINITY_BITS - 1)
STORED = st.one_of(st.just(0), NORMAL, NORMAL.map(lambda bits: bits | 0x80000000), st.integers(0x33000000, 0x43800000))
SQUARE = st.one_of(st.just(0), NORMAL, st.integers(0x33000000, 0x43800000))
KEPT = st.one_of(st.floats(0, BELOW_ONE), st.sampled_from((0.0, 0.9, 0.99, BELOW_ONE, 1.0)))
RATE = st.one_of(st.floats(*RATES), st.sampled_from((1.0, 0.1, 1e-9, *RATES)))
DENOMINATOR = st.one_of(st.integers(1, 2**62), st.integers(1, 2**20).map(lambda weight: weight << 42))
MANY = settings(max_examples=200, deadline=None)


def values(bits: int) -> NDArray[np.float32]:
    return np.full(1, bits, np.uint32).view(np.float32)


def same(new: NDArray[np.float32], top: int, expected: Fraction | None) -> bool:
    if expected is None:
        return top >= INFINITY_BITS
    bits = oracle.to_bits(expected)
    return int(new.view(np.uint32)[0]) == bits and (not bits or top == bits & 0x7FFFFFFF)


@st.composite
def means(draw: st.DrawFn) -> tuple[int, int]:
    denominator = int(float(draw(DENOMINATOR)))
    total = draw(
        st.one_of(
            st.integers(-(2**62), 2**62),
            st.integers(-(2**10), 2**10),
            st.integers(-50, 50).map(lambda times: (denominator >> 24) * times),
        )
    )
    return total, denominator


@MANY
@given(old=STORED, square=SQUARE, mean=means(), keep=KEPT, take=KEPT)
def test_moments_advance_as_the_oracle_says(
    old: int, square: int, mean: tuple[int, int], keep: float, take: float
) -> None:
    total, denominator = mean
    brought, sums, new = oracles.mean_of(*mean), np.array([total]), np.empty(1, np.float32)
    with np.errstate(over="ignore"):
        top = blend(new, values(old), sums, float(denominator), keep, take)
        assert same(new, top, oracles.blend(oracle.from_bits(old), brought, Fraction(keep), Fraction(take)))
        top = blend_squares(new, values(square), sums, float(denominator), keep, take)
        assert same(new, top, oracles.blend_squares(oracle.from_bits(square), brought, Fraction(keep), Fraction(take)))
        top = approach_squares(new, values(square), sums, float(denominator), take)
        assert same(new, top, oracles.approach_squares(oracle.from_bits(square), brought, Fraction(take)))


@MANY
@given(old=STORED, first=STORED, second=SQUARE, rate=RATE, tau=RATE)
def test_the_model_moves_as_the_oracle_says(old: int, first: int, second: int, rate: float, tau: float) -> None:
    new = np.empty(1, np.float32)
    start, step, square = map(oracle.from_bits, (old, first, second))
    with np.errstate(over="ignore"):
        top = move(new, values(old), values(first), rate)
        assert same(new, top, oracles.move(start, step, Fraction(rate)))
        top = move_scaled(new, values(old), values(first), values(second), rate, tau)
        assert same(new, top, oracles.move_scaled(start, step, square, Fraction(rate), Fraction(tau)))


def test_a_square_that_is_reached_stays() -> None:
    new = np.empty(1, np.float32)
    assert approach_squares(new, np.array([0.25], np.float32), np.array([1]), 2.0, 0.5) and new[0] == 0.25


@pytest.mark.parametrize("step", [1, 2, 3, 100])
@pytest.mark.parametrize(("first", "second"), [(0.9, 0.99), (0.0, 0.5), (BELOW_ONE, BELOW_ONE), (0.5, 0.0)])
def test_the_step_of_adam_grows_with_rounds_as_the_oracle_says(step: int, first: float, second: float) -> None:
    made = FedAdam().rate({"beta_1": first, "beta_2": second, "learning_rate": 0.1, "tau": 1e-9}, step)
    assert Fraction(made) == oracles.adam_rate(Fraction(0.1), Fraction(first), Fraction(second), step)


def test_a_power_of_many_rounds_is_found_at_once() -> None:
    rule = FedAdam()
    rates = {"beta_1": 0.9, "beta_2": 0.99, "learning_rate": 0.1, "tau": 1e-9}
    assert rule.rate(rates, 10**6) == 0.1


def test_golden_vectors_agree_with_the_oracle() -> None:
    read = oracle.from_bits
    for old, total, denominator, keep, take, new in golden._BLENDED:
        mean = oracles.mean_of(total, denominator)
        assert oracles.blend(read(old), mean, Fraction(keep), Fraction(take)) == read(new)
    for old, total, denominator, keep, take, new in golden._SQUARES:
        mean = oracles.mean_of(total, denominator)
        assert oracles.blend_squares(read(old), mean, Fraction(keep), Fraction(take)) == read(new)
    for old, total, denominator, take, new in golden._APPROACHED:
        mean = oracles.mean_of(total, denominator)
        assert oracles.approach_squares(read(old), mean, Fraction(take)) == read(new)
    for old, first, rate, new in golden._MOVED:
        assert oracles.move(read(old), read(first), Fraction(rate)) == read(new)
    for old, first, second, rate, tau, new in golden._SCALED:
        assert oracles.move_scaled(read(old), read(first), read(second), Fraction(rate), Fraction(tau)) == read(new)


def in_single_precision(new: Any, old: Any, sums: Any, denominator: float, keep: float, take: float) -> int:
    new[:] = np.float32(keep) * old + np.float32(take) * (sums.astype(np.float32) / np.float32(denominator))
    return int(new.view(np.uint32)[0] & 0x7FFFFFFF)


def square_in_single_precision(new: Any, old: Any, sums: Any, denominator: float, keep: float, take: float) -> int:
    mean = (sums / denominator).astype(np.float32)
    new[:] = keep * old.astype(np.float64) + take * (mean * mean).astype(np.float64)
    return int(new.view(np.uint32)[0] & 0x7FFFFFFF)


def overshooting(new: Any, old: Any, sums: Any, denominator: float, take: float) -> int:
    square = (sums / denominator) ** 2
    new[:] = old + take * square
    return int(new.view(np.uint32)[0] & 0x7FFFFFFF)


def rounding_early(new: Any, old: Any, first: Any, rate: float) -> int:
    new[:] = old + np.float32(rate) * first
    return int(new.view(np.uint32)[0] & 0x7FFFFFFF)


def root_of_both(new: Any, old: Any, first: Any, second: Any, rate: float, tau: float) -> int:
    new[:] = old.astype(np.float64) + rate * first.astype(np.float64) / np.sqrt(second.astype(np.float64) + tau)
    return int(new.view(np.uint32)[0] & 0x7FFFFFFF)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("blend", in_single_precision),
        ("blend_squares", square_in_single_precision),
        ("approach_squares", overshooting),
        ("move", rounding_early),
        ("move_scaled", root_of_both),
    ],
)
def test_golden_vectors_catch_a_kernel_that_gives_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any
) -> None:
    monkeypatch.setattr(golden, name, wrong)
    with np.errstate(over="ignore"), pytest.raises(GoldenMismatch, match=name):
        check_golden()


LONG = settings(max_examples=150, deadline=None)


@LONG
@given(
    norm=st.one_of(st.floats(2.0**-20, 2.0**20), st.sampled_from((1.0, 0.1, 2.0**-20))),
    weight=st.integers(1, 1000),
    length=st.one_of(st.integers(1, 2**70), st.integers(2**41, 2**43)),
    range_bits=st.sampled_from((0, 8, 24)),
)
def test_a_clipped_update_is_never_longer_than_the_norm(norm: float, weight: int, length: int, range_bits: int) -> None:
    grid = Grid(range_bits, 1000, 128)
    factor = Fraction(ClippedMean().factor({"norm": norm}, grid, weight, length))
    bound = (Fraction(norm) * 2**grid.unweighted_bits).__floor__()
    full = Fraction(weight) * 2**grid.weighted_bits
    assert (factor == full) == (length <= bound)
    if length > bound:
        wanted = full * bound / length
        assert wanted * (1 - Fraction(1, 2**28)) <= factor <= wanted
        digits = factor.numerator // (factor.numerator & -factor.numerator) if factor else 0
        assert digits < 2**29


def test_what_is_clipped_and_what_is_not_are_told_apart_at_the_last_step() -> None:
    grid = Grid(8, 1, 128)
    bound = 2**grid.unweighted_bits
    rule = ClippedMean()
    assert rule.factor({"norm": 1.0}, grid, 1, bound) == grid.factor(1)
    assert rule.factor({"norm": 1.0}, grid, 1, bound + 1) < grid.factor(1)
    assert rule.factor({"norm": nextafter(1.0, 0.0)}, grid, 1, bound) < grid.factor(1)


@LONG
@given(
    bits=st.lists(st.integers(0, 0x43800000), min_size=1, max_size=30),
    norm=st.floats(2.0**-10, 2.0**10),
    weight=st.integers(1, 1000),
)
def test_the_oracle_of_clipping_keeps_the_norm(bits: Sequence[int], norm: float, weight: int) -> None:
    """In exact arithmetic, of the part that an update has in the mean."""
    grid = Grid(8, 1000, 128)
    row = [oracle.from_bits(each) for each in bits]
    steps = oracles.clipped(row, weight, Fraction(norm), grid.unweighted_bits, grid.weighted_bits)
    assert isqrt(sum(step * step for step in steps)) <= Fraction(norm) * weight * 2**grid.weighted_bits
