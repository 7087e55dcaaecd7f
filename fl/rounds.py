"""Rounds: updates are taken, the log of them is frozen, and a result or a failure ends it.

    collecting ── frozen ──▶ aggregating ── result ──▶ closed: the job has a new model
        │                        └── deadline, failed result ──▶ failed
        └── below minimum ──▶ failed

`fl.transitions` says when; this file says what each step does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from chain.certificate import Result
from chain.cid import raw_cid
from chain.codec import I64, U8, U64, Count, Digest, Length, decode, encode
from chain.genesis import Params
from chain.log import EMPTY
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.blobs import Demand, update_demand
from fl.deadlines import later
from fl.errors import PendingJob, Refused
from fl.evaluation import open_if_due
from fl.execution import AggregationTask, Call, Effect, Execution
from fl.jobrules import EXAMPLES
from fl.members import member_in_role
from fl.metrics import NO_SUM, is_over, mean, with_values
from fl.records import (
    MAX_EXAMPLES,
    MAX_METRICS,
    NEVER,
    Cid,
    Entry,
    EventKind,
    Job,
    JobRules,
    JobStatus,
    Joined,
    Phase,
    Role,
    Round,
)
from fl.state import (
    MAX_VALUE_BYTES,
    Read,
    RulesOf,
    State,
    entry_key,
    job_key,
    job_of,
    joined_key,
    open_jobs,
    round_key,
    round_of,
    rules_key,
    updates_log,
)
from fl.tensors.encodings import Place, check_payload
from fl.updates import form_of, groups_of


@dataclass(frozen=True, slots=True)
class SubmitUpdate:
    """A member's answer to a round: the change against `base`, as the blob `cid`, whose bytes are `payload` if they
    come inline. `metrics` are in the order of the job's names, `group` is a place among its groups of tensors."""

    job: Digest
    round: U64
    base: Cid
    examples: I64
    metrics: Annotated[tuple[I64, ...], Count(0, MAX_METRICS)]
    group: U8
    cid: Cid
    payload: Annotated[bytes, Length(0, MAX_TRANSACTION_BYTES)]


def check_update(body: SubmitUpdate, tx: Transaction, params: Params, rules_of: RulesOf) -> Demand | None:
    if len(body.payload) > params.inline_bytes:
        raise Refused("OVERSIZE", f"An inline payload may take {params.inline_bytes} bytes.")
    if body.payload and raw_cid(body.payload) != body.cid:
        raise Refused("BAD_CID")
    rules = rules_of(body.job)
    if rules is None:
        raise PendingJob(body.job)
    _check_numbers(body, rules)
    place = Place(body.job, body.round, tx.sender)
    if not body.payload:
        return update_demand(body.cid, rules, place, body.group)
    check_payload(form_of(rules, body.group), place, body.payload)
    return None


def _check_numbers(body: SubmitUpdate, rules: JobRules) -> None:
    if not 1 <= body.examples <= MAX_EXAMPLES:
        raise Refused("BAD_EXAMPLES")
    if len(body.metrics) != len(rules.metrics):
        raise Refused("BAD_METRICS")
    if body.group >= groups_of(rules):
        raise Refused("UNKNOWN_GROUP")


def submit_update(execution: Execution, call: Call, body: SubmitUpdate) -> Effect:
    state = execution.state
    member_in_role(state, call.sender, Role.TRAINER)
    job, rules = _job_and_rules(state, body.job)
    if job.status in (JobStatus.FINISHED, JobStatus.STOPPED):
        raise Refused("JOB_CLOSED")
    key = joined_key(body.job, call.sender)
    joined = state.get(Joined, key)
    if joined is None:
        raise Refused("NOT_JOINED")
    current = _open_for(state, job, rules, joined, body)
    # The sums of a round hold no more than these bounds allow for.
    _check_numbers(body, rules)
    weight = min(body.examples, rules.cap) if rules.weights == EXAMPLES else 1
    position = current.updates.size
    entry = encode(Entry(call.tx_id, call.sender, body.round, weight, body.group, body.cid, call.batch, call.index))
    accepted = replace(
        current,
        updates=execution.log(updates_log(body.job, body.round), current.updates, entry),
        weights=_with_weight(current.weights, body.group, weight),
        examples=current.examples + body.examples,
        sums=with_values(current.sums, body.metrics, body.examples),
    )
    if position + 1 == rules.minimum:
        accepted = replace(accepted, minimum_ms=max(1, execution.block.time_ms))
    execution.rows.append((entry_key(body.job, body.round, position), entry))
    state.put(round_key(body.job, body.round), accepted)
    state.put(key, replace(joined, answered=body.round))
    execution.touched.add(body.job)
    return Effect(body.job, body.round, position, weight)


