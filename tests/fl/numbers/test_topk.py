"""Encoding topk: which values are chosen, what every accepted payload means, and how each other one is refused."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors.coding import Coding
from fl.tensors.encodings import UpdateForm, check_joints, check_part, check_payload, decode_update, encode_update
from fl.tensors.encodings import update_form as form_for
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.tensors.topk import TopK
from tests.fl.numbers import oracle
from tests.fl.numbers.builders import PLACE, flat_schema

WHOLE = 1_000_000


def form_of(parameters: int, share_ppm: int = WHOLE, range_bits: int = 8) -> UpdateForm:
    return form_for(flat_schema(parameters), Coding("topk", range_bits, share_ppm))


def entries_of(form: UpdateForm) -> int:
    assert isinstance(form.encoding, TopK)
    return form.encoding.entries


def payload_of(form: UpdateForm, scales: list[float], indices: list[int], values: list[int]) -> bytes:
    return (
        form.header(PLACE)
        + np.array(scales, "<f4").tobytes()
        + np.array(indices, "<u4").tobytes()
        + np.array(values, "|i1").tobytes()
    )


def code_of(form: UpdateForm, payload: bytes) -> str:
    try:
        check_payload(form, PLACE, payload)
    except Refused as refused:
        return refused.code
    return "ok"


def code_in_parts(form: UpdateForm, payload: bytes, part_bytes: int) -> str:
    codes = set()
    for start in range(0, len(payload), part_bytes):
        try:
            check_part(form, PLACE, start, memoryview(payload)[start : start + part_bytes])
        except Refused as refused:
            codes.add(refused.code)
    if not codes:
        try:
            check_joints(form, PLACE, payload, part_bytes)
        except Refused as refused:
            codes.add(refused.code)
    assert len(codes) <= 1
    return codes.pop() if codes else "ok"


def means(scales: list[float], indices: list[int], values: list[int], parameters: int) -> list[Fraction]:
    """By the letter: entries up to the first index 0 that is not the first one."""
    flat = [Fraction(0)] * parameters
    for place, (index, value) in enumerate(zip(indices, values, strict=True)):
        if place and not index:
            break
        flat[index] = oracle.q8_value(value, Fraction(scales[place // 4096]))
    return flat


@pytest.mark.parametrize(
    ("parameters", "share_ppm", "entries"),
    [
        (1, 1, 1),
        (1_000_000, 1, 1),
        (1_000_001, 1, 2),
        (100, 10_000, 1),
        (101, 10_000, 2),
        (3, 333_333, 1),
        (3, 333_334, 2),
        (7, WHOLE, 7),
        (2**27, 10_000, 1_342_178),
    ],
)
def test_the_number_of_entries_is_the_share_rounded_up(parameters: int, share_ppm: int, entries: int) -> None:
    assert entries == max(1, -(-parameters * share_ppm // WHOLE))
    form = form_of(parameters, share_ppm)
    assert entries_of(form) == entries
    assert form.data_bytes == 4 * -(-entries // 4096) + 5 * entries


@pytest.mark.parametrize("share_ppm", [0, WHOLE + 1])
def test_a_share_is_above_none_and_at_most_all(share_ppm: int) -> None:
    with pytest.raises(Refused, match="BAD_RULES"):
        form_of(10, share_ppm)


@settings(max_examples=100, deadline=None)
@given(
    magnitudes=st.lists(st.sampled_from((0, 1, 2, 3, 100, 2**-20, 2**-127)), min_size=1, max_size=60),
    share_ppm=st.integers(1, WHOLE),
    data=st.data(),
)
def test_the_largest_values_are_chosen_of_equal_ones_the_first(
    magnitudes: list[float], share_ppm: int, data: st.DataObject
) -> None:
    given_values = [each * data.draw(st.sampled_from((1, -1))) for each in magnitudes]
    form = form_of(len(magnitudes), share_ppm)
    payload = encode_update(form, PLACE, {"w": np.array(given_values, np.float32)})
    assert code_of(form, payload) == "ok"
    told = {place: abs(each) for place, each in enumerate(given_values) if abs(each) >= 2**-126}
    wanted = sorted(sorted(told, key=lambda place: (-told[place], place))[: entries_of(form)])
    indices, _, _ = form.encoding.used(payload, len(form.header(PLACE)))  # type: ignore[attr-defined]
    assert indices.tolist() == (wanted or [0])


def test_the_largest_values_are_found_among_many_whatever_their_spread() -> None:
    draw = np.random.default_rng(3)
    sizes = (300_001, 1, (1 << 18) + 7)
    schema = Schema(tuple(TensorSpec(f"t{place}", "F32", (size,), AVERAGED) for place, size in enumerate(sizes)))
    for spread in (0, 1, 30):
        delta = {
            spec.name: (draw.standard_normal(spec.shape) * 2.0 ** -draw.integers(0, spread + 1, spec.shape)).astype(
                "f4"
            )
            for spec in schema.tensors
        }
        form = form_for(schema, Coding("topk", 8, 10_000))
        payload = encode_update(form, PLACE, delta)
        assert code_of(form, payload) == "ok"
        flat = np.concatenate([delta[spec.name] for spec in schema.tensors])
        decoded = np.concatenate([each.ravel() for each in decode_update(form, PLACE, payload).values()])
        chosen, _, scales = form.encoding.used(payload, len(form.header(PLACE)))  # type: ignore[attr-defined]
        assert chosen.size == entries_of(form)
        left = np.delete(np.abs(flat), chosen)
        assert np.abs(flat[chosen]).min() >= left.max()
        assert np.count_nonzero(np.delete(decoded, chosen)) == 0
        assert np.abs(decoded[chosen] - flat[chosen]).max() <= scales.max() * 0.51


def test_nothing_to_tell_is_told_by_one_entry_of_zero() -> None:
    form = form_of(10)
    payload = encode_update(form, PLACE, {"w": np.zeros(10)})
    assert payload == payload_of(form, [0], [0] * 10, [0] * 10) and code_of(form, payload) == "ok"
    assert not decode_update(form, PLACE, payload)["w"].any()


@pytest.mark.parametrize(
    ("indices", "values", "code"),
    [
        ([0, 1, 2, 3], [1, 1, 1, 1], "ok"),
        ([0, 0, 0, 0], [5, 0, 0, 0], "ok"),
        ([9, 0, 0, 0], [5, 0, 0, 0], "ok"),
        ([0, 9, 0, 0], [5, 5, 0, 0], "ok"),
        ([0, 9, 0, 0], [5, 5, 0, 1], "BAD_INDEX"),
        ([0, 0, 0, 0], [5, 1, 0, 0], "BAD_INDEX"),
        ([0, 0, 1, 0], [5, 0, 0, 0], "BAD_INDEX"),
        ([3, 0, 4, 5], [5, 5, 5, 5], "BAD_INDEX"),
        ([3, 3, 4, 5], [5, 5, 5, 5], "BAD_INDEX"),
        ([3, 2, 4, 5], [5, 5, 5, 5], "BAD_INDEX"),
        ([1, 2, 4, 10], [5, 5, 5, 5], "BAD_INDEX"),
        ([1, 2, 4, 2**32 - 1], [5, 5, 5, 5], "BAD_INDEX"),
        ([10, 0, 0, 0], [5, 0, 0, 0], "BAD_INDEX"),
    ],
)
def test_indices_rise_strictly_up_to_zeros_at_the_end(indices: list[int], values: list[int], code: str) -> None:
    form = form_of(10, 400_000)
    payload = payload_of(form, [0.5], indices, values)
    assert code_of(form, payload) == code
    for part_bytes in (8, 16, 24, 32):
        assert code_in_parts(form, payload, part_bytes) == code
    if code == "ok":
        decoded = decode_update(form, PLACE, payload)["w"]
        assert [Fraction(float(each)) for each in decoded] == means([0.5], indices, values, 10)


@settings(max_examples=400, deadline=None)
@given(
    used=st.sets(st.integers(0, 199), min_size=1, max_size=150),
    part_bytes=st.integers(1, 60).map(lambda words: 8 * words),
    at=st.integers(0, 149),
    put=st.one_of(st.integers(0, 200), st.sampled_from((2**31, 2**32 - 1))),
    value_at=st.integers(0, 149),
    value=st.integers(-128, 127),
)
def test_a_payload_is_judged_alike_whole_and_in_parts_and_means_one_vector(
    used: set[int], part_bytes: int, at: int, put: int, value_at: int, value: int
) -> None:
    form = form_of(200, 750_000)
    indices = sorted(used) + [0] * (150 - len(used))
    values = [1] * len(used) + [0] * (150 - len(used))
    indices[at], values[value_at] = put, value
    payload = payload_of(form, [0.25], indices, values)
    code = code_of(form, payload)
    assert code_in_parts(form, payload, part_bytes) == code
    end = next((place for place in range(1, 150) if not indices[place]), 150)
    rising = all(low < high for low, high in pairwise(indices[:end]))
    good = rising and max(indices) < 200 and not any(indices[end:]) and not any(values[end:])
    assert (code == "ok") == good
    if good:
        decoded = decode_update(form, PLACE, payload)["w"]
        assert [Fraction(float(each)) for each in decoded] == means([0.25], indices, values, 200)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_indices_of_many_entries_are_judged_alike_whole_and_in_parts(data: st.DataObject) -> None:
    size = 140_000
    form = form_of(size, 980_000)
    entries = entries_of(form)
    indices: NDArray[np.uint32] = np.arange(0, entries, dtype=np.uint32)
    used = data.draw(st.sampled_from((1, 2, 65_536, 65_537, 131_072, entries - 1, entries)))
    indices[used:] = 0
    at = data.draw(st.sampled_from((1, used - 1, used, 65_535, 65_536, 65_537, entries - 1))) % entries
    indices[at] = data.draw(st.sampled_from((0, 1, at, size - 1, size, 65_536)))
    values = np.zeros(entries, np.int8)
    scales = np.ones(-(-entries // 4096), "<f4")
    payload = form.header(PLACE) + scales.tobytes() + indices.astype("<u4").tobytes() + values.tobytes()
    part_bytes = data.draw(st.sampled_from((264, 4096, 65_536, 262_144)))
    steps = np.diff(indices.astype(np.int64))
    end = int(np.argmax(indices[1:] == 0)) + 1 if not indices[1:].all() else entries
    good = bool((steps[: end - 1] > 0).all() and not indices[end:].any() and indices.max() < size)
    assert (code_of(form, payload) == "ok") == good
    assert (code_in_parts(form, payload, part_bytes) == "ok") == good


@pytest.mark.parametrize("range_bits", [0, 8, 24])
@pytest.mark.parametrize("block", [0, 1])
def test_scales_are_judged_as_those_of_q8(range_bits: int, block: int) -> None:
    form = form_of(5000, range_bits=range_bits)
    good = bytearray(encode_update(form, PLACE, {"w": np.ones(5000)}))
    place = len(form.header(PLACE)) + 4 * block
    limit = oracle.to_bits(Fraction(2) ** (range_bits - 7))
    for bits, code in (
        (limit, "ok"),
        (limit + 1, "OUT_OF_RANGE"),
        (limit | 0x80000000, "OUT_OF_RANGE"),
        (0x7F800000, "NON_FINITE"),
        (0xFFC00000, "NON_FINITE"),
        (0x80000000, "ok"),
        (0x00000001, "ok"),
    ):
        good[place : place + 4] = bits.to_bytes(4, "little")
        assert code_of(form, bytes(good)) == code
        assert code_in_parts(form, bytes(good), 8) == code
