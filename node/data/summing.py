"""Rounds being summed: updates go in as they become available, the next model comes out when the round has closed.

A round costs one sum a parameter, however many updates it has, and there is a budget for all rounds together. A round
that finds no room in it waits with nothing but the names of its updates, and is summed when it closes; then it may
exceed the budget, one round at a time. Inline updates belong to models so small that their sums always have room, so
nobody waits with bytes in hand.

Open rounds take turns, one group of updates each, on one thread: a round of large updates delays a small one by one
group. An update that is not here is fetched from the others meanwhile; nobody waits for it but its own round.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fl.blobs import BlobKind
from fl.errors import Refused
from fl.records import JobRules
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place
from fl.tensors.layout import layout_of
from fl.updates import form_of
from node.data.arrivals import Arrivals
from node.data.blobs import Blob, BlobStore
from node.data.errors import NoSpace
from node.data.messages import Add, Addend, Close, Closed
from node.ports import DiskFailure, DiskFull, Offload

if TYPE_CHECKING:
    from fl.aggregation import Aggregation, AggregationOutcome

log = logging.getLogger("quorate.data")

SUM_BYTES = 8
ALWAYS_BYTES = 1024 * 1024
"""Sums of a round that takes no more are outside of the budget."""
FETCHED_AT_ONCE = 8
"""Missing updates of one round."""
ROOM_S = 1.0
GROUP = 4
"""Updates summed by one call where there are as many: what the kernels fuse."""


class CannotSum(Exception):
    """No result of this round comes from here, and asking again does not change that."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(slots=True, eq=False)
