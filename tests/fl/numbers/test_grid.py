from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.errors import Refused
from fl.tensors.grid import MAX_RANGE_BITS, MAX_UPDATES, MAX_WEIGHT_CAP, Grid
from tests.fl.numbers import oracle

grids = st.builds(Grid, st.integers(0, MAX_RANGE_BITS), st.integers(1, MAX_WEIGHT_CAP), st.integers(1, MAX_UPDATES))


@given(grids, st.data())
def test_no_sum_can_overflow_and_no_factor_is_rounded(grid: Grid, data: st.DataObject) -> None:
    weight = data.draw(st.integers(1, grid.weight_cap))
    bits = oracle.step_bits(grid.range_bits, grid.weight_cap, grid.max_updates)
    assert grid.weighted_bits == bits >= 1
    assert Fraction(grid.factor(weight)) == weight * 2**bits
    most = oracle.steps(Fraction(2**grid.range_bits), grid.weight_cap, bits)
    assert most <= 2**50
    assert most * grid.max_updates <= 2**62
    denominator = grid.denominator(weight * grid.max_updates)
    assert denominator <= 2**62 and Fraction(float(denominator)) == denominator


def test_the_constants_of_a_usual_job() -> None:
    grid = Grid(range_bits=8, weight_cap=1, max_updates=8)
    assert (grid.precision_bits, grid.unweighted_bits, grid.weighted_bits) == (50, 42, 42)
    assert Grid(8, 2**20, 2**17).weighted_bits == 17
    assert Grid(24, 2**20, 2**17).weighted_bits == 1
    assert Grid(8, 1000, 100).resolution(1000) == 2.0**-32 / 1000


@pytest.mark.parametrize(
    ("range_bits", "cap", "updates"),
    [(-1, 1, 1), (25, 1, 1), (8, 0, 1), (8, 2**20 + 1, 1), (8, 1, 0), (8, 1, 2**17 + 1)],
)
def test_rules_beyond_the_proven_bounds_are_refused(range_bits: int, cap: int, updates: int) -> None:
    with pytest.raises(Refused) as refusal:
        Grid(range_bits, cap, updates)
    assert refusal.value.code == "BAD_RULES"
