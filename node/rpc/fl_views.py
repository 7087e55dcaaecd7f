"""What the answers about federated learning look like in JSON: state, members, jobs, rounds, events."""

from __future__ import annotations

from typing import Literal, TypedDict

from chain.cid import CID_BYTES
from fl.cohort import has_answered
from fl.records import (
    METRIC_MARKS,
    NEVER,
    Account,
    Answered,
    Entry,
    Event,
    Job,
    JobStatus,
    Joined,
    Member,
    Phase,
    Round,
)
from node.rpc.rules_views import RulesView
from node.rpc.schema import I64, U64, Base64, CidText, Hex, HexDigest, HexKey
from node.rpc.views import cid_or_none, hex_or_none

# State


class StateView(TypedDict):
    """`bundle` is the encoded chain.light.StateBundle that proves the value, or that there is none."""

    height: U64
    key: Hex
    value: Base64 | None
    bundle: Base64


class AccountView(TypedDict):
    """`next_nonce` is the lowest that no executed transaction has used; `used` are those above it that one has."""

    id: HexDigest
    exists: bool
    key: HexKey | None
    floor: U64
    used: list[U64]
    next_nonce: U64


def account_view(identity: bytes, account: Account | None) -> AccountView:
    floor = account.floor if account is not None else 0
    bits = int.from_bytes(account.used, "little") if account is not None else 0
    return AccountView(
        id=identity.hex(),
        exists=account is not None,
        key=account.key.hex() if account is not None else None,
        floor=floor,
        used=[floor + place for place in range(bits.bit_length()) if bits >> place & 1],
        next_nonce=floor,
    )


class MemberView(TypedDict):
    """Without an organisation, the member stands for itself."""

    account: HexDigest
    name: str
    roles: list[str]
    organisation: str | None
    revoked: bool
    height: U64
    registrar: bool


def member_view(account: bytes, member: Member, registrar: bool) -> MemberView:
    return MemberView(
        account=account.hex(),
        name=member.name,
        roles=list(member.roles),
        organisation=member.organisation or None,
        revoked=member.revoked,
        height=member.height,
        registrar=registrar,
    )


class MembersView(TypedDict):
    members: list[MemberView]
    next: HexDigest | None


# Jobs

JobStatusWord = Literal["waiting", "running", "paused", "finished", "stopped"]
_JOB_STATUS: dict[int, JobStatusWord] = {
    JobStatus.WAITING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.FINISHED: "finished",
    JobStatus.STOPPED: "stopped",
}


class JobView(TypedDict):
    """`round` is the newest one opened (0: none), `model` the newest model and `model_round` what made it. `evaluation`
    is the newest round whose model evaluators were asked about, `best` the model that measured best, which `best_round`
    made, and `best_value` what it measured, in millionths. With `pausing`, the job is paused once its round ends."""

    id: HexDigest
    name: str
    creator: HexDigest
    created_height: U64
    status: JobStatusWord
    pausing: bool
    members: int
    opens_ms: U64 | None
    round: U64
    completed: int
    failed_in_a_row: int
    model: CidText | Hex | None
    model_round: U64
    optimizer: CidText | Hex | None
    parameters: U64
    evaluators: int
    evaluation: U64
    best: CidText | Hex | None
    best_round: U64
    best_value: I64 | None
    rules_hash: HexDigest


def job_view(identity: bytes, job: Job) -> JobView:
    return JobView(
        id=identity.hex(),
        name=job.name,
        creator=job.creator.hex(),
        created_height=job.created_height,
        status=_JOB_STATUS[job.status],
        pausing=job.pausing,
        members=job.members,
        opens_ms=None if job.opens_ms == NEVER else job.opens_ms,
        round=job.round,
        completed=job.completed,
        failed_in_a_row=job.failed_in_a_row,
        model=cid_or_none(job.model),
        model_round=job.model_round,
        optimizer=cid_or_none(job.optimizer),
        parameters=job.parameters,
        evaluators=job.evaluators,
        evaluation=job.evaluation,
        best=cid_or_none(job.best),
        best_round=job.best_round,
        best_value=job.best_value if job.best else None,
        rules_hash=job.rules_hash.hex(),
    )


class JobWithRulesView(JobView):
    """`rules_raw` is the encoded fl.records.JobRules, of which `rules_hash` is the hash."""

    rules: RulesView
    rules_raw: Base64


class JobsView(TypedDict):
    """`height` is that of the state listed."""

    jobs: list[JobView]
    next: HexDigest | None
    height: U64


class JobMemberView(TypedDict):
    """In the cohorts from `from_round` on; `answered` is the newest round that has taken updates, if it has one of this
    member's, and else 0; `checked_in` is the last round checked in for. `examples` is what the data set says that the
    member joined with."""

    account: HexDigest
    name: str | None
    from_round: U64
    answered: U64
    checked_in: U64
    seat: int
    dataset: HexDigest | None
    examples: U64


def job_member_view(account: bytes, name: str | None, joined: Joined, answered: Answered | None) -> JobMemberView:
    return JobMemberView(
        account=account.hex(),
        name=name,
        from_round=joined.from_round,
        answered=answered.round if answered is not None and has_answered(answered, answered.round, joined) else 0,
        checked_in=joined.checked_in,
        seat=joined.seat,
        dataset=hex_or_none(joined.dataset),
        examples=joined.examples,
    )


