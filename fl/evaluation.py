"""Evaluations: a cohort of evaluators measures the model of a round, and one value for each metric stands on the chain.

    drawing ── the next block's beacon ──▶ open ── all have answered, or the deadline ──▶ closed
                                            └── below minimum ──▶ failed, and the job goes on

An evaluation opens with the block that closes its round, beside the next round or before it. A job has one at a time:
the next one that is due ends the one before with what it has. When all of the cohort have answered there is nobody
left to shut out, and it ends at once; a deadline ends it as it ends a round (`fl.transitions`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from chain.codec import I64, U64, Count, Digest, encode
from chain.genesis import Params
from chain.log import EMPTY
from chain.transaction import Transaction
from fl.deadlines import later, with_proposer
from fl.errors import PendingJob, Refused
from fl.evaluators import UNDER_WAY, cohort_of, evaluators_of, open_evaluation
from fl.execution import Call, Effect, Execution
from fl.lots import drawn
from fl.members import member_in_role
from fl.metrics import better, marked, measured
from fl.records import (
    MAX_EXAMPLES,
    MAX_METRICS,
    METRIC_MARKS,
    NEVER,
    Answer,
    Cid,
    Evaluation,
    EvaluationPhase,
    Evaluators,
    EventKind,
    Job,
    JobRules,
    JobStatus,
    Role,
)
from fl.state import (
    RulesOf,
    State,
    answer_key,
    answers_log,
    evaluation_cohort_key,
    evaluation_key,
    job_key,
    rules_key,
)


@dataclass(frozen=True, slots=True)
class SubmitEvaluation:
    """What an evaluator measured of `model`, which `round` made, on so many examples. `values` are in the order of the
    metrics that the job's evaluation names."""

    job: Digest
    round: U64
    model: Cid
    examples: I64
    values: Annotated[tuple[I64, ...], Count(0, MAX_METRICS)]


