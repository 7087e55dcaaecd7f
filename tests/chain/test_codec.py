from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chain import batch, block, certificate, codec, genesis, light, log, transaction, tree
from chain.codec import (
    I64,
    MAX_DEPTH,
    U8,
    U64,
    CodecError,
    Count,
    Digest,
    Length,
    decode,
    encode,
    from_plain,
    pack,
    to_plain,
    unpack,
)
from tests.chain import build


@dataclass(frozen=True, slots=True)
class Leg:
    label: Annotated[str, Length(0, 40)]
    offset: I64


@dataclass(frozen=True, slots=True)
class Trip:
    number: U8
    total: U64
    name: Digest
    note: Annotated[bytes, Length(0, 300)]
    legs: Annotated[tuple[Leg, ...], Count(0, 40)]
    flag: bool
    extra: Leg | None


legs = st.builds(
    Leg,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.integers(-(2**63), 2**63 - 1),
)
trips = st.builds(
    Trip,
    st.integers(0, 255),
    st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([2**k + d for k in (7, 8, 16, 32) for d in (-1, 0)])),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=300),
    st.lists(legs, max_size=20).map(tuple),
    st.booleans(),
    st.none() | legs,
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=300)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    lambda inner: st.lists(inner, max_size=20).map(tuple),
    max_leaves=30,
)

RECORDS: list[type] = [
    transaction.Transaction,
    batch.SignedBatch,
    block.Block,
    block.Evidence,
    block.Ready,
    certificate.Vote,
    certificate.Certificate,
    certificate.ValidatorSet,
    *certificate.SUBJECTS.values(),
    genesis.Genesis,
    genesis.Claim,
    log.Frontier,
    log.LogProof,
    tree.StateProof,
    light.HandOver,
    light.StateBundle,
    light.ReceiptBundle,
    light.BlockBundle,
]


@given(trips)
def test_a_record_survives_encoding(trip: Trip) -> None:
    assert decode(Trip, encode(trip), 4096) == trip
    assert from_plain(Trip, to_plain(trip)) == trip


@given(plain)
def test_a_plain_value_survives_packing_and_msgpack_reads_it_the_same(value: codec.Plain) -> None:
    packed = pack(value)
    assert unpack(packed, len(packed)) == value
    assert msgpack.unpackb(packed, use_list=False, strict_map_key=False) == value


@given(st.binary(max_size=200))
@example(b"\x91" * 2000)
@example(b"\xdd\xff\xff\xff\xff" * 500)
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xd9\x20" + b"\xff" * 32)
@example(b"")
def test_whatever_the_bytes_unpack_raises_nothing_but_codec_error(data: bytes) -> None:
    try:
        value = unpack(data, 1 << 20)
    except CodecError:
        return
    assert pack(value) == data


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_whatever_the_bytes_decode_raises_nothing_but_codec_error(cls: type, data: st.DataObject) -> None:
    garbage = data.draw(st.binary(max_size=300) | plain.map(pack))
    try:
        record: object = decode(cls, garbage, 1 << 20)
    except CodecError:
        return
    assert encode(record) == garbage


@given(trips, st.data())
def test_a_damaged_record_is_refused_or_is_the_encoding_of_another(trip: Trip, data: st.DataObject) -> None:
    good = encode(trip)
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = data.draw(
        st.sampled_from([good[:at], good[:at] + good[at + 1 :], good[:at] + b"\xc0" + good[at:], good + b"\x00"])
        | st.integers(0, 255).map(lambda byte: good[:at] + bytes([byte]) + good[at + 1 :])
    )
    try:
        record = decode(Trip, damaged, 1 << 20)
    except CodecError:
        return
    assert encode(record) == damaged


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xcc\x7f", "shortest"),
        (b"\xcd\x00\xff", "shortest"),
        (b"\xce\x00\x00\xff\xff", "shortest"),
        (b"\xcf\x00\x00\x00\x00\xff\xff\xff\xff", "shortest"),
        (b"\xd0\x05", "shortest"),
        (b"\xd0\xff", "shortest"),
        (b"\xd1\xff\x80", "shortest"),
        (b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff", "shortest"),
        (b"\xd9\x01a", "shortest"),
        (b"\xda\x00\x20" + b"a" * 32, "shortest"),
        (b"\xc5\x00\x01a", "shortest"),
        (b"\xc6\x00\x00\x01\x00" + b"a" * 256, "shortest"),
        (b"\xdc\x00\x01\x00", "shortest"),
        (b"\xdd\x00\x00\x00\x10" + b"\x00" * 16, "shortest"),
        (b"\xcb" + bytes(8), "expected"),
        (b"\xca" + bytes(4), "expected"),
        (b"\x80", "expected"),
        (b"\x81\x00\x00", "expected"),
        (b"\xc1", "expected"),
        (b"\xd6\xff\x00\x00\x00\x00", "expected"),
        (b"\xa2\xc3\x28", "UTF-8"),
        (b"\xa3\xed\xa0\x80", "UTF-8"),
        (b"\x00\x00", "follow"),
        (b"\xc4\x05abc", "cut short"),
        (b"\xcf\x01", "cut short"),
    ],
)
def test_every_form_but_the_shortest_and_every_foreign_type_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        unpack(data, 1 << 20)


