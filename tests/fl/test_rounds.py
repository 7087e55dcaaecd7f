"""When a round closes, and that nobody is shut out of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import encode
from chain.genesis import Params
from chain.log import EMPTY, append, leaf_digest, prove, verify_log
from fl.jobs import LeaveJob
from fl.machine import wants_block_at
from fl.records import METRIC_NAN, METRIC_PLUS_INFINITY, EventKind, JobStatus, Phase, RuleSetting
from fl.rounds import entries_of, open_aggregations
from fl.rules import RULES
from fl.state import updates_log
from tests.fl.builders import Running, ledger, result_item, running_job

TRAINERS = 6


def big_cohort(validators: int = 4, **rules: object) -> Running:
    """Six trainers, target four, minimum two: rounds do not close by everybody's answer."""
    return running_job(ledger(validators, TRAINERS), TRAINERS, **rules)


def phase(running: Running) -> int:
    return running.ledger.round(running.job, 1).phase


def test_the_whole_cohorts_answer_freezes_the_round_at_once() -> None:
    running = running_job()
    running.submit(*running.trainers)
    assert phase(running) == Phase.AGGREGATING
    assert [task.size for task in running.ledger.outcomes[-1].aggregations] == [4]


def test_the_target_closes_the_round_after_f_plus_1_later_proposers() -> None:
    running = big_cohort()
    running.submit(*running.trainers[:4], proposer=0)
    assert running.round.closing_height == running.ledger.height
    running.ledger.block(proposer=1)
    assert phase(running) == Phase.COLLECTING
    running.ledger.block(proposer=2)
    assert phase(running) == Phase.AGGREGATING


@pytest.mark.parametrize(("validators", "needed"), [(1, 1), (3, 1), (4, 2), (7, 3), (10, 4)])
def test_the_closing_window_is_f_plus_1_distinct_later_proposers(validators: int, needed: int) -> None:
    running = big_cohort(validators)
    running.submit(*running.trainers[:4], proposer=0)
    for proposer in range(needed):
        assert phase(running) == Phase.COLLECTING
        running.ledger.block(proposer=proposer)
    assert phase(running) == Phase.AGGREGATING


def test_one_leader_cannot_shut_an_update_out() -> None:
    """However many blocks the leader that reached the target adds without the update, the round stays open
    until the next honest leader includes it."""
    running = big_cohort()
    running.submit(*running.trainers[:4], proposer=3)
    for _ in range(5):
        running.ledger.block(proposer=3)
    assert running.ledger.status_of(running.update(running.trainers[4]), proposer=1) == "ok"
    assert phase(running) == Phase.AGGREGATING
    assert running.round.updates.size == 5


def test_the_block_that_completes_the_round_is_not_a_later_one() -> None:
    running = big_cohort(validators=1)
    running.submit(*running.trainers[:4])
    assert phase(running) == Phase.COLLECTING


def test_blocks_beyond_the_execution_window_do_not_count() -> None:
    running = big_cohort()
    running.submit(*running.trainers[:4])
    for proposer in range(4):
        running.ledger.block(proposer=proposer, within_window=False)
    assert phase(running) == Phase.COLLECTING
    running.ledger.block(proposer=0)
    running.ledger.block(proposer=1)
    assert phase(running) == Phase.AGGREGATING


def test_proposers_of_another_epoch_count_afresh() -> None:
    running = big_cohort()
    running.submit(*running.trainers[:4], proposer=0)
    running.ledger.block(proposer=1)
    running.ledger.epoch = 1
    running.ledger.block(proposer=2)
    assert phase(running) == Phase.COLLECTING
    running.ledger.block(proposer=1)
    assert phase(running) == Phase.AGGREGATING


def test_an_update_after_the_window_is_late() -> None:
    running = big_cohort()
    running.submit(*running.trainers[:4])
    running.ledger.blocks(2)
    assert running.ledger.status_of(running.update(running.trainers[4])) == "LATE"


def test_no_more_than_the_maximum_is_counted_and_the_round_is_frozen_at_once() -> None:
    running = big_cohort(target=4, maximum=5)
    running.submit(*running.trainers)
    assert [receipt.status for receipt in running.ledger.receipts[-2:]] == ["ok", "LATE"]
    assert phase(running) == Phase.AGGREGATING
    assert running.round.updates.size == 5


def test_the_deadline_with_the_minimum_completes_the_round() -> None:
    running = big_cohort(deadline_ms=10_000, grace_ms=60_000)
    running.submit(*running.trainers[:2])
    running.ledger.block(after_ms=9_800)
    assert running.round.closing_height == 0
    running.ledger.block(after_ms=100)
    assert running.round.closing_height == running.ledger.height
    running.ledger.blocks(2)
    assert phase(running) == Phase.AGGREGATING


def test_the_grace_after_the_minimum_completes_the_round() -> None:
    running = big_cohort(deadline_ms=10_000, grace_ms=2_000)
    running.submit(*running.trainers[:2])
    assert wants_block_at(running.ledger.state.get) == running.ledger.time_ms + 2_000
    running.ledger.block(after_ms=1_999)
    assert running.round.closing_height == 0
    running.ledger.block(after_ms=1)
    assert running.round.closing_height == running.ledger.height


