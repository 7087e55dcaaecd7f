"""Sums over every encoding, rounded either way, and the values that they are of, against the formulas."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.kernels import FUSED, golden
from fl.kernels.golden import halves, topk, toward_zero
from fl.kernels.payloads import PAYLOADS
from fl.kernels.sums import sum_f32
from fl.tensors.coding import Coding
from fl.tensors.encodings import UpdateForm, decode_update, encode_update, update_form
from fl.tensors.grid import Grid
from fl.tensors.layout import Schema
from tests.fl.numbers import oracle
from tests.fl.numbers.builders import PLACE, SMALL, WIDE, bits_of, flat_schema, random_tensors

EACH = pytest.mark.parametrize("encoding", sorted(PAYLOADS))
WAYS = pytest.mark.parametrize("truncated", [False, True])
ROUNDED = {False: oracle.nearest_even, True: oracle.toward_zero}


def form_of(schema: Schema, encoding: str, range_bits: int) -> UpdateForm:
    return update_form(schema, Coding(encoding, range_bits, 400_000 if encoding == "topk" else 0))


def flat_of(form: UpdateForm, payload: bytes) -> NDArray[np.float32]:
    return np.concatenate([each.ravel() for each in decode_update(form, PLACE, payload).values()])


def factor_for(grid: Grid, weight: int, data: st.DataObject, truncated: bool) -> float:
    """c of an update: with 29 significant bits, if it is clipped."""
    whole = grid.factor(weight)
    return whole * data.draw(st.integers(1, 2**8)) / 2**8 if truncated else whole


@EACH
@WAYS
@settings(max_examples=60, deadline=None)
@given(
    range_bits=st.integers(0, 24), cap=st.sampled_from((1, 1000, 2**20)), seed=st.integers(0, 2**32 - 1), data=st.data()
)
def test_sums_equal_the_oracle(
    encoding: str, truncated: bool, range_bits: int, cap: int, seed: int, data: st.DataObject
) -> None:
    grid = Grid(range_bits, cap, 2**12)
    form = form_of(SMALL, encoding, range_bits)
    draw = np.random.default_rng(seed)
    fused = data.draw(st.sampled_from((1, FUSED)))
    payloads = []
    for _ in range(fused):
        spread = 2.0 ** draw.integers(-40, range_bits + 1, 20)
        values = np.clip(draw.standard_normal(20) * spread, -(2.0**range_bits), 2.0**range_bits)
        delta = {"layer.weight": values[:15].reshape(5, 3), "layer.bias": values[15:]}
        payloads.append(encode_update(form, PLACE, delta))
    factors = [factor_for(grid, data.draw(st.integers(1, cap)), data, truncated) for _ in payloads]
    offset = len(form.header(PLACE))
    given_payloads = PAYLOADS[encoding](form, [(payload, offset) for payload in payloads])
    sums = np.zeros(20, np.int64)
    top = given_payloads.sum(sums, np.array(factors), 0, 1, truncated)
    flats = [flat_of(form, payload).tolist() for payload in payloads]
    assert sums.tolist() == [
        sum(
            ROUNDED[truncated](Fraction(flat[place]) * Fraction(factor))
            for flat, factor in zip(flats, factors, strict=True)
        )
        for place in range(20)
    ]
    assert 0 <= top <= given_payloads.limit


@EACH
@WAYS
def test_tiles_are_summed_each_for_itself_and_once(encoding: str, truncated: bool) -> None:
    form = form_of(WIDE, encoding, 8)
    draws = range(FUSED)
    payloads = [encode_update(form, PLACE, random_tensors(WIDE, seed)) for seed in draws]
    factors = np.array([(seed + 1) * 2.0**20 for seed in draws])
    offset, edges = len(form.header(PLACE)), form.layout.edges
    given_payloads = PAYLOADS[encoding](form, [(payload, offset) for payload in payloads])
    whole = np.zeros(form.layout.parameters, np.int64)
    given_payloads.sum(whole, factors, 0, edges.size - 1, truncated)
    exact = sum(flat_of(form, each).astype(np.float64) * c for each, c in zip(payloads, factors, strict=True))
    assert np.abs(whole - exact).max() <= (1 if truncated else 0.5) * FUSED
    for first in range(edges.size - 1):
        part = np.zeros_like(whole)
        given_payloads.sum(part, factors, first, first + 1, truncated)
        expected = np.zeros_like(whole)
        expected[edges[first] : edges[first + 1]] = whole[edges[first] : edges[first + 1]]
        assert np.array_equal(part, expected)


@EACH
@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 61_305), size=st.integers(0, 61_306))
def test_what_is_read_is_what_is_decoded(encoding: str, start: int, size: int) -> None:
    form = form_of(WIDE, encoding, 8)
    payload = encode_update(form, PLACE, random_tensors(WIDE, 3))
    flat = flat_of(form, payload)
    read = PAYLOADS[encoding](form, [(payload, len(form.header(PLACE)))])
    out = np.full(min(size, flat.size - start), np.nan, np.float32)
    top = read.read(0, start, out)
    assert bits_of(out) == bits_of(flat[start : start + out.size])
    assert top <= read.limit


@EACH
def test_what_is_beyond_the_range_is_reported(encoding: str) -> None:
    schema = flat_schema(40)
    form, wider = form_of(schema, encoding, 3), form_of(schema, encoding, 8)
    payload = encode_update(wider, PLACE, {"w": np.linspace(-200, 200, 40)})
    payloads = PAYLOADS[encoding](form, [(payload, len(form.header(PLACE)))])
    assert payloads.sum(np.zeros(40, np.int64), np.ones(1), 0, 1, False) > payloads.limit
    assert payloads.read(0, 0, np.empty(40, np.float32)) > payloads.limit


def test_indices_that_do_not_rise_write_nothing_beyond_their_tiles_and_are_reported() -> None:
    form = form_of(WIDE, "topk", 8)
    payload = encode_update(form, PLACE, random_tensors(WIDE, 3))
    start = len(form.header(PLACE)) + 4 * 6
    edges, parameters = form.layout.edges, form.layout.parameters
    for place, index in ((100, 2**32 - 1), (10_000, 5), (20_000, parameters), (3, 61_000), (24_000, 2**31)):
        spoilt = bytearray(payload)
        spoilt[start + 4 * place : start + 4 * place + 4] = index.to_bytes(4, "little")
        payloads = PAYLOADS["topk"](form, [(bytes(spoilt), len(form.header(PLACE)))])
        room = np.zeros(parameters + 2000, np.int64)
        tops = []
        for first in range(edges.size - 1):
            sums = room[1000:-1000]
            before = sums.copy()
            tops.append(payloads.sum(sums, np.ones(1), first, first + 1, False))
            changed = np.flatnonzero(sums != before)
            assert all(edges[first] <= each < edges[first + 1] for each in changed)
        assert max(tops) > payloads.limit
        tops = [payloads.read(0, start, np.empty(stop - start, np.float32)) for start, stop in pairwise(edges.tolist())]
        assert max(tops) > payloads.limit
        assert not room[:1000].any() and not room[-1000:].any()


def test_the_golden_vectors_agree_with_the_oracle() -> None:
    for encoding, cases in (("f16", halves._F16_CASES), ("bf16", halves._BF16_CASES)):
        for factor, exponent, vectors in cases:
            for bits, nearest, truncated in vectors:
                exact = oracle.half_value(encoding, bits) * factor * 2**exponent
                assert (nearest, truncated) == (oracle.nearest_even(exact), oracle.toward_zero(exact))
    for encoding, values in (("f16", halves._F16_VALUES), ("bf16", halves._BF16_VALUES)):
        for bits, single in values:
            assert oracle.half_value(encoding, bits) == oracle.from_bits(single) and bits >> 15 == single >> 31
    for factor, exponent, pairs in toward_zero._F32_CASES:
        for bits, steps in pairs:
            assert steps == oracle.toward_zero(oracle.from_bits(bits) * factor * 2**exponent)
    for factor, exponent, scale, expected in toward_zero._Q8_CASES:
        for step, steps in zip(toward_zero._STEPS, expected, strict=True):
            value = oracle.q8_value(step, oracle.from_bits(scale))
            assert steps == oracle.toward_zero(value * factor * 2**exponent)
    for factor, exponent, scale, both in topk._CASES:
        for step, (nearest, truncated) in zip(topk._STEPS, both, strict=True):
            exact = oracle.q8_value(step, oracle.from_bits(scale)) * factor * 2**exponent
            assert (nearest, truncated) == (oracle.nearest_even(exact), oracle.toward_zero(exact))


def never_truncating(*arguments: Any) -> int:
    return int(sum_f32(*arguments[:-1], False))


def flushed(out: Any, values: Any) -> int:
    """As if the denormals of f16 were taken for zeros."""
    bits = np.where((values & 0x7C00) == 0, values & 0x8000, values).astype(np.uint16)
    out[:] = bits.view(np.float16)
    return int((values & 0x7FFF).max())


def trusting(*arguments: Any) -> int:
    return 0


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [(toward_zero, "sum_f32", never_truncating), (halves, "read_f16", flushed), (topk, "sum_topk", trusting)],
)
def test_golden_vectors_catch_kernels_that_do_otherwise(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Any
) -> None:
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(golden.GoldenMismatch):
        golden.check_golden()
