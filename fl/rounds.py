"""What members send to a round: that they are there, and their updates. And what is read of rounds beside the state.

In a job without rounds a `Round` is a *buffer*: it takes updates that start from its own base or from that of an
earlier one, and an update's `round` says from which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from chain.cid import raw_cid
from chain.codec import I64, U8, U64, Count, Digest, Length, decode, encode
from chain.genesis import Params
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.blobs import Demand, update_demand
from fl.cohort import answered, candidates, is_listed, members_in_cohort, put_answered, put_candidates
from fl.errors import PendingJob, Refused
from fl.execution import Accepted, AggregationTask, Call, Effect, Execution
from fl.members import member_in_role
from fl.metrics import with_values
from fl.records import (
    MAX_EXAMPLES,
    MAX_METRICS,
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
    Leaves,
    Read,
    RulesOf,
    State,
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
from fl.weights import weight_of


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A member would answer this round if it is asked."""

    job: Digest
    round: U64


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


def check_check_in(body: CheckIn, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    rules = rules_of(body.job)
    if rules is None:
        raise PendingJob(body.job)
    _check_has_check_in(rules)


def _check_has_check_in(rules: JobRules) -> None:
    if not rules.cohort.check_in_ms:
        raise Refused("NO_CHECK_IN")


def check_in(execution: Execution, call: Call, body: CheckIn) -> Effect:
    state = execution.state
    member_in_role(state, call.sender, Role.TRAINER)
    job, rules, joined = _taking_part(state, call.sender, body.job)
    _check_has_check_in(rules)
    _check_newest(body.round, job, joined, done=joined.checked_in == body.round)
    current = state.get(Round, round_key(body.job, body.round))
    if current is None or current.phase != Phase.CHECK_IN:
        raise Refused("LATE", "The check-in of this round is over.")
    listed = candidates(state, body.job, body.round) or 0
    put_candidates(state, body.job, body.round, listed | 1 << joined.seat)
    state.put(joined_key(body.job, call.sender), replace(joined, checked_in=body.round))
    state.put(round_key(body.job, body.round), replace(current, checked_in=current.checked_in + 1))
    execution.touched.add(body.job)
    return Effect(body.job, body.round)


_OVER = (JobStatus.FINISHED, JobStatus.STOPPED)


class Collecting(NamedTuple):
    """A round with the updates that the block in execution has added to it so far. They are counted up once, when
    somebody asks for the record or the block ends."""

    execution: Execution
    job: bytes
    key: bytes
    """Of the round's record."""
    round: Round
    rules: JobRules
    size: int
    answered: int
    """Seats."""
    newest: _Taken | None = None

    def with_update(self, entry: Entry, body: SubmitUpdate, seat: int) -> Collecting:
        """At position `size`."""
        newest = _Taken(entry, encode(entry), body, self.newest)
        answered = self.answered | 1 << seat
        return Collecting(self.execution, self.job, self.key, self.round, self.rules, self.size + 1, answered, newest)

    def _taken(self) -> list[_Taken]:
        taken, each = [], self.newest
        while each is not None:
            taken.append(each)
            each = each.before
        return taken[::-1]

    def gathered(self) -> Round:
        current, taken, first = self.round, self._taken(), self.round.updates.size
        weights = list(current.weights)
        for each in taken:
            weights[each.body.group] += each.entry.weight
        leaves, entries = [each.leaf for each in taken], tuple([each.entry for each in taken])
        payloads = tuple([each.body.payload for each in taken])
        self.execution.accepted.append(Accepted(self.job, current.number, first, entries, payloads))
        put_answered(self.execution.state, self.job, current.number, self.answered)
        reached = first < self.rules.minimum <= self.size
        return replace(
            current,
            updates=self.execution.log(updates_log(self.job, current.number), current.updates, leaves),
            weights=tuple(weights),
            examples=current.examples + sum([each.body.examples for each in taken]),
            sums=with_values(current.sums, [(each.body.metrics, each.body.examples) for each in taken]),
            minimum_ms=max(1, self.execution.block.time_ms) if reached else current.minimum_ms,
        )


class _Taken(NamedTuple):
    entry: Entry
    leaf: bytes
    body: SubmitUpdate
    before: _Taken | None


def _collecting(execution: Execution, job_id: bytes, rules: JobRules, number: int) -> Collecting | None:
    """Of a round that there is."""
    key = round_key(job_id, number)
    known = execution.state.gathering(Collecting, key)
    if known is not None:
        return known
    current = execution.state.get(Round, key)
    if current is None:
        return None
    seats = answered(execution.state, job_id, number)
    return Collecting(execution, job_id, key, current, rules, current.updates.size, seats)


def submit_update(execution: Execution, call: Call, body: SubmitUpdate) -> Effect:
    state = execution.state
    member = member_in_role(state, call.sender, Role.TRAINER)
    job, rules, joined = _taking_part(state, call.sender, body.job)
    open_for = _open_buffer if rules.discounts else _open_round
    collecting, age = open_for(execution, job, rules, joined, body)
    # The sums of a round hold no more than these bounds allow for.
    _check_numbers(body, rules)
    current, position = collecting.round, collecting.size
    colleagues = members_in_cohort(state, body.job, current, member.organisation) if member.organisation else 1
    weight = weight_of(rules, body.examples, joined.examples, colleagues, age)
    if not weight:
        raise Refused("NO_WEIGHT")
    entry = Entry(call.tx_id, call.sender, body.round, weight, body.group, body.cid, call.batch, call.place)
    state.gather(Round, collecting.key, collecting.with_update(entry, body, joined.seat))
    execution.touched.add(body.job)
    return Effect(body.job, current.number, position, weight)


def tell_refusal(execution: Execution, call: Call, body: SubmitUpdate, code: str) -> None:
    """So that whoever looks at a round sees who was refused, and why."""
    state = execution.state
    job, rules = state.get(Job, job_key(body.job)), state.get(JobRules, rules_key(body.job))
    if job is not None and rules is not None:
        number = job.round if rules.discounts else body.round
        execution.event(EventKind.UPDATE_REFUSED, body.job, number, call.sender, code)


def _taking_part(state: State, account: bytes, job_id: bytes) -> tuple[Job, JobRules, Joined]:
    job, rules = state.get(Job, job_key(job_id)), state.get(JobRules, rules_key(job_id))
    if job is None or rules is None:
        raise Refused("UNKNOWN_JOB")
    if job.status in _OVER:
        raise Refused("JOB_CLOSED")
    joined = state.get(Joined, joined_key(job_id, account))
    if joined is None:
        raise Refused("NOT_JOINED")
    return job, rules, joined


def _check_newest(number: int, job: Job, joined: Joined, done: bool) -> None:
    """That the round named is the job's newest, and the member has not `done` this for it."""
    if number > job.round or number == 0:
        raise Refused("WRONG_ROUND", f"The job is at round {job.round}.")
    if joined.from_round > number:
        raise Refused("NOT_JOINED")
    if done:
        raise Refused("DUPLICATE")
    if number < job.round:
        raise Refused("LATE")


def _open_round(
    execution: Execution, job: Job, rules: JobRules, joined: Joined, body: SubmitUpdate
) -> tuple[Collecting, int]:
    """The round that this update answers, while it may."""
    collecting = _collecting(execution, body.job, rules, body.round) if body.round == job.round else None
    seats = answered(execution.state, body.job, body.round) if collecting is None else collecting.answered
    _check_newest(body.round, job, joined, done=bool(seats >> joined.seat & 1))
    if collecting is None:
        raise Refused("LATE")
    current = collecting.round
    is_open = current.phase == Phase.COLLECTING
    if not is_open and current.phase < Phase.COLLECTING:
        raise Refused("NOT_COLLECTING")
    listed = candidates(execution.state, body.job, body.round) if is_listed(rules) else None
    if listed is not None and not listed >> joined.seat & 1:
        absent = rules.cohort.check_in_ms and joined.checked_in != body.round
        raise Refused("NOT_CHECKED_IN" if absent else "NOT_DRAWN")
    if not is_open or collecting.size >= rules.maximum:
        raise Refused("LATE")
    if current.base != body.base:
        raise Refused("WRONG_BASE")
    return collecting, 0


def _open_buffer(
    execution: Execution, job: Job, rules: JobRules, joined: Joined, body: SubmitUpdate
) -> tuple[Collecting, int]:
    """The buffer that takes this update, and how many buffers ago its base was the newest model."""
    collecting, started = _collecting(execution, body.job, rules, job.round), None
    if 0 < body.round < job.round:
        started = execution.state.get(Round, round_key(body.job, body.round))
    elif collecting is not None and body.round == job.round:
        started = collecting.round
    if collecting is None or started is None:
        raise Refused("WRONG_ROUND", f"The job is at buffer {job.round}.")
    current = collecting.round
    if joined.from_round > current.number:
        raise Refused("NOT_JOINED")
    if started.base != body.base:
        raise Refused("WRONG_BASE")
    age = current.number - started.number
    if age >= len(rules.discounts):
        raise Refused("TOO_STALE")
    if current.phase != Phase.COLLECTING or collecting.size >= rules.maximum:
        raise Refused("BUFFER_CLOSED")
    if collecting.answered >> joined.seat & 1:
        raise Refused("DUPLICATE", "The member has an update in this buffer already; the next one takes another.")
    return collecting, age


# What is read beside the state


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


def entries_of(leaves: Leaves, job: bytes, round: int, size: int) -> Iterator[Entry]:
    """The first `size` accepted updates of a round."""
    for leaf in leaves(updates_log(job, round), 0, size):
        yield decode(Entry, leaf, MAX_VALUE_BYTES)
