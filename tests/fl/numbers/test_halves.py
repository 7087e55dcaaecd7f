"""Encodings f16 and bf16: every one of their numbers, and every way in which a value can lie between two."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.errors import Refused
from fl.tensors.encodings import check_payload, decode_update, encode_update
from tests.fl.numbers import oracle
from tests.fl.numbers.builders import PLACE, bits_of, flat_schema, form_of

HALVES = pytest.mark.parametrize("encoding", ["f16", "bf16"])
INFINITY = {"f16": 0x7C00, "bf16": 0x7F80}
EVERY = np.arange(2**16, dtype=np.uint16)


def written(encoding: str, values: list[int], range_bits: int = 8) -> list[int]:
    """The bits that these F32, given by theirs, are written as."""
    form = form_of(flat_schema(len(values)), encoding, range_bits)
    payload = encode_update(form, PLACE, {"w": np.array(values, np.uint32).view(np.float32)})
    check_payload(form, PLACE, payload)
    return [int(each) for each in np.frombuffer(payload, np.uint16, len(values), len(payload) - 2 * len(values))]


def meant(encoding: str, values: list[int], range_bits: int = 24) -> list[int]:
    form = form_of(flat_schema(len(values)), encoding, range_bits)
    payload = form.header(PLACE) + np.array(values, np.uint16).tobytes()
    return bits_of(decode_update(form, PLACE, payload)["w"])


@HALVES
def test_every_number_is_decoded_exactly(encoding: str) -> None:
    finite = EVERY[np.less(EVERY & 0x7FFF, INFINITY[encoding])]
    decoded = meant(encoding, finite.tolist())
    for bits, single in zip(finite.tolist(), decoded, strict=True):
        assert oracle.from_bits(single) == oracle.half_value(encoding, bits)
        assert single >> 31 == bits >> 15


@HALVES
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_are_rounded_to_the_nearest_and_ties_to_even(encoding: str, data: st.DataObject) -> None:
    top = oracle.to_bits(Fraction(2) ** 8)
    low = data.draw(st.sampled_from((0, 0x00800000, 0x33000000, 0x38000000)))
    # Between two neighbours, on either, and on the middle.
    cut = 13 if encoding == "f16" else 16
    near = st.integers(low >> cut, top >> cut).flatmap(
        lambda upper: st.sampled_from((0, 1, (1 << cut - 1) - 1, 1 << cut - 1, (1 << cut - 1) + 1)).map(
            lambda rest: min(upper << cut | rest, top)
        )
    )
    bits = data.draw(st.lists(st.one_of(near, st.integers(low, top)), min_size=1, max_size=50))
    bits = [each | data.draw(st.sampled_from((0, 0x80000000))) for each in bits]
    for given_bits, half in zip(bits, written(encoding, bits), strict=True):
        value = oracle.canonical(oracle.from_bits(given_bits))
        assert oracle.half_value(encoding, half) == oracle.half(encoding, value)
        assert half != 0x8000


@HALVES
def test_what_is_one_already_is_kept_and_written_again_alike(encoding: str) -> None:
    limit = form_of(flat_schema(1), encoding).encoding.limit  # type: ignore[attr-defined]
    magnitudes = EVERY[: limit + 1]
    if encoding == "bf16":
        # Its denormals are ones of F32, which are written as zero.
        magnitudes = magnitudes[(magnitudes == 0) | (magnitudes >= 0x80)]
    for bits in (magnitudes, magnitudes[1:] | 0x8000):
        assert written(encoding, meant(encoding, bits.tolist())) == bits.tolist()


@HALVES
@pytest.mark.parametrize("range_bits", [0, 1, 8, 15, 16, 24])
@pytest.mark.parametrize("sign", [0, 0x8000])
def test_each_number_is_judged_by_its_value(encoding: str, range_bits: int, sign: int) -> None:
    size, at = 40_001, 39_999
    form = form_of(flat_schema(size), encoding, range_bits)
    good = bytearray(encode_update(form, PLACE, {"w": np.zeros(size)}))
    place = len(good) - 2 * (size - at)
    limit = next(
        bits
        for bits in range(INFINITY[encoding] - 1, 0, -1)
        if oracle.half_value(encoding, bits) <= Fraction(2) ** range_bits
    )
    infinity = INFINITY[encoding]
    for bits, code in (
        (0, "ok"),
        (1, "ok"),
        (limit, "ok"),
        (limit + 1, "NON_FINITE" if limit + 1 == infinity else "OUT_OF_RANGE"),
        (infinity, "NON_FINITE"),
        (infinity + 1, "NON_FINITE"),
        (0x7FFF, "NON_FINITE"),
    ):
        good[place : place + 2] = (bits | sign).to_bytes(2, "little")
        try:
            check_payload(form, PLACE, good)
            found = "ok"
        except Refused as refused:
            found = refused.code
        assert found == code, hex(bits)


def test_f16_is_saturated_where_its_range_ends_before_the_jobs() -> None:
    values = [oracle.to_bits(Fraction(each)) for each in (65503, 65504, 65519, 65520, 65536, 2**24)]
    assert written("f16", values, 24) == [0x7BFF] * 6
    assert written("f16", [each | 0x80000000 for each in values], 24) == [0xFBFF] * 6
