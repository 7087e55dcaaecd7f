from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.kernels import FUSED, apply_mean, sum_f32, sum_q8
from fl.kernels.golden import GoldenMismatch, check_golden
from fl.kernels.golden import sums as golden
from fl.tensors.floats import INFINITY_BITS
from fl.tensors.grid import MAX_UPDATES, MAX_WEIGHT_CAP, Grid
from tests.fl.numbers import oracle

FINITE = st.integers(0, INFINITY_BITS - 1).flatmap(lambda bits: st.sampled_from((bits, bits | 0x80000000)))
NEAR_ONE = st.integers(0x30000000, 0x43800000).flatmap(
    lambda bits: st.sampled_from((bits, bits | 0x80000000, bits & ~0xFFF))
)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def f32(bits: list[int]) -> NDArray[np.float32]:
    return read_only(np.array(bits, np.uint32).view(np.float32))


def edges(*values: int) -> NDArray[np.int64]:
    return read_only(np.array(values, np.int64))


@settings(max_examples=150, deadline=None)
@given(
    range_bits=st.integers(0, 24),
    cap=st.sampled_from((1, 3, 1000, 2**19 + 1, 2**20)),
    updates=st.sampled_from((1, 8, 2**12, 2**12 + 1, 2**17)),
    data=st.data(),
)
def test_f32_sums_equal_the_oracle(range_bits: int, cap: int, updates: int, data: st.DataObject) -> None:
    grid = Grid(range_bits, cap, updates)
    limit = oracle.to_bits(Fraction(2) ** range_bits)
    fused = data.draw(st.sampled_from((1, FUSED)))
    size = data.draw(st.integers(1, 40))
    magnitude = st.one_of(st.integers(0, limit), st.integers(max(0, limit - 2**25), limit), st.just(limit))
    one = magnitude.flatmap(lambda bits: st.sampled_from((bits, bits | 0x80000000, bits & ~0x7FF)))
    columns = [data.draw(st.lists(one, min_size=size, max_size=size)) for _ in range(fused)]
    weights = [data.draw(st.integers(1, cap)) for _ in range(fused)]
    sums = np.zeros(size, np.int64)
    cut = data.draw(st.integers(0, size))
    factors = np.array([grid.factor(weight) for weight in weights])
    top = sum_f32(sums, tuple(map(f32, columns)), factors, edges(0, cut, size), 0, 2, False)
    assert sums.tolist() == [
        sum(
            oracle.steps(oracle.from_bits(column[place]), weight, grid.weighted_bits)
            for column, weight in zip(columns, weights, strict=True)
        )
        for place in range(size)
    ]
    assert top == max(bits & 0x7FFFFFFF for column in columns for bits in column)


@settings(max_examples=100, deadline=None)
@given(
    range_bits=st.integers(0, 24),
    cap=st.sampled_from((1, 1000, 2**20)),
    data=st.data(),
)
def test_q8_sums_equal_the_oracle(range_bits: int, cap: int, data: st.DataObject) -> None:
    grid = Grid(range_bits, cap, 2**17)
    limit = oracle.to_bits(Fraction(2) ** (range_bits - 7))
    fused = data.draw(st.sampled_from((1, FUSED)))
    borders = [0, 3, 20, 37]
    scales = [data.draw(st.lists(st.integers(0, limit), min_size=3, max_size=3)) for _ in range(fused)]
    columns = [data.draw(st.lists(st.integers(-128, 127), min_size=37, max_size=37)) for _ in range(fused)]
    weights = [data.draw(st.integers(1, cap)) for _ in range(fused)]
    sums = np.zeros(37, np.int64)
    top = sum_q8(
        sums,
        tuple(read_only(np.array(column, np.int8)) for column in columns),
        tuple(map(f32, scales)),
        np.array([grid.factor(weight) for weight in weights]),
        edges(0, 2, 3),
        edges(*borders),
        0,
        2,
        False,
    )
    expected = [0] * 37
    for column, scale, weight in zip(columns, scales, weights, strict=True):
        for place, step in enumerate(column):
            block = sum(place >= border for border in borders) - 1
            value = oracle.q8_value(step, oracle.from_bits(scale[block]))
            expected[place] += oracle.steps(value, weight, grid.weighted_bits)
    assert sums.tolist() == expected
    assert top == max(map(max, scales))


