"""When a round's model is evaluated, what the chain makes of the answers, and how that ends."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.cid import raw_cid
from chain.codec import decode
from chain.genesis import Params
from chain.log import EMPTY, append, leaf_digest
from fl.errors import Refused
from fl.evaluation import is_due
from fl.execution import BlockInput, BlockOutcome
from fl.jobrules import check_rules
from fl.jobs import JoinJob, LeaveJob, ResumeJob, StopJob
from fl.machine import wants_block_at
from fl.metrics import lower_median, marked, measured
from fl.records import (
    MAX_EVALUATORS,
    METRIC_MARKS,
    METRIC_MINUS_INFINITY,
    METRIC_NAN,
    METRIC_PLUS_INFINITY,
    Answer,
    EvaluationPhase,
    EvaluationRules,
    EventKind,
    Goal,
    JobStatus,
    Phase,
    Statistic,
)
from fl.state import answers_log, evaluation_of
from tests.fl.builders import Actor, Ledger, make_rules, result_item, running_job
from tests.fl.evaluating import ACCURACY, MICRO, Evaluated, asked, evaluated_job, opened
from tests.fl.scenario import fingerprint


def events(job: Evaluated, *kinds: EventKind) -> list[tuple[str, int]]:
    return [(event.kind, event.round) for event in job.ledger.events if event.kind in kinds]


# Opening


@pytest.mark.parametrize(("every", "last", "due"), [(0, True, ()), (1, False, (1, 2, 3)), (2, True, (2, 3))])
def test_after_every_kth_round_and_the_last_one(every: int, last: bool, due: tuple[int, ...]) -> None:
    rules = make_rules(evaluation=asked(every=every) if every else EvaluationRules())
    assert tuple(number for number in (1, 2, 3) if is_due(rules, number, last and number == 3)) == due


def test_an_evaluation_opens_beside_the_next_round() -> None:
    job = opened()
    assert (job.evaluation.phase, job.evaluation.round, job.evaluation.cohort) == (EvaluationPhase.OPEN, 1, 3)
    assert job.evaluation.model == job.round.base == raw_cid(b"model/1")
    assert (job.round.number, job.round.phase) == (2, Phase.COLLECTING)
    assert job.cohort == tuple(sorted(each.account for each in job.evaluators))


def test_the_next_round_waits_for_one_that_comes_before_it() -> None:
    job = opened(evaluation=asked(before_next=True))
    assert (job.ledger.job(job.job).status, job.round.number) == (JobStatus.WAITING, 1)
    assert wants_block_at(job.ledger.state.get) == job.evaluation.deadline_ms
    job.measure(MICRO, MICRO)
    assert job.round.number == 1
    job.ledger.block(job.answer(job.evaluators[2]))
    assert (job.evaluation.phase, job.round.number) == (EvaluationPhase.CLOSED, 2)


def test_a_round_that_fails_is_not_evaluated() -> None:
    job = evaluated_job()
    job.ledger.block(items=[result_item(job.freeze(), code="MODEL_RANGE")])
    assert job.ledger.job(job.job).evaluation == 0
    assert events(job, EventKind.EVALUATION_OPENED) == []


@pytest.mark.parametrize("evaluators", [0, 1])
def test_with_fewer_evaluators_than_the_minimum_it_fails_at_once_and_the_job_goes_on(evaluators: int) -> None:
    job = evaluated_job(evaluators)
    job.close_round()
    assert (job.evaluation.phase, job.evaluation.code) == (EvaluationPhase.FAILED, "BELOW_MINIMUM")
    assert job.round.number == 2


def test_it_fails_as_soon_as_too_many_have_left_for_the_minimum() -> None:
    job = opened()
    job.measure(1)
    job.ledger.block(*(each.sign(LeaveJob(job.job, "evaluator")) for each in job.evaluators[1:]))
    assert (job.evaluation.phase, job.evaluation.code) == (EvaluationPhase.FAILED, "BELOW_MINIMUM")


# Closing


def test_it_closes_with_the_last_answer_of_its_cohort() -> None:
    job = opened()
    job.measure(3 * MICRO, 1 * MICRO)
    assert job.evaluation.phase == EvaluationPhase.OPEN
    height = job.ledger.height + 1
    job.ledger.block(job.answer(job.evaluators[2], 2 * MICRO))
    assert (job.evaluation.phase, job.evaluation.values) == (EvaluationPhase.CLOSED, (2 * MICRO,))
    assert (job.evaluation.ended_height, job.evaluation.answers.size) == (height, 3)
    assert job.evaluation.examples == 300


def test_the_log_of_answers_holds_what_was_measured_and_the_state_only_its_root() -> None:
    job = opened()
    job.measure(1, 2, 3)
    log, answers = EMPTY, []
    for position in range(3):
        row = job.ledger.logs[answers_log(job.job, 1)][position]
        log, _ = append(log, leaf_digest(row))
        answers.append(decode(Answer, row, len(row)))
    assert log == job.evaluation.answers
    assert [(each.member, each.values) for each in answers] == [
        (who.account, (value,)) for who, value in zip(job.evaluators, (1, 2, 3), strict=True)
    ]
    left = [key for key in job.ledger.state if key.startswith((b"answer/", b"measuring/"))]
    assert left == []


def until_over(job: Evaluated, proposers: list[int], **block: object) -> int:
    """Empty blocks by these until the evaluation is over; how many it took."""
    for count, proposer in enumerate(proposers, 1):
        job.ledger.block(proposer=proposer, **block)
        if job.evaluation.phase in (EvaluationPhase.CLOSED, EvaluationPhase.FAILED):
            return count
    return 0


def test_the_deadline_ends_it_once_f_plus_1_have_proposed_since() -> None:
    job = opened()
    job.measure(5, 7)
    job.ledger.block(after_ms=10_000, proposer=0)
    assert job.evaluation.closing_height == job.ledger.height
    assert wants_block_at(job.ledger.state.get) == 0
    assert until_over(job, [1, 1, 1, 1]) == 0, "one validator alone ends nothing"
    assert until_over(job, [2], within_window=False) == 0, "nor does one who was not free to include batches"
    assert job.ledger.status_of(job.answer(job.evaluators[2], 6), proposer=1) == "ok"
    assert job.evaluation.phase == EvaluationPhase.CLOSED, "all have answered"
    assert job.evaluation.values == (6,)


def test_a_deadline_with_the_minimum_closes_and_one_below_it_fails() -> None:
    for answers, phase, code in ((2, EvaluationPhase.CLOSED, ""), (1, EvaluationPhase.FAILED, "BELOW_MINIMUM")):
        job = opened()
        job.measure(*range(answers))
        job.ledger.block(after_ms=10_000, proposer=0)
        assert until_over(job, [1, 2]) == 2
        assert (job.evaluation.phase, job.evaluation.code) == (phase, code)
        assert job.evaluation.values == ((0,) if not code else ())
        assert job.round.phase == Phase.COLLECTING, "the job goes on"


def test_proposers_of_another_epoch_count_afresh() -> None:
    job = opened()
    job.measure(1, 2)
    job.ledger.block(after_ms=10_000)
    job.ledger.block(proposer=1)
    job.ledger.epoch += 1
    assert until_over(job, [2, 1]) == 2


def test_whoever_leaves_without_an_answer_is_not_waited_for_and_one_given_before_counts() -> None:
    job = opened()
    first, second, third = job.evaluators
    job.measure(5, 7)
    assert job.ledger.status_of(first.sign(LeaveJob(job.job, "evaluator"))) == "ok"
    assert (job.evaluation.phase, job.evaluation.cohort) == (EvaluationPhase.OPEN, 3)
    job.ledger.block(third.sign(LeaveJob(job.job, "evaluator")))
    assert (job.evaluation.phase, job.evaluation.values, job.evaluation.cohort) == (EvaluationPhase.CLOSED, (5,), 2)
    assert job.listed == (second.account,)


def test_the_next_one_that_is_due_ends_the_one_before_with_what_it_has() -> None:
    for answers, phase, code in ((2, EvaluationPhase.CLOSED, ""), (1, EvaluationPhase.FAILED, "OVERTAKEN")):
        job = opened()
        job.measure(*range(answers))
        late = job.answer(job.evaluators[2])
        job.close_round()
        assert (job.evaluation_of(1).phase, job.evaluation_of(1).code) == (phase, code)
        assert (job.evaluation.round, job.evaluation.phase) == (2, EvaluationPhase.OPEN)
        assert job.ledger.status_of(late) == "LATE"
        assert job.ledger.status_of(job.answer(job.evaluators[0])) == "ok", "what was answered before is forgotten"


def test_stopping_a_job_stops_its_evaluation() -> None:
    job = opened()
    job.measure(1, 2)
    job.ledger.block(job.creator.sign(StopJob(job.job)))
    assert (job.evaluation.phase, job.evaluation.code) == (EvaluationPhase.FAILED, "STOPPED")
    assert job.ledger.job(job.job).status == JobStatus.STOPPED


# The last round


def test_the_job_stays_open_until_its_last_evaluation_is_over() -> None:
    job = opened(rounds=1)
    assert job.ledger.job(job.job).status == JobStatus.WAITING
    job.ledger.blocks(3)
    assert job.round.number == 1, "no further round opens"
    job.measure(1, 2, 3)
    assert job.ledger.job(job.job).status == JobStatus.FINISHED
    ended = events(job, EventKind.ROUND_CLOSED, EventKind.EVALUATION_CLOSED, EventKind.JOB_FINISHED)
    assert ended == [("round_closed", 1), ("evaluation_closed", 1), ("job_finished", 1)]
    assert wants_block_at(job.ledger.state.get) is None


def test_a_last_evaluation_that_fails_ends_the_job_too() -> None:
    job = opened(rounds=1)
    job.ledger.block(after_ms=10_000, proposer=0)
    assert until_over(job, [1, 2]) == 2
    assert (job.evaluation.phase, job.ledger.job(job.job).status) == (EvaluationPhase.FAILED, JobStatus.FINISHED)


def test_the_last_round_is_evaluated_though_its_number_is_not_due() -> None:
    job = evaluated_job(evaluation=asked(every=5), rounds=2)
    job.close_round()
    assert job.ledger.job(job.job).evaluation == 0
    job.close_round()
    assert job.evaluation.round == 2


def test_a_job_that_was_paused_evaluates_on_and_ends_when_it_is_resumed() -> None:
    job = opened(rounds=2, max_failed=1)
    job.ledger.block(items=[result_item(job.freeze(), code="MODEL_RANGE")])
    assert job.ledger.job(job.job).status == JobStatus.PAUSED
    job.measure(1, 2, 3)
    assert (job.evaluation.phase, job.ledger.job(job.job).status) == (EvaluationPhase.CLOSED, JobStatus.PAUSED)
    job.ledger.block(job.creator.sign(ResumeJob(job.job)))
    assert (job.ledger.job(job.job).status, job.round.number) == (JobStatus.RUNNING, 3)


# The goal


def test_the_best_model_is_named_and_a_worse_or_equal_one_changes_nothing() -> None:
    job = evaluated_job(goal=ACCURACY, rounds=5)
    best = []
    for value in (70, 60, 90, 90):
        job.close_round()
        job.measure(value, value, value)
        known = job.ledger.job(job.job)
        best.append((known.best_round, known.best_value, known.best))
    models = [raw_cid(b"model/%d" % number) for number in range(5)]
    assert best == [(1, 70, models[1]), (1, 70, models[1]), (3, 90, models[3]), (3, 90, models[3])]
    assert events(job, EventKind.BEST_MODEL) == [("best_model", 1), ("best_model", 3)]


def test_smaller_is_better_where_the_goal_says_so() -> None:
    job = evaluated_job(goal=Goal("accuracy"), rounds=5)
    for value in (-5, 3, -7):
        job.close_round()
        job.measure(value, value, value)
    assert (job.ledger.job(job.job).best_round, job.ledger.job(job.job).best_value) == (3, -7)


@pytest.mark.parametrize("mark", sorted(METRIC_MARKS))
def test_a_model_that_nobody_could_measure_is_never_best(mark: int) -> None:
    job = evaluated_job(goal=ACCURACY)
    job.close_round()
    job.measure(mark, mark, mark)
    assert (job.evaluation.values, job.evaluation.marked) == ((METRIC_NAN,), (3,))
    assert job.ledger.job(job.job).best == b""


def test_without_a_goal_no_model_is_best() -> None:
    job = opened()
    job.measure(1, 2, 3)
    assert job.evaluation.phase == EvaluationPhase.CLOSED
    assert job.ledger.job(job.job).best == b""


def test_the_job_is_finished_once_a_model_measures_as_well_as_is_wanted() -> None:
    goal = replace(ACCURACY, stop=True, value=90)
    job = evaluated_job(goal=goal, rounds=9)
    job.close_round()
    job.measure(89, 89, 89)
    assert job.ledger.job(job.job).status == JobStatus.RUNNING
    job.close_round()
    job.submit(job.trainers[0])
    assert job.round.updates.size == 1
    job.measure(90, 90, 90)
    assert (job.round.number, job.round.phase, job.round.code) == (3, Phase.FAILED, "GOAL_REACHED")
    known = job.ledger.job(job.job)
    assert (known.status, known.best_round, known.model_round) == (JobStatus.FINISHED, 2, 2)
    assert wants_block_at(job.ledger.state.get) is None


def test_before_the_next_round_the_goal_ends_the_job_without_one() -> None:
    job = opened(goal=replace(ACCURACY, stop=True, value=90), evaluation=asked(before_next=True))
    job.measure(95, 95, 95)
    assert (job.round.number, job.ledger.job(job.job).status) == (1, JobStatus.FINISHED)


def test_a_goal_of_training_ends_the_job_after_its_last_evaluation() -> None:
    """The trainers report a loss of 1."""
    job = opened(goal=Goal("loss", stop=True, value=MICRO), rounds=9)
    assert (job.round.number, job.ledger.job(job.job).status) == (1, JobStatus.WAITING)
    job.measure(1, 2, 3)
    assert job.ledger.job(job.job).status == JobStatus.FINISHED
    unreached = opened(goal=Goal("loss", stop=True, value=MICRO - 1), rounds=9)
    assert unreached.round.number == 2
    silent = running_job(goal=Goal("loss", stop=True, value=MICRO), rounds=9)
    silent.finish_round()
    assert silent.ledger.job(silent.job).status == JobStatus.FINISHED


# Lots


def test_the_beacon_of_a_later_block_draws_the_cohort() -> None:
    drawn = set[bytes]()
    for beacon in range(40):
        job = evaluated_job(10, evaluation=asked(cohort=3))
        job.close_round()
        assert (job.evaluation.phase, job.evaluation.cohort) == (EvaluationPhase.DRAWING, 3)
        assert wants_block_at(job.ledger.state.get) == 0
        assert len(job.cohort) == 10, "the list is settled, and nobody knows yet who of it"
        early = job.answer(job.evaluators[0])
        block = job.ledger.input(early)
        job.ledger.execute(replace(block, beacon=b"%032d" % beacon))
        assert job.ledger.receipts[-1].status == "NOT_DRAWN"
        assert (job.evaluation.phase, job.evaluation.cohort, len(job.cohort)) == (EvaluationPhase.OPEN, 3, 3)
        assert set(job.cohort) <= set(job.listed)
        drawn.update(job.cohort)
    assert drawn == set(job.listed), "each has a chance"


def test_whoever_is_not_drawn_is_not_asked_and_those_who_are_end_it() -> None:
    job = evaluated_job(6, evaluation=asked(cohort=2))
    job.close_round()
    job.ledger.block()
    asked_, others = list[Actor](), list[Actor]()
    for each in job.evaluators:
        (asked_ if each.account in job.cohort else others).append(each)
    assert job.ledger.status_of(job.answer(others[0])) == "NOT_DRAWN"
    job.ledger.block(*(job.answer(each, 4) for each in asked_))
    assert (job.evaluation.phase, job.evaluation.values) == (EvaluationPhase.CLOSED, (4,))


def test_whoever_leaves_before_the_lots_are_drawn_is_not_among_them() -> None:
    job = evaluated_job(4, evaluation=asked(cohort=3))
    job.close_round()
    leaving = job.evaluators[:2]
    job.ledger.block(*(each.sign(LeaveJob(job.job, "evaluator")) for each in leaving))
    assert set(job.cohort) == {each.account for each in job.evaluators[2:]}
    assert (job.evaluation.phase, job.evaluation.cohort) == (EvaluationPhase.OPEN, 2)


def test_with_no_more_evaluators_than_are_wanted_nothing_is_drawn() -> None:
    job = evaluated_job(3, evaluation=asked(cohort=3))
    job.close_round()
    assert (job.evaluation.phase, len(job.cohort)) == (EvaluationPhase.OPEN, 3)


# Statistics, against plain words

VALUES = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from(sorted(METRIC_MARKS)), st.integers(-5, 5))


@given(st.lists(VALUES, max_size=9))
def test_the_median_is_the_lower_one_of_those_who_gave_a_number(values: list[int]) -> None:
    numbers = [each for each in values if each not in METRIC_MARKS]
    found = lower_median(values)
    if not numbers:
        assert found == METRIC_NAN
        return
    below, above = sum(each < found for each in numbers), sum(each > found for each in numbers)
    assert found in numbers
    assert 2 * below < len(numbers) and 2 * above <= len(numbers), "the lower of two in the middle"


@given(st.lists(st.tuples(st.integers(1, 2**32), st.tuples(VALUES, VALUES)), min_size=1, max_size=6))
def test_the_mean_is_weighted_by_examples_and_rounded_to_even(given_: list[tuple[int, tuple[int, int]]]) -> None:
    answers = [Answer(bytes(32), bytes(32), examples, values) for examples, values in given_]
    for place, found in enumerate(measured(Statistic.MEAN, 2, answers)):
        numbers = [(each.examples, each.values[place]) for each in answers if each.values[place] not in METRIC_MARKS]
        weight = sum(examples for examples, _ in numbers)
        assert found == (round(Fraction(sum(e * v for e, v in numbers), weight)) if numbers else METRIC_NAN)
        assert marked(2, answers)[place] == len(answers) - len(numbers)


def test_an_evaluation_says_how_many_of_each_metric_gave_no_number() -> None:
    job = opened(evaluation=asked(metrics=("accuracy", "loss"), statistic=Statistic.MEAN.value))
    for who, values in zip(
        job.evaluators, ((METRIC_NAN, 1), (METRIC_PLUS_INFINITY, 2), (7, METRIC_MINUS_INFINITY)), strict=True
    ):
        job.ledger.block(job.answer(who, *values, examples=10))
    assert (job.evaluation.values, job.evaluation.marked) == ((7, 2), (2, 1))


# Rules


@pytest.mark.parametrize(
    "rules",
    [
        {"evaluation": EvaluationRules(minimum=1)},
        {"evaluation": asked(minimum=0)},
        {"evaluation": asked(minimum=3, cohort=2)},
        {"evaluation": asked(cohort=MAX_EVALUATORS + 1)},
        {"evaluation": asked(minimum=MAX_EVALUATORS + 1)},
        {"evaluation": asked(deadline_ms=0)},
        {"evaluation": asked(statistic="mode")},
        {"evaluation": asked(metrics=())},
        {"evaluation": asked(metrics=("loss", "loss"))},
        {"evaluation": asked(metrics=("a b",))},
        {"goal": Goal("accuracy")},
        {"goal": Goal("", larger=True)},
        {"goal": Goal("loss", stop=True, value=METRIC_NAN)},
        {"goal": Goal("loss", value=1)},
    ],
    ids=repr,
)
def test_rules_of_evaluation_that_cannot_work_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(Refused, match="BAD_RULES"):
        check_rules(make_rules(**rules), Params())


def test_rules_of_evaluation_that_can_work_are_taken() -> None:
    for evaluation in (asked(), asked(minimum=2, cohort=2), asked(statistic=Statistic.MEAN.value)):
        check_rules(make_rules(evaluation=evaluation, goal=replace(ACCURACY, stop=True, value=-1)), Params())
    check_rules(make_rules(goal=Goal("loss", stop=True, value=7)), Params())


# Again


def test_a_chain_that_restarts_from_its_rows_goes_on_to_the_same_bytes() -> None:
    """Every block is executed a second time by a machine that has nothing but the state before it."""
    job = evaluated_job(6, evaluation=asked(cohort=3), goal=ACCURACY, rounds=3)
    chain, inputs = job.ledger, []
    start = Ledger(chain.genesis, dict(chain.state), height=chain.height, time_ms=chain.time_ms)
    start.receipts, start.events = list(chain.receipts), list(chain.events)
    before = len(chain.outcomes)
    original = chain.execute

    def recording(block: BlockInput) -> BlockOutcome:
        inputs.append(block)
        return original(block)

    chain.execute = recording  # type: ignore[method-assign]
    for value in (3, 9, 5):
        job.close_round()
        chain.block()
        drawn = [each for each in job.evaluators if each.account in job.cohort]
        chain.block(*(job.answer(each, value) for each in drawn))
    assert chain.job(job.job).best_value == 9
    assert chain.job(job.job).status == JobStatus.FINISHED
    for block in inputs:
        start.execute(block)
    assert start.state == chain.state
    chain.outcomes = chain.outcomes[before:]
    assert fingerprint(start) == fingerprint(chain)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("answer", "round", "leave", "join", "time", "nothing")),
        st.integers(0, 4),
        st.integers(-3, 3),
        st.integers(0, 3),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from((0, 2, 3)), st.booleans())
def test_whatever_happens_an_evaluation_counts_its_answers_and_ends_as_the_rule_says(
    steps: list[tuple[str, int, int, int]], cohort: int, before_next: bool
) -> None:
    job = evaluated_job(5, evaluation=asked(cohort=cohort, before_next=before_next), goal=ACCURACY, rounds=4)
    chain, given_ = job.ledger, dict[int, dict[bytes, int]]()
    accepted = chain.job(job.job).rules_hash
    for what, who, value, proposer in steps:
        known, person = chain.job(job.job), job.evaluators[who]
        if what == "answer" and known.evaluation:
            number = known.evaluation
            if chain.status_of(job.answer(person, value), proposer=proposer) == "ok":
                assert given_.setdefault(number, {}).setdefault(person.account, value) == value
        elif what == "round" and known.status == JobStatus.RUNNING:
            job.close_round()
        elif what == "leave":
            chain.block(person.sign(LeaveJob(job.job, "evaluator")), proposer=proposer)
        elif what == "join":
            chain.block(person.sign(JoinJob(job.job, accepted, role="evaluator")), proposer=proposer)
        else:
            chain.block(proposer=proposer, after_ms=11_000 if what == "time" else 100)
        for number in range(1, chain.job(job.job).round + 1):
            if evaluation_of(chain.state.get, job.job, number) is not None:
                _check(job, number, list(given_.get(number, {}).values()))
    best = [each for each in given_.items() if job.evaluation_of(each[0]).phase == EvaluationPhase.CLOSED]
    values = {number: lower_median(list(answers.values())) for number, answers in best}
    assert chain.job(job.job).best_value == max(values.values(), default=0)


def _check(job: Evaluated, number: int, answers: list[int]) -> None:
    found = job.evaluation_of(number)
    assert found.answers.size == len(answers)
    if found.phase == EvaluationPhase.CLOSED:
        assert len(answers) >= 2 and found.values == (lower_median(answers),)
    elif found.phase == EvaluationPhase.FAILED:
        assert len(answers) < 2 and found.code in ("BELOW_MINIMUM", "OVERTAKEN")
    else:
        assert number == job.ledger.job(job.job).evaluation
        assert len(answers) < found.cohort
