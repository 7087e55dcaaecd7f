"""Who may say what of a round's model: the codes of answers to evaluations, and the places of evaluators."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chain.cid import raw_cid
from fl.errors import PendingJob, Refused
from fl.evaluation import SubmitEvaluation
from fl.jobs import JoinJob, LeaveJob, StopJob
from fl.members import RegisterMember, RevokeMember
from fl.records import MAX_EVALUATORS, EvaluationPhase, Role
from tests.fl.builders import running_job
from tests.fl.evaluating import MICRO, Evaluated, evaluated_job, opened, people, registrar

Case = Callable[[Evaluated], bytes]


def of_a_stranger(job: Evaluated) -> bytes:
    return job.answer(job.ledger.actor("stranger"))


def of_one_who_has_not_joined(job: Evaluated) -> bytes:
    (person, *_) = [each for each in people(job.ledger, 4) if each.account not in job.listed]
    return job.answer(person)


def of_one_who_joined_too_late(job: Evaluated) -> bytes:
    (person,) = [each for each in people(job.ledger, 4) if each.account not in job.listed]
    accepted = job.ledger.job(job.job).rules_hash
    assert job.ledger.status_of(person.sign(JoinJob(job.job, accepted, role=Role.EVALUATOR.value))) == "ok"
    return job.answer(person)


def after_it_is_over(job: Evaluated) -> bytes:
    job.measure(MICRO, MICRO, MICRO)
    assert job.evaluation.phase == EvaluationPhase.CLOSED
    return job.answer(job.evaluators[0])


def twice(job: Evaluated) -> bytes:
    job.measure(MICRO)
    return job.answer(job.evaluators[0], 2 * MICRO)


def after_the_job(job: Evaluated) -> bytes:
    data = job.answer(job.evaluators[0])
    job.ledger.block(job.creator.sign(StopJob(job.job)))
    return data


REFUSED: dict[str, Case] = {
    "NOT_MEMBER": of_a_stranger,
    "UNAUTHORISED": lambda job: job.answer(job.trainers[0]),
    "UNKNOWN_JOB": lambda job: job.evaluators[0].sign(SubmitEvaluation(bytes(32), 1, job.evaluation.model, 1, (1,))),
    "NOT_JOINED": of_one_who_has_not_joined,
    "NOT_DRAWN": of_one_who_joined_too_late,
    "LATE": after_it_is_over,
    "DUPLICATE": twice,
    "WRONG_MODEL": lambda job: job.answer(job.evaluators[0], model=raw_cid(b"another")),
    "WRONG_ROUND": lambda job: job.answer(job.evaluators[0], round=2),
    "JOB_CLOSED": after_the_job,
    "BAD_EXAMPLES": lambda job: job.answer(job.evaluators[0], examples=0),
    "BAD_METRICS": lambda job: job.answer(job.evaluators[0], 1, 2),
}


@pytest.mark.parametrize("code", REFUSED)
def test_each_refusal_of_an_answer_has_its_code_and_changes_nothing(code: str) -> None:
    job = opened()
    data = REFUSED[code](job)
    before = job.evaluation
    assert job.ledger.status_of(data) == code
    assert job.evaluation == before


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("BAD_EXAMPLES", {"examples": 0}),
        ("BAD_EXAMPLES", {"examples": 2**32 + 1}),
        ("BAD_EXAMPLES", {"examples": -1}),
        ("BAD_METRICS", {"values": (1, 2)}),
        ("BAD_METRICS", {"values": ()}),
    ],
)
def test_what_is_wrong_with_the_bytes_is_refused_before_they_are_ordered(code: str, changes: dict[str, int]) -> None:
    job = opened()
    with pytest.raises(Refused) as refused:
        job.ledger.check(job.answer(job.evaluators[0], **changes))
    assert refused.value.code == code
    job.ledger.check(job.answer(job.evaluators[0]))


def test_an_answer_to_a_job_that_is_not_known_here_is_not_judged() -> None:
    job = opened()
    with pytest.raises(PendingJob):
        job.ledger.check(job.evaluators[0].sign(SubmitEvaluation(b"?" * 32, 1, job.evaluation.model, 1, (1,))))


def test_a_job_that_asks_nothing_takes_neither_evaluators_nor_answers() -> None:
    running = running_job()
    (person,) = people(running.ledger, 1)
    accepted = running.ledger.job(running.job).rules_hash
    assert running.ledger.status_of(person.sign(JoinJob(running.job, accepted, role="evaluator"))) == "NO_EVALUATION"
    with pytest.raises(Refused, match="NO_EVALUATION"):
        running.ledger.check(person.sign(SubmitEvaluation(running.job, 1, running.round.base, 1, ())))


@pytest.mark.parametrize("role", ["creator", "king", "operator"])
@pytest.mark.parametrize("body", [lambda job, role: JoinJob(job, bytes(32), role), LeaveJob])
def test_a_job_is_joined_as_a_trainer_or_as_an_evaluator(body: Callable[..., object], role: str) -> None:
    job = evaluated_job()
    with pytest.raises(Refused, match="BAD_ROLES"):
        job.ledger.check(job.creator.sign(body(job.job, role)))


# Places


def test_a_member_may_be_trainer_and_evaluator_and_leaves_each_place_by_itself() -> None:
    job = evaluated_job(0)
    chain, both = job.ledger, job.ledger.actor("both")
    chain.block(registrar(chain).sign(RegisterMember("both", both.key.public, ("evaluator", "trainer"))))
    accepted = chain.job(job.job).rules_hash
    chain.block(both.sign(JoinJob(job.job, accepted)), both.sign(JoinJob(job.job, accepted, role="evaluator")))
    assert (chain.job(job.job).members, chain.job(job.job).evaluators) == (5, 1)
    assert chain.status_of(both.sign(JoinJob(job.job, accepted, role="evaluator"))) == "ALREADY_JOINED"
    assert chain.status_of(both.sign(LeaveJob(job.job))) == "ok"
    assert (chain.job(job.job).members, chain.job(job.job).evaluators) == (4, 1)
    assert chain.status_of(both.sign(LeaveJob(job.job, "evaluator"))) == "ok"
    assert chain.status_of(both.sign(LeaveJob(job.job, "evaluator"))) == "NOT_JOINED"
    assert chain.job(job.job).evaluators == 0


def test_a_trainer_is_no_evaluator_without_the_role() -> None:
    job = evaluated_job(0)
    accepted = job.ledger.job(job.job).rules_hash
    assert job.ledger.status_of(job.trainers[0].sign(JoinJob(job.job, accepted, role="evaluator"))) == "UNAUTHORISED"
    (person,) = people(job.ledger, 1)
    assert job.ledger.status_of(person.sign(JoinJob(job.job, accepted))) == "UNAUTHORISED"
    assert job.ledger.status_of(person.sign(JoinJob(job.job, bytes(32), role="evaluator"))) == "WRONG_RULES"


def test_a_revoked_member_is_an_evaluator_no_longer() -> None:
    job = opened()
    gone = job.evaluators[0]
    job.ledger.block(registrar(job.ledger).sign(RevokeMember(gone.account)))
    assert gone.account not in (*job.listed, *job.cohort)
    assert (job.evaluation.cohort, job.ledger.job(job.job).evaluators) == (2, 2)


def test_a_job_has_no_more_evaluators_than_one_block_can_read() -> None:
    job = evaluated_job(MAX_EVALUATORS)
    chain, one_more = job.ledger, job.ledger.actor("one-more")
    chain.block(registrar(chain).sign(RegisterMember("one-more", one_more.key.public, ("evaluator",))))
    joining = JoinJob(job.job, chain.job(job.job).rules_hash, role="evaluator")
    assert chain.status_of(one_more.sign(joining)) == "JOB_FULL"
    job.close_round()
    job.ledger.block(*(job.answer(who, place) for place, who in enumerate(job.evaluators)))
    assert job.evaluation.values == ((MAX_EVALUATORS - 1) // 2,)
