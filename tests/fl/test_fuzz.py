"""No bytes that a block or a submission can hold raise. Whole transactions have `test_fuzz_transactions`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.block import Item
from chain.codec import encode
from chain.unixfs import cid_of
from fl.check import check_transaction
from fl.datasets import RegisterDataset
from fl.errors import DecidedBy, PendingJob, Refused
from fl.jobs import CreateJob, LeaveJob
from fl.transactions import KINDS
from tests.fl.builders import Actor, Ledger, ledger, make_rules, running_job

RUNNING = running_job()
PERSON = RUNNING.trainers[0]


def verdict(data: bytes, chain: Ledger = RUNNING.ledger) -> str:
    try:
        chain.check(data)
    except PendingJob:
        return "PENDING"
    except Refused as refused:
        assert refused.decided_by is DecidedBy.BYTES
        return refused.code
    return "good"


@given(st.binary(max_size=600))
def test_random_bytes_are_undecodable(data: bytes) -> None:
    assert verdict(data) == "UNDECODABLE"


@settings(deadline=None)
@given(st.sampled_from([*KINDS, 0, 3, 65_535]), st.binary(max_size=600))
def test_random_bodies_get_a_verdict(kind: int, body: bytes) -> None:
    tx = replace(PERSON.transaction(LeaveJob(bytes(32)), nonce=0), kind=kind, body=body)
    data = encode(tx)
    with pytest.raises((Refused, PendingJob)):
        check_transaction(
            data, RUNNING.ledger.chain_id, RUNNING.ledger.genesis.params, lambda job: None, verify_signature=False
        )


def good(who: Actor) -> list[bytes]:
    return [
        who.sign(RUNNING.body(who), nonce=0),
        RUNNING.creator.sign(CreateJob(make_rules(name="fuzzed"), b""), nonce=900),
        who.sign(RUNNING.body(who, payload=b""), nonce=1),
        who.sign(RegisterDataset("fuzzed", cid_of(b"scans"), 5, True, "csv", "none", "CC0-1.0"), nonce=2),
    ]


GOOD = good(PERSON)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_no_changed_byte_of_a_good_transaction_is_still_good(data: bytes, choose: st.DataObject) -> None:
    at = choose.draw(st.integers(0, len(data) - 1))
    byte = choose.draw(st.integers(0, 255).filter(lambda value: value != data[at]))
    assert verdict(data) == "good"
    assert verdict(data[:at] + bytes([byte]) + data[at + 1 :]) != "good"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_a_changed_byte_that_reaches_execution_raises_nothing(data: bytes, choose: st.DataObject) -> None:
    at = choose.draw(st.integers(0, len(data) - 1))
    changed = data[:at] + bytes([choose.draw(st.integers(0, 255))]) + data[at + 1 :]
    chain = Ledger(RUNNING.ledger.genesis, dict(RUNNING.ledger.state), height=9, time_ms=RUNNING.ledger.time_ms)
    chain.block(changed, data)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=16))
def test_random_items_are_ignored(items: list[tuple[int, bytes]]) -> None:
    chain = ledger()
    chain.block(items=[Item(kind, data) for kind, data in items])
    assert chain.event_kinds() == ["item_ignored"] * len(items)


@pytest.mark.parametrize("time_ms", [0, 2**63, 2**64 - 1])
def test_block_times_at_the_ends_of_their_range_raise_nothing(time_ms: int) -> None:
    running = running_job()
    for _ in range(3):
        block = running.ledger.input(running.trainers[0].sign(running.body(running.trainers[0])))
        running.ledger.execute(replace(block, time_ms=time_ms))
