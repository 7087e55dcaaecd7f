"""What the state machine stores and what it leaves behind, as records; `fl.state` says under which keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated

from chain.certificate import MAX_VALIDATORS
from chain.codec import I64, U8, U16, U32, U64, Count, Digest, Length, PublicKey
from chain.frozen import record
from chain.genesis import MAX_NONCE_WINDOW
from chain.log import Frontier
from fl.tensors.grid import MAX_UPDATES
from fl.tensors.layout import MAX_TENSORS, Schema

Name = Annotated[str, Length(1, 64)]
MaybeName = Annotated[str, Length(0, 64)]
Word = Annotated[str, Length(1, 32)]
Cid = Annotated[bytes, Length(36, 36)]
MaybeCid = Annotated[bytes, Length(0, 36)]
MaybeDigest = Annotated[bytes, Length(0, 32)]
Seats = Annotated[bytes, Length(0, MAX_UPDATES // 8)]
"""A set of seats: bit i of a little-endian integer without leading zeros is seat i."""
Wide = Annotated[bytes, Length(16, 16)]
"""A signed 128-bit integer, big-endian: sums of products that 64 bits do not hold."""

MAX_EXAMPLES = 2**32
MAX_METRICS = 16
MAX_EVALUATORS = 1024
"""In a job: they are listed in one record, and their answers are read in one block."""
MAX_CONFIG = 64
MAX_SETTINGS = 16
MAX_GROUPS = 64
MAX_STALENESS = 64
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
    PAUSE_JOB = 37
    CHECK_IN = 47
    SUBMIT_UPDATE = 48
    SUBMIT_EVALUATION = 49


@record
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
    """Without an `organisation`, the member stands for itself."""

    name: Name
    roles: Annotated[tuple[Word, ...], Count(0, 8)]
    revoked: bool
    height: U64
    organisation: MaybeName = ""


DATASET_TEXT_BYTES = 4096
DatasetText = Annotated[str, Length(0, DATASET_TEXT_BYTES)]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What its owner says of a data set, of which the chain may hold the bytes, know the CID, or neither.
    `withdrawn_height` is 0 until it is withdrawn; the entry itself stays. `examples` is how many it says to hold."""

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
    examples: U64 = 0


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
class RuleSetting:
    """A setting of the aggregation rule: an integer, or the bits of a float64, as the rule says."""

    name: Word
    value: U64


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Averaged tensors that an update may change alone, sorted by name."""

    name: Name
    tensors: Annotated[tuple[Annotated[str, Length(1, 200)], ...], Count(1, MAX_TENSORS)]


@dataclass(frozen=True, slots=True)
class CohortRules:
    """Who takes part in a round: all who joined (size 0), or `size` of them and `over_ppm` millionths more, drawn by
    the beacon. With a check-in, they are drawn among those who checked in within its time."""

    size: U32 = 0
    over_ppm: U32 = 0
    check_in_ms: U64 = 0


class Statistic(StrEnum):
    MEAN = "mean"
    """weighted by the evaluators' examples"""
    MEDIAN = "median"
    """the lower one, of evaluators alike"""


@dataclass(frozen=True, slots=True)
class EvaluationRules:
    """After each round whose number is a multiple of `every` (0: never), and after the last one, evaluators measure
    its model: all of them, or as many as `cohort` says, drawn by the beacon. The next round waits for that if
    `before_next`."""

    every: U32 = 0
    cohort: U32 = 0
    minimum: U32 = 0
    deadline_ms: U64 = 0
    before_next: bool = False
    statistic: Word = Statistic.MEDIAN.value
    metrics: Annotated[tuple[Name, ...], Count(0, MAX_METRICS)] = ()


@dataclass(frozen=True, slots=True)
class Goal:
    """The metric by which models are compared: of the evaluation if it names it, else of training. The best model by
    evaluation is kept. With `stop`, the job is finished once the metric is at `value` or better."""

    metric: Annotated[str, Length(0, 64)] = ""
    larger: bool = False
    stop: bool = False
    value: I64 = 0


