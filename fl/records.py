"""What the state machine stores and what it leaves behind, as records; `fl.state` says under which keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated

from chain.certificate import MAX_VALIDATORS
from chain.codec import I64, U8, U16, U32, U64, Count, Digest, Length, PublicKey
from chain.genesis import MAX_NONCE_WINDOW
from chain.log import Frontier
from fl.tensors.layout import Schema

Name = Annotated[str, Length(1, 64)]
Word = Annotated[str, Length(1, 32)]
Cid = Annotated[bytes, Length(36, 36)]
MaybeCid = Annotated[bytes, Length(0, 36)]
MaybeDigest = Annotated[bytes, Length(0, 32)]
Wide = Annotated[bytes, Length(16, 16)]
"""A signed 128-bit integer, big-endian: sums of products that 64 bits do not hold."""

MAX_EXAMPLES = 2**32
MAX_METRICS = 16
MAX_CONFIG = 64
MAX_OPEN_JOBS = 64
"""Every block reads the list of open jobs, so it stays short."""
MAX_SPAN_MS = 366 * 24 * 3_600_000
MAX_ROUNDS = 1_000_000
NEVER = 2**64 - 1

METRIC_NAN = -(2**63)
METRIC_MINUS_INFINITY = -(2**63) + 1
METRIC_PLUS_INFINITY = 2**63 - 1
METRIC_MARKS = frozenset({METRIC_NAN, METRIC_MINUS_INFINITY, METRIC_PLUS_INFINITY})


class Role(StrEnum):
    AUDITOR = "auditor"
    CREATOR = "creator"
    EVALUATOR = "evaluator"
    OPERATOR = "operator"
    TRAINER = "trainer"
    USER = "user"


class Kind(IntEnum):
    """Of a transaction. Families leave room between them; a number is never given twice."""

    ROTATE_KEY = 2
    REGISTER_MEMBER = 16
    REVOKE_MEMBER = 17
    REGISTER_DATASET = 24
    WITHDRAW_DATASET = 25
    CREATE_JOB = 32
    STOP_JOB = 33
    RESUME_JOB = 34
    JOIN_JOB = 35
    LEAVE_JOB = 36
    SUBMIT_UPDATE = 48


@dataclass(frozen=True, slots=True)
class Account:
    """Bit i of `used`, a little-endian integer without leading zeros, is set when nonce floor + i has been
    executed. Bit 0 never is: the floor is the lowest nonce that is free."""

    key: PublicKey
    floor: U64
    used: Annotated[bytes, Length(0, MAX_NONCE_WINDOW // 8)]


@dataclass(frozen=True, slots=True)
class Named:
    """Whose a name is: an account, a job or a data set."""

    holder: Digest


@dataclass(frozen=True, slots=True)
class Registrars:
    accounts: Annotated[tuple[Digest, ...], Count(0, 1024)]
    open_admission: bool


@dataclass(frozen=True, slots=True)
class Member:
    name: Name
    roles: Annotated[tuple[Word, ...], Count(0, 8)]
    revoked: bool
    height: U64


DATASET_TEXT_BYTES = 4096
DatasetText = Annotated[str, Length(0, DATASET_TEXT_BYTES)]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What its owner says of a data set, of which the chain may hold the bytes, know the CID, or neither.
    `withdrawn_height` is 0 until it is withdrawn; the entry itself stays."""

    owner: Digest
    name: Name
    cid: MaybeCid
    size_bytes: U64
    stored: bool
    schema: DatasetText
    policy: DatasetText
    licence: Annotated[str, Length(0, 64)]
    height: U64
    withdrawn_height: U64


@dataclass(frozen=True, slots=True)
class Stored:
    """What the chain keeps for a member, by the sizes of its data sets that are stored and not withdrawn."""

    size_bytes: U64


class ConfigType(StrEnum):
    INTEGER = "integer"
    DECIMAL = "decimal"
    STRING = "string"


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """A value for the clients from a round on, until a later entry of the same name."""

    name: Name
    from_round: U64
    type: Word
    value: Annotated[str, Length(0, 256)]


@dataclass(frozen=True, slots=True)
class JobRules:
    """What a member accepts by joining; immutable for the life of the job."""

    name: Name
    schema: Schema
    initial: Cid
    mode: Word
    rule: Word
    encoding: Word
    range_bits: U8
    weights: Word
    cap: U32
    target: U32
    minimum: U32
    maximum: U32
    deadline_ms: U64
    grace_ms: U64
    rounds: U32
    max_failed: U32
    privacy: Word
    metrics: Annotated[tuple[Name, ...], Count(0, MAX_METRICS)]
    config: Annotated[tuple[ConfigEntry, ...], Count(0, MAX_CONFIG)]
    app: Annotated[str, Length(0, 64)]
    app_digest: MaybeDigest


class JobStatus(IntEnum):
    WAITING = 1
    """for members, until a round can open"""
    RUNNING = 2
    PAUSED = 3
    FINISHED = 4
    STOPPED = 5


