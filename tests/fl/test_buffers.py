"""Jobs without rounds: buffers take updates of the newest models, and weigh them by the age of their bases."""

from __future__ import annotations

from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.cid import raw_cid
from fl.jobs import JoinJob, LeaveJob
from fl.records import JobStatus, Phase
from fl.rounds import entries_of
from fl.tensors.encodings import Place, check_payload
from fl.updates import form_of
from tests.fl.builders import Actor, Running, result_item, running_job

DISCOUNTS = tuple(isqrt(2**20 // (1 + age)) for age in range(3))


def buffered_job(trainers: int = 6, **rules: object) -> Running:
    """A buffer closes with two updates; one may start from the model of two buffers ago."""
    chosen = {"mode": "async", "discounts": DISCOUNTS, "weights": "examples", "cap": 1024, "rounds": 50, **rules}
    return running_job(trainers=trainers, **{"target": 2, "minimum": 1, "grace_ms": 60_000, **chosen})


def closed(running: Running) -> bytes:
    """The buffer has its target: two more proposers, and a result; the model that it makes."""
    while running.round.phase == Phase.COLLECTING:
        running.ledger.block()
    return with_result(running)


def with_result(running: Running, code: str = "") -> bytes:
    model = raw_cid(b"model/%d" % running.round.number)
    running.ledger.block(items=[result_item(running.ledger.aggregations[-1], model, code)])
    return running.ledger.job(running.job).model


def started_from(running: Running, who: Actor, number: int, **changes: object) -> bytes:
    """An update that starts from the base of buffer `number`."""
    return running.update(who, round=number, base=running.ledger.round(running.job, number).base, **changes)


def test_a_buffer_closes_with_its_target_and_the_next_one_opens_with_its_model() -> None:
    running = buffered_job()
    running.submit(*running.trainers[:2])
    model = closed(running)
    assert (running.round.number, running.round.base, running.round.version) == (2, model, 1)


def test_an_update_weighs_less_the_older_its_base_is() -> None:
    running = buffered_job(target=3)
    chain, people = running.ledger, running.trainers
    for _ in range(2):
        running.submit(*people[:3])
        closed(running)
    assert running.round.number == 3
    for who, number in zip(people[:3], (3, 2, 1), strict=True):
        assert chain.status_of(started_from(running, who, number, examples=1_000)) == "ok"
    entries = list(entries_of(chain.leaves, running.job, 3, 3))
    assert [entry.weight for entry in entries] == [1_000, 1_000 * 724 >> 10, 1_000 * 591 >> 10]
    assert [entry.round for entry in entries] == [3, 2, 1]


def test_the_least_that_an_update_weighs_is_1() -> None:
    running = buffered_job(discounts=(1024, 1))
    running.submit(*running.trainers[:2])
    closed(running)
    assert running.ledger.status_of(started_from(running, running.trainers[3], 1, examples=5)) == "ok"
    assert running.round.weight == 1


def test_equal_updates_weigh_the_cap_before_their_discount() -> None:
    running = buffered_job(weights="equal", cap=1024)
    running.submit(*running.trainers[:2])
    closed(running)
    running.ledger.block(started_from(running, running.trainers[3], 1))
    assert running.round.weight == 724


def test_an_update_of_too_old_a_model_is_refused() -> None:
    running = buffered_job()
    for _ in range(3):
        running.submit(*running.trainers[:2])
        closed(running)
    assert running.round.number == 4
    assert running.ledger.status_of(started_from(running, running.trainers[3], 1)) == "TOO_STALE"
    assert running.ledger.status_of(started_from(running, running.trainers[3], 2)) == "ok"


def test_a_base_must_be_that_of_the_buffer_that_the_update_names() -> None:
    running = buffered_job()
    running.submit(*running.trainers[:2])
    model = closed(running)
    who = running.trainers[3]
    assert running.ledger.status_of(running.update(who, round=1, base=model)) == "WRONG_BASE"
    assert running.ledger.status_of(running.update(who, round=3, base=model)) == "WRONG_ROUND"
    assert running.ledger.status_of(running.update(who, round=0, base=model)) == "WRONG_ROUND"
    assert running.ledger.status_of(running.update(who, round=2, base=model)) == "ok"


def test_a_member_has_one_update_in_a_buffer() -> None:
    running = buffered_job(target=3)
    who = running.trainers[0]
    assert running.ledger.status_of(running.update(who)) == "ok"
    assert running.ledger.status_of(running.update(who)) == "DUPLICATE"
    running.submit(*running.trainers[1:3])
    closed(running)
    assert running.ledger.status_of(started_from(running, who, 1)) == "ok"


def test_while_a_buffer_is_aggregated_an_update_is_told_to_come_again_and_then_counts() -> None:
    running = buffered_job()
    chain, late = running.ledger, running.trainers[3]
    body = running.body(late)
    running.submit(*running.trainers[:2])
    chain.blocks(2)
    assert running.round.phase == Phase.AGGREGATING
    assert chain.status_of(late.sign(body)) == "BUFFER_CLOSED"
    with_result(running)
    assert chain.status_of(late.sign(body)) == "ok", "the very same payload"
    entry = next(entries_of(chain.leaves, running.job, 2, 1))
    assert (entry.round, entry.cid, entry.weight) == (1, body.cid, max(1, 10 * 724 >> 10))


def test_a_full_buffer_is_closed() -> None:
    running = buffered_job(target=2, maximum=2)
    running.submit(*running.trainers[:3])
    assert running.ledger.receipts[-1].status == "BUFFER_CLOSED"
    assert (running.round.phase, running.round.updates.size) == (Phase.AGGREGATING, 2)


def test_the_payload_is_judged_by_the_version_that_it_started_from() -> None:
    running = buffered_job()
    running.submit(*running.trainers[:2])
    closed(running)
    data = started_from(running, running.trainers[3], 1)
    body = running.ledger.check(data).reading.body
    assert body.round == 1
    place = Place(running.job, 1, running.trainers[3].account)
    check_payload(form_of(running.ledger.rules(running.job), 0), place, body.payload)


def test_a_buffer_below_its_target_closes_with_the_grace_after_its_minimum_or_its_deadline() -> None:
    running = buffered_job(minimum=1, target=4, grace_ms=2_000)
    running.submit(running.trainers[0])
    running.ledger.block(after_ms=2_000)
    running.ledger.blocks(2)
    assert running.round.phase == Phase.AGGREGATING


def test_empty_buffers_fail_until_the_job_pauses() -> None:
    running = buffered_job(deadline_ms=1_000, max_failed=2)
    running.ledger.blocks(12, after_ms=1_000)
    assert running.ledger.job(running.job).status == JobStatus.PAUSED
    assert running.ledger.status_of(running.update(running.trainers[0])) == "BUFFER_CLOSED"


def test_a_buffer_that_failed_ages_the_updates_before_it() -> None:
    running = buffered_job(deadline_ms=1_000, max_failed=9)
    for _ in range(3):
        running.ledger.blocks(6, after_ms=1_000)
    assert running.round.number > 3 and running.round.version == 0
    assert running.ledger.status_of(started_from(running, running.trainers[0], 1)) == "TOO_STALE"


def test_who_joins_during_a_buffer_is_in_the_next_one() -> None:
    running = buffered_job(trainers=4, target=3)
    late = running.trainers.pop()
    running.ledger.block(late.sign(LeaveJob(running.job)))
    running.ledger.block(late.sign(JoinJob(running.job, running.ledger.job(running.job).rules_hash)))
    body = running.body(late)
    assert running.ledger.status_of(late.sign(body)) == "NOT_JOINED"
    running.submit(*running.trainers)
    with_result(running)
    assert running.ledger.status_of(late.sign(body)) == "ok"


def test_when_everybody_has_answered_a_buffer_waits_no_longer() -> None:
    running = buffered_job(trainers=3, target=3)
    running.submit(*running.trainers[:2])
    running.ledger.block(running.trainers[2].sign(LeaveJob(running.job)))
    assert running.round.phase == Phase.AGGREGATING


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_every_entry_is_of_a_base_that_was_young_enough_and_weighs_by_its_age(
    steps: list[tuple[int, int, bool]],
) -> None:
    running = buffered_job(target=3)
    chain = running.ledger
    for trainer, back, result in steps:
        number = max(1, running.round.number - back)
        chain.block(started_from(running, running.trainers[trainer], number, examples=2_000))
        if result and running.round.phase == Phase.AGGREGATING:
            with_result(running, code="MODEL_RANGE" if back == 5 else "")
    for number in range(1, chain.job(running.job).round + 1):
        entries = list(entries_of(chain.leaves, running.job, number, chain.round(running.job, number).updates.size))
        assert len({entry.member for entry in entries}) == len(entries)
        assert [entry.weight for entry in entries] == [
            1_024 * DISCOUNTS[number - entry.round] >> 10 for entry in entries
        ]
    assert {receipt.status for receipt in chain.receipts} <= {"ok", "TOO_STALE", "BUFFER_CLOSED", "DUPLICATE"}


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "median"])
def test_rules_that_go_with_buffers_close_them(rule: str) -> None:
    running = buffered_job(rule=rule, **({"weights": "equal", "cap": 1} if rule == "median" else {}))
    running.submit(*running.trainers[:2])
    running.ledger.blocks(2)
    optimizer = {} if rule == "median" else {"optimizer": raw_cid(b"moments")}
    running.ledger.block(items=[result_item(running.ledger.aggregations[-1], **optimizer)])
    assert running.ledger.job(running.job).completed == 1
