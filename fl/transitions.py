"""What time and blocks bring about, at the end of each block, job by job in the order of their ids.

A round is *complete* once accepted updates reach the target, or the grace after the minimum, or the deadline,
has passed. It then stays open until f + 1 distinct validators have proposed later blocks in which they were
free to include batches: one of them is honest, so no leader can shut an update out by closing the round on
it. Only when the whole cohort has answered, or no more may be counted, is there nobody left to shut out, and
the round is decided at once.

A deadline below the minimum is extended once. The next one completes the round like any other, and what the
round then holds decides whether it is aggregated or has failed.
"""

from __future__ import annotations

from dataclasses import replace

from fl.deadlines import later, with_proposer
from fl.evaluation import advance_evaluation
from fl.evaluation import due_ms as evaluation_due_ms
from fl.evaluators import open_evaluation
from fl.execution import Execution
from fl.metrics import is_measured_to_goal, is_over
from fl.records import NEVER, EventKind, Job, JobRules, JobStatus, OpenJob, Phase, Round
from fl.rounds import fail_round, fail_round_and_go_on, freeze_round, open_round
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
        _go_on(execution, job_id, job, rules)
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


def _go_on(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    """From a job between two rounds: to the next one, or to its end. Either may have to wait for an evaluation."""
    over = is_over(rules, job, execution.state.get(Round, round_key(job_id, job.round)))
    if (over or rules.evaluation.before_next) and open_evaluation(execution.state, job_id, job) is not None:
        return
    if not over:
        _open_if_due(execution, job_id, job, rules)
        return
    execution.state.put(job_key(job_id), replace(job, status=JobStatus.FINISHED, opens_ms=NEVER))
    execution.event(EventKind.JOB_FINISHED, job_id, job.round, subject=job.model)


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
    if current.phase == Phase.AGGREGATING:
        if execution.block.time_ms >= current.aggregation_deadline_ms:
            fail_round_and_go_on(execution, job_id, job, rules, current, "NO_RESULT")
    elif current.phase == Phase.COLLECTING:
        _advance_collecting(execution, job_id, job, rules, current)


def _advance_collecting(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    key = round_key(job_id, current.number)
    if current.updates.size >= min(current.cohort, rules.maximum):
        _decide(execution, job_id, job, rules, current)
    elif current.closing_height:
        seen = with_proposer(execution, current)
        execution.state.put(key, seen)
        if len(seen.closing_proposers) > execution.block.f:
            _decide(execution, job_id, job, rules, seen)
    elif _is_complete(current, rules, execution.block.time_ms):
        _start_closing(execution, job_id, current)
    elif execution.block.time_ms >= current.deadline_ms:
        deadline_ms = later(execution.block.time_ms, rules.deadline_ms)
        execution.state.put(key, replace(current, deadline_ms=deadline_ms, extended=True))
        execution.event(EventKind.ROUND_EXTENDED, job_id, current.number, value=deadline_ms)


def _is_complete(current: Round, rules: JobRules, now_ms: int) -> bool:
    accepted = current.updates.size
    if accepted >= rules.target or _grace_ends_ms(current, rules) <= now_ms:
        return True
    return current.deadline_ms <= now_ms and (accepted >= rules.minimum or current.extended)


def _grace_ends_ms(current: Round, rules: JobRules) -> int:
    return later(current.minimum_ms, rules.grace_ms) if current.minimum_ms else NEVER


def _start_closing(execution: Execution, job_id: bytes, current: Round) -> None:
    block = execution.block
    closing = replace(current, closing_height=block.height, closing_epoch=block.epoch)
    execution.state.put(round_key(job_id, current.number), closing)
    execution.event(EventKind.ROUND_CLOSING, job_id, current.number, value=current.updates.size)


def _decide(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    if current.updates.size >= rules.minimum:
        freeze_round(execution, job_id, job, current)
    else:
        fail_round_and_go_on(execution, job_id, job, rules, current, "BELOW_MINIMUM")


def _due_ms(job: Job, rules: JobRules, current: Round | None) -> int:
    if job.status == JobStatus.WAITING:
        return job.opens_ms
    if job.status == JobStatus.PAUSED or current is None:
        return NEVER
    if current.phase == Phase.AGGREGATING:
        return current.aggregation_deadline_ms
    if current.closing_height:
        return 0
    return min(current.deadline_ms, _grace_ends_ms(current, rules))
