"""Transactions that are checked together get the verdicts that they get one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.alike import FEW
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.check import Checked, check_all, check_transaction
from fl.errors import PendingJob, Refused
from fl.jobs import LeaveJob
from fl.records import JobRules
from fl.rounds import SubmitUpdate
from fl.state import rules_of
from fl.transactions import read, read_all
from tests.fl.builders import actor, running_job

RUNNING = running_job()
CHAIN, PARAMS = RUNNING.ledger.chain_id, RUNNING.ledger.genesis.params


def known(job: bytes) -> JobRules | None:
    return rules_of(RUNNING.ledger.state.get, job)


def update(place: int, **changes: object) -> bytes:
    who = RUNNING.trainers[place % len(RUNNING.trainers)]
    return who.sign(RUNNING.body(who, **changes), nonce=300 + place)


def claiming(place: int, payload: bytes) -> bytes:
    return update(place, payload=payload, cid=raw_cid(payload))


def without_header(place: int) -> bytes:
    who = RUNNING.trainers[place % len(RUNNING.trainers)]
    return claiming(place, RUNNING.body(who).payload[1:])


UPDATES = [update(place) for place in range(2 * FEW)]
ODD = [
    (UPDATES[0][:-1], "UNDECODABLE"),
    (b"", "UNDECODABLE"),
    (bytes(PARAMS.transaction_bytes + 1), "OVERSIZE"),
    (update(1, payload=b"x", cid=raw_cid(b"y")), "BAD_CID"),
    (update(2, examples=0), "BAD_EXAMPLES"),
    (update(3, metrics=(1,) * 9), "BAD_METRICS"),
    (update(4, job=bytes(32)), "PENDING"),
    (without_header(5), "WRONG_HEADER"),
    (claiming(6, bytes(PARAMS.inline_bytes + 1)), "OVERSIZE"),
    (update(7, payload=b""), "a demand"),
    (update(8, payload=b"", cid=bytes(36)), "BAD_CID"),
    (RUNNING.trainers[0].sign(LeaveJob(RUNNING.job), nonce=5), "good"),
    (update(9), "good"),
    (actor("trainer-000", bytes(32)).sign(RUNNING.body(RUNNING.trainers[0]), nonce=9), "WRONG_CHAIN"),
]


def said(found: Checked | Refused | PendingJob) -> Any:
    if isinstance(found, Checked):
        return found
    return (found.code, found.sentence) if isinstance(found, Refused) else ("PENDING", str(found))


def alone(data: bytes, verify: bool) -> object:
    try:
        return said(check_transaction(data, CHAIN, PARAMS, known, verify))
    except (Refused, PendingJob) as refused:
        return said(refused)


def together(transactions: list[bytes], verify: bool) -> list[object]:
    return [said(each) for each in check_all(transactions, CHAIN, PARAMS, known, verify)]


@pytest.mark.parametrize(("data", "verdict"), ODD)
def test_each_among_updates_gets_its_verdict(data: bytes, verdict: str) -> None:
    for place in (0, FEW, 2 * FEW):
        transactions = [*UPDATES[:place], data, *UPDATES[place:]]
        found = check_all(transactions, CHAIN, PARAMS, known)
        odd = found.pop(place)
        if isinstance(odd, Checked):
            assert verdict == ("a demand" if odd.demand is not None else "good")
        else:
            assert verdict == (odd.code if isinstance(odd, Refused) else "PENDING")
        assert [each.reading for each in found if isinstance(each, Checked)] == [read(each, PARAMS) for each in UPDATES]


def test_many_that_are_too_large_to_come_inline_are_refused() -> None:
    body = read(UPDATES[0], PARAMS).body
    assert isinstance(body, SubmitUpdate)
    for inline_bytes, good in ((len(body.payload), True), (len(body.payload) - 1, False)):
        params = replace(PARAMS, inline_bytes=inline_bytes)
        found = check_all(UPDATES, CHAIN, params, known)
        assert all(isinstance(each, Checked) if good else said(each)[0] == "OVERSIZE" for each in found)


def test_an_update_under_a_bad_signature_is_refused_for_that_and_nothing_else() -> None:
    tx = decode(Transaction, ODD[3][0], MAX_TRANSACTION_BYTES)
    spoilt = encode(replace(tx, signature=bytes(64)))
    *_, found = together([*UPDATES, spoilt], True)
    assert isinstance(found, tuple) and found[0] == "BAD_SIGNATURE"
    *_, found = together([*UPDATES, spoilt], False)
    assert isinstance(found, tuple) and found[0] == "BAD_CID"


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_a_transaction_is_judged_among_others_as_alone(choose: st.DataObject, verify: bool) -> None:
    transactions = [*UPDATES, *(data for data, _ in choose.draw(st.lists(st.sampled_from(ODD), max_size=4)))]
    for place in choose.draw(st.sets(st.integers(0, len(transactions) - 1), min_size=1, max_size=3)):
        data = transactions[place] or b"\x00"
        at = choose.draw(st.integers(0, len(data) - 1))
        transactions[place] = data[:at] + bytes([choose.draw(st.integers(0, 255))]) + data[at + 1 :]
    expected = [alone(data, verify) for data in transactions]
    assert together(transactions, verify) == expected
    assert [isinstance(each, Refused) for each in read_all(transactions, PARAMS)] == list(map(_unread, transactions))


def _unread(data: bytes) -> bool:
    try:
        read(data, PARAMS)
    except Refused:
        return True
    return False


def test_of_good_updates_of_a_round_rules_are_asked_for_once() -> None:
    asked: list[bytes] = []

    def counted(job: bytes) -> JobRules | None:
        asked.append(job)
        return known(job)

    assert all(isinstance(each, Checked) for each in check_all(UPDATES, CHAIN, PARAMS, counted, False))
    assert asked == [RUNNING.job]