@dataclass(frozen=True, slots=True)
class Job:
    """`round` is the newest round opened (0: none), `model_round` the one that made `model` (0: initial)."""

    name: Name
    creator: Digest
    rules_hash: Digest
    created_height: U64
    status: U8
    members: U32
    opens_ms: U64
    round: U64
    completed: U32
    failed_in_a_row: U32
    model: Cid
    model_round: U64
    optimizer: MaybeCid
    parameters: U64


@dataclass(frozen=True, slots=True)
class OpenJob:
    """`due_ms` is the block time at which the job wants a block: 0 for the very next one, or NEVER."""

    job: Digest
    due_ms: U64
    parameters: U64


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """Sorted by job."""

    jobs: Annotated[tuple[OpenJob, ...], Count(0, MAX_OPEN_JOBS)]


@dataclass(frozen=True, slots=True)
class Joined:
    """A member's place in a job: in the cohorts from a round on; `answered` is the last round answered."""

    from_round: U64
    answered: U64


class Phase(IntEnum):
    COLLECTING = 1
    AGGREGATING = 2
    CLOSED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class MetricSum:
    """`total` is the sum of metric × examples over the updates whose value is a number."""

    total: Wide
    examples: U64
    marked: U32


@dataclass(frozen=True, slots=True)
class Round:
    """`minimum_ms` is when the minimum was reached (0: not yet); `closing_height` the block at whose end the
    round was seen to be complete (0: not yet), `closing_proposers` who has proposed since, in
    `closing_epoch`. `updates` is the log of accepted updates, whose leaves are entries."""

    number: U64
    phase: U8
    opened_height: U64
    opened_ms: U64
    base: Cid
    cohort: U32
    deadline_ms: U64
    extended: bool
    minimum_ms: U64
    closing_height: U64
    closing_epoch: U64
    closing_proposers: Annotated[tuple[U16, ...], Count(0, MAX_VALIDATORS)]
    updates: Frontier
    weight: U64
    examples: U64
    sums: Annotated[tuple[MetricSum, ...], Count(0, MAX_METRICS)]
    frozen_height: U64
    kernel_version: U16
    aggregation_deadline_ms: U64
    ended_height: U64
    ended_ms: U64
    code: Annotated[str, Length(0, 32)]
    model: MaybeCid
    optimizer: MaybeCid
    record: MaybeCid
    means: Annotated[tuple[I64, ...], Count(0, MAX_METRICS)]


@dataclass(frozen=True, slots=True)
class Entry:
    """An accepted update: a leaf of its round's log. The payload is in transaction `index` of `batch`, or is the
    blob `cid` if none is there."""

    tx_id: Digest
    member: Digest
    weight: U32
    cid: Cid
    batch: Digest
    index: U32


@dataclass(frozen=True, slots=True)
class Convicted:
    """The first proven equivocation of a validator in an epoch."""

    view: U64
    kind: Word
    height: U64


@dataclass(frozen=True, slots=True)
class ReadyMark:
    height: U64
    root: Digest
    recorded_height: U64


@dataclass(frozen=True, slots=True)
class SetSchedule:
    """The next change of validators among those that the genesis lists, and the height that it is due at."""

    number: U32
    due_height: U64


@dataclass(frozen=True, slots=True)
class Meta:
    members: U64
    jobs: U64
    executed: U64
    refused: U64


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a transaction: `status` is "ok" or a refusal's code. `job`, `round`, `position` in the
    round's log and `weight` are filled as far as the kind has them."""

    tx_id: Digest
    height: U64
    batch: Digest
    index: U32
    sender: Digest
    nonce: U64
    kind: U16
    status: Word
    job: MaybeDigest
    round: U64
    position: U64
    weight: U64


class EventKind(StrEnum):
    TRANSACTION_SKIPPED = "transaction_skipped"
    KEY_ROTATED = "key_rotated"
    MEMBER_REGISTERED = "member_registered"
    MEMBER_REVOKED = "member_revoked"
    DATASET_REGISTERED = "dataset_registered"
    DATASET_WITHDRAWN = "dataset_withdrawn"
    JOB_CREATED = "job_created"
    JOB_JOINED = "job_joined"
    JOB_LEFT = "job_left"
    JOB_PAUSED = "job_paused"
    JOB_RESUMED = "job_resumed"
    JOB_STOPPED = "job_stopped"
    JOB_FINISHED = "job_finished"
    ROUND_OPENED = "round_opened"
    ROUND_CLOSING = "round_closing"
    ROUND_EXTENDED = "round_extended"
    ROUND_AGGREGATING = "round_aggregating"
    ROUND_CLOSED = "round_closed"
    ROUND_FAILED = "round_failed"
    EVIDENCE = "evidence"
    READY = "ready"
    ITEM_IGNORED = "item_ignored"
    EPOCH_DUE = "epoch_due"
    EPOCH_BEGUN = "epoch_begun"


@dataclass(frozen=True, slots=True)
class Event:
    """`subject` names what the kind is about beside the job: a transaction, an account, a CID, a digest."""

    height: U64
    time_ms: U64
    kind: Word
    job: MaybeDigest
    round: U64
    subject: Annotated[bytes, Length(0, 64)]
    code: Annotated[str, Length(0, 32)]
    value: U64