class JobMembersView(TypedDict):
    members: list[JobMemberView]
    next: HexDigest | None


PhaseWord = Literal[
    "check_in",
    "drawing",
    "keys",
    "shares",
    "collecting",
    "revealing",
    "unmasking",
    "aggregating",
    "closed",
    "failed",
]
PHASES: dict[int, PhaseWord] = {
    Phase.CHECK_IN: "check_in",
    Phase.DRAWING: "drawing",
    Phase.KEYS: "keys",
    Phase.SHARES: "shares",
    Phase.COLLECTING: "collecting",
    Phase.REVEALING: "revealing",
    Phase.UNMASKING: "unmasking",
    Phase.AGGREGATING: "aggregating",
    Phase.CLOSED: "closed",
    Phase.FAILED: "failed",
}


class MetricView(TypedDict):
    """`mean` is in millionths, weighted by examples; null where no update gave a number."""

    name: str
    mean: I64 | None


def metric_views(names: tuple[str, ...], means: tuple[int, ...]) -> list[MetricView]:
    return [
        MetricView(name=name, mean=None if mean in METRIC_MARKS else mean)
        for name, mean in zip(names, means, strict=False)
    ]


class RoundView(TypedDict):
    """`version` is how many rounds had closed before; `cohort` is how many may answer in the present phase, which ends
    by `deadline_ms` where it has a deadline. `weights` are those of the groups of tensors."""

    number: U64
    version: int
    phase: PhaseWord
    opened_height: U64
    opened_ms: U64
    base: CidText | Hex | None
    checked_in: int
    cohort: int
    updates: U64
    weight: U64
    weights: list[U64]
    examples: U64
    deadline_ms: U64 | None
    extended: bool
    closing_height: U64 | None
    frozen_height: U64 | None
    aggregation_deadline_ms: U64 | None
    log_root: HexDigest
    kernel_version: int
    ended_height: U64 | None
    ended_ms: U64 | None
    code: str | None
    model: CidText | Hex | None
    optimizer: CidText | Hex | None
    record: CidText | Hex | None
    metrics: list[MetricView]


def round_view(current: Round, names: tuple[str, ...]) -> RoundView:
    return RoundView(
        number=current.number,
        version=current.version,
        phase=PHASES[current.phase],
        opened_height=current.opened_height,
        opened_ms=current.opened_ms,
        base=cid_or_none(current.base),
        checked_in=current.checked_in,
        cohort=current.cohort,
        updates=current.updates.size,
        weight=current.weight,
        weights=list(current.weights),
        examples=current.examples,
        deadline_ms=None if current.deadline_ms == NEVER else current.deadline_ms,
        extended=current.extended,
        closing_height=current.closing_height or None,
        frozen_height=current.frozen_height or None,
        aggregation_deadline_ms=current.aggregation_deadline_ms or None,
        log_root=current.updates.root().hex(),
        kernel_version=current.kernel_version,
        ended_height=current.ended_height or None,
        ended_ms=current.ended_ms or None,
        code=current.code or None,
        model=cid_or_none(current.model),
        optimizer=cid_or_none(current.optimizer),
        record=cid_or_none(current.record),
        metrics=metric_views(names, current.means),
    )


class RoundsView(TypedDict):
    rounds: list[RoundView]
    next: U64 | None


class UpdateView(TypedDict):
    """An accepted update, of the job's `group` of tensors; its payload is in transaction `index` of `batch`, or is the
    blob `cid`. Its header names `round`, an earlier one in a job without rounds."""

    position: U64
    tx_id: HexDigest
    member: HexDigest
    round: U64
    weight: U64
    group: int
    cid: CidText | Hex | None
    batch: HexDigest
    index: U64


def update_view(position: int, entry: Entry) -> UpdateView:
    return UpdateView(
        position=position,
        tx_id=entry.tx_id.hex(),
        member=entry.member.hex(),
        round=entry.round,
        weight=entry.weight,
        group=entry.group,
        cid=cid_or_none(entry.cid),
        batch=entry.batch.hex(),
        index=entry.index,
    )


class UpdatesView(TypedDict):
    updates: list[UpdateView]
    next: U64 | None


# Events


class EventView(TypedDict):
    """`subject` is what the kind is about: a transaction, an account or a digest in hex, or the text of a CID."""

    type: Literal["event"]
    index: U64
    height: U64
    time_ms: U64
    kind: str
    job: HexDigest | None
    round: U64
    subject: str | None
    code: str | None
    value: U64


def event_view(index: int, event: Event) -> EventView:
    subject = event.subject
    return EventView(
        type="event",
        index=index,
        height=event.height,
        time_ms=event.time_ms,
        kind=event.kind,
        job=hex_or_none(event.job),
        round=event.round,
        subject=cid_or_none(subject) if len(subject) == CID_BYTES else hex_or_none(subject),
        code=event.code or None,
        value=event.value,
    )


class EventsView(TypedDict):
    """`next` is where to go on; events that were filtered out are passed over, so a page may be short."""

    events: list[EventView]
    next: U64
    head: U64


class EventProofView(TypedDict):
    """`bundle` is the encoded chain.light.ReceiptBundle over the log of events."""

    event: EventView
    bundle: Base64


class HeadView(TypedDict):
    type: Literal["head"]
    final_height: U64
    executed_height: U64
    certified_height: U64