def _with_weight(weights: tuple[int, ...], group: int, weight: int) -> tuple[int, ...]:
    return (*weights[:group], weights[group] + weight, *weights[group + 1 :])


def _open_for(state: State, job: Job, rules: JobRules, joined: Joined, body: SubmitUpdate) -> Round:
    """The round that this update answers, while it may."""
    if body.round > job.round or body.round == 0:
        raise Refused("WRONG_ROUND", f"The job is at round {job.round}.")
    if joined.from_round > body.round:
        raise Refused("NOT_JOINED")
    if joined.answered == body.round:
        raise Refused("DUPLICATE")
    if body.round < job.round:
        raise Refused("LATE")
    current = state.get(Round, round_key(body.job, body.round))
    if current is None or current.phase != Phase.COLLECTING or current.updates.size >= rules.maximum:
        raise Refused("LATE")
    if current.base != body.base:
        raise Refused("WRONG_BASE")
    return current


def open_round(execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
    block, number = execution.block, job.round + 1
    opened = Round(
        number=number,
        version=job.completed,
        phase=Phase.COLLECTING,
        opened_height=block.height,
        opened_ms=block.time_ms,
        base=job.model,
        checked_in=0,
        cohort=job.members,
        deadline_ms=later(block.time_ms, rules.deadline_ms),
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
    execution.state.put(round_key(job_id, number), opened)
    execution.state.put(job_key(job_id), replace(job, status=JobStatus.RUNNING, round=number, opens_ms=NEVER))
    execution.event(EventKind.ROUND_OPENED, job_id, number, subject=job.model, value=job.members)


def freeze_round(execution: Execution, job_id: bytes, job: Job, current: Round) -> None:
    """No more updates: the validators aggregate what the log holds."""
    block = execution.block
    work_ns = block.params.aggregation_ns_per_parameter_update * job.parameters * current.updates.size
    span_ms = block.params.aggregation_base_ms - (-work_ns // 1_000_000)
    frozen = replace(
        current,
        phase=Phase.AGGREGATING,
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
    execution.state.put(job_key(job_id), replace(job, status=status, failed_in_a_row=failed))
    execution.touched.add(job_id)
    if status == JobStatus.PAUSED:
        execution.event(EventKind.JOB_PAUSED, job_id, current.number, code=code, value=failed)


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


def aggregation_task(job_id: bytes, job: Job, frozen: Round) -> AggregationTask:
    return AggregationTask(
        job=job_id,
        round=frozen.number,
        log_root=frozen.updates.root(),
        size=frozen.updates.size,
        kernel_version=frozen.kernel_version,
        base_model=frozen.base,
        optimizer=job.optimizer,
        step=frozen.version + 1,
        deadline_ms=frozen.aggregation_deadline_ms,
    )


def open_aggregations(read: Read) -> tuple[AggregationTask, ...]:
    """The rounds that wait for a result: what a node that starts has to take up again."""
    tasks = []
    for opened in open_jobs(read).jobs:
        job = job_of(read, opened.job)
        current = None if job is None else round_of(read, opened.job, job.round)
        if job is not None and current is not None and current.phase == Phase.AGGREGATING:
            tasks.append(aggregation_task(opened.job, job, current))
    return tuple(tasks)


def entries_of(read: Read, job: bytes, round: int, size: int) -> Iterator[Entry]:
    """The first `size` accepted updates of a round, from the rows beside the state."""
    for position in range(size):
        row = read(entry_key(job, round, position))
        if row is None:
            raise LookupError(f"entry {position} of round {round} of job {job.hex()} is not in the store")
        yield decode(Entry, row, MAX_VALUE_BYTES)


def _job_and_rules(state: State, job: bytes) -> tuple[Job, JobRules]:
    known, rules = state.get(Job, job_key(job)), state.get(JobRules, rules_key(job))
    if known is None or rules is None:
        raise Refused("UNKNOWN_JOB")
    return known, rules
