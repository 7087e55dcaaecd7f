"""Encoding ring32: sums modulo 2^32 that are the sums themselves, whatever masks cancel in them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.errors import Refused
from fl.tensors.coding import Coding
from fl.tensors.encodings import check_payload, decode_update, encode_update, update_form
from fl.tensors.grid import Grid
from fl.tensors.layout import layout_of
from fl.tensors.ring32 import Ring32
from tests.fl.numbers import oracle
from tests.fl.numbers.builders import PLACE, SMALL, flat_schema, form_of, random_tensors

HALF = 2**31 - 1


def ring(size: int, updates: int, cap: int, clip: int, range_bits: int = 8) -> Ring32:
    return Ring32(layout_of(flat_schema(size)), Coding("ring32", range_bits, updates=updates, cap=cap, clip=clip))


def unit(range_bits: int, cap: int, updates: int) -> int:
    """Steps of C in 1."""
    return 1 << Grid(range_bits, cap, updates).unweighted_bits


@settings(max_examples=150, deadline=None)
@given(
    updates=st.sampled_from((1, 2, 3, 100, 2**17)),
    cap=st.sampled_from((1, 7, 2**20)),
    clip=st.fractions(Fraction(1, 2**12), 256, max_denominator=2**12),
    data=st.data(),
)
def test_an_update_is_the_formulas_up_to_the_rounding_of_float64(
    updates: int, cap: int, clip: Fraction, data: st.DataObject
) -> None:
    steps = max(1, int(clip * unit(8, cap, updates)))
    made = ring(8, updates, cap, steps)
    clip = Fraction(steps, unit(8, cap, updates))
    weight = data.draw(st.integers(1, cap))
    values = np.array(data.draw(st.lists(st.floats(-256, 256, width=32), min_size=8, max_size=8)), np.float32)
    scale = int(HALF / (updates * clip))
    assert made.scale == scale and made.most == HALF // updates
    (got,) = made.steps([values], weight)
    for value, number in zip(values.tolist(), got.view(np.int32).tolist(), strict=True):
        exact = min(max(Fraction(value), -clip), clip) * weight * scale / cap
        exact = min(max(exact, Fraction(-made.most)), Fraction(made.most))
        assert abs(number - exact) <= Fraction(1, 2) + abs(exact) / 2**51 + Fraction(1, 2**30)


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 8), cap=st.sampled_from((1, 1000)), seed=st.integers(0, 2**32 - 1), scale=st.floats(0.001, 9)
)
def test_masks_that_cancel_leave_the_weighted_mean(count: int, cap: int, seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    clip = 4
    made = ring(50, 8, cap, clip * unit(8, cap, 8))
    values = [(draw.standard_normal(50) * scale).astype(np.float32) for _ in range(count)]
    weights = [int(each) for each in draw.integers(1, cap + 1, count)]
    masks = [draw.integers(0, 2**32, 50, dtype=np.uint32) for _ in range(count)]
    total = np.zeros(50, np.uint32)
    for place, (each, weight) in enumerate(zip(values, weights, strict=True)):
        (numbers,) = made.steps([each], weight)
        total += numbers + masks[place] - masks[(place + 1) % count]
    sums, denominator = made.decode_sum(total, sum(weights))
    for place in range(50):
        exact = sum(
            min(max(Fraction(float(each[place])), Fraction(-clip)), Fraction(clip)) * weight
            for each, weight in zip(values, weights, strict=True)
        )
        # Half a step of each update, in which a full weight is `scale` steps for each 1.
        bound = Fraction(count * cap, made.scale * sum(weights)) * Fraction(51, 100)
        assert abs(Fraction(int(sums[place]), denominator) - exact / sum(weights)) <= bound


def test_the_largest_sum_does_not_wrap() -> None:
    for updates in (1, 3, 128):
        made = ring(2, updates, 1, unit(8, 1, updates) * 256)
        (numbers,) = made.steps([np.array([256, -256])], 1)
        total = np.zeros(2, np.uint32)
        for _ in range(updates):
            total += numbers
        sums, denominator = made.decode_sum(total, updates)
        assert np.abs(sums).max() <= HALF
        assert np.allclose(sums / denominator, [256, -256], rtol=1e-6)


def test_one_update_without_masks_comes_back() -> None:
    delta = random_tensors(SMALL, 1)
    form = form_of(SMALL, "ring32")
    payload = encode_update(form, PLACE, delta)
    check_payload(form, PLACE, payload)
    for name, values in decode_update(form, PLACE, payload).items():
        assert np.allclose(values, delta[name], atol=2**-20, rtol=0)


def test_any_numbers_are_accepted_and_nothing_else_is() -> None:
    form = form_of(SMALL, "ring32")
    header = form.header(PLACE)
    check_payload(form, PLACE, header + bytes(range(80)))
    check_payload(form, PLACE, header + b"\xff" * 80)
    for wrong in (header + bytes(79), header + bytes(81), b"x" + header[1:] + bytes(80)):
        with pytest.raises(Refused):
            check_payload(form, PLACE, wrong)


@pytest.mark.parametrize("clip", [0, -1, (1 << 50) + 1])
def test_a_clip_is_above_zero_and_within_the_range(clip: int) -> None:
    with pytest.raises(Refused, match="BAD_RULES"):
        update_form(flat_schema(1), Coding("ring32", 8, updates=1, cap=1, clip=clip))


def test_a_weight_is_one_of_the_jobs() -> None:
    made = ring(1, 1, 10, unit(8, 10, 1))
    for weight in (0, 11):
        with pytest.raises(ValueError, match="weight"):
            list(made.steps([np.zeros(1)], weight))


def test_a_step_of_one_is_the_least_that_a_masked_update_can_have() -> None:
    everything = unit(24, 1, 2**17) * 2**24
    with pytest.raises(Refused, match="BAD_RULES"):
        ring(1, 2**17, 1, everything, range_bits=24)
    assert oracle.nearest_even(Fraction(HALF, 2**17 * 2**13)) == 2
    assert ring(1, 2**17, 1, unit(13, 1, 2**17) * 2**13, range_bits=13).scale == 1
