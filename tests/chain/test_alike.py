"""What is read together is what is read alone, whatever the others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Annotated, Any

import msgpack
import pytest

from chain import alike
from chain.alike import FEW, FORMS_KEPT, TOGETHER, decode_alike
from chain.codec import I64, CodecError, Range, decode, encode
from chain.transaction import Transaction
from fl.rounds import SubmitUpdate
from tests.chain.reference import damaged, drawn
from tests.chain.test_straightline import ALL

LIMIT = 1 << 20


def alone(cls: type, data: bytes, limit: int = LIMIT) -> object:
    try:
        return decode(cls, data, limit)
    except CodecError:
        return None


def held(cls: type, encoded: Sequence[bytes], limit: int = LIMIT) -> list[object]:
    """What is read together, none of it other than alone."""
    found: list[object] = decode_alike(cls, encoded, limit)
    assert len(found) == len(encoded)
    for data, record in zip(encoded, found, strict=True):
        if record is not None:
            assert record == alone(cls, data, limit) and type(record) is cls and encode(record) == data
    return found


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
def test_what_is_read_together_is_what_is_read_alone(cls: type) -> None:
    random = Random(cls.__name__)
    for _ in range(6):
        encoded = near(cls, random)
        held(cls, encoded)
        assert None not in held(cls, [encode(drawn(cls, random))] * FEW)


@pytest.mark.parametrize("cls", [Transaction, SubmitUpdate])
def test_no_byte_of_one_among_many_can_be_another_unseen(cls: type) -> None:
    random = Random(7)
    good = [encode(_small(drawn(cls, random), random)) for _ in range(4 * FEW)]
    size = max({*map(len, good)}, key=[*map(len, good)].count)
    good = [data for data in good if len(data) == size][:FEW]
    assert None not in held(cls, good) and len(good) == FEW
    for at in range(size):
        for value in {*range(0, 256, 5), good[0][at] ^ 1, good[0][at] ^ 0x80, 0x80, 0xC4, 0xCD, 0xCF}:
            spoilt = good[0][:at] + bytes((value,)) + good[0][at + 1 :]
            for place in (0, FEW - 1):
                held(cls, [*good[:place], spoilt, *good[place + 1 :]])


def _small(record: Any, random: Random) -> Any:
    """So that many are equally long."""
    if isinstance(record, Transaction):
        return replace(record, nonce=random.randrange(300, 60_000), valid_until_ms=2**41, kind=13, body=bytes(20))
    return replace(record, round=3, examples=random.randrange(1, 100), metrics=(7,), group=0, payload=bytes(20))


def test_those_of_one_form_are_read_together_and_no_others() -> None:
    record = replace(drawn(Transaction, Random(3)), body=bytes(300))
    encoded = [encode(replace(record, nonce=1_000 + number)) for number in range(2 * TOGETHER)]
    assert None not in held(Transaction, encoded)
    # Another form of the same length: a nonce longer by as much as the body is shorter.
    odd = encode(replace(record, nonce=2**20, body=record.body[2:]))
    assert len(odd) == len(encoded[0])
    mixed = held(Transaction, [*encoded[:FEW], odd, *encoded[FEW : TOGETHER - 1]])
    assert [place for place, each in enumerate(mixed) if each is None] == [FEW]
    # Whatever was the newest form.
    for _ in range(2):
        assert [each is None for each in held(Transaction, [*[odd] * FEW, *encoded[:1]])] == [False] * FEW + [True]
        assert None not in held(Transaction, encoded)


@dataclass(frozen=True, slots=True)
class Narrow:
    low: Annotated[int, Range(5, 60)]
    high: Annotated[int, Range(0, 1_000)]
    signed: I64


def test_numbers_of_the_same_form_beyond_their_annotation_are_not_taken() -> None:
    good = [encode(Narrow(5 + number, 300 + number, 2**40 + number)) for number in range(FEW)]
    for beyond in ((4, 300, 2**40), (61, 300, 2**40), (5, 1_001, 2**40), (5, 300, 2**63), (5, 300, 2**64 - 1)):
        encoded = [*good, msgpack.packb(beyond)]
        assert len({*map(len, encoded)}) == 1
        assert held(Narrow, encoded) == [*(alone(Narrow, data) for data in good), None]


def test_none_over_the_limit_is_read_nor_too_few() -> None:
    record = drawn(Transaction, Random(5))
    encoded = [encode(replace(record, nonce=number, body=bytes(300))) for number in range(FEW)]
    size = len(encoded[0])
    assert None not in held(Transaction, encoded, size)
    assert held(Transaction, encoded, size - 1) == [None] * FEW
    assert held(Transaction, encoded[1:], size) == [None] * (FEW - 1)


def test_so_many_forms_are_remembered() -> None:
    record = drawn(Transaction, Random(5))
    for size in range(FORMS_KEPT + 10):
        assert None not in held(Transaction, [encode(replace(record, body=bytes(size)))] * FEW)
        assert len(alike._FORMS) <= FORMS_KEPT
