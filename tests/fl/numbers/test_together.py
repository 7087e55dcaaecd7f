"""Payloads that are good together are good one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.errors import Refused
from fl.tensors.encodings import ENCODINGS, Place, UpdateForm, check_payload, encode_update, good_payloads
from tests.fl.numbers.builders import JOB, ROUND, SMALL, flat_schema, form_of, random_tensors

MEMBERS = [bytes([number]) * 32 for number in range(6)]
SCHEMAS = {"several tensors": SMALL, "several scales": flat_schema(9_000)}
RANGE_BITS = 8
ODD = [
    0x7F800000,  # infinity
    0x7FC00000,  # NaN
    0x80000000,  # −0, which is let through where it is a scale
    0xBF800000,  # −1
    (127 + RANGE_BITS) << 23,  # the largest value
    ((127 + RANGE_BITS) << 23) + 1,
    (127 + RANGE_BITS - 7) << 23,  # the largest scale
    ((127 + RANGE_BITS - 7) << 23) + 1,
]


def payloads_of(form: UpdateForm, name: str) -> list[bytes]:
    return [
        encode_update(form, Place(JOB, ROUND, member), random_tensors(SCHEMAS[name], seed))
        for seed, member in enumerate(MEMBERS)
    ]


FORMS = {(encoding, name): form_of(SCHEMAS[name], encoding, RANGE_BITS) for encoding in ENCODINGS for name in SCHEMAS}
GOOD = {(encoding, name): payloads_of(form, name) for (encoding, name), form in FORMS.items()}


def is_good(form: UpdateForm, member: bytes, payload: bytes) -> bool:
    try:
        check_payload(form, Place(JOB, ROUND, member), payload)
    except Refused:
        return False
    return True


@st.composite
def changed(draw: st.DrawFn, payload: bytes) -> bytes:
    """With other bytes in a place: of the header, of the first or last values, or anywhere."""
    how = draw(st.sampled_from(("byte", "value", "longer", "shorter", "of another")))
    if how == "longer":
        return payload + draw(st.binary(min_size=1, max_size=8))
    if how == "shorter":
        return payload[: -draw(st.integers(1, len(payload)))]
    start = 8 + int.from_bytes(payload[:8], "little")
    if how == "value":
        at = start + 4 * draw(st.integers(0, 5) | st.integers(0, (len(payload) - start) // 4 - 1))
        return payload[:at] + draw(st.sampled_from(ODD)).to_bytes(4, "little") + payload[at + 4 :]
    if how == "of another":
        return payload.replace(MEMBERS[0].hex().encode(), MEMBERS[1].hex().encode())
    at = draw(st.integers(0, len(payload) - 1))
    return payload[:at] + bytes([draw(st.integers(0, 255))]) + payload[at + 1 :]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_no_payload_is_good_among_others_and_not_alone(which: tuple[str, str], choose: st.DataObject) -> None:
    form, payloads = FORMS[which], [*GOOD[which]]
    for place in choose.draw(st.sets(st.integers(0, len(payloads) - 1), min_size=1, max_size=3)):
        payloads[place] = choose.draw(changed(payloads[place]))
    if good_payloads(form, JOB, ROUND, MEMBERS, payloads):
        assert all(is_good(form, member, payload) for member, payload in zip(MEMBERS, payloads, strict=True))


@pytest.mark.parametrize(("encoding", "name"), sorted(GOOD))
def test_good_ones_are_good_together_and_each_for_its_own_member(encoding: str, name: str) -> None:
    form, payloads = FORMS[encoding, name], GOOD[encoding, name]
    # Of topk each is to be asked.
    assert good_payloads(form, JOB, ROUND, MEMBERS, payloads) is (encoding != "topk")
    assert not good_payloads(form, JOB, ROUND, MEMBERS, [payloads[1], payloads[0], *payloads[2:]])
    assert not good_payloads(form, JOB, ROUND + 1, MEMBERS, payloads)


@pytest.mark.parametrize(("encoding", "name"), sorted(GOOD))
@pytest.mark.parametrize("bits", ODD)
def test_the_ends_of_the_range_are_the_same_together(encoding: str, name: str, bits: int) -> None:
    form, payloads = FORMS[encoding, name], [*GOOD[encoding, name]]
    at = 8 + int.from_bytes(payloads[2][:8], "little")
    payloads[2] = payloads[2][:at] + bits.to_bytes(4, "little") + payloads[2][at + 4 :]
    good = is_good(form, MEMBERS[2], payloads[2])
    # A scale of −0 is one that each is asked about.
    expected = good and encoding != "topk" and not (encoding == "q8" and bits == 0x80000000)
    assert good_payloads(form, JOB, ROUND, MEMBERS, payloads) is expected
