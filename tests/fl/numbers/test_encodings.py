from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.encodings import ENCODINGS, check_payload, decode_update, encode_update, encoded
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from tests.fl.numbers import oracle
from tests.fl.numbers.builders import (
    PLACE,
    ROUND,
    SMALL,
    WIDE,
    bits_of,
    flat_schema,
    form_of,
    random_tensors,
)


def payload_of(schema: Schema, encoding: str, delta: dict[str, NDArray[Any]], range_bits: int = 8) -> bytes:
    return encode_update(form_of(schema, encoding, range_bits), PLACE, delta)


def code_of(schema: Schema, encoding: str, payload: bytes, range_bits: int = 8, **place: Any) -> str:
    try:
        check_payload(form_of(schema, encoding, range_bits), replace(PLACE, **place), payload)
    except Refused as refusal:
        return refusal.code
    return "ok"


def header_size(payload: bytes) -> int:
    return 8 + int.from_bytes(payload[:8], "little")


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_an_update_is_valid_at_its_own_place_only(encoding: str) -> None:
    payload = payload_of(SMALL, encoding, random_tensors(SMALL, 1))
    assert code_of(SMALL, encoding, payload) == "ok"
    assert code_of(SMALL, encoding, payload, job=bytes(32)) == "WRONG_HEADER"
    assert code_of(SMALL, encoding, payload, round=ROUND + 1) == "WRONG_HEADER"
    assert code_of(SMALL, encoding, payload, member=bytes(32)) == "WRONG_HEADER"
    assert code_of(WIDE, encoding, payload) == "WRONG_HEADER"
    assert {code_of(SMALL, other, payload) for other in ENCODINGS if other != encoding} == {"WRONG_HEADER"}


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_only_exactly_the_implied_bytes_are_valid(encoding: str) -> None:
    payload = payload_of(SMALL, encoding, random_tensors(SMALL, 2))
    assert code_of(SMALL, encoding, payload + b"\0") == "OVERSIZE"
    for size in range(len(payload)):
        assert code_of(SMALL, encoding, payload[:size]) == "WRONG_HEADER"
    for place in range(header_size(payload)):
        changed = bytearray(payload)
        changed[place] ^= 1
        assert code_of(SMALL, encoding, bytes(changed)) == "WRONG_HEADER"


def test_an_unknown_encoding_is_refused() -> None:
    assert code_of(SMALL, "f64", b"") == "NOT_SUPPORTED"


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_the_largest_magnitude_is_found_without_looking_at_values(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    assert floats.largest(values) == max((each & 0x7FFFFFFF for each in bits), default=0)
    tiny = any(0 < each & 0x7FFFFFFF < floats.TINY_BITS or each == 0x80000000 for each in bits)
    assert floats.is_canonical(values) == (not tiny and floats.largest(values) < floats.INFINITY_BITS)


@pytest.mark.parametrize("range_bits", [0, 8, 24])
@pytest.mark.parametrize(
    ("bits", "code"),
    [
        (0x7F800000, "NON_FINITE"),
        (0xFF800000, "NON_FINITE"),
        (0x7FC00000, "NON_FINITE"),
        (0xFFFFFFFF, "NON_FINITE"),
        (0x7F800001, "NON_FINITE"),
        (0x7F7FFFFF, "OUT_OF_RANGE"),
        (0x00000001, "ok"),
        (0x80000000, "ok"),
    ],
)
def test_f32_values_must_be_finite_and_in_range(bits: int, code: str, range_bits: int) -> None:
    schema = flat_schema(70_000)
    good = payload_of(schema, "f32", {"w": np.zeros(70_000)})
    start = header_size(good)
    for place in (0, 31, 69_999):
        payload = bytearray(good)
        payload[start + 4 * place : start + 4 * place + 4] = bits.to_bytes(4, "little")
        assert code_of(schema, "f32", bytes(payload), range_bits) == code


@pytest.mark.parametrize("range_bits", [0, 1, 8, 24])
@pytest.mark.parametrize("sign", [0, 0x80000000])
def test_the_range_ends_at_exactly_two_to_the_r(range_bits: int, sign: int) -> None:
    limit = oracle.to_bits(Fraction(2) ** range_bits)
    good = payload_of(flat_schema(1), "f32", {"w": np.zeros(1)})
    for bits, code in ((limit, "ok"), (limit + 1, "OUT_OF_RANGE")):
        payload = good[:-4] + (bits | sign).to_bytes(4, "little")
        assert code_of(flat_schema(1), "f32", payload, range_bits) == code


@pytest.mark.parametrize("size", [5_000, 300_000], ids=["few scales", "many scales"])
@pytest.mark.parametrize("range_bits", [0, 8, 24])
def test_q8_is_judged_by_its_scales(range_bits: int, size: int) -> None:
    schema = flat_schema(size)
    good = payload_of(schema, "q8", {"w": np.zeros(size)}, range_bits)
    start = header_size(good)
    limit = oracle.to_bits(Fraction(2) ** (range_bits - 7))
    for bits, code in (
        (limit, "ok"),
        (limit + 1, "OUT_OF_RANGE"),
        (limit | 0x80000000, "OUT_OF_RANGE"),
        (0x80000001, "OUT_OF_RANGE"),
        (0x7F800000, "NON_FINITE"),
        (0xFF800000, "NON_FINITE"),
        (0x7FC00000, "NON_FINITE"),
        (0x00000001, "ok"),
        (0x80000000, "ok"),
    ):
        for block in (0, 1, (size - 1) // 4096):
            payload = bytearray(good)
            payload[start + 4 * block : start + 4 * block + 4] = bits.to_bytes(4, "little")
            assert code_of(schema, "q8", bytes(payload), range_bits) == code


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), at=st.integers(0, 400))
def test_no_bytes_raise_anything_but_a_refusal(encoding: str, data: bytes, at: int) -> None:
    payload = payload_of(SMALL, encoding, random_tensors(SMALL, 3))
    assert code_of(SMALL, encoding, data) == "WRONG_HEADER"
    start = header_size(payload) + at % form_of(SMALL, encoding).data_bytes
    changed = (payload[:start] + data + payload[start + len(data) :])[: len(payload)]
    assert code_of(SMALL, encoding, changed) in ("ok", "NON_FINITE", "OUT_OF_RANGE", "BAD_INDEX")


