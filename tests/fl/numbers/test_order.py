from __future__ import annotations

import random
from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.kernels.golden import GoldenMismatch, check_golden
from fl.kernels.golden import order as golden
from fl.kernels.order import network, sum_closest, sum_ordered
from fl.tensors.grid import Grid
from tests.fl.numbers import oracle, oracles
from tests.fl.numbers.columns import COUNTS, NASTY, bits_of_columns, random_bits, rows_of

SIGN = 0x80000000


def middle_of(count: int) -> tuple[int, int]:
    return (count - 1) // 2, count // 2 + 1


def sums_of_ordered(values: NDArray[np.float32], first: int, last: int, bits: int) -> list[int]:
    sums = np.full(values.shape[1], -1, np.int64)
    sum_ordered(sums, values, *network(len(values), first, last), first, last, 2.0**bits)
    return [int(each) for each in sums]


def sums_of_closest(values: NDArray[np.float32], wanted: int, bits: int) -> list[int]:
    sums = np.full(values.shape[1], -1, np.int64)
    rows = np.arange(len(values), dtype=np.int32)
    sum_closest(sums, values, rows, *network(len(values), 0, len(values)), wanted, 2.0**bits)
    return [int(each) for each in sums]


def columns_of(values: NDArray[np.float32]) -> list[list[Fraction]]:
    return [[oracle.from_bits(int(bits)) for bits in column] for column in values.view(np.uint32).T]