@dataclass(frozen=True, slots=True)
class JobRules:
    """What a member accepts by joining; immutable for the life of the job.

    `share_ppm` is the share of the values that an update in topk holds, in millionths. `organisation_cap` is the
    most that the members of one organisation weigh together; 0: there is none. `discounts` is what an update weighs
    in a job without rounds, in 1/1024, by how many versions its base is old; the oldest one has the last place.
    """

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
    settings: Annotated[tuple[RuleSetting, ...], Count(0, MAX_SETTINGS)] = ()
    share_ppm: U32 = 0
    groups: Annotated[tuple[TensorGroup, ...], Count(0, MAX_GROUPS)] = ()
    organisation_cap: U32 = 0
    discounts: Annotated[tuple[U32, ...], Count(0, MAX_STALENESS + 1)] = ()
    cohort: CohortRules = CohortRules()
    evaluation: EvaluationRules = EvaluationRules()
    goal: Goal = Goal()

    def __hash__(self) -> int:
        # Much is cached by rules, and asked for with each update; comparing finds what else differs.
        return hash((self.name, self.initial))


class JobStatus(IntEnum):
    WAITING = 1
    """for members or for an evaluation, until a round can open"""
    RUNNING = 2
    PAUSED = 3
    FINISHED = 4
    STOPPED = 5


@dataclass(frozen=True, slots=True)
class Job:
    """`round` is the newest round opened (0: none), `model_round` the one that made `model` (0: initial). `evaluation`
    is the newest round whose model has been put to the evaluators (0: none), `best` the model that measured best so
    far, by the goal: that of `best_round`, by `best_value`. With `pausing`, the job is paused once its round ends."""

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
    evaluators: U32 = 0
    evaluation: U64 = 0
    best: MaybeCid = b""
    best_round: U64 = 0
    best_value: I64 = 0
    pausing: bool = False


@dataclass(frozen=True, slots=True)
class OpenJob:
    """`due_ms` is the block time at which the job wants a block: 0 for the very next one, or NEVER. `parameters` are
    all that its models hold, frozen ones too."""

    job: Digest
    due_ms: U64
    parameters: U64


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """Sorted by job."""

    jobs: Annotated[tuple[OpenJob, ...], Count(0, MAX_OPEN_JOBS)]


@dataclass(frozen=True, slots=True)
class Joined:
    """A member's place in a job: in the cohorts from a round on, at the lowest `seat` that was free. `checked_in` is
    the last round checked in for. `examples` is what the data set that it joined with says to hold."""

    from_round: U64
    seat: U32
    checked_in: U64 = 0
    dataset: MaybeDigest = b""
    examples: U64 = 0


@dataclass(frozen=True, slots=True)
class Seated:
    """The seats of a job that are taken."""

    seats: Seats


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who may answer a round, where that is not everyone who joined before it: those who checked in, and once lots are
    drawn, those drawn. A seat whose member leaves is taken out."""

    round: U64
    seats: Seats


@dataclass(frozen=True, slots=True)
class Answered:
    """Whose updates the newest round that took any holds. A seat stays in it when its member leaves; whoever takes it
    then is in the cohorts of later rounds."""

    round: U64
    seats: Seats


@dataclass(frozen=True, slots=True)
class Organisation:
    """The seats in a job of an organisation's members, and how many of them were in the cohort of `round`."""

    seats: Seats
    round: U64
    cohort: U32


class Phase(IntEnum):
    """In their order; `fl.phases` says which of them a job's rounds go through. What is not over is below CLOSED."""

    CHECK_IN = 1
    DRAWING = 2
    """The list of candidates is settled; the next block's beacon draws among them."""
    KEYS = 3
    SHARES = 4
    COLLECTING = 5
    REVEALING = 6
    UNMASKING = 7
    AGGREGATING = 8
    CLOSED = 9
    FAILED = 10


@dataclass(frozen=True, slots=True)
class MetricSum:
    """`total` is the sum of metric × examples over the updates whose value is a number."""

    total: Wide
    examples: U64
    marked: U32