def test_f32_carries_canonical_values_unchanged() -> None:
    delta = random_tensors(WIDE, 4)
    decoded = decode_update(form_of(WIDE, "f32"), PLACE, payload_of(WIDE, "f32", delta))
    assert {name: bits_of(array) for name, array in decoded.items()} == {
        name: bits_of(array) for name, array in delta.items()
    }


def test_what_the_client_writes_is_canonical() -> None:
    tiny = np.array([-0.0, 2.0**-127, -(2.0**-149), 2.0**-126, 1.0, 2.0**-127 * 1.9999999999], np.float64)
    for values_given in (tiny, tiny.astype(np.float32)):
        payload = payload_of(flat_schema(6), "f32", {"w": values_given})
        values = np.frombuffer(payload[-24:], np.uint32)
        assert values.tolist() == [0, 0, 0, 0x00800000, 0x3F800000, 0x00800000]
        assert floats.is_canonical(values.view(np.float32))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS.keys() - {"topk"}))
def test_an_update_that_is_written_in_pieces_holds_every_value_once(encoding: str) -> None:
    sizes = (1, 300_001, (1 << 18) + 1)
    schema = Schema(tuple(TensorSpec(f"t{place}", "F32", (size,), AVERAGED) for place, size in enumerate(sizes)))
    chance = np.random.default_rng(4)
    delta = {f"t{place}": chance.integers(-127, 128, size) / np.float32(128) for place, size in enumerate(sizes)}
    for values in delta.values():
        values[-1] = 127 / 128
    payload = payload_of(schema, encoding, delta)
    form = form_of(schema, encoding)
    assert code_of(schema, encoding, payload) == "ok"
    assert len(list(encoded(form, delta))) == (2 if encoding == "q8" else 5)
    decoded = decode_update(form, PLACE, payload)
    for name, values in delta.items():
        assert np.allclose(decoded[name], values, atol={"q8": 2**-9, "ring32": 2**-20}.get(encoding, 0), rtol=0)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize(
    ("value", "code"),
    [(np.nan, "NON_FINITE"), (np.inf, "NON_FINITE"), (256.001, "OUT_OF_RANGE"), (-300, "OUT_OF_RANGE")],
)
def test_the_client_refuses_what_the_chain_would(encoding: str, value: float, code: str) -> None:
    with pytest.raises(Refused) as refusal:
        payload_of(flat_schema(3), encoding, {"w": np.array([0, value, 1])})
    assert refusal.value.code == code


