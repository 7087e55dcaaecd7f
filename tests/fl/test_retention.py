"""Which blobs a state keeps alive, under which policy, and how little is read to know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from chain.cid import raw_cid
from chain.unixfs import cid_of
from fl.datasets import RegisterDataset, WithdrawDataset, dataset_id
from fl.jobs import JoinJob, StopJob
from fl.records import Phase
from fl.retention import Policy, roots
from fl.rounds import entries_of
from tests.fl.builders import Ledger, Running, created_job, make_rules, result_item, running_job
from tests.fl.evaluating import ACCURACY, asked, evaluated_job

RECORD = raw_cid(b"record")


def model(number: int) -> bytes:
    """As `Running.finish_round` names them."""
    return raw_cid(b"model/%d" % number)


def kept(chain: Ledger, policy: Policy, reads: Counter[bytes] | None = None) -> set[bytes]:
    def read(key: bytes) -> bytes | None:
        if reads is not None:
            reads[key[:6]] += 1
        return chain.state.get(key)

    def rows(prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted((key, row) for key, row in chain.state.items() if key.startswith(prefix)))

    return set(roots(read, rows, chain.leaves, policy))


def updates(running: Running, number: int) -> set[bytes]:
    size = running.ledger.round(running.job, number).updates.size
    return {entry.cid for entry in entries_of(running.ledger.leaves, running.job, number, size)}


def played(rounds: int, of: int = 0) -> Running:
    """A job after so many rounds; its last ones if it is not of more."""
    running = running_job(rounds=max(rounds, of))
    for _ in range(rounds):
        running.finish_round()
    return running


def test_first_and_newest_models_stay_under_any_policy() -> None:
    running = played(5)
    initial = running.ledger.rules(running.job).initial
    assert kept(running.ledger, Policy(models=0, update_rounds=0)) == {initial, model(5), RECORD}
    fresh = running_job()
    assert kept(fresh.ledger, Policy()) == {fresh.ledger.rules(fresh.job).initial}


@pytest.mark.parametrize(
    ("policy", "rounds"),
    [
        (Policy(models=1), {7}),
        (Policy(models=3), {5, 6, 7}),
        (Policy(models=1, every=3), {3, 6, 7}),
        (Policy(models=0, every=1), set(range(1, 8))),
        (Policy(models=100), set(range(1, 8))),
        (Policy(archive=True), set(range(1, 8))),
    ],
)
def test_models_stay_by_the_policy(policy: Policy, rounds: set[int]) -> None:
    running = played(7)
    named = kept(running.ledger, policy)
    assert {number for number in range(1, 8) if model(number) in named} == rounds


def test_updates_of_the_open_round_stay_and_of_as_many_ended_ones_as_the_policy_says() -> None:
    running = played(4, of=9)
    running.submit(*running.trainers[:2])
    assert running.round.number == 5 and running.round.phase == Phase.COLLECTING
    named = kept(running.ledger, Policy(update_rounds=2))
    assert updates(running, 5) and updates(running, 5) | updates(running, 4) | updates(running, 3) <= named
    assert not (updates(running, 1) | updates(running, 2)) & named
    assert updates(running, 5) <= kept(running.ledger, Policy(models=0, update_rounds=0))


def test_a_round_that_is_aggregated_keeps_all_that_its_result_is_made_of() -> None:
    running = running_job()
    task = running.freeze()
    assert running.round.phase == Phase.AGGREGATING
    assert kept(running.ledger, Policy(0, 0, 0, 0)) == {task.base_model, *updates(running, 1)}


def test_a_failed_round_keeps_its_record_and_makes_no_model() -> None:
    running = running_job()
    task = running.freeze()
    running.ledger.block(items=[result_item(task, code="MODEL_RANGE")])
    assert running.ledger.round(running.job, 1).phase == Phase.FAILED
    assert kept(running.ledger, Policy(update_rounds=0)) == {running.ledger.rules(running.job).initial, RECORD}


def test_the_newest_model_stays_however_many_rounds_have_failed_since() -> None:
    running = running_job(max_failed=10)
    running.finish_round()
    for _ in range(5):
        running.ledger.block(items=[result_item(running.freeze(), code="MODEL_RANGE")])
    assert running.ledger.job(running.job).round == 7
    assert model(1) in kept(running.ledger, Policy(models=2))


def test_the_updates_of_a_job_that_has_ended_go_after_a_while() -> None:
    running = played(2)
    policy = Policy(update_rounds=1, ended_job_ms=60_000)
    assert updates(running, 2) <= kept(running.ledger, policy)
    chain = running.ledger
    other = created_job(chain, running.creator, make_rules(name="other"))
    accepted = chain.job(other).rules_hash
    chain.block(*(each.sign(JoinJob(other, accepted)) for each in running.trainers))
    chain.block(after_ms=60_001)
    assert updates(running, 2) <= kept(chain, policy), "the time that a state knows is what its jobs last did"
    chain.block(running.creator.sign(StopJob(other)))
    assert not updates(running, 2) & kept(chain, policy)
    assert model(2) in kept(chain, policy)


def test_what_a_rule_remembers_stays_with_the_model_that_it_came_with() -> None:
    running = running_job(rounds=4, rule="fedavgm")
    left = {number: raw_cid(b"moments/%d" % number) for number in range(1, 5)}
    for number in range(1, 5):
        running.ledger.block(items=[result_item(running.freeze(), model(number), optimizer=left[number])])
    named = kept(running.ledger, Policy(models=2))
    assert {number for number in left if left[number] in named} == {3, 4}
    assert set(left.values()) <= kept(running.ledger, Policy(archive=True))


def test_an_archive_keeps_every_model_every_record_and_every_update() -> None:
    running = played(5)
    everything = {model(number) for number in range(1, 6)} | {running.ledger.rules(running.job).initial, RECORD}
    for number in range(1, 6):
        everything |= updates(running, number)
    assert kept(running.ledger, Policy(archive=True)) == everything


def test_data_sets_stay_while_they_are_stored_and_not_withdrawn() -> None:
    running = running_job()
    chain, owner = running.ledger, running.trainers[0]
    before = kept(chain, Policy())
    data = owner.sign(RegisterDataset("mine", cid_of(b"mine"), 4, True, "", "", ""))
    elsewhere = RegisterDataset("elsewhere", cid_of(b"elsewhere"), 9, False, "", "", "")
    chain.block(data, owner.sign(elsewhere))
    assert kept(chain, Policy()) - before == {cid_of(b"mine")}
    chain.block(owner.sign(WithdrawDataset(dataset_id(chain.check(data).reading.id))))
    assert kept(chain, Policy()) == before


def test_what_is_read_does_not_grow_with_the_rounds_that_are_over() -> None:
    counts = []
    for rounds in (6, 18):
        reads = Counter[bytes]()
        kept(played(rounds).ledger, Policy(models=2, update_rounds=2), reads)
        counts.append(reads[b"round/"])
    assert counts[0] == counts[1]


def test_a_policy_that_keeps_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="less than nothing"):
        Policy(models=-1)


def test_the_best_model_stays_and_its_record_and_the_one_that_is_evaluated() -> None:
    job = evaluated_job(goal=ACCURACY, rounds=9)
    for value in (80, 90, 70, 60):
        task = job.freeze()
        item = result_item(task, model(task.round), record=raw_cid(b"record/%d" % task.round))
        job.ledger.block(items=[item])
        job.measure(value, value, value)
    nothing = Policy(models=0, update_rounds=0)
    first = job.ledger.rules(job.job).initial
    records = {raw_cid(b"record/2"), raw_cid(b"record/4")}
    assert kept(job.ledger, nothing) == {first, model(2), model(4), *records}


def test_a_model_that_is_evaluated_stays_however_many_rounds_have_closed_since() -> None:
    job = evaluated_job(evaluation=asked(every=5), rounds=9)
    for _ in range(7):
        job.close_round()
    assert job.evaluation.round == 5
    nothing = Policy(models=0, update_rounds=0)
    assert model(5) in kept(job.ledger, nothing) and model(6) not in kept(job.ledger, nothing)
    job.measure(1, 2, 3)
    assert model(5) not in kept(job.ledger, nothing), "without a goal it is not the best"
