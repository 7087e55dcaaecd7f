"""Who evaluates a job's models. Their places stand beside those of trainers, and a member may have both.

A cohort is settled when an evaluation opens; whoever leaves it without having answered is not waited for.
"""

from __future__ import annotations

from dataclasses import replace

from fl.errors import Refused
from fl.execution import Execution
from fl.records import MAX_EVALUATORS, Answer, Evaluation, EvaluationPhase, Evaluators, EventKind, Job, Role
from fl.state import State, answer_key, evaluation_cohort_key, evaluation_key, evaluators_key, job_key

UNDER_WAY = (EvaluationPhase.DRAWING, EvaluationPhase.OPEN)
_NOBODY = Evaluators(())


def evaluators_of(state: State, job_id: bytes) -> tuple[bytes, ...]:
    return (state.get(Evaluators, evaluators_key(job_id)) or _NOBODY).accounts


def cohort_of(state: State, job_id: bytes) -> tuple[bytes, ...]:
    """Of the open evaluation."""
    return (state.get(Evaluators, evaluation_cohort_key(job_id)) or _NOBODY).accounts


def open_evaluation(state: State, job_id: bytes, job: Job) -> Evaluation | None:
    found = state.get(Evaluation, evaluation_key(job_id, job.evaluation)) if job.evaluation else None
    return found if found is not None and found.phase in UNDER_WAY else None


def join_evaluators(execution: Execution, job_id: bytes, job: Job, account: bytes) -> None:
    """Into the cohorts of the evaluations that open from here on."""
    listed = evaluators_of(execution.state, job_id)
    if account in listed:
        raise Refused("ALREADY_JOINED")
    if len(listed) == MAX_EVALUATORS:
        raise Refused("JOB_FULL")
    _list(execution, job_id, job, (*listed, account))
    execution.event(EventKind.JOB_JOINED, job_id, subject=account, code=Role.EVALUATOR)


def leave_evaluators(execution: Execution, job_id: bytes, job: Job, account: bytes) -> None:
    """An answer given before leaving still counts."""
    state = execution.state
    listed = evaluators_of(state, job_id)
    if account not in listed:
        raise Refused("NOT_JOINED")
    _list(execution, job_id, job, tuple(each for each in listed if each != account))
    current, cohort = open_evaluation(state, job_id, job), cohort_of(state, job_id)
    if current is not None and account in cohort and state.get(Answer, answer_key(job_id, account)) is None:
        remaining = tuple(each for each in cohort if each != account)
        state.put(evaluation_cohort_key(job_id), Evaluators(remaining))
        fewer = replace(current, cohort=min(current.cohort, len(remaining)))
        state.put(evaluation_key(job_id, current.round), fewer)
    execution.touched.add(job_id)
    execution.event(EventKind.JOB_LEFT, job_id, subject=account, code=Role.EVALUATOR)


def _list(execution: Execution, job_id: bytes, job: Job, accounts: tuple[bytes, ...]) -> None:
    execution.state.put(evaluators_key(job_id), Evaluators(tuple(sorted(accounts))))
    execution.state.put(job_key(job_id), replace(job, evaluators=len(accounts)))