def test_a_deadline_below_the_minimum_is_extended_once_and_then_the_round_fails() -> None:
    running = big_cohort(deadline_ms=10_000)
    running.submit(running.trainers[0])
    running.ledger.block(after_ms=10_000)
    extended = running.round
    assert extended.extended and extended.deadline_ms == running.ledger.time_ms + 10_000
    running.ledger.block(after_ms=10_000)
    running.ledger.blocks(2)
    failed = running.ledger.round(running.job, 1)
    assert (failed.phase, failed.code) == (Phase.FAILED, "BELOW_MINIMUM")
    following = running.round
    assert (following.number, following.phase, following.base) == (2, Phase.COLLECTING, failed.base)


def test_an_update_in_the_window_after_the_second_deadline_still_saves_the_round() -> None:
    running = big_cohort(deadline_ms=10_000)
    running.submit(running.trainers[0])
    running.ledger.block(after_ms=10_000)
    running.ledger.block(after_ms=10_000, proposer=0)
    running.submit(running.trainers[1], proposer=1)
    running.ledger.block(proposer=2)
    assert phase(running) == Phase.AGGREGATING


def test_rounds_without_any_answer_fail_until_the_job_pauses() -> None:
    running = big_cohort(max_failed=2, deadline_ms=1_000)
    running.ledger.blocks(12, after_ms=1_000)
    job = running.ledger.job(running.job)
    assert (job.status, job.round, job.completed) == (JobStatus.PAUSED, 2, 0)
    assert wants_block_at(running.ledger.state.get) is None


def test_members_who_leave_unanswered_are_no_longer_waited_for() -> None:
    running = running_job()
    running.submit(*running.trainers[:3])
    running.ledger.block(running.trainers[3].sign(LeaveJob(running.job)))
    assert phase(running) == Phase.AGGREGATING
    assert running.ledger.round(running.job, 1).cohort == 3


def test_an_update_given_before_leaving_still_counts() -> None:
    running = running_job()
    running.submit(*running.trainers[:3])
    running.ledger.block(running.trainers[0].sign(LeaveJob(running.job)))
    assert (running.round.cohort, running.round.updates.size) == (4, 3)
    running.submit(running.trainers[3])
    assert running.ledger.aggregations[-1].size == 4


def test_a_round_that_everybody_left_fails() -> None:
    running = running_job()
    running.ledger.block(*(each.sign(LeaveJob(running.job)) for each in running.trainers))
    assert running.ledger.round(running.job, 1).code == "BELOW_MINIMUM"
    assert running.ledger.job(running.job).status == JobStatus.WAITING


def test_no_result_in_time_fails_the_round_and_keeps_the_model() -> None:
    running = running_job()
    task = running.freeze()
    before = running.ledger.job(running.job).model
    assert wants_block_at(running.ledger.state.get) == task.deadline_ms
    running.ledger.block(after_ms=task.deadline_ms - running.ledger.time_ms - 1)
    assert phase(running) == Phase.AGGREGATING
    running.ledger.block(after_ms=1)
    failed = running.ledger.round(running.job, 1)
    assert (failed.phase, failed.code) == (Phase.FAILED, "NO_RESULT")
    assert running.ledger.job(running.job).model == before
    assert running.round.number == 2


def test_the_time_to_aggregate_grows_with_parameters_and_updates() -> None:
    params = Params(aggregation_base_ms=1_000, aggregation_ns_per_parameter_update=3_000_000)
    running = running_job(ledger(params=params))
    task = running.freeze()
    assert task.deadline_ms == running.ledger.time_ms + 1_000 + 3 * running.ledger.job(running.job).parameters * 4


def test_the_time_to_aggregate_grows_with_the_square_where_all_pairs_are_compared() -> None:
    assert [rule.effort(640) for rule in (RULES["fedavg"], RULES["median"], RULES["krum"], RULES["bulyan"])] == [
        640,
        2 * 640,
        640 + 12_800,
        640 + 12_800,
    ]
    settings = (RuleSetting("faulty", 0),)
    params = Params(aggregation_base_ms=1_000, aggregation_ns_per_parameter_update=3_000_000)
    rules = {"rule": "krum", "settings": settings, "minimum": 3, "target": 32, "maximum": 32}
    running = running_job(ledger(params=params, trainers=32), 32, **rules)
    task = running.freeze()
    assert task.deadline_ms == running.ledger.time_ms + 1_000 + 3 * running.ledger.job(running.job).parameters * 64


def test_a_result_in_the_very_block_of_the_deadline_still_counts() -> None:
    running = running_job()
    task = running.freeze()
    running.ledger.block(items=[result_item(task)], after_ms=task.deadline_ms - running.ledger.time_ms)
    assert running.ledger.round(running.job, 1).phase == Phase.CLOSED