def check_evaluation(body: SubmitEvaluation, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    rules = rules_of(body.job)
    if rules is None:
        raise PendingJob(body.job)
    _check_numbers(body, rules)


def _check_numbers(body: SubmitEvaluation, rules: JobRules) -> None:
    if not rules.evaluation.every:
        raise Refused("NO_EVALUATION")
    if not 1 <= body.examples <= MAX_EXAMPLES:
        raise Refused("BAD_EXAMPLES")
    if len(body.values) != len(rules.evaluation.metrics):
        raise Refused("BAD_METRICS", "The answer must give one value for each metric that the evaluation names.")


def submit_evaluation(execution: Execution, call: Call, body: SubmitEvaluation) -> Effect:
    state = execution.state
    member_in_role(state, call.sender, Role.EVALUATOR)
    job, rules = state.get(Job, job_key(body.job)), state.get(JobRules, rules_key(body.job))
    if job is None or rules is None:
        raise Refused("UNKNOWN_JOB")
    _check_numbers(body, rules)
    if job.status in (JobStatus.FINISHED, JobStatus.STOPPED):
        raise Refused("JOB_CLOSED")
    if call.sender not in evaluators_of(state, body.job):
        raise Refused("NOT_JOINED", "The member is no evaluator of this job.")
    current = _open_for(state, call.sender, body)
    position = current.answers.size
    answer = Answer(call.tx_id, call.sender, body.examples, body.values)
    leaf = encode(answer)
    state.put(answer_key(body.job, call.sender), answer)
    state.put(
        evaluation_key(body.job, body.round),
        replace(
            current,
            answers=execution.log(answers_log(body.job, body.round), current.answers, (leaf,)),
            examples=current.examples + body.examples,
        ),
    )
    execution.touched.add(body.job)
    return Effect(body.job, body.round, position)


def _open_for(state: State, account: bytes, body: SubmitEvaluation) -> Evaluation:
    """The evaluation that this answers, while it may."""
    current = state.get(Evaluation, evaluation_key(body.job, body.round))
    if current is None:
        raise Refused("WRONG_ROUND", "No evaluation has opened for this round's model.")
    if current.phase not in UNDER_WAY:
        raise Refused("LATE", "The evaluation of this round's model is over.")
    if current.phase == EvaluationPhase.DRAWING or account not in cohort_of(state, body.job):
        raise Refused("NOT_DRAWN")
    if state.get(Answer, answer_key(body.job, account)) is not None:
        raise Refused("DUPLICATE")
    if body.model != current.model:
        raise Refused("WRONG_MODEL")
    return current


# What blocks bring about


def is_due(rules: JobRules, number: int, last: bool) -> bool:
    every = rules.evaluation.every
    return every > 0 and (last or number % every == 0)


def open_if_due(execution: Execution, job_id: bytes, rules: JobRules, number: int, last: bool) -> None:
    """Of the model that the job has from this block on, which this round made."""
    job = execution.state.get(Job, job_key(job_id))
    if job is None or not is_due(rules, number, last):
        return
    overtaken = open_evaluation(execution.state, job_id, job)
    if overtaken is not None:
        job = _end(execution, job_id, job, rules, overtaken, "OVERTAKEN")
    _open(execution, job_id, job, rules, number)


def _open(execution: Execution, job_id: bytes, job: Job, rules: JobRules, number: int) -> None:
    block, asked = execution.block, rules.evaluation
    settled = evaluators_of(execution.state, job_id)
    by_lot = 0 < asked.cohort < len(settled)
    opened = Evaluation(
        round=number,
        phase=EvaluationPhase.DRAWING if by_lot else EvaluationPhase.OPEN,
        model=job.model,
        opened_height=block.height,
        opened_ms=block.time_ms,
        cohort=asked.cohort if by_lot else len(settled),
        deadline_ms=later(block.time_ms, asked.deadline_ms),
        closing_height=0,
        closing_epoch=0,
        closing_proposers=(),
        answers=EMPTY,
        examples=0,
        ended_height=0,
        ended_ms=0,
        code="",
        marked=(),
        values=(),
    )
    execution.state.put(evaluation_key(job_id, number), opened)
    execution.state.put(evaluation_cohort_key(job_id), Evaluators(settled))
    execution.state.put(job_key(job_id), replace(job, evaluation=number))
    execution.touched.add(job_id)
    execution.event(EventKind.EVALUATION_OPENED, job_id, number, subject=job.model, value=opened.cohort)


def advance_evaluation(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    """At the end of a block."""
    block = execution.block
    current = open_evaluation(execution.state, job_id, job)
    if current is None:
        return
    if current.phase == EvaluationPhase.DRAWING:
        if block.height == current.opened_height:
            return
        current = _with_cohort(execution, job_id, current)
    if current.answers.size >= current.cohort or current.cohort < rules.evaluation.minimum:
        _end(execution, job_id, job, rules, current, "BELOW_MINIMUM")
    elif current.closing_height:
        seen = with_proposer(execution, current)
        execution.state.put(evaluation_key(job_id, current.round), seen)
        if len(seen.closing_proposers) > block.f:
            _end(execution, job_id, job, rules, seen, "BELOW_MINIMUM")
    elif block.time_ms >= current.deadline_ms:
        closing = replace(current, closing_height=block.height, closing_epoch=block.epoch)
        execution.state.put(evaluation_key(job_id, current.round), closing)


def due_ms(current: Evaluation | None) -> int:
    """The block time at which the open evaluation wants a block."""
    if current is None:
        return NEVER
    wanted_at_once = current.phase == EvaluationPhase.DRAWING or current.closing_height
    return 0 if wanted_at_once else current.deadline_ms


def stop_evaluation(execution: Execution, job_id: bytes, job: Job) -> None:
    """Of a job that is stopped; whatever was answered is not looked at."""
    current = open_evaluation(execution.state, job_id, job)
    if current is not None:
        _fail(execution, job_id, current, "STOPPED")


def _with_cohort(execution: Execution, job_id: bytes, current: Evaluation) -> Evaluation:
    key = evaluation_key(job_id, current.round)
    members = drawn(execution.block.beacon, key, cohort_of(execution.state, job_id), current.cohort)
    execution.state.put(evaluation_cohort_key(job_id), Evaluators(members))
    opened = replace(current, phase=EvaluationPhase.OPEN, cohort=len(members))
    execution.state.put(key, opened)
    return opened


def _end(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Evaluation, below: str) -> Job:
    if current.answers.size >= rules.evaluation.minimum:
        return _close(execution, job_id, job, rules, current)
    _fail(execution, job_id, current, below)
    return job


def _fail(execution: Execution, job_id: bytes, current: Evaluation, code: str) -> None:
    _answers_taken(execution, job_id)
    _put_ended(execution, job_id, replace(current, phase=EvaluationPhase.FAILED, code=code))
    execution.event(
        EventKind.EVALUATION_FAILED, job_id, current.round, current.model, code=code, value=current.answers.size
    )


def _close(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Evaluation) -> Job:
    answers, count = _answers_taken(execution, job_id), len(rules.evaluation.metrics)
    values = measured(rules.evaluation.statistic, count, answers)
    closed = replace(current, phase=EvaluationPhase.CLOSED, marked=marked(count, answers), values=values)
    _put_ended(execution, job_id, closed)
    execution.event(EventKind.EVALUATION_CLOSED, job_id, current.round, current.model, value=current.answers.size)
    return _with_best(execution, job_id, job, rules, closed)


def _answers_taken(execution: Execution, job_id: bytes) -> list[Answer]:
    """Out of the state, which keeps their root."""
    state, answers = execution.state, []
    for account in cohort_of(state, job_id):
        answer = state.get(Answer, answer_key(job_id, account))
        if answer is not None:
            answers.append(answer)
            state.delete(answer_key(job_id, account), Answer)
    state.delete(evaluation_cohort_key(job_id), Evaluators)
    return answers


def _put_ended(execution: Execution, job_id: bytes, current: Evaluation) -> None:
    block = execution.block
    ended = replace(current, ended_height=block.height, ended_ms=block.time_ms)
    execution.state.put(evaluation_key(job_id, current.round), ended)


def _with_best(execution: Execution, job_id: bytes, job: Job, rules: JobRules, closed: Evaluation) -> Job:
    goal, named = rules.goal, rules.evaluation.metrics
    if goal.metric not in named:
        return job
    value = closed.values[named.index(goal.metric)]
    if value in METRIC_MARKS or (job.best and not better(goal, value, job.best_value)):
        return job
    best = replace(job, best=closed.model, best_round=closed.round, best_value=value)
    execution.state.put(job_key(job_id), best)
    execution.event(EventKind.BEST_MODEL, job_id, closed.round, subject=closed.model)
    return best
