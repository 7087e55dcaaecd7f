"""What time and blocks bring about, at the end of each block, job by job in the order of their ids.

A round that collects is *complete* once accepted updates reach the target, or the grace after the minimum, or the
deadline, has passed. It then stays open until f + 1 distinct validators have proposed later blocks in which they were
free to include batches: one of them is honest, so no leader can shut an update out by closing the round on it. Only
when the whole cohort has answered, or no more may be counted, is there nobody left to shut out, and the phase is
decided at once.

A deadline below the minimum is extended once. The next one completes the phase like any other, and what the round then
holds decides whether it goes on or has failed. A check-in ends in the same way, without a target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fl.course import draw, fail_round, fail_round_and_go_on, go_on, open_round, pause
from fl.deadlines import later, with_proposer
from fl.evaluation import advance_evaluation
from fl.evaluation import due_ms as evaluation_due_ms
from fl.evaluators import open_evaluation
from fl.execution import Execution
from fl.metrics import is_measured_to_goal, is_over
from fl.records import NEVER, EventKind, Job, JobRules, JobStatus, OpenJob, Phase, Round
from fl.state import job_key, round_key, rules_key


def advance_jobs(execution: Execution) -> None:
    now = execution.block.time_ms
    opened = {each.job: each for each in execution.open_jobs()}
    for job_id in sorted(opened):
        if job_id in execution.touched or opened[job_id].due_ms <= now:
            _advance(execution, job_id, opened[job_id])


def _advance(execution: Execution, job_id: bytes, opened: OpenJob) -> None:
    state = execution.state
    job, rules = state.get(Job, job_key(job_id)), state.get(JobRules, rules_key(job_id))
    if job is None or rules is None:
        return
    advance_evaluation(execution, job_id, job, rules)
    job = state.get(Job, job_key(job_id)) or job
    if job.status == JobStatus.RUNNING:
        _advance_round(execution, job_id, job, rules)
        job = state.get(Job, job_key(job_id)) or job
    if job.status == JobStatus.WAITING:
        _after_round(execution, job_id, job, rules)
        job = state.get(Job, job_key(job_id)) or job
    if job.status in (JobStatus.FINISHED, JobStatus.STOPPED):
        execution.close_job(job_id)
        return
    due_ms = min(
        _due_ms(job, rules, state.get(Round, round_key(job_id, job.round))),
        evaluation_due_ms(open_evaluation(state, job_id, job)),
    )
    if due_ms != opened.due_ms:
        execution.set_open_job(replace(opened, due_ms=due_ms))


def _after_round(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    """From a job between two rounds: to the next one, or to its end. Either may have to wait for an evaluation."""
    over = is_over(rules, job, execution.state.get(Round, round_key(job_id, job.round)))
    measured = open_evaluation(execution.state, job_id, job) is None
    if job.pausing and not over:
        pause(execution, job_id, job)
    elif not measured and (over or rules.evaluation.before_next):
        return
    elif over:
        execution.state.put(job_key(job_id), replace(job, status=JobStatus.FINISHED, opens_ms=NEVER, pausing=False))
        execution.event(EventKind.JOB_FINISHED, job_id, job.round, subject=job.model)
    else:
        _open_if_due(execution, job_id, job, rules)


def _open_if_due(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    """The first round waits for its target, or for the grace after its minimum, so that those who join
    together begin together; later ones open as soon as the minimum is there."""
    now = execution.block.time_ms
    if job.members < rules.minimum:
        opens_ms = NEVER
    elif job.members >= rules.target or job.round > 0:
        opens_ms = now
    elif job.opens_ms == NEVER:
        opens_ms = later(now, min(rules.grace_ms, rules.deadline_ms))
    else:
        opens_ms = job.opens_ms
    if opens_ms <= now and opens_ms != NEVER:
        open_round(execution, job_id, job, rules)
    elif opens_ms != job.opens_ms:
        execution.state.put(job_key(job_id), replace(job, opens_ms=opens_ms))


def _advance_round(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    current = execution.state.get(Round, round_key(job_id, job.round))
    if current is None:
        return
    if is_measured_to_goal(rules, job):
        fail_round(execution, job_id, current, "GOAL_REACHED")
        execution.state.put(job_key(job_id), replace(job, status=JobStatus.WAITING))
        return
    _ADVANCE[Phase(current.phase)](execution, job_id, job, rules, current)


def _advance_check_in(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    waiting = _Waiting(current.checked_in, current.cohort, False, rules.cohort.check_in_ms)
    _advance_waiting(execution, job_id, job, rules, current, waiting)


def _advance_collecting(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    accepted = current.updates.size
    enough = accepted >= rules.target or _grace_ends_ms(current, rules) <= execution.block.time_ms
    waiting = _Waiting(accepted, min(current.cohort, rules.maximum), enough, rules.deadline_ms)
    _advance_waiting(execution, job_id, job, rules, current, waiting)


def _advance_aggregating(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    if execution.block.time_ms >= current.aggregation_deadline_ms:
        fail_round_and_go_on(execution, job_id, job, rules, current, "NO_RESULT")


_ADVANCE = {
    Phase.CHECK_IN: _advance_check_in,
    Phase.DRAWING: draw,
    Phase.COLLECTING: _advance_collecting,
    Phase.AGGREGATING: _advance_aggregating,
}
"""What a block may bring about in a phase. A round that came into it with this block is not looked at again, so a draw
is by a later block's beacon than the one whose end settled the candidates."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """For answers: how many there are, how many there can be, whether they are enough before the deadline, and by how
    much that is extended."""

    answered: int
    everybody: int
    enough: bool
    span_ms: int


def _advance_waiting(
    execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round, waiting: _Waiting
) -> None:
    key, is_over = round_key(job_id, current.number), execution.block.time_ms >= current.deadline_ms
    if waiting.answered >= waiting.everybody:
        _decide(execution, job_id, job, rules, current, waiting)
    elif current.closing_height:
        seen = with_proposer(execution, current)
        execution.state.put(key, seen)
        if len(seen.closing_proposers) > execution.block.f:
            _decide(execution, job_id, job, rules, seen, waiting)
    elif waiting.enough or (is_over and (waiting.answered >= rules.minimum or current.extended)):
        closing = replace(current, closing_height=execution.block.height, closing_epoch=execution.block.epoch)
        execution.state.put(key, closing)
        execution.event(EventKind.ROUND_CLOSING, job_id, current.number, value=waiting.answered)
    elif is_over:
        deadline_ms = later(execution.block.time_ms, waiting.span_ms)
        execution.state.put(key, replace(current, deadline_ms=deadline_ms, extended=True))
        execution.event(EventKind.ROUND_EXTENDED, job_id, current.number, value=deadline_ms)


def _decide(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round, waiting: _Waiting) -> None:
    if waiting.answered >= rules.minimum:
        go_on(execution, job_id, job, rules, current)
    else:
        fail_round_and_go_on(execution, job_id, job, rules, current, "BELOW_MINIMUM")


def _grace_ends_ms(current: Round, rules: JobRules) -> int:
    return later(current.minimum_ms, rules.grace_ms) if current.minimum_ms else NEVER


def _due_ms(job: Job, rules: JobRules, current: Round | None) -> int:
    if job.status == JobStatus.WAITING:
        return job.opens_ms
    if job.status == JobStatus.PAUSED or current is None:
        return NEVER
    if current.phase == Phase.AGGREGATING:
        return current.aggregation_deadline_ms
    if current.closing_height or current.phase == Phase.DRAWING:
        return 0
    return min(current.deadline_ms, _grace_ends_ms(current, rules))