def test_the_log_of_a_round_holds_each_accepted_update_in_order_and_proves_it() -> None:
    running = running_job(weights="examples", cap=100)
    bodies = [running.body(each, examples=60 * (at + 1)) for at, each in enumerate(running.trainers)]
    outcome = running.ledger.block(*(who.sign(body) for who, body in zip(running.trainers, bodies, strict=True)))
    task = outcome.aggregations[0]
    entries = list(entries_of(running.ledger.leaves, running.job, 1, task.size))
    assert [entry.member for entry in entries] == [who.account for who in running.trainers]
    assert [entry.weight for entry in entries] == [60, 100, 100, 100]
    assert [entry.cid for entry in entries] == [body.cid for body in bodies]
    assert [entry.index for entry in entries] == [0, 1, 2, 3]
    assert running.round.weight == sum(entry.weight for entry in entries)
    frontier = EMPTY
    for entry in entries:
        frontier, _ = append(frontier, leaf_digest(encode(entry)))
    assert frontier.root() == task.log_root
    name = updates_log(running.job, 1)
    for index, entry in enumerate(entries):
        proof = prove(task.size, index, lambda level, at: running.ledger.node(name, level, at))
        assert verify_log(task.log_root, task.size, index, leaf_digest(encode(entry)), proof)


def test_equal_weights_ignore_the_examples() -> None:
    running = running_job()
    running.ledger.block(*(running.update(who, examples=7 + at) for at, who in enumerate(running.trainers)))
    assert running.round.weight == 4
    assert running.round.examples == 7 + 8 + 9 + 10


def test_a_starting_node_finds_the_rounds_that_wait_for_a_result() -> None:
    running = running_job()
    assert open_aggregations(running.ledger.state.get) == ()
    task = running.freeze()
    assert open_aggregations(running.ledger.state.get) == (task,)
    running.ledger.block(items=[result_item(task)])
    assert open_aggregations(running.ledger.state.get) == ()


def test_metrics_are_averaged_by_examples_and_marked_values_are_counted_apart() -> None:
    running = running_job(metrics=("loss", "accuracy"))
    given_ = [(100, (3, METRIC_NAN)), (300, (7, METRIC_PLUS_INFINITY)), (50, (METRIC_NAN, METRIC_NAN)), (1, (-9, 5))]
    running.ledger.block(
        *(
            running.update(who, examples=examples, metrics=metrics)
            for who, (examples, metrics) in zip(running.trainers, given_, strict=True)
        )
    )
    assert running.round.means == (round((3 * 100 + 7 * 300 - 9) / 401), 5)
    assert [each.marked for each in running.round.sums] == [1, 3]


def test_a_round_opens_with_the_block_that_closes_the_one_before() -> None:
    running = running_job()
    model = running.finish_round()
    assert [event.kind for event in running.ledger.events[-2:]] == [EventKind.ROUND_CLOSED, EventKind.ROUND_OPENED]
    assert (running.round.number, running.round.base) == (2, model)
    assert running.ledger.status_of(running.update(running.trainers[0])) == "ok"


def test_an_update_for_the_round_before_is_late_and_one_for_the_next_is_early() -> None:
    running = running_job()
    early = running.update(running.trainers[0], round=2)
    assert running.ledger.status_of(early) == "WRONG_ROUND"
    running.submit(*running.trainers[1:])
    late = running.update(running.trainers[0])
    running.ledger.blocks(3, after_ms=5_000)
    running.ledger.block(items=[result_item(running.ledger.aggregations[-1])])
    assert running.round.number == 2
    assert running.ledger.status_of(late) == "LATE"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, TRAINERS - 1), st.integers(0, 6), st.booleans(), st.integers(0, 4_000)),
        min_size=1,
        max_size=40,
    )
)
def test_no_round_is_frozen_before_f_plus_1_proposers_could_have_added_to_it(
    steps: list[tuple[int, int, bool, int]],
) -> None:
    """Against a model of the rule that is told what each block held, in plain words and sets."""
    running = big_cohort(validators=7, deadline_ms=5_000, grace_ms=2_000)
    chain, answered = running.ledger, set[int]()
    opened_ms, minimum_ms, since = chain.time_ms, None, None
    deadline_ms, extended = opened_ms + 5_000, False
    for trainer, proposer, within, after_ms in steps:
        transactions = () if trainer in answered else (running.update(running.trainers[trainer], round=1),)
        chain.block(*transactions, proposer=proposer, within_window=within, after_ms=after_ms)
        answered.add(trainer)
        if len(answered) == 2 and minimum_ms is None:
            minimum_ms = chain.time_ms
        graced = minimum_ms is not None and chain.time_ms >= minimum_ms + 2_000
        overdue = chain.time_ms >= deadline_ms
        if len(answered) == TRAINERS:
            expected = Phase.AGGREGATING
        elif since is not None:
            since |= {proposer} if within else set()
            decided = Phase.AGGREGATING if len(answered) >= 2 else Phase.FAILED
            expected = decided if len(since) == 3 else Phase.COLLECTING
        else:
            expected = Phase.COLLECTING
            if len(answered) >= 4 or graced or (overdue and (len(answered) >= 2 or extended)):
                since = set[int]()
            elif overdue:
                deadline_ms, extended = chain.time_ms + 5_000, True
        assert phase(running) == expected
        if expected != Phase.COLLECTING:
            return