class _Round:
    job: bytes
    number: int
    rules: JobRules
    sums_bytes: int
    """What its sums take."""
    known: set[int] = field(default_factory=set)
    """Indexes of updates that were added."""
    inline: deque[Addend] = field(default_factory=deque)
    here: deque[Addend] = field(default_factory=deque)
    """Updates whose blobs are here."""
    fetches: set[asyncio.Task[None]] = field(default_factory=set)
    fetching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHED_AT_ONCE))
    sums: Aggregation | None = None
    summed: int = 0
    size: int | None = None
    """Once the round has closed."""
    trouble: CannotSum | None = None
    closed: Closed | None = None
    made: set[bytes] = field(default_factory=set)
    """CIDs of what it ended with: named by nobody before the core has heard of them, and by the state much later."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when anything of the above changes that somebody may wait for."""
    over: bool = False

    def tell(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()


class Sums:
    def __init__(
        self,
        store: BlobStore,
        offload: Offload,
        arrivals: Arrivals,
        budget_bytes: int,
        check_kernels: Callable[[], None] | None,
    ) -> None:
        """`check_kernels` raises if this machine computes other numbers than all others; called once, before the
        first result."""
        self._store = store
        self._offload = offload
        self._arrivals = arrivals
        self._budget_bytes = budget_bytes
        self.check_kernels = check_kernels
        self._checking: asyncio.Task[None] | None = None
        self._rounds: dict[tuple[bytes, int], _Round] = {}
        self._changed = asyncio.Event()
        self._failure: DiskFailure | None = None

    # Figures

    @property
    def open(self) -> int:
        return len(self._rounds)

    @property
    def waiting(self) -> int:
        """Updates not yet summed."""
        return sum(len(each.known) - each.summed for each in self._rounds.values())

    @property
    def held_bytes(self) -> int:
        return sum(each.sums_bytes for each in self._rounds.values() if each.sums is not None)

    def made(self) -> set[bytes]:
        """What rounds ended with that were not dropped yet: it must stay, whoever names it."""
        return {cid for each in self._rounds.values() for cid in each.made}

    # What the core asks

    async def add(self, asked: Add) -> None:
        """Returns once nothing of the request itself has to be kept in memory."""
        key = (asked.job, asked.round)
        current = self._rounds.get(key)
        if current is None:
            size_bytes = SUM_BYTES * (await self._offload.run(layout_of, asked.rules.schema)).parameters
            current = self._rounds.setdefault(key, _Round(asked.job, asked.round, asked.rules, size_bytes))
        for addend in asked.updates:
            if addend.index in current.known or current.closed is not None:
                continue
            current.known.add(addend.index)
            if addend.payload:
                current.inline.append(addend)
            elif self._store.find(addend.cid) is not None:
                current.here.append(addend)
            else:
                self._fetch(current, addend)
        self._changed.set()
        while current.inline and not current.over and current.trouble is None:
            await current.moved.wait()

    async def close(self, asked: Close) -> Closed:
        """Raises CannotSum."""
        await self._kernels(asked.kernel_version)
        current = self._rounds.get((asked.job, asked.round))
        if current is None:
            raise CannotSum("UNKNOWN_ROUND", "no update of this round was added in this life of the data process")
        if current.closed is not None:
            self._touch(current)
            return replace(current.closed, id=asked.id)
        current.size = asked.size
        self._changed.set()
        base = await self._arrivals.obtain(asked.base, BlobKind.MODEL)
        while current.summed < asked.size and current.trouble is None and not current.over:
            await current.moved.wait()
        if current.trouble is not None:
            raise current.trouble
        if current.over or current.sums is None:
            raise CannotSum("DROPPED", "the round was dropped while it was summed")
        return await self._finished(current, current.sums, asked, base)

    def drop(self, job: bytes, number: int) -> None:
        current = self._rounds.pop((job, number), None)
        if current is not None:
            self._end(current)

    def _end(self, current: _Round) -> None:
        current.over = True
        current.sums = None
        for fetch in current.fetches:
            fetch.cancel()
        current.tell()
        self._changed.set()

    # Fetching

    def _fetch(self, current: _Round, addend: Addend) -> None:
        task = asyncio.create_task(self._fetched(current, addend), name="addend")
        current.fetches.add(task)
        task.add_done_callback(current.fetches.discard)

    async def _fetched(self, current: _Round, addend: Addend) -> None:
        async with current.fetching:
            try:
                await self._arrivals.obtain(addend.cid, BlobKind.UPDATE)
            except Exception as error:
                self._spoil(current, error)
                return
        current.here.append(addend)
        self._changed.set()

    # Summing

    async def run(self) -> None:
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                self._changed.clear()
                worked = False
                for current in list(self._rounds.values()):
                    worked |= await self._group(current)
                if not worked:
                    await self._changed.wait()
        finally:
            for current in self._rounds.values():
                self._end(current)

    async def _group(self, current: _Round) -> bool:
        """Sums the next updates of a round. False if it has none, or no room for sums."""
        queue = current.inline or current.here
        if current.over or current.trouble is not None or not queue:
            return False
        if queue is current.here and len(queue) < GROUP and current.size is None:
            # More of them will come; together they cost less.
            return False
        if current.sums is None and not self._room(current):
            return False
        group = [queue[place] for place in range(min(GROUP, len(queue)))]
        try:
            if current.sums is None:
                sums = await self._offload.run(_new_sums, current)
                if current.over:
                    return True
                current.sums = sums
            if queue is current.here and self._gone(current, group):
                return True
            updates = [(each, each.payload or self._store.view(each.cid)) for each in group]
            await self._offload.run(_add, current, current.sums, updates)
        except Exception as error:
            self._spoil(current, error)
            return True
        for _ in group:
            queue.popleft()
        current.summed += len(group)
        current.tell()
        return True

    def _gone(self, current: _Round, group: list[Addend]) -> bool:
        """Whether the disk has lost some of these meanwhile; then they are fetched again."""
        gone = [each for each in group if self._store.find(each.cid) is None]
        for addend in gone:
            current.here.remove(addend)
            self._fetch(current, addend)
        return bool(gone)

    def _room(self, current: _Round) -> bool:
        if current.sums_bytes <= ALWAYS_BYTES:
            return True
        counted = [each for each in self._rounds.values() if each.sums is not None and each.sums_bytes > ALWAYS_BYTES]
        held_bytes = sum(each.sums_bytes for each in counted)
        if held_bytes + current.sums_bytes <= self._budget_bytes:
            return True
        # Beyond the budget there is one round that has closed.
        return current.size is not None and held_bytes <= self._budget_bytes

    def _spoil(self, current: _Round, error: Exception) -> None:
        if isinstance(error, DiskFailure):
            self._failure = error
            self._changed.set()
            return
        code = error.code if isinstance(error, Refused) else "SUM_FAILED"
        current.trouble = CannotSum(code, f"round {current.number} cannot be summed: {error}")
        log.error("a round cannot be summed", extra={"code": code, "job": current.job, "round": current.number})
        current.sums = None
        current.tell()

    # Closing

    async def _kernels(self, version: int) -> None:
        own = await self._offload.run(_kernel_version)
        if version != own:
            raise CannotSum("KERNEL_VERSION", f"the round wants kernels of version {version}; this program has {own}")
        if self.check_kernels is None:
            return
        if self._checking is None:
            self._checking = asyncio.create_task(self._offload.run(self.check_kernels), name="kernels")
        try:
            await asyncio.shield(self._checking)
        except Exception as error:
            raise CannotSum("KERNELS_DIFFER", str(error) or type(error).__name__) from error

    async def _finished(self, current: _Round, sums: Aggregation, asked: Close, base: Blob) -> Closed:
        while True:
            try:
                outcome = await self._written(current, sums, asked, base)
                break
            except (NoSpace, DiskFull) as full:
                # The round waits, as all that needs room does; its sums stay as they are.
                log.warning("no room for the model of a round", extra={"job": current.job, "reason": str(full)})
                await asyncio.sleep(ROOM_S)
            except Refused as refused:
                raise CannotSum(refused.code, f"round {current.number} cannot be closed: {refused}") from refused
        current.closed = Closed(asked.id, outcome.ok, outcome.code, outcome.model_cid, b"", outcome.record_cid)
        current.sums = None
        current.known.clear()
        self._changed.set()
        self._touch(current)
        return current.closed

    def _touch(self, current: _Round) -> None:
        """With the answer, whoever has marked before it and collects what must stay cannot know of these yet."""
        for cid in current.made:
            self._store.touch(cid)

    async def _written(self, current: _Round, sums: Aggregation, asked: Close, base: Blob) -> AggregationOutcome:
        """The outcome, once its blobs are durable here."""
        offload, store = self._offload, self._store
        closing = await offload.run(sums.finish, asked.log_root, store.view(base.cid))
        try:
            draft = await offload.run(store.write, BlobKind.MODEL, closing.model())
        except Refused as refused:
            outcome = closing.failed(refused.code, base.cid)
        else:
            current.made.add(draft.cid)
            model = await store.keep(draft)
            outcome = closing.closed(model.cid, base.cid)
        current.made.add(outcome.record_cid)
        record = await store.keep(await offload.run(store.write, BlobKind.RECORD, iter((outcome.record,))))
        assert record.cid == outcome.record_cid, "a record is one leaf"
        return outcome


def _new_sums(current: _Round) -> Aggregation:
    # Here and below: the kernels' libraries take more memory than all else, and most of a validator's life has none
    # of their work.
    from fl.aggregation import Aggregation, AggregationRules

    return Aggregation(AggregationRules(current.job, current.number, current.rules, 1))


def _add(current: _Round, sums: Aggregation, updates: list[tuple[Addend, Any]]) -> None:
    from fl.aggregation import Update

    made = []
    for each, payload in updates:
        place = Place(current.job, current.number, each.member)
        offset = len(form_of(current.rules, 0).header(place))
        print_ = payload_fingerprint(payload, offset)
        made.append(Update(each.index, current.number, each.member, each.weight, 0, payload, print_))
    sums.add(*made)


def _kernel_version() -> int:
    from fl.kernels import KERNEL_VERSION

    return KERNEL_VERSION