@pytest.mark.parametrize(
    "delta",
    [
        {},
        {"layer.weight": np.zeros((5, 3))},
        {"layer.weight": np.zeros((3, 5)), "layer.bias": np.zeros(5)},
        {"layer.weight": np.zeros((5, 3)), "layer.bias": np.zeros(1)},
        {"layer.weight": np.zeros((5, 3)), "layer.bias": np.zeros(())},
        {"layer.weight": np.zeros((5, 3)), "layer.bias": np.zeros(5), "steps": np.zeros(())},
        {"layer.weight": np.zeros((5, 3)), "layer.bias": np.zeros(5, np.complex64)},
        {"layer.weight": np.zeros((5, 3)), "layer.bias": np.array(["a"] * 5)},
    ],
)
def test_nothing_is_broadcast_guessed_or_left_out(delta: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(ValueError, match=r"layer|steps"):
        payload_of(SMALL, "f32", delta)


def test_tensors_are_flattened_in_c_order_whatever_their_memory_order() -> None:
    delta = random_tensors(SMALL, 5)
    transposed = delta | {"layer.weight": np.asfortranarray(delta["layer.weight"])}
    for encoding in ENCODINGS:
        assert payload_of(SMALL, encoding, delta) == payload_of(SMALL, encoding, transposed)


@pytest.mark.parametrize("range_bits", [0, 8, 24])
@pytest.mark.parametrize("fill", [1e-44, 1e-38, 1e-30, 1e-3, 1.0])
def test_q8_stays_within_its_bound_and_close_to_the_values(range_bits: int, fill: float) -> None:
    draw = np.random.default_rng(6)
    top = fill * 2.0**range_bits
    values = (draw.uniform(-top, top, 9001)).astype(np.float32)
    values[[0, 5000]] = np.float32(top), -np.float32(top)
    payload = payload_of(flat_schema(9001), "q8", {"w": values}, range_bits)
    assert code_of(flat_schema(9001), "q8", payload, range_bits) == "ok"
    decoded = decode_update(form_of(flat_schema(9001), "q8"), PLACE, payload)["w"]
    assert np.abs(decoded).max() <= 2.0**range_bits
    largest = float(np.abs(values).max())
    step = min(largest / 127, 2.0 ** (range_bits - 7))
    # Half a step from rounding; a whole one where +2^R saturates; and blocks too small for a scale vanish.
    slack = 1.0 if largest > 2.0**range_bits * 127 / 128 else 0.51
    assert np.abs(decoded.astype(np.float64) - values).max() <= max(step * slack, 127 * 2.0**-126)


def test_q8_decodes_by_one_f32_multiplication() -> None:
    schema = flat_schema(4096 + 3)
    draw = np.random.default_rng(8)
    payload = bytearray(payload_of(schema, "q8", {"w": draw.standard_normal(4099)}))
    start = header_size(bytes(payload))
    scales = np.array([0x3DCCCCCD, 0x00000007], np.uint32)
    payload[start : start + 8] = scales.tobytes()
    steps = np.frombuffer(bytes(payload[start + 8 :]), np.int8)
    decoded = decode_update(form_of(schema, "q8"), PLACE, bytes(payload))["w"]
    for place in (*range(0, 4096, 97), 4096, 4097, 4098):
        scale = oracle.from_bits(int(scales[place // 4096]))
        expected = oracle.q8_value(int(steps[place]), scale)
        assert Fraction(float(decoded[place])) == expected


def test_a_payload_may_lie_anywhere_in_memory() -> None:
    for encoding in ENCODINGS:
        form = form_of(SMALL, encoding)
        payload = payload_of(SMALL, encoding, random_tensors(SMALL, 9))
        for shift in range(8):
            view = memoryview(bytes(shift) + payload)[shift:]
            check_payload(form, PLACE, view)
            moved = decode_update(form, PLACE, view)
            still = decode_update(form, PLACE, payload)
            assert all(np.array_equal(moved[name], still[name]) for name in still)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_each_tile_is_decoded_as_it_is_among_all(encoding: str) -> None:
    form = form_of(WIDE, encoding)
    payload = payload_of(WIDE, encoding, random_tensors(WIDE, 5))
    edges, offset = form.layout.edges, header_size(payload)
    whole = form.encoding.decode(payload, offset, 0, edges.size - 1)
    for first in range(edges.size):
        for last in range(first, edges.size):
            decoded = form.encoding.decode(payload, offset, first, last)
            assert np.array_equal(decoded, whole[edges[first] : edges[last]])
