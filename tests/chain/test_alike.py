"""Reading many at once says of each what reading it alone says, whatever the others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Annotated, Any

import msgpack
import pytest

from chain import alike
from chain.alike import FEW, FORMS_KEPT, TOGETHER, decode_each
from chain.codec import I64, CodecError, Range, decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.rounds import SubmitUpdate
from tests.chain.reference import damaged, drawn
from tests.chain.test_straightline import ALL

LIMIT = 1 << 20


def alone(cls: type, data: bytes, limit: int = LIMIT) -> object:
    try:
        return decode(cls, data, limit)
    except CodecError as error:
        return str(error)


def together(cls: type, encoded: Sequence[bytes], limit: int = LIMIT) -> list[object]:
    return [str(each) if isinstance(each, CodecError) else each for each in decode_each(cls, encoded, limit)]


def near(cls: type, random: Random) -> list[bytes]:
    """One drawn record, many that differ from it in a field or two, and what damage makes of all of them."""
    first = drawn(cls, random)
    good = [encode(first)] * FEW
    names = [each.name for each in fields(cls)]
    for _ in range(3 * FEW):
        other = drawn(cls, random)
        changed = {name: getattr(other, name) for name in random.sample(names, min(len(names), random.choice((1, 2))))}
        good.append(encode(replace(first, **changed)))
    encoded = [*good]
    for data in good[-FEW:]:
        encoded += damaged(data, random.choice(good), random)
        at, bit = random.randrange(len(data)), 1 << random.randrange(8)
        # As long as the good ones.
        encoded.append(data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :])
    random.shuffle(encoded)
    return encoded


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_what_is_said_of_each_is_what_is_said_of_it_alone(cls: type) -> None:
    random = Random(cls.__name__)
    for _ in range(6):
        encoded = near(cls, random)
        found = together(cls, encoded)
        assert found == [alone(cls, data) for data in encoded]
        assert [encode(each) for each in found if type(each) is cls] == [
            data for data, each in zip(encoded, found, strict=True) if type(each) is cls
        ]


@pytest.mark.parametrize("cls", [Transaction, SubmitUpdate])
def test_no_byte_of_one_among_many_can_be_another_unseen(cls: type) -> None:
    random = Random(7)
    good = [encode(_small(drawn(cls, random), random)) for _ in range(4 * FEW)]
    size = max({*map(len, good)}, key=[*map(len, good)].count)
    good = [data for data in good if len(data) == size][:FEW]
    assert len(good) == FEW
    for at in range(size):
        for value in {*range(0, 256, 5), good[0][at] ^ 1, good[0][at] ^ 0x80, 0x80, 0xC4, 0xCD, 0xCF}:
            spoilt = good[0][:at] + bytes((value,)) + good[0][at + 1 :]
            for place in (0, FEW - 1):
                encoded = [*good]
                encoded[place] = spoilt
                assert together(cls, encoded) == [alone(cls, data) for data in encoded]


def _small(record: Any, random: Random) -> Any:
    """So that many are equally long."""
    if isinstance(record, Transaction):
        return replace(record, nonce=random.randrange(300, 60_000), valid_until_ms=2**41, kind=13, body=bytes(20))
    return replace(record, round=3, examples=random.randrange(1, 100), metrics=(7,), group=0, payload=bytes(20))


def test_what_is_read_together_is_read_from_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one form cost no reader of single ones, but the first."""
    random = Random(3)
    record = drawn(Transaction, random)
    encoded = [encode(replace(record, nonce=1_000 + number)) for number in range(2 * TOGETHER)]
    asked: list[bytes] = []

    def counted(cls: type, data: bytes, limit: int) -> object:
        asked.append(data)
        return decode(cls, data, limit)

    monkeypatch.setattr(alike, "_FORMS", {})
    monkeypatch.setattr(alike, "decode", counted)
    assert decode_each(Transaction, encoded, MAX_TRANSACTION_BYTES) == [alone(Transaction, each) for each in encoded]
    assert asked == encoded[:1]
    # Of another form: for itself, and the others as before.
    odd = encode(replace(record, nonce=2**20))[:-2]
    decode_each(Transaction, [*encoded, odd], MAX_TRANSACTION_BYTES)
    assert asked == [encoded[0], odd]


@dataclass(frozen=True, slots=True)
class Narrow:
    low: Annotated[int, Range(5, 60)]
    high: Annotated[int, Range(0, 1_000)]
    signed: I64


def test_numbers_of_the_same_form_beyond_their_annotation_are_refused() -> None:
    good = [encode(Narrow(5 + number, 300 + number, 2**40 + number)) for number in range(FEW)]
    for beyond in ((4, 300, 2**40), (61, 300, 2**40), (5, 1_001, 2**40), (5, 300, 2**63), (5, 300, 2**64 - 1)):
        encoded = [*good, msgpack.packb(beyond)]
        assert len({*map(len, encoded)}) == 1
        found = together(Narrow, encoded)
        assert found == [alone(Narrow, data) for data in encoded]
        assert isinstance(found[-1], str) and found[0] == Narrow(5, 300, 2**40)


def test_one_over_the_limit_is_refused_among_others() -> None:
    record = drawn(Transaction, Random(5))
    long = [encode(replace(record, nonce=number, body=bytes(300))) for number in range(2 * FEW)]
    limit = len(long[0]) - 1
    assert together(Transaction, long, limit) == [alone(Transaction, data, limit) for data in long]
    assert all(isinstance(each, str) for each in together(Transaction, long, limit))


def test_so_many_forms_are_remembered() -> None:
    record = drawn(Transaction, Random(5))
    for size in range(FORMS_KEPT + 10):
        decode_each(Transaction, [encode(replace(record, body=bytes(size)))] * FEW, LIMIT)
        assert len(alike._FORMS) <= FORMS_KEPT
