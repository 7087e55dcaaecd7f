"""What members send to a round: that they are there, and their updates. And what is read of rounds beside the state.

In a job without rounds a `Round` is a *buffer*: it takes updates that start from its own base or from that of an
earlier one, and an update's `round` says from which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from chain.cid import raw_cid
from chain.codec import I64, U8, U64, Count, Digest, Length, decode, packed
from chain.genesis import Params
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.blobs import Demand, update_demand
from fl.cohort import (
    answered,
    candidate_seats,
    candidates,
    has_seat,
    is_listed,
    members_in_cohort,
    put_answered,
    put_candidates,
    with_seats,
)
from fl.errors import PendingJob, Refused
from fl.execution import Accepted, AggregationTask, Call, Effect, Execution
from fl.members import member_in_role
from fl.metrics import with_values
from fl.records import (
    MAX_EXAMPLES,
    MAX_METRICS,
    Cid,
    Entry,
    EntryFields,
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
    ROUNDS,
    Changes,
    Gathering,
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
from fl.tensors.encodings import Place, check_payload, good_payloads
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
    # There is always a first one.
    if body.group and body.group >= groups_of(rules):
        raise Refused("UNKNOWN_GROUP")


def good_updates(updates: Sequence[tuple[SubmitUpdate, Transaction]], params: Params, rules_of: RulesOf) -> list[bool]:
    """Whether an update is inline and nothing is wrong with it or the others of its round, which are looked at
    together. What `check_update` says of any other is not known by this."""
    rounds: dict[tuple[bytes, int, int], list[int]] = {}
    for place, (body, _) in enumerate(updates):
        rounds.setdefault((body.job, body.round, body.group), []).append(place)
    good = [False] * len(updates)
    for (job, _, group), places in rounds.items():
        rules = rules_of(job)
        if rules is None or group >= groups_of(rules):
            continue
        if _are_good([updates[place] for place in places], params, rules):
            for place in places:
                good[place] = True
    return good


def _are_good(updates: Sequence[tuple[SubmitUpdate, Transaction]], params: Params, rules: JobRules) -> bool:
    """Of one job, round and group."""
    first = updates[0][0]
    payloads = [body.payload for body, _ in updates]
    examples = [body.examples for body, _ in updates]
    return (
        max(map(len, payloads)) <= params.inline_bytes
        and min(examples) >= 1
        and max(examples) <= MAX_EXAMPLES
        and {len(body.metrics) for body, _ in updates} == {len(rules.metrics)}
        and [body.cid for body, _ in updates] == list(map(raw_cid, payloads))
        and good_payloads(
            form_of(rules, first.group), first.job, first.round, [tx.sender for _, tx in updates], payloads
        )
    )


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
    job, rules = _unfinished(state, body.job)
    joined = _joined(state, body.job, call.sender)
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


class Intake(Gathering):
    """Where a job takes updates in the block in execution: what is the same for all of them, and what it has taken.

    From the first one on it stands for the record of its round: they are counted up once, when somebody asks for that
    or the block ends."""

    __slots__ = (
        "_execution",
        "_first",
        "_taken",
        "answered",
        "bodies",
        "colleagues",
        "entries",
        "id",
        "is_open",
        "job",
        "key",
        "leaves",
        "listed",
        "round",
        "rules",
    )

    def __init__(self, execution: Execution, job_id: bytes, job: Job, rules: JobRules) -> None:
        state, self._execution = execution.state, execution
        self.id, self.job, self.rules = job_id, job, rules
        self.key = round_key(job_id, job.round)
        self.round = current = state.get(Round, self.key)
        self.is_open = current is not None and current.phase == Phase.COLLECTING
        self._first = 0 if current is None else current.updates.size
        self.answered = answered(state, job_id, job.round)
        """Seats, as the block found them."""
        self.entries: list[EntryFields] = []
        self.leaves: list[bytes] = []
        self.bodies: list[SubmitUpdate] = []
        self._taken: set[int] = set()
        """Seats of whose members it has taken one."""
        self.look_up(job)

    def look_up(self, job: Job) -> None:
        """What others may change while it stands for the round."""
        state, listed = self._execution.state, is_listed(self.rules)
        self.job = job
        self.listed = candidate_seats(state, self.id, job.round) if listed else None
        self.colleagues: dict[str, int] = {"": 1}
        """By organisation, its members in the cohort."""

    @property
    def has_room(self) -> bool:
        return self.is_open and self._first + len(self.entries) < self.rules.maximum

    def has_answered(self, seat: int) -> bool:
        return seat in self._taken or has_seat(self.answered, seat)

    def colleagues_in(self, current: Round, organisation: str) -> int:
        known = self.colleagues.get(organisation)
        if known is None:
            known = members_in_cohort(self._execution.state, self.id, current, organisation)
            self.colleagues[organisation] = known
        return known

    def take(self, call: Call, body: SubmitUpdate, seat: int, weight: int) -> int:
        """At the position that is returned. Nothing may go wrong after that."""
        entries, taken = self.entries, len(self.entries)
        if not taken:
            self._execution.state.gather(Round, self.key, self)
            self._execution.touched.add(self.id)
        entry = (call.tx_id, call.sender, body.round, weight, body.group, body.cid, call.batch, call.place)
        entries.append(entry)
        self.leaves.append(packed(entry))
        self.bodies.append(body)
        self._taken.add(seat)
        return self._first + taken

    def gathered(self) -> Round:
        execution, current, bodies = self._execution, self.round, self.bodies
        assert current is not None, "what is not open takes nothing"
        entries, weights = tuple(self.entries), list(current.weights)
        for _, _, _, weight, group, _, _, _ in entries:
            weights[group] += weight
        first, name = current.updates.size, updates_log(self.id, current.number)
        payloads = tuple([body.payload for body in bodies])
        accepted = Accepted(self.id, current.number, first, entries, payloads, sum(map(len, payloads)), all(payloads))
        execution.accepted.append(accepted)
        put_answered(execution.state, self.id, current.number, with_seats(self.answered, self._taken))
        reached = first < self.rules.minimum <= first + len(entries)
        return replace(
            current,
            updates=execution.log(name, current.updates, self.leaves),
            weights=tuple(weights),
            examples=current.examples + sum([body.examples for body in bodies]),
            sums=with_values(current.sums, [(body.metrics, body.examples) for body in bodies]),
            minimum_ms=max(1, execution.block.time_ms) if reached else current.minimum_ms,
        )


def _intake(execution: Execution, job_id: bytes) -> Intake:
    state = execution.state
    job, rules = _unfinished(state, job_id)
    intake = state.gathering(Intake, round_key(job_id, job.round))
    if intake is None:
        intake = Intake(execution, job_id, job, rules)
    else:
        intake.look_up(job)
    state.derived[job_id] = intake
    return intake


def submit_update(execution: Execution, call: Call, body: SubmitUpdate) -> Effect:
    state = execution.state
    member = member_in_role(state, call.sender, Role.TRAINER)
    intake = state.derived.get(body.job) or _intake(execution, body.job)
    joined, rules = _joined(state, body.job, call.sender), intake.rules
    current, age = (_open_buffer if rules.discounts else _open_round)(state, intake, joined, body)
    # The sums of a round hold no more than these bounds allow for.
    _check_numbers(body, rules)
    colleagues = intake.colleagues_in(current, member.organisation)
    weight = weight_of(rules, body.examples, joined.examples, colleagues, age)
    if not weight:
        raise Refused("NO_WEIGHT")
    return Effect(body.job, current.number, intake.take(call, body, joined.seat, weight), weight)


def tell_refusal(execution: Execution, call: Call, body: SubmitUpdate, code: str) -> None:
    """So that whoever looks at a round sees who was refused, and why."""
    state = execution.state
    job, rules = state.get(Job, job_key(body.job)), state.get(JobRules, rules_key(body.job))
    if job is not None and rules is not None:
        number = job.round if rules.discounts else body.round
        execution.event(EventKind.UPDATE_REFUSED, body.job, number, call.sender, code)


def _unfinished(state: State, job_id: bytes) -> tuple[Job, JobRules]:
    job, rules = state.get(Job, job_key(job_id)), state.get(JobRules, rules_key(job_id))
    if job is None or rules is None:
        raise Refused("UNKNOWN_JOB")
    if job.status in _OVER:
        raise Refused("JOB_CLOSED")
    return job, rules


def _joined(state: State, job_id: bytes, account: bytes) -> Joined:
    joined = state.get(Joined, joined_key(job_id, account))
    if joined is None:
        raise Refused("NOT_JOINED")
    return joined


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


def _open_round(state: State, intake: Intake, joined: Joined, body: SubmitUpdate) -> tuple[Round, int]:
    """The round that this update answers, while it may."""
    number, seat, current = body.round, joined.seat, intake.round
    is_newest = number == intake.job.round
    done = intake.has_answered(seat) if is_newest else has_seat(answered(state, body.job, number), seat)
    _check_newest(number, intake.job, joined, done)
    if current is None:
        raise Refused("LATE")
    if current.phase < Phase.COLLECTING:
        raise Refused("NOT_COLLECTING")
    if intake.listed is not None and not has_seat(intake.listed, seat):
        absent = intake.rules.cohort.check_in_ms and joined.checked_in != number
        raise Refused("NOT_CHECKED_IN" if absent else "NOT_DRAWN")
    if not intake.has_room:
        raise Refused("LATE")
    if current.base != body.base:
        raise Refused("WRONG_BASE")
    return current, 0


def _open_buffer(state: State, intake: Intake, joined: Joined, body: SubmitUpdate) -> tuple[Round, int]:
    """The buffer that takes this update, and how many buffers ago its base was the newest model."""
    number, newest, current = body.round, intake.job.round, intake.round
    started = state.get(Round, round_key(body.job, number)) if 0 < number < newest else None
    if number == newest:
        started = current
    if current is None or started is None:
        raise Refused("WRONG_ROUND", f"The job is at buffer {newest}.")
    if joined.from_round > newest:
        raise Refused("NOT_JOINED")
    if started.base != body.base:
        raise Refused("WRONG_BASE")
    age = newest - number
    if age >= len(intake.rules.discounts):
        raise Refused("TOO_STALE")
    if not intake.has_room:
        raise Refused("BUFFER_CLOSED")
    if intake.has_answered(joined.seat):
        raise Refused("DUPLICATE", "The member has an update in this buffer already; the next one takes another.")
    return current, age


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


def rounds_in(changes: Changes) -> Iterator[tuple[bytes, Round]]:
    """Those that a block changed, with their jobs."""
    for key, (_, record) in changes.rows.items():
        if isinstance(record, Round):
            yield key[len(ROUNDS) : -8], record


def entries_of(leaves: Leaves, job: bytes, round: int, size: int) -> Iterator[Entry]:
    """The first `size` accepted updates of a round."""
    for leaf in leaves(updates_log(job, round), 0, size):
        yield decode(Entry, leaf, MAX_VALUE_BYTES)