def test_the_limit_is_checked_before_anything_is_read() -> None:
    data = encode(Leg("a", 1))
    assert decode(Leg, data, len(data)) == Leg("a", 1)
    with pytest.raises(CodecError, match="at most"):
        decode(Leg, data, len(data) - 1)
    with pytest.raises(CodecError, match="at most"):
        unpack(b"\xc1" * 100, 99)


def test_nesting_is_bounded_and_costs_no_stack() -> None:
    unpack(b"\x91" * MAX_DEPTH + b"\x00", 1 << 20)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(CodecError, match="deeper"):
            unpack(b"\x91" * depth + b"\x00", 1 << 20)
    value: Any = 0
    for _ in range(MAX_DEPTH + 1):
        value = (value,)
    with pytest.raises(CodecError, match="deeper"):
        pack(value)


@pytest.mark.parametrize("bomb", [b"\xdd\xff\xff\xff\xff" * 1000, b"\xdc\xff\xff" * 1000 + bytes(60_000)])
def test_a_header_that_claims_more_than_there_is_costs_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        for read in (lambda: unpack(bomb, 1 << 20), lambda: decode(Trip, b"\x97" + bomb, 1 << 20)):
            with pytest.raises(CodecError):
                read()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": True},
        {"number": 256},
        {"number": -1},
        {"number": 1.0},
        {"total": 2**64},
        {"name": b"short"},
        {"name": bytearray(32)},
        {"note": "text"},
        {"note": bytes(301)},
        {"legs": [Leg("a", 1)]},
        {"legs": (Leg("a", 1),) * 41},
        {"legs": ((1, 2),)},
        {"flag": 1},
        {"extra": Leg("\ud800", 1)},
        {"extra": Leg("é" * 21, 1)},
        {"extra": Leg("a", -(2**63) - 1)},
    ],
)
def test_a_record_that_no_reader_would_accept_is_not_written(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "number": 1, "total": 2, "name": bytes(32), "note": b"", "legs": (), "flag": True, "extra": None,
    }  # fmt: skip
    encode(Trip(**right))
    with pytest.raises(CodecError, match=r"Trip\." + next(iter(wrong))):
        encode(Trip(**(right | wrong)))


def test_an_enumeration_is_written_as_its_number() -> None:
    assert encode(Leg("a", Colour.RED)) == encode(Leg("a", 1))


@pytest.mark.parametrize("value", [1.5, [1], {1: 2}, {}, bytearray(b"a"), 2**64, -(2**63) - 1, "\ud800", (1, [2])])
def test_what_is_not_plain_is_not_packed(value: Any) -> None:
    with pytest.raises(CodecError):
        pack(value)


def test_an_annotation_without_bounds_is_a_mistake_of_the_program() -> None:
    @dataclass(frozen=True, slots=True)
    class Loose:
        size: int

    with pytest.raises(TypeError, match=r"Loose\.size"):
        encode(Loose(1))


def test_only_immutable_bytes_are_decoded() -> None:
    with pytest.raises(CodecError):
        decode(Leg, bytearray(encode(Leg("a", 1))), 100)  # type: ignore[arg-type]


def test_the_sample_world_is_decoded_as_it_was_encoded() -> None:
    for record in (build.genesis(), build.validator_set(7), genesis.genesis_header(build.genesis())):
        assert decode(type(record), encode(record), 1 << 20) == record
