"""Items: results close rounds, evidence and readiness are written down, and nothing stale has an effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chain.block import Evidence, Item, ItemKind, Ready, item_digest
from chain.certificate import Result
from chain.cid import raw_cid
from chain.codec import decode, encode
from fl.records import Convicted, EventKind, Phase, ReadyMark
from fl.rounds import open_aggregations
from fl.state import convicted_key, read_record, ready_key
from tests.fl.builders import Running, ledger, result_item, running_job, signing_key


def ignored(running: Running, item: Item) -> str:
    """The code with which this item is ignored, leaving the state as it was but for the log of events."""
    before = dict(running.ledger.state)
    outcome = running.ledger.block(items=[item])
    event = running.ledger.events[-1]
    assert event.kind == EventKind.ITEM_IGNORED and event.subject == item_digest(item)
    assert outcome.writes.keys() == {b"events"}
    assert before.keys() == running.ledger.state.keys() - ({b"events"} - before.keys())
    return event.code


def test_a_result_puts_the_model_into_the_state_and_opens_the_next_round() -> None:
    running = running_job()
    task = running.freeze()
    model, record = raw_cid(b"the new model"), raw_cid(b"record")
    running.ledger.block(items=[result_item(task, model)])
    closed = running.ledger.round(running.job, 1)
    assert (closed.phase, closed.model, closed.record) == (Phase.CLOSED, model, record)
    assert (closed.ended_height, closed.ended_ms) == (running.ledger.height, running.ledger.time_ms)
    job = running.ledger.job(running.job)
    assert (job.model, job.model_round, job.completed, job.round) == (model, 1, 1, 2)


def test_a_failed_result_keeps_the_model_and_says_why() -> None:
    running = running_job()
    task = running.freeze()
    before = running.ledger.job(running.job).model
    running.ledger.block(items=[result_item(task, code="MODEL_RANGE")])
    failed = running.ledger.round(running.job, 1)
    assert (failed.phase, failed.code, failed.record) == (Phase.FAILED, "MODEL_RANGE", raw_cid(b"record"))
    assert running.ledger.job(running.job).model == before
    assert running.round.number == 2


def test_a_repeated_result_is_ignored_with_an_event() -> None:
    running = running_job()
    item = result_item(running.freeze())
    running.ledger.block(items=[item])
    assert ignored(running, item) == "STALE"


def test_the_same_result_twice_in_one_block_closes_one_round() -> None:
    running = running_job()
    item = result_item(running.freeze())
    running.ledger.block(items=[item, item])
    assert running.ledger.job(running.job).completed == 1
    assert "item_ignored" in running.ledger.event_kinds()


def test_a_result_after_the_rounds_deadline_is_stale() -> None:
    running = running_job()
    task = running.freeze()
    running.ledger.block(after_ms=60_000)
    assert ignored(running, result_item(task)) == "STALE"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"job": bytes(32)}, "UNKNOWN_JOB"),
        ({"round": 2}, "STALE"),
        ({"round": 0}, "STALE"),
        ({"log_root": bytes(32)}, "STALE"),
        ({"kernel_version": 2}, "STALE"),
        ({"model": b""}, "UNDECODABLE"),
        ({"model": bytes(36)}, "UNDECODABLE"),
        ({"record": b"short"}, "UNDECODABLE"),
        ({"optimizer": raw_cid(b"moments")}, "UNDECODABLE"),
        ({"code": "MODEL_RANGE"}, "UNDECODABLE"),
        ({"ok": False, "model": b""}, "UNDECODABLE"),
    ],
)
def test_a_result_that_fits_no_waiting_round_is_ignored(changes: dict[str, Any], code: str) -> None:
    running = running_job()
    result = decode(Result, result_item(running.freeze()).data, 4_096)
    assert ignored(running, Item(ItemKind.RESULT, encode(replace(result, **changes)))) == code


def test_a_result_before_the_round_is_frozen_is_ignored() -> None:
    running = running_job()
    running.submit(running.trainers[0])
    other = running_job()
    assert ignored(running, result_item(other.freeze())) == "STALE"


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_items_of_unknown_kinds_are_ignored(kind: int) -> None:
    assert ignored(running_job(), Item(kind, b"")) == "UNKNOWN_KIND"


@pytest.mark.parametrize("kind", list(ItemKind))
def test_items_that_do_not_decode_are_ignored(kind: ItemKind) -> None:
    running = running_job()
    for data in (b"", b"\xc0", b"\x99", bytes(8_192)):
        assert ignored(running, Item(kind, data)) == "UNDECODABLE"


def test_evidence_convicts_a_validator_once_an_epoch() -> None:
    running = running_job()
    item = Item(ItemKind.EVIDENCE, encode(Evidence(2, 0, 17, "two-notarize")))
    running.ledger.block(items=[item])
    convicted = read_record(running.ledger.state.get, Convicted, convicted_key(0, 2))
    assert convicted == Convicted(17, "two-notarize", running.ledger.height)
    assert running.ledger.events[-1].kind == EventKind.EVIDENCE
    assert ignored(running, Item(ItemKind.EVIDENCE, encode(Evidence(2, 0, 18, "two-finalize")))) == "REPEATED"
    running.ledger.block(items=[Item(ItemKind.EVIDENCE, encode(Evidence(2, 1, 3, "two-finalize")))])
    assert read_record(running.ledger.state.get, Convicted, convicted_key(1, 2)) is not None


def test_a_later_readiness_replaces_an_earlier_one() -> None:
    running = running_job()
    key = signing_key("joiner").public

    def ready(height: int) -> Item:
        return Item(ItemKind.READY, encode(Ready(height, bytes(32), key)))

    running.ledger.block(items=[ready(5)])
    assert ignored(running, ready(5)) == "REPEATED"
    running.ledger.block(items=[ready(6)])
    mark = read_record(running.ledger.state.get, ReadyMark, ready_key(key))
    assert mark == ReadyMark(6, bytes(32), running.ledger.height)


def test_items_come_after_the_transactions_of_their_block() -> None:
    running = running_job()
    task = running.freeze()
    late = running.update(running.trainers[0], round=1)
    early = running.update(running.trainers[1], round=2)
    running.ledger.block(late, early, items=[result_item(task)])
    assert [receipt.status for receipt in running.ledger.receipts[-2:]] == ["DUPLICATE", "WRONG_ROUND"]
    assert running.round.number == 2


def test_a_chain_without_jobs_ignores_results() -> None:
    chain = ledger()
    task = running_job().freeze()
    chain.block(items=[result_item(task)])
    assert decode(type(chain.events[-1]), chain.outcomes[-1].events[0], 4_096).code == "UNKNOWN_JOB"


def test_a_rule_with_a_memory_hands_it_from_round_to_round() -> None:
    running = running_job(rule="fedavgm")
    first = running.freeze()
    assert (first.step, first.optimizer) == (1, b"")
    assert ignored(running, result_item(first)) == "UNDECODABLE", "it leaves its memory with every model"
    failing = result_item(first, code="MODEL_RANGE", optimizer=raw_cid(b"moments"))
    assert ignored(running, failing) == "UNDECODABLE", "and with none that failed"
    running.ledger.block(items=[result_item(first, optimizer=raw_cid(b"moments"))])
    failed = running.freeze()
    running.ledger.block(items=[result_item(failed, code="MODEL_RANGE")])
    third = running.freeze()
    for task in (failed, third):
        assert (task.step, task.optimizer) == (2, raw_cid(b"moments"))
    assert open_aggregations(running.ledger.state.get) == (third,)
