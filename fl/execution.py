"""A block in execution: what goes in, what comes out, and what the handlers of transactions work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chain.block import Item
from chain.codec import encode
from chain.genesis import Params
from chain.log import EMPTY, Frontier, NewNode, extend, leaf_digests
from fl.errors import Refused
from fl.records import EntryFields, Event, EventKind, Meta, OpenJob, OpenJobs
from fl.state import EVENTS, META, OPEN_JOBS, RECEIPTS, Changes, Known, Read, State
from fl.tensors.layout import Schema

if TYPE_CHECKING:
    from fl.transactions import Reading

OK = "ok"
"""The status of a transaction that was executed and not refused."""


@dataclass(frozen=True, slots=True)
class BlockInput:
    """A final block as execution sees it. `within_window` says that the block was at most W batch-carrying
    blocks ahead of the newest execution certificate, so that its proposer was free to include batches. `batches` are
    their digests with what their transactions say, or why they say nothing: `fl.transactions.read_all`."""

    chain_id: bytes
    params: Params
    height: int
    digest: bytes
    time_ms: int
    epoch: int
    proposer: int
    f: int
    within_window: bool
    beacon: bytes
    batches: tuple[tuple[bytes, tuple[Reading | Refused, ...]], ...]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class AggregationTask:
    """A frozen round to aggregate. Its `size` entries are beside the state, under `log_root`:
    `fl.rounds.entries_of` reads them. `step` is 1 more than the rounds of the job that were closed before, `optimizer`
    the state that the last one of them left, or empty."""

    job: bytes
    round: int
    log_root: bytes
    size: int
    kernel_version: int
    base_model: bytes
    optimizer: bytes
    step: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model that the state names from this block on. Its bytes came in the transaction, or are zeros behind the
    header that the schema implies; with neither it is a blob that the votes for its batch found here."""

    cid: bytes
    inline: bytes
    zeros: Schema | None


@dataclass(frozen=True, slots=True)
class Growth:
    """What a log has gained: leaves from position `first` on, and the nodes that `chain.log.extend` names. A log's name
    is the state key "receipts" or "events", or of `fl.state.updates_log` or `answers_log`."""

    log: bytes
    first: int
    leaves: tuple[bytes, ...]
    nodes: tuple[NewNode, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Updates that a round has taken, in the order of its log from position `first` on."""

    job: bytes
    round: int
    first: int
    entries: tuple[EntryFields, ...]
    payloads: tuple[bytes, ...]
    """Empty where a blob holds it."""
    size_bytes: int
    """Of the payloads."""
    inline: bool
    """No blob holds any."""


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """`changes` are those to the rows of state; what `logs` have gained is stored beside it, under roots in it.
    `ids` are the transactions that the receipts are of."""

    changes: Changes
    receipts: tuple[bytes, ...]
    ids: tuple[bytes, ...]
    events: tuple[bytes, ...]
    logs: tuple[Growth, ...]
    accepted: tuple[Accepted, ...]
    models: tuple[NewModel, ...]
    aggregations: tuple[AggregationTask, ...]

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        return self.changes.writes


@dataclass(slots=True)
class Call:
    """The transaction in execution, as its handler sees it. Those of a batch are one object, one after the other."""

    batch: bytes
    tx_id: bytes = b""
    sender: bytes = b""
    key: bytes = b""
    place: int = 0


class Effect(NamedTuple):
    """What an executed transaction's receipt says beside "ok"."""

    job: bytes = b""
    round: int = 0
    position: int = 0
    weight: int = 0


NO_EFFECT = Effect()


class Execution:
    __slots__ = (
        "_marked",
        "accepted",
        "aggregations",
        "block",
        "events",
        "ids",
        "logs",
        "models",
        "receipts",
        "refused",
        "state",
        "touched",
    )

    def __init__(self, read: Read, block: BlockInput, known: Known | None = None) -> None:
        self.state = State(read, known)
        self.block = block
        self.receipts: list[bytes] = []
        self.ids: list[bytes] = []
        """Of the transactions that have them."""
        self.refused = 0
        self.events: list[Event] = []
        self.logs: list[Growth] = []
        self.accepted: list[Accepted] = []
        self.models: list[NewModel] = []
        self.aggregations: list[AggregationTask] = []
        self.touched: set[bytes] = set()
        self._marked = (0, 0, 0, 0)

    def event(
        self, kind: EventKind, job: bytes = b"", round: int = 0, subject: bytes = b"", code: str = "", value: int = 0
    ) -> None:
        block = self.block
        self.events.append(Event(block.height, block.time_ms, kind.value, job, round, subject, code, value))

    def log(self, name: bytes, frontier: Frontier, leaves: Sequence[bytes]) -> Frontier:
        """The frontier of this log with these leaves behind it."""
        longer, nodes = extend(frontier, leaf_digests(leaves))
        self.logs.append(Growth(name, frontier.size, tuple(leaves), tuple(nodes)))
        return longer

    def mark(self) -> None:
        self.state.mark()
        self._marked = len(self.events), len(self.logs), len(self.accepted), len(self.models)

    def roll_back(self) -> None:
        """To the mark."""
        self.state.roll_back()
        events, logs, accepted, models = self._marked
        del self.events[events:]
        del self.logs[logs:]
        del self.accepted[accepted:]
        del self.models[models:]

    def count(self, members: int = 0, jobs: int = 0, executed: int = 0, refused: int = 0) -> None:
        meta = self.state.get(Meta, META) or Meta(0, 0, 0, 0)
        self.state.put(
            META,
            Meta(meta.members + members, meta.jobs + jobs, meta.executed + executed, meta.refused + refused),
        )

    def open_jobs(self) -> tuple[OpenJob, ...]:
        opened = self.state.get(OpenJobs, OPEN_JOBS)
        return opened.jobs if opened else ()

    def set_open_job(self, job: OpenJob) -> None:
        others = tuple(each for each in self.open_jobs() if each.job != job.job)
        self.state.put(OPEN_JOBS, OpenJobs(tuple(sorted((*others, job), key=lambda each: each.job))))

    def close_job(self, job: bytes) -> None:
        self.state.put(OPEN_JOBS, OpenJobs(tuple(each for each in self.open_jobs() if each.job != job)))

    def outcome(self) -> BlockOutcome:
        receipts = tuple(self.receipts)
        events = tuple(map(encode, self.events))
        if receipts:
            self.count(executed=len(receipts) - self.refused, refused=self.refused)
        for name, leaves in ((RECEIPTS, receipts), (EVENTS, events)):
            if leaves:
                self.state.put(name, self.log(name, self.state.get(Frontier, name) or EMPTY, leaves))
        return BlockOutcome(
            changes=self.state.changes(),
            receipts=receipts,
            ids=tuple(self.ids),
            events=events,
            logs=tuple(self.logs),
            accepted=tuple(self.accepted),
            models=tuple(self.models),
            aggregations=tuple(self.aggregations),
        )
