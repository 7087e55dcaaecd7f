"""Nonces: any order within the window, each once, the floor following the used prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.genesis import Params
from fl.accounts import check_nonce, new_account, with_nonce_used
from fl.errors import Refused
from fl.jobs import LeaveJob
from fl.records import Account
from tests.fl.builders import ledger, running_job, signing_key

WINDOW = 256
KEY = signing_key("somebody").public


def verdict(account: Account, nonce: int, window: int = WINDOW) -> str:
    try:
        check_nonce(account, nonce, window)
    except Refused as refused:
        return refused.code
    return "free"


def test_the_floor_stays_while_a_nonce_below_is_free() -> None:
    account = with_nonce_used(new_account(KEY), 1)
    assert (account.floor, account.used) == (0, b"\x02")
    assert [verdict(account, nonce) for nonce in (0, 1, 2)] == ["free", "NONCE_USED", "free"]


def test_the_floor_advances_over_the_whole_used_prefix() -> None:
    account = new_account(KEY)
    for nonce in (2, 1, 3, 7, 0):
        account = with_nonce_used(account, nonce)
    assert (account.floor, account.used) == (4, b"\x08")


def test_the_window_ends_256_above_the_floor() -> None:
    account = new_account(KEY)
    assert verdict(account, 255) == "free"
    assert verdict(account, 256) == "NONCE_FAR"
    account = with_nonce_used(account, 0)
    assert verdict(account, 256) == "free"
    assert verdict(account, 257) == "NONCE_FAR"


def test_a_full_window_used_backwards_collapses_into_the_floor() -> None:
    account = new_account(KEY)
    for nonce in reversed(range(WINDOW)):
        assert verdict(account, nonce) == "free"
        account = with_nonce_used(account, nonce)
    assert (account.floor, account.used) == (WINDOW, b"")


@given(st.lists(st.integers(0, 700), max_size=300), st.sampled_from((8, 256, 1024)))
def test_each_nonce_is_used_once_whatever_the_order(nonces: list[int], window: int) -> None:
    account, used = new_account(KEY), set[int]()
    for nonce in nonces:
        floor = next(free for free in range(len(used) + 1) if free not in used)
        assert account.floor == floor
        expected = "NONCE_USED" if nonce in used else "NONCE_FAR" if nonce >= floor + window else "free"
        assert verdict(account, nonce, window) == expected
        if expected == "free":
            used.add(nonce)
            account = with_nonce_used(account, nonce)


def test_a_transaction_in_two_batches_of_a_block_is_executed_once() -> None:
    running = running_job()
    data = running.update(running.trainers[0])
    outcome = running.ledger.block(batches=((data,), (data, data)))
    assert len(outcome.receipts) == 1
    assert running.round.updates.size == 1
    assert running.ledger.status_of(data) is None
    assert running.round.updates.size == 1


def test_many_transactions_of_one_account_may_be_executed_in_any_order() -> None:
    chain = ledger()
    who = chain.actor("trainer-000")
    sent = [who.sign(LeaveJob(bytes([nonce]) * 32)) for nonce in range(WINDOW)]
    chain.block(*reversed(sent))
    assert len(chain.receipts) == WINDOW
    account = chain.account(who.account)
    assert account is not None and account.floor == WINDOW


def test_a_nonce_beyond_the_window_is_not_consumed_and_can_be_used_once_the_window_has_moved() -> None:
    chain = ledger(params=Params(nonce_window=8))
    who = chain.actor("trainer-000")
    far = who.sign(LeaveJob(bytes(32)), nonce=8)
    assert chain.status_of(far) is None
    assert chain.events[-1].code == "NONCE_FAR"
    assert chain.account(who.account) is None
    assert chain.status_of(who.sign(LeaveJob(bytes(32)), nonce=0)) == "UNKNOWN_JOB"
    assert chain.status_of(far) == "UNKNOWN_JOB"


@pytest.mark.parametrize("nonce", [2**63, 2**64 - 1])
def test_absurd_nonces_are_far_and_nothing_else(nonce: int) -> None:
    chain = ledger()
    assert chain.status_of(chain.actor("trainer-000").sign(LeaveJob(bytes(32)), nonce=nonce)) is None
    assert chain.events[-1].code == "NONCE_FAR"
