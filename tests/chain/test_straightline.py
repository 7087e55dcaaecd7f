"""What the generated readers and writers accept, refuse and say is what the annotations say, step by step."""

from __future__ import annotations

import threading
from dataclasses import is_dataclass
from random import Random
from typing import Any

import msgpack
import pytest

from chain.codec import CodecError, decode, encode, to_plain
from consensus.messages import MESSAGES
from fl import records
from fl.transactions import KINDS
from node.data import messages as data_messages
from tests.chain.reference import Fault, damaged, drawn, plain, read
from tests.chain.test_codec import RECORDS, Trip


def _records_of(module: Any) -> list[type]:
    found = [each for each in vars(module).values() if isinstance(each, type) and is_dataclass(each)]
    return [each for each in found if each.__module__ == module.__name__]


ALL = sorted(
    {
        Trip,
        *RECORDS,
        *(cls for cls, _, _ in MESSAGES.values()),
        *(row.body for row in KINDS.values()),
        *_records_of(records),
        *_records_of(data_messages),
    },
    key=lambda cls: (cls.__module__, cls.__name__),
)
NEAR = 40
"""Draws of each record; about twelve damaged ones of each draw."""


def outcome(cls: type, data: bytes) -> object:
    try:
        return decode(cls, data, 1 << 20)
    except CodecError as error:
        return str(error)


def judged(cls: type, data: bytes) -> bool:
    """Whether the bytes are good; fails where the reader and the reference differ."""
    found = outcome(cls, data)
    try:
        expected = read(cls, data)
    except Fault as fault:
        assert isinstance(found, str), f"{cls.__name__} was read from {data.hex()}, in which is a fault: {fault}"
        assert any(reason in found for reason in fault.reasons), f"{found}, not {fault}, of {data.hex()}"
        return False
    assert found == expected and type(found) is cls
    assert encode(found) == data
    return True


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_what_a_record_may_hold_is_written_as_msgpack_writes_it_and_read_again(cls: type) -> None:
    random = Random(cls.__name__)
    for _ in range(NEAR):
        record = drawn(cls, random)
        assert to_plain(record) == plain(cls, record)
        assert encode(record) == msgpack.packb(plain(cls, record))
        assert judged(cls, encode(record))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_bytes_near_to_a_record_are_judged_as_the_annotations_say(cls: type) -> None:
    random = Random(cls.__name__)
    for _ in range(NEAR):
        data, other = encode(drawn(cls, random)), encode(drawn(random.choice(ALL), random))
        for changed in damaged(data, other, random):
            judged(cls, changed)


@pytest.mark.nightly
@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_bytes_near_to_a_record_are_judged_as_the_annotations_say_at_length(cls: type) -> None:
    random = Random(f"{cls.__name__} at length")
    for _ in range(2_000):
        data, other = encode(drawn(cls, random)), encode(drawn(random.choice(ALL), random))
        for changed in damaged(data, other, random):
            judged(cls, changed)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_beginning_of_a_record_is_refused(cls: type) -> None:
    data = encode(drawn(cls, Random(cls.__name__)))
    for end in range(min(len(data), 600)):
        assert not judged(cls, data[:end])


def test_the_damage_reaches_every_fault_and_leaves_some_bytes_good() -> None:
    random, said, good = Random(1), set[str](), 0
    for _ in range(300):
        data, other = encode(drawn(Trip, random)), encode(drawn(random.choice(ALL), random))
        for changed in damaged(data, other, random):
            found = outcome(Trip, changed)
            if isinstance(found, str):
                said.add(found.rpartition(": ")[2].lstrip("0123456789- ").partition(" ")[0])
            else:
                good += 1
    assert good
    assert said >= {"cut", "an", "a", "expected", "bytes", "is", "elements", "text"}


def test_a_record_that_was_read_is_as_frozen_as_any() -> None:
    trip = drawn(Trip, Random(1))
    again = decode(Trip, encode(trip), 1 << 20)
    assert type(again) is Trip and hash(again) == hash(trip)
    with pytest.raises(AttributeError):
        again.number = 1  # type: ignore[misc]


def test_threads_that_encode_at_once_do_not_mix_their_bytes() -> None:
    mixed: list[bytes] = []

    def work(seed: int) -> None:
        record = drawn(Trip, Random(seed))
        expected = msgpack.packb(plain(Trip, record))
        mixed.extend(found for _ in range(3_000) if (found := encode(record)) != expected)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mixed
