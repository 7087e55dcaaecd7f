"""A block in execution: what goes in, what comes out, and what the handlers of transactions work on."""

from __future__ import annotations

from dataclasses import dataclass

from chain.block import Item
from chain.codec import encode
from chain.genesis import Params
from chain.log import EMPTY, Frontier, append, leaf_digest
from fl.records import Event, EventKind, Meta, OpenJob, OpenJobs, Receipt
from fl.state import EVENTS, META, OPEN_JOBS, RECEIPTS, Read, State
from fl.tensors.layout import Schema

OK = "ok"
"""The status of a transaction that was executed and not refused."""

LogNode = tuple[bytes, int, int, bytes]
"""(log name, level, index, digest) of a Merkle log; the names are the state keys "receipts" and "events",
and `fl.state.updates_log`."""


@dataclass(frozen=True, slots=True)
class BlockInput:
    """A final block as execution sees it. `within_window` says that the block was at most W batch-carrying
    blocks ahead of the newest execution certificate, so that its proposer was free to include batches."""

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
    batches: tuple[tuple[bytes, tuple[bytes, ...]], ...]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class AggregationTask:
    """A frozen round to aggregate. Its `size` entries are rows beside the state, under `log_root`:
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
class BlockOutcome:
    """`writes` are the rows of state; `rows` and `nodes` are stored beside it, under roots in it."""

    writes: dict[bytes, bytes | None]
    receipts: tuple[bytes, ...]
    events: tuple[bytes, ...]
    nodes: tuple[LogNode, ...]
    rows: tuple[tuple[bytes, bytes], ...]
    models: tuple[NewModel, ...]
    aggregations: tuple[AggregationTask, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """The transaction in execution, as its handler sees it."""

    tx_id: bytes
    sender: bytes
    key: bytes
    batch: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What an executed transaction's receipt says beside "ok"."""

    job: bytes = b""
    round: int = 0
    position: int = 0
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """Of what comes out of the block; the state has its own."""

    events: int
    nodes: int
    rows: int
    models: int


class Execution:
    __slots__ = ("_nodes", "aggregations", "block", "events", "models", "receipts", "rows", "state", "touched")

    def __init__(self, read: Read, block: BlockInput) -> None:
        self.state = State(read)
        self.block = block
        self.receipts: list[Receipt] = []
        self.events: list[Event] = []
        self.rows: list[tuple[bytes, bytes]] = []
        self.models: list[NewModel] = []
        self.aggregations: list[AggregationTask] = []
        self.touched: set[bytes] = set()
        self._nodes: list[LogNode] = []

    def event(
        self, kind: EventKind, job: bytes = b"", round: int = 0, subject: bytes = b"", code: str = "", value: int = 0
    ) -> None:
        block = self.block
        self.events.append(Event(block.height, block.time_ms, kind.value, job, round, subject, code, value))

    def log(self, name: bytes, frontier: Frontier, leaf: bytes) -> Frontier:
        frontier, nodes = append(frontier, leaf_digest(leaf))
        self._nodes.extend((name, level, index, digest) for level, index, digest in nodes)
        return frontier

    def mark(self) -> Mark:
        self.state.mark()
        return Mark(len(self.events), len(self._nodes), len(self.rows), len(self.models))

    def roll_back(self, mark: Mark) -> None:
        self.state.roll_back()
        del self.events[mark.events :]
        del self._nodes[mark.nodes :]
        del self.rows[mark.rows :]
        del self.models[mark.models :]

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
        receipts = tuple(encode(receipt) for receipt in self.receipts)
        events = tuple(encode(event) for event in self.events)
        if self.receipts:
            executed = sum(receipt.status == OK for receipt in self.receipts)
            self.count(executed=executed, refused=len(self.receipts) - executed)
        self._append_all(RECEIPTS, receipts)
        self._append_all(EVENTS, events)
        return BlockOutcome(
            writes=self.state.writes(),
            receipts=receipts,
            events=events,
            nodes=tuple(self._nodes),
            rows=tuple(self.rows),
            models=tuple(self.models),
            aggregations=tuple(self.aggregations),
        )

    def _append_all(self, name: bytes, leaves: tuple[bytes, ...]) -> None:
        if not leaves:
            return
        frontier = self.state.get(Frontier, name) or EMPTY
        for leaf in leaves:
            frontier = self.log(name, frontier, leaf)
        self.state.put(name, frontier)