@settings(max_examples=300, deadline=None)
@given(
    old=st.lists(st.one_of(FINITE, NEAR_ONE), min_size=1, max_size=20),
    denominator=st.one_of(st.integers(1, 2**62), st.integers(1, 2**20).map(lambda weight: weight << 42)),
    data=st.data(),
)
def test_applying_the_mean_equals_the_oracle(old: list[int], denominator: int, data: st.DataObject) -> None:
    denominator = int(float(denominator))
    total = st.one_of(
        st.integers(-(2**62), 2**62),
        st.integers(-(2**10), 2**10),
        st.integers(-50, 50).map(lambda k: (denominator >> 24) * k),
    )
    totals = [data.draw(total) for _ in old]
    new = np.empty(len(old), np.float32)
    top = apply_mean(new, f32(old), np.array(totals, np.int64), float(denominator))
    expected = [
        oracle.applied(oracle.from_bits(bits), each, denominator) for bits, each in zip(old, totals, strict=True)
    ]
    if None in expected:
        assert top >= INFINITY_BITS
    else:
        assert new.view(np.uint32).tolist() == [oracle.to_bits(each) for each in expected if each is not None]
        assert top < INFINITY_BITS


@pytest.mark.parametrize("old", [0x7F800000, 0xFF800000, 0x7FC00000])
def test_a_value_that_is_not_finite_is_reported(old: int) -> None:
    values = np.zeros(100, np.uint32)
    for place in (0, 50, 99):
        values[:] = 0
        values[place] = old
        new = np.empty(100, np.float32)
        sums = np.zeros(100, np.int64)
        assert apply_mean(new, read_only(values.copy()).view(np.float32), sums, 4.0) >= INFINITY_BITS


def test_a_sum_that_overflows_f32_is_reported() -> None:
    new = np.empty(1, np.float32)
    with np.errstate(over="ignore"):
        assert apply_mean(new, f32([0x7F7FFFFF]), np.array([2**62]), 2.0**-42) >= INFINITY_BITS


@pytest.mark.parametrize("range_bits", [0, 8, 24])
@pytest.mark.parametrize("cap", [1, 3, MAX_WEIGHT_CAP - 1, MAX_WEIGHT_CAP])
def test_the_most_and_largest_updates_do_not_overflow(range_bits: int, cap: int) -> None:
    grid = Grid(range_bits, cap, MAX_UPDATES)
    top = oracle.to_bits(Fraction(2) ** range_bits)
    values = f32([top, top | 0x80000000, top - 1, top | 0x80000000] * 5)
    sums = np.zeros(20, np.int64)
    factors = np.array([grid.factor(cap)] * FUSED)
    for _ in range(MAX_UPDATES // FUSED):
        sum_f32(sums, (values,) * FUSED, factors, edges(0, 20), 0, 1, False)
    expected = [
        MAX_UPDATES * oracle.steps(oracle.from_bits(int(bits)), cap, grid.weighted_bits)
        for bits in values.view(np.uint32)
    ]
    assert sums.tolist() == expected
    assert max(map(abs, expected)) <= 2**62


def test_golden_vectors_hold_and_agree_with_the_oracle() -> None:
    check_golden()
    for weight, bits, pairs in golden._F32_CASES:
        for value, steps in pairs:
            assert steps == oracle.steps(oracle.from_bits(value), weight, bits)
    for weight, bits, scale, expected in golden._Q8_CASES:
        values = [oracle.q8_value(step, oracle.from_bits(scale)) for step in golden._Q8_STEPS]
        assert list(expected) == [oracle.steps(value, weight, bits) for value in values]
    for old, total, denominator, new in golden._APPLY_CASES:
        assert oracle.applied(oracle.from_bits(old), total, denominator) == oracle.from_bits(new)


def truncating_sum(sums: Any, updates: Any, factors: Any, edges: Any, first: int, last: int, truncated: bool) -> int:
    for values, factor in zip(updates, factors, strict=True):
        sums += (values.astype(np.float64) * factor).astype(np.int64)
    return int(max((values.view(np.uint32) & 0x7FFFFFFF).max() for values in updates))


def rounding_early_sum(
    sums: Any, updates: Any, scales: Any, factors: Any, tiles: Any, blocks: Any, first: int, last: int, truncated: bool
) -> int:
    """One rounding, at the end: the product is not rounded to F32."""
    for values, scale, factor in zip(updates, scales, factors, strict=True):
        by_value = np.repeat(scale, np.diff(blocks)).astype(np.float64)
        sums += np.rint(values * by_value * factor).astype(np.int64)
    return int(max(scale.view(np.uint32).max() for scale in scales))


def single_precision_mean(new: Any, old: Any, sums: Any, denominator: float) -> int:
    new[:] = old + sums.astype(np.float32) / np.float32(denominator)
    new[np.abs(new) < 2.0**-126] = 0
    return int((new.view(np.uint32) & 0x7FFFFFFF).max())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sum_f32", truncating_sum),
        ("sum_q8", rounding_early_sum),
        ("apply_mean", single_precision_mean),
    ],
)
def test_golden_vectors_catch_a_kernel_that_rounds_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any
) -> None:
    monkeypatch.setattr(golden, name, wrong)
    with pytest.raises(GoldenMismatch, match=name):
        check_golden()
