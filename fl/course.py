"""The course of a round: it opens, goes from phase to phase, and a result or a failure ends it.

`fl.phases` has the order of phases and `fl.transitions` says when each ends; this file says what each step does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from chain.certificate import Result
from chain.log import EMPTY
from fl.cohort import candidates, cohort_size, is_listed, places_of, put_candidates, seated, with_places
from fl.deadlines import later
from fl.evaluation import open_if_due
from fl.execution import Execution
from fl.lots import drawn
from fl.metrics import NO_SUM, is_over, mean
from fl.phases import phase_after, phases_of
from fl.records import NEVER, EventKind, Job, JobRules, JobStatus, Phase, Round
from fl.rounds import aggregation_task
from fl.rules import rule_of
from fl.state import job_key, round_key
from fl.updates import groups_of

_SEAT_BYTES = 4


def open_round(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    block, number = execution.block, job.round + 1
    opened = Round(
        number=number,
        version=job.completed,
        phase=phases_of(rules)[0],
        opened_height=block.height,
        opened_ms=block.time_ms,
        base=job.model,
        checked_in=0,
        cohort=job.members,
        deadline_ms=NEVER,
        extended=False,
        minimum_ms=0,
        closing_height=0,
        closing_epoch=0,
        closing_proposers=(),
        updates=EMPTY,
        weights=(0,) * groups_of(rules),
        examples=0,
        sums=(NO_SUM,) * len(rules.metrics),
        frozen_height=0,
        kernel_version=block.params.kernel_version,
        aggregation_deadline_ms=0,
        ended_height=0,
        ended_ms=0,
        code="",
        model=b"",
        optimizer=b"",
        record=b"",
        means=(),
    )
    running = replace(job, status=JobStatus.RUNNING, round=number, opens_ms=NEVER)
    execution.state.put(job_key(job_id), running)
    execution.event(EventKind.ROUND_OPENED, job_id, number, subject=job.model, value=job.members)
    _ENTER[Phase(opened.phase)](execution, job_id, running, rules, opened)


def go_on(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    """Into the phase after this one."""
    phase = phase_after(rules, current.phase)
    _ENTER[phase](execution, job_id, job, rules, replace(current, phase=phase))


def _waiting(current: Round, deadline_ms: int, cohort: int) -> Round:
    """For answers, in a phase that has just begun."""
    return replace(
        current,
        cohort=cohort,
        deadline_ms=deadline_ms,
        extended=False,
        closing_height=0,
        closing_epoch=0,
        closing_proposers=(),
    )


def _check_in(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    put_candidates(execution.state, job_id, current.number, 0)
    deadline_ms = later(execution.block.time_ms, rules.cohort.check_in_ms)
    execution.state.put(round_key(job_id, current.number), _waiting(current, deadline_ms, job.members))


def _settle(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    """The list of candidates, before anybody knows the beacon that draws among them: that of a later block."""
    state = execution.state
    if not rules.cohort.check_in_ms:
        put_candidates(state, job_id, current.number, seated(state, job_id))
    state.put(round_key(job_id, current.number), _waiting(current, NEVER, _cohort(execution, job_id, job, current)))


def draw(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    """By the beacon of the block after the one that settled the candidates."""
    state, key = execution.state, round_key(job_id, current.number)
    places = places_of(candidates(state, job_id, current.number) or 0)
    seats = (place.to_bytes(_SEAT_BYTES, "big") for place in places)
    chosen = drawn(execution.block.beacon, key, seats, cohort_size(rules))
    cohort = with_places(int.from_bytes(seat, "big") for seat in chosen)
    put_candidates(state, job_id, current.number, cohort)
    execution.event(EventKind.ROUND_DRAWN, job_id, current.number, value=cohort.bit_count())
    go_on(execution, job_id, job, rules, current)


def _collect(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    cohort = _cohort(execution, job_id, job, current)
    deadline_ms = later(execution.block.time_ms, rules.deadline_ms)
    execution.state.put(round_key(job_id, current.number), _waiting(current, deadline_ms, cohort))
    if is_listed(rules):
        execution.event(EventKind.ROUND_COLLECTING, job_id, current.number, subject=current.base, value=cohort)


def _cohort(execution: Execution, job_id: bytes, job: Job, current: Round) -> int:
    listed = candidates(execution.state, job_id, current.number)
    return job.members if listed is None else listed.bit_count()


def _freeze(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round) -> None:
    """No more updates: the validators aggregate what the log holds."""
    block = execution.block
    effort = rule_of(rules.rule).effort(current.updates.size)
    work_ns = block.params.aggregation_ns_per_parameter_update * job.parameters * effort
    span_ms = block.params.aggregation_base_ms - (-work_ns // 1_000_000)
    frozen = replace(
        current,
        frozen_height=block.height,
        kernel_version=block.params.kernel_version,
        aggregation_deadline_ms=later(block.time_ms, span_ms),
        means=tuple(mean(each) for each in current.sums),
    )
    execution.state.put(round_key(job_id, current.number), frozen)
    task = aggregation_task(job_id, job, frozen)
    execution.aggregations.append(task)
    execution.event(
        EventKind.ROUND_AGGREGATING, job_id, current.number, subject=task.log_root, value=current.updates.size
    )


_Enter: TypeAlias = Callable[[Execution, bytes, Job, JobRules, Round], None]
_ENTER: Mapping[Phase, _Enter] = {
    Phase.CHECK_IN: _check_in,
    Phase.DRAWING: _settle,
    Phase.COLLECTING: _collect,
    Phase.AGGREGATING: _freeze,
}
"""What is done when a round comes into a phase. Of those that are not here, `fl.jobrules` refuses the jobs."""


# The end of a round


def fail_round(execution: Execution, job_id: bytes, current: Round, code: str, record: bytes = b"") -> None:
    block = execution.block
    failed = replace(
        current, phase=Phase.FAILED, ended_height=block.height, ended_ms=block.time_ms, code=code, record=record
    )
    execution.state.put(round_key(job_id, current.number), failed)
    execution.event(EventKind.ROUND_FAILED, job_id, current.number, code=code, value=current.updates.size)


def fail_round_and_go_on(
    execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round, code: str, record: bytes = b""
) -> None:
    """The same model goes into the next round, unless too many have failed in a row."""
    fail_round(execution, job_id, current, code, record)
    failed = job.failed_in_a_row + 1
    status = JobStatus.PAUSED if failed >= rules.max_failed else JobStatus.WAITING
    pausing = job.pausing and status != JobStatus.PAUSED
    execution.state.put(job_key(job_id), replace(job, status=status, failed_in_a_row=failed, pausing=pausing))
    execution.touched.add(job_id)
    if status == JobStatus.PAUSED:
        execution.event(EventKind.JOB_PAUSED, job_id, current.number, code=code, value=failed)


def pause(execution: Execution, job_id: bytes, job: Job) -> None:
    """Between two rounds, as was asked."""
    execution.state.put(job_key(job_id), replace(job, status=JobStatus.PAUSED, pausing=False, opens_ms=NEVER))
    execution.event(EventKind.JOB_PAUSED, job_id, job.round)


def close_round(execution: Execution, job_id: bytes, job: Job, rules: JobRules, current: Round, result: Result) -> None:
    block = execution.block
    closed = replace(
        current,
        phase=Phase.CLOSED,
        ended_height=block.height,
        ended_ms=block.time_ms,
        model=result.model,
        optimizer=result.optimizer,
        record=result.record,
    )
    execution.state.put(round_key(job_id, current.number), closed)
    following = replace(
        job,
        status=JobStatus.WAITING,
        completed=job.completed + 1,
        failed_in_a_row=0,
        model=result.model,
        model_round=current.number,
        optimizer=result.optimizer,
    )
    execution.state.put(job_key(job_id), following)
    execution.touched.add(job_id)
    execution.event(EventKind.ROUND_CLOSED, job_id, current.number, subject=result.model, value=current.weight)
    open_if_due(execution, job_id, rules, current.number, last=is_over(rules, following, closed))
