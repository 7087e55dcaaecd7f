from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.kernels.distances import LIMBS, add_distances, add_norms, exact, pairs_of, sum_chosen
from fl.tensors.floats import range_bits_as_f32
from fl.tensors.grid import Grid
from tests.fl.numbers import oracle, oracles
from tests.fl.numbers.columns import COUNTS, SIGN, bits_of_columns, random_bits, rows_of

MOST_LIMBS = [2**52 - 1, 2**52 - 1, 5]


def distances(values: NDArray[np.float32], bits: int) -> list[int]:
    limbs = np.zeros((pairs_of(len(values)), LIMBS), np.int64)
    add_distances(limbs, values, 2.0**bits)
    return exact(limbs)


def norms(values: NDArray[np.float32], bits: int) -> list[int]:
    limbs = np.zeros((len(values), LIMBS), np.int64)
    add_norms(limbs, values, 2.0**bits)
    return exact(limbs)


def fractions_of(values: NDArray[np.float32]) -> list[list[Fraction]]:
    return [[oracle.from_bits(int(bits)) for bits in row] for row in values.view(np.uint32)]


def expected_distances(values: NDArray[np.float32], bits: int) -> list[int]:
    rows = fractions_of(values)
    return [oracles.squared_distance(rows[a], rows[b], bits) for a in range(len(rows)) for b in range(a)]


@settings(max_examples=100, deadline=None)
@given(
    count=st.sampled_from(COUNTS),
    range_bits=st.integers(0, 24),
    updates=st.sampled_from((128, 2**12, 2**12 + 1, 2**17)),
    width=st.integers(1, 12),
    data=st.data(),
)
def test_distances_and_norms_equal_the_oracle(
    count: int, range_bits: int, updates: int, width: int, data: st.DataObject
) -> None:
    bits = Grid(range_bits, 1, updates).unweighted_bits
    values = rows_of(data.draw(bits_of_columns(count, width, range_bits)))
    assert distances(values, bits) == expected_distances(values, bits)
    assert norms(values, bits) == [oracles.squared_norm(row, bits) for row in fractions_of(values)]


def test_many_updates_equal_the_oracle() -> None:
    draw = random.Random(1)
    values = rows_of([random_bits(draw, 5, 8) for _ in range(100)])
    found = distances(values, 42)
    assert found == expected_distances(values, 42) and len(found) == pairs_of(100) == 4950


@pytest.mark.parametrize("count", [2, 3, 32, 33, 70])
@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 3000])
def test_where_coordinates_are_cut_leaves_no_trace(count: int, width: int) -> None:
    values = (np.random.default_rng(width).standard_normal((count, width)) * 3).astype(np.float32)
    whole = np.zeros((pairs_of(count), LIMBS), np.int64)
    add_distances(whole, values, 2.0**42)
    lengths = np.zeros((count, LIMBS), np.int64)
    add_norms(lengths, values, 2.0**42)
    for cut in {1, width // 3, width - 1} - {0, width}:
        parts = [np.ascontiguousarray(part) for part in (values[:, :cut], values[:, cut:])]
        # One after the other into the same limbs, and each alone with the sums added.
        limbs, row_limbs = np.zeros_like(whole), np.zeros_like(lengths)
        for part in parts:
            add_distances(limbs, part, 2.0**42)
            add_norms(row_limbs, part, 2.0**42)
        assert np.array_equal(limbs, whole) and np.array_equal(row_limbs, lengths)
        sums = zip(*(distances(part, 42) for part in parts), strict=True)
        assert [left + right for left, right in sums] == exact(whole)


@pytest.mark.parametrize("count", [2, 3, 33])
def test_the_order_of_updates_only_moves_the_pairs(count: int) -> None:
    draw = random.Random(count)
    values = rows_of([random_bits(draw, 50, 8) for _ in range(count)])
    found = distances(values, 42)
    order = draw.sample(range(count), count)
    moved = distances(values[order], 42)
    for a in range(count):
        for b in range(a):
            one, other = max(order[a], order[b]), min(order[a], order[b])
            assert moved[pairs_of(a) + b] == found[pairs_of(one) + other]


@pytest.mark.parametrize("range_bits", [0, 8, 24])
def test_the_largest_distances_do_not_overflow(range_bits: int) -> None:
    bits = Grid(range_bits, 1, 128).unweighted_bits
    top = range_bits_as_f32(range_bits)
    for one, other in ((top, top | SIGN), (top, (top - 1) | SIGN), (top - 1, (top - 1) | SIGN), (top, 0)):
        values = rows_of([[one] * 4096, [other] * 4096])
        [each] = expected_distances(rows_of([[one], [other]]), bits)
        assert distances(values, bits) == [4096 * each]
        assert each <= 2**102
        lengths = [oracles.squared_norm([oracle.from_bits(value)], bits) for value in (one, other)]
        assert norms(values, bits) == [4096 * each for each in lengths]


@pytest.mark.parametrize(("one", "other"), [(2.0**8, -(2.0**8)), (2.0**-16 - 2.0**-41, 0.0), (255.99998, -(2.0**-42))])
def test_carries_go_all_the_way(one: float, other: float) -> None:
    values = np.array([[one] * 1024, [other] * 1024], np.float32)
    limbs = np.array([MOST_LIMBS], np.int64)
    [before] = exact(limbs)
    [each] = distances(values, 42)
    for turn in range(1, 50):
        add_distances(limbs, values, 2.0**42)
        assert exact(limbs) == [before + turn * each]
        assert (limbs >= 0).all() and (limbs[:, :2] < 2**52).all()


def test_updates_at_one_place_have_no_distance() -> None:
    draw = random.Random(3)
    row = random_bits(draw, 700, 8)
    signs = [bits ^ SIGN if bits & ~SIGN < 0x00800000 else bits for bits in row]
    assert distances(rows_of([row, row, signs]), 42) == [0, 0, 0]


@pytest.mark.parametrize("range_bits", [0, 8, 24])
def test_sums_of_chosen_updates_equal_the_oracle(range_bits: int) -> None:
    draw = random.Random(range_bits)
    bits = Grid(range_bits, 1, 128).unweighted_bits
    values = rows_of([random_bits(draw, 70, range_bits) for _ in range(9)])
    columns = list(zip(*fractions_of(values), strict=True))
    for chosen in ([0], [8, 2], list(range(9))):
        sums = np.full(70, 99, np.int64)
        sum_chosen(sums, values, np.array(chosen, np.int32), 2.0**bits)
        expected = [sum(oracles.on_grid([column[row] for row in chosen], bits)) for column in columns]
        assert sums.tolist() == expected