@dataclass(frozen=True, slots=True)
class Round:
    """`version` is how many rounds had closed before it opened: the age of its base. `cohort` is how many may answer in
    its present phase, and `checked_in` how many have checked in. `deadline_ms` is that of the phase, which may be
    `extended` once.

    `minimum_ms` is when the minimum was reached (0: not yet); `closing_height` the block at whose end the phase was
    seen to be complete (0: not yet), `closing_proposers` who has proposed since, in `closing_epoch`. `updates` is the
    log of accepted updates, whose leaves are entries, and `weights` their sum for each group of tensors."""

    number: U64
    version: U32
    phase: U8
    opened_height: U64
    opened_ms: U64
    base: Cid
    checked_in: U32
    cohort: U32
    deadline_ms: U64
    extended: bool
    minimum_ms: U64
    closing_height: U64
    closing_epoch: U64
    closing_proposers: Annotated[tuple[U16, ...], Count(0, MAX_VALIDATORS)]
    updates: Frontier
    weights: Annotated[tuple[U64, ...], Count(1, MAX_GROUPS)]
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

    @property
    def weight(self) -> int:
        return sum(self.weights)


@record
class Entry:
    """An accepted update: a leaf of its round's log. The payload is in transaction `index` of `batch`, or is the
    blob `cid` if none is there; its header names `round`, an earlier one in a job without rounds."""

    tx_id: Digest
    member: Digest
    round: U64
    weight: U32
    group: U8
    cid: Cid
    batch: Digest
    index: U32

    @property
    def fields(self) -> EntryFields:
        return self.tx_id, self.member, self.round, self.weight, self.group, self.cid, self.batch, self.index


EntryFields = tuple[bytes, bytes, int, int, int, bytes, bytes, int]
"""Of an `Entry`, in their order: what stands for it where there are thousands."""


@dataclass(frozen=True, slots=True)
class Evaluators:
    """Of a job, or of the cohort of its open evaluation: accounts, sorted."""

    accounts: Annotated[tuple[Digest, ...], Count(0, MAX_EVALUATORS)]


class EvaluationPhase(IntEnum):
    DRAWING = 1
    """The list of evaluators is settled; the next block's beacon draws among them."""
    OPEN = 2
    CLOSED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the cohort measured of the model that a round made. `closing_height` is the block at whose end the deadline
    was seen to have passed (0: not yet), `closing_proposers` who has proposed since, in `closing_epoch`. `answers` is
    the log of answers, whose leaves they are. Of each metric, `marked` answers gave no number, and `values` has the
    statistic of the others; both are empty until the evaluation is closed."""

    round: U64
    phase: U8
    model: Cid
    opened_height: U64
    opened_ms: U64
    cohort: U32
    deadline_ms: U64
    closing_height: U64
    closing_epoch: U64
    closing_proposers: Annotated[tuple[U16, ...], Count(0, MAX_VALIDATORS)]
    answers: Frontier
    examples: U64
    ended_height: U64
    ended_ms: U64
    code: Annotated[str, Length(0, 32)]
    marked: Annotated[tuple[U32, ...], Count(0, MAX_METRICS)]
    values: Annotated[tuple[I64, ...], Count(0, MAX_METRICS)]


@dataclass(frozen=True, slots=True)
class Answer:
    """An evaluator's: a leaf of its evaluation's log, and a row of the state until the evaluation ends."""

    tx_id: Digest
    member: Digest
    examples: U64
    values: Annotated[tuple[I64, ...], Count(0, MAX_METRICS)]


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


@record
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
    JOB_PAUSING = "job_pausing"
    JOB_PAUSED = "job_paused"
    JOB_RESUMED = "job_resumed"
    JOB_STOPPED = "job_stopped"
    JOB_FINISHED = "job_finished"
    ROUND_OPENED = "round_opened"
    ROUND_DRAWN = "round_drawn"
    ROUND_COLLECTING = "round_collecting"
    UPDATE_REFUSED = "update_refused"
    ROUND_CLOSING = "round_closing"
    ROUND_EXTENDED = "round_extended"
    ROUND_AGGREGATING = "round_aggregating"
    ROUND_CLOSED = "round_closed"
    ROUND_FAILED = "round_failed"
    EVALUATION_OPENED = "evaluation_opened"
    EVALUATION_CLOSED = "evaluation_closed"
    EVALUATION_FAILED = "evaluation_failed"
    BEST_MODEL = "best_model"
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