def sorted_by(count: int, first: int, last: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = rows.copy()
    for low, high in zip(*network(count, first, last), strict=True):
        rows[[low, high]] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    return rows[first:last]


@pytest.mark.parametrize("count", range(1, 13))
def test_the_network_sorts_everything(count: int) -> None:
    """By the principle of zeros and ones: all there are."""
    rows = np.array(list(product((0, 1), repeat=count))).T
    for first in range(count):
        for last in range(first + 1, count + 1):
            expected = np.sort(rows, axis=0)[first:last]
            assert np.array_equal(sorted_by(count, first, last, rows), expected)


@pytest.mark.parametrize("count", [*range(13, 70), 100, 127, 129, 255, 600])
def test_the_network_sorts_what_is_drawn(count: int) -> None:
    draw = np.random.default_rng(count)
    rows = draw.permuted(np.tile(np.arange(count), (40, 1)), axis=1).T
    rows = np.concatenate([rows, np.sort(rows, axis=0), np.sort(rows, axis=0)[::-1], rows // 3], axis=1)
    for first, last in ((0, count), middle_of(count), (count // 5, count - count // 5)):
        assert np.array_equal(sorted_by(count, first, last, rows), np.sort(rows, axis=0)[first:last])


def test_comparators_that_cannot_matter_are_left_out() -> None:
    sizes = {name: len(network(100, *wires)[0]) for name, wires in (("all", (0, 100)), ("middle", middle_of(100)))}
    assert sizes == {"all": 1104, "middle": 898}
    assert [len(network(count, 0, count)[0]) for count in (1, 2, 3, 4, 8, 16)] == [0, 1, 3, 5, 19, 63]
    lows, highs = network(100, 0, 100)
    assert (lows < highs).all() and not lows.flags.writeable and not highs.flags.writeable


@settings(max_examples=150, deadline=None)
@given(
    count=st.sampled_from(COUNTS),
    range_bits=st.integers(0, 24),
    updates=st.sampled_from((128, 2**12, 2**12 + 1, 2**17)),
    width=st.integers(1, 12),
    data=st.data(),
)
def test_order_statistics_equal_the_oracle(
    count: int, range_bits: int, updates: int, width: int, data: st.DataObject
) -> None:
    bits = Grid(range_bits, 1, updates).unweighted_bits
    values = rows_of(data.draw(bits_of_columns(count, width, range_bits)))
    columns = columns_of(values)
    first, last = middle_of(count)
    means = [oracles.median(column, bits) for column in columns]
    assert sums_of_ordered(values, first, last, bits) == [total for total, _ in means]
    assert {denominator for _, denominator in means} == {(last - first) << bits}
    share = data.draw(st.fractions(0, Fraction(49, 100), max_denominator=100))
    cut = count * share.numerator // share.denominator
    means = [oracles.trimmed_mean(column, share, bits) for column in columns]
    assert sums_of_ordered(values, cut, count - cut, bits) == [total for total, _ in means]
    assert {denominator for _, denominator in means} == {(count - 2 * cut) << bits}
    wanted = data.draw(st.integers(1, count))
    means = [oracles.closest(column, wanted, bits) for column in columns]
    assert sums_of_closest(values, wanted, bits) == [total for total, _ in means]
    assert {denominator for _, denominator in means} == {wanted << bits}


@pytest.mark.parametrize("count", [33, 100])
def test_many_updates_equal_the_oracle(count: int) -> None:
    draw = random.Random(count)
    values = rows_of([random_bits(draw, 6, 8) for _ in range(count)])
    columns = columns_of(values)
    first, last = middle_of(count)
    assert sums_of_ordered(values, first, last, 42) == [oracles.median(each, 42)[0] for each in columns]
    share = Fraction(1, 5)
    expected = [oracles.trimmed_mean(each, share, 42)[0] for each in columns]
    assert sums_of_ordered(values, count // 5, count - count // 5, 42) == expected
    assert sums_of_closest(values, count // 2, 42) == [oracles.closest(each, count // 2, 42)[0] for each in columns]


def test_nasty_values_sort_as_numbers_do() -> None:
    for count in (1, 2, 3, 4, 5):
        for column in product(NASTY, repeat=count) if count < 4 else [NASTY[i : i + count] for i in range(len(NASTY))]:
            if len(column) == count:
                values = rows_of([[each] for each in column])
                [exact] = columns_of(values)
                for bits in (42, 50):
                    expected = oracles.median(exact, bits)[0]
                    assert sums_of_ordered(values, *middle_of(count), bits) == [expected], column


def both(values: NDArray[np.float32]) -> list[list[int]]:
    count = len(values)
    return [
        sums_of_ordered(values, *middle_of(count), 42),
        sums_of_ordered(values, count // 3, count - count // 3, 42),
        sums_of_closest(values, max(1, count // 2), 42),
    ]


@pytest.mark.parametrize("count", [2, 3, 8, 33, 100])
def test_the_order_of_updates_leaves_no_trace(count: int) -> None:
    draw = random.Random(7)
    rows = [random_bits(draw, 9, 8) for _ in range(count)]
    expected = both(rows_of(rows))
    for _ in range(5):
        draw.shuffle(rows)
        assert both(rows_of(rows)) == expected


@pytest.mark.parametrize("count", [1, 3, 300])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 511, 512, 513, 1300])
def test_where_columns_are_cut_leaves_no_trace(count: int, width: int) -> None:
    draw = np.random.default_rng(width)
    values = draw.standard_normal((count, width)).astype(np.float32)
    whole = both(values)
    for cut in {1, width // 3, width - 1} - {0, width}:
        parts = [both(np.ascontiguousarray(part)) for part in (values[:, :cut], values[:, cut:])]
        assert [left + right for left, right in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("range_bits", [0, 8, 24])
def test_the_most_and_largest_updates_do_not_overflow(range_bits: int) -> None:
    count = 2**12
    bits = Grid(range_bits, 1, count).unweighted_bits
    ends = np.array([[2.0**range_bits, -(2.0**range_bits)]], np.float32)
    values = np.repeat(ends, count, axis=0)
    assert sums_of_ordered(values, 0, count, bits) == [2**62, -(2**62)]
    assert sums_of_closest(values, count, bits) == [2**62, -(2**62)]
    # Halves at either end of the range: the median is 0, and every window as far from it as any other.
    values[::2] *= -1
    assert sums_of_ordered(values, *middle_of(count), bits) == [0, 0]
    assert sums_of_closest(values, count // 2 + 1, bits) == [-(count // 2 - 1) * 2**50] * 2
    values[0] = values[1]
    assert sums_of_ordered(values, *middle_of(count), bits) == [2**51, -(2**51)]


def test_a_window_is_of_the_chosen_updates_alone() -> None:
    draw = np.random.default_rng(2)
    values = draw.standard_normal((20, 600)).astype(np.float32)
    rows = draw.permutation(20)[:13].astype(np.int32)
    sums = np.empty(600, np.int64)
    sum_closest(sums, values, rows, *network(13, 0, 13), 6, 2.0**42)
    assert sums.tolist() == sums_of_closest(np.ascontiguousarray(values[rows]), 6, 42)


def test_the_window_is_the_lowest_of_equally_close_ones() -> None:
    def closest(column: Iterable[float], wanted: int) -> int:
        return sums_of_closest(np.array([[each] for each in column], np.float32), wanted, 0)[0]

    assert closest([-2, -1, 0, 1, 2], 2) == -1
    assert closest([2, 1, 0, -1, -2], 4) == -2
    assert closest([-4, -1, 0, 1, 2], 4) == 2
    # All of the first eleven are equal; a window may not stop there, as later ones are nearer.
    assert closest([0] * 11 + [5] * 12, 3) == 15
    assert closest([0] * 12 + [5] * 11, 3) == 0


def test_golden_vectors_hold_and_agree_with_the_oracle() -> None:
    golden.check()
    for bits, column, median, cut, trimmed, wanted, closest in golden._COLUMNS:
        exact = [oracle.from_bits(each) for each in column]
        assert oracles.median(exact, bits)[0] == median
        assert oracles.trimmed_mean(exact, Fraction(cut, len(exact)), bits)[0] == trimmed
        assert oracles.closest(exact, wanted, bits)[0] == closest
    rows = [[oracle.from_bits(each) for each in row] for row in golden._ROWS]
    pairs = [oracles.squared_distance(rows[a], rows[b], 42) for a in range(len(rows)) for b in range(a)]
    assert pairs == list(golden._DISTANCES)
    chosen = zip(*(rows[each] for each in golden._CHOSEN), strict=True)
    assert [sum(oracles.on_grid(column, 42)) for column in chosen] == list(golden._CHOSEN_SUMS)
    assert [oracles.squared_norm(row, 42) for row in rows] == list(golden._NORMS)


def in_single_precision(sums: Any, values: Any, lows: Any, highs: Any, first: int, last: int, factor: float) -> None:
    kept = np.sort(values, axis=0)[first:last]
    sums[:] = np.rint(kept.sum(axis=0, dtype=np.float32) * np.float64(factor)).astype(np.int64)


def the_last_of_equal_windows(
    sums: Any, values: Any, rows: Any, lows: Any, highs: Any, wanted: int, factor: float
) -> None:
    sum_closest(sums, -values, rows, lows, highs, wanted, factor)
    sums *= -1


def all_rows(sums: Any, values: Any, rows: Any, factor: float) -> None:
    sums[:] = np.rint(values * factor).astype(np.int64).sum(axis=0)


def without_carries(limbs: Any, values: Any, factor: float) -> None:
    steps = np.rint(values * factor).astype(np.int64)
    rows = [abs(steps[a] - steps[b]) for a in range(len(steps)) for b in range(a)] if len(limbs) > 4 else abs(steps)
    for limb, distance in zip(limbs, rows, strict=True):
        limb[1] += int((distance >> 26) @ (distance >> 26))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sum_ordered", in_single_precision),
        ("sum_closest", the_last_of_equal_windows),
        ("add_distances", without_carries),
        ("add_norms", without_carries),
        ("sum_chosen", all_rows),
    ],
)
def test_golden_vectors_catch_a_kernel_that_gives_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any
) -> None:
    monkeypatch.setattr(golden, name, wrong)
    with pytest.raises(GoldenMismatch, match=name):
        check_golden()
