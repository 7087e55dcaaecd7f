"""Aggregation beside execution: rounds are summed in the data process, and their results voted for here.

The updates of a round are told to the data process as they are accepted, so that little is left to do when its log is
frozen; then it is asked for the result. A data process that was started again knows of nothing, so every open round is
told to it from its first update on. What a round ended with is fetched from the others where it is not computed here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from chain.batch import SignedBatch
from chain.certificate import Result
from chain.codec import decode
from chain.genesis import Params
from consensus.effects import Alarm
from fl.blobs import BlobKind
from fl.records import Entry, JobRules, JobStatus, Phase, Round
from fl.rounds import SubmitUpdate
from fl.state import JOBS, MAX_VALUE_BYTES, entry_key, job_of, open_jobs, round_of, rules_of
from fl.transactions import read_body, read_transaction
from node.batchlog import BatchLog
from node.data.messages import ADDENDS, Addend, Closed, Finding
from node.dataplane import ASK_AGAIN_S, DataFault, DataGone, DataPlane
from node.ports import Offload
from node.store import Store

log = logging.getLogger("quorate.aggregator")

KERNELS_DIFFER = "KERNELS_DIFFER"
TOLD_BYTES = 4 * 1024 * 1024
"""Of inline payloads in one message."""
FETCHED_AT_ONCE = 4
FETCHED_WITHIN_S = 60.0
"""Then it is another's turn, for nobody may have this one."""

RoundKey = tuple[bytes, int]
"""A job and the number of a round."""


@dataclass(eq=False)
class _Sum:
    """A round on its way through the data process."""

    key: RoundKey
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    closing: bool = False
    task: asyncio.Task[None] | None = None
    results: tuple[bytes, ...] = ()
    """Blobs that it made, which the state does not name yet."""

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()


class Aggregator:
    def __init__(
        self,
        params: Params,
        store: Store,
        batches: BatchLog,
        data: DataPlane,
        offload: Offload,
        *,
        computed: Callable[[Result], None],
        alarm: Callable[[Alarm], None],
    ) -> None:
        self._params = params
        self._store = store
        self._batches = batches
        self._data = data
        self._offload = offload
        self._computed = computed
        self._alarm = alarm
        self.trouble = ""
        """Why this node signs no results, if it does not."""
        self._open: dict[RoundKey, _Sum] = {}
        self._late: set[asyncio.Task[None]] = set()
        """Rounds that others closed while the data process was at their last step: compared all the same."""
        self._changed = asyncio.Event()
        self._lacking: OrderedDict[bytes, tuple[tuple[bytes, BlobKind], ...]] = OrderedDict()
        """By job, what its newest closed round left and may not be here."""
        self._fetching: dict[bytes, asyncio.Timeout] = {}
        self._lacks = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Frozen rounds without a result of this node's."""
        return sum(not each.done and self._is_frozen(each.key) for each in self._open.values())

    def _is_frozen(self, key: RoundKey) -> bool:
        current = round_of(self._store.state, *key)
        return current is not None and current.phase == Phase.AGGREGATING

    def roots(self) -> list[bytes]:
        """Blobs that were made here and that no state names yet."""
        return [cid for each in self._open.values() for cid in each.results]

    # What execution tells

    def resume(self) -> None:
        """Rounds that were open when the node went down, and what it had not yet fetched."""
        for key, _ in self._store.state_rows(JOBS):
            self._want(key[len(JOBS) :])
        self._changed.set()

    def executed(self, over: Iterable[RoundKey]) -> None:
        """A block was executed, and these rounds ended with it."""
        for key in over:
            self._end(key)
        for each in self._open.values():
            each.moved.set()
        self._changed.set()

    def _end(self, key: RoundKey) -> None:
        current = round_of(self._store.state, *key)
        closed = current is not None and current.phase == Phase.CLOSED
        if closed:
            self._want(key[0])
        ended = self._open.pop(key, None)
        if ended is None or ended.task is None or ended.done:
            return
        if closed and ended.closing:
            self._late.add(ended.task)
            ended.task.add_done_callback(self._late.discard)
        else:
            ended.task.cancel()

    async def run(self) -> None:
        fetching = [asyncio.create_task(self._fetch(), name="fetch models") for _ in range(FETCHED_AT_ONCE)]
        try:
            while True:
                self._changed.clear()
                self._begin()
                await self._changed.wait()
        finally:
            sums = [each.task for each in self._open.values() if each.task is not None]
            for task in (*fetching, *sums, *self._late):
                task.cancel()

    # Sums

    def _begin(self) -> None:
        if self.trouble:
            return
        for opened in open_jobs(self._store.state).jobs:
            job = job_of(self._store.state, opened.job)
            key = (opened.job, 0 if job is None else job.round)
            current = round_of(self._store.state, *key)
            summed = current is not None and current.phase in (Phase.COLLECTING, Phase.AGGREGATING)
            if summed and key not in self._open:
                begun = self._open[key] = _Sum(key)
                begun.task = asyncio.create_task(self._sum(begun), name="sum a round")

    async def _sum(self, begun: _Sum) -> None:
        rules = rules_of(self._store.state, begun.key[0])
        assert rules is not None, "a job's rules are written with it"
        try:
            while not self.trouble:
                await self._data.up()
                begun.closing = False
                try:
                    self._say(begun, await self._through(begun, rules))
                    return
                except DataGone:
                    continue
                except DataFault as fault:
                    await self._failed(begun.key, fault)
        finally:
            self._data.drop(*begun.key)

    async def _failed(self, key: RoundKey, fault: DataFault) -> None:
        if fault.fault == KERNELS_DIFFER:
            # Ordering and execution go on without results of this node.
            self.trouble = str(fault)
            log.critical("this node signs no results", extra={"code": fault.fault, "reason": self.trouble})
            return
        log.error(
            "a round could not be summed; it is tried again",
            extra={"job": key[0].hex(), "round": key[1], "code": fault.fault, "reason": str(fault)},
        )
        self._data.drop(*key)
        await asyncio.sleep(ASK_AGAIN_S)

    async def _through(self, begun: _Sum, rules: JobRules) -> Closed:
        """Tells the data process every update of the round, from the first on, and asks for the result."""
        job, number = begun.key
        told = 0
        while True:
            begun.moved.clear()
            current = round_of(self._store.state, job, number)
            assert current is not None, "a round's record stays"
            if told < current.updates.size:
                stop = min(told + ADDENDS, current.updates.size)
                addends = await self._offload.run(self._addends, begun.key, told, stop)
                await self._data.add(job, number, rules, addends)
                told += len(addends)
            elif current.phase != Phase.COLLECTING:
                break
            else:
                await begun.moved.wait()
        if await self._data.obtain(current.base, BlobKind.MODEL) is not Finding.OK:
            raise DataFault("NO_SPACE", "there is no room for the model that the round starts from")
        begun.closing = True
        size, root = current.updates.size, current.updates.root()
        return await self._data.close(job, number, root, size, current.kernel_version, current.base)

    def _addends(self, key: RoundKey, start: int, stop: int) -> list[Addend]:
        """Entries of the round's log as far as one message holds them, at least one."""
        addends: list[Addend] = []
        size_bytes = 0
        opened: tuple[bytes, SignedBatch] | None = None
        for position in range(start, stop):
            row = self._store.beside(entry_key(*key, position))
            assert row is not None, "an accepted update has its row"
            entry = decode(Entry, row, MAX_VALUE_BYTES)
            if opened is None or opened[0] != entry.batch:
                signed = self._batches.read(entry.batch)
                assert signed is not None, "an executed batch is in the log"
                opened = (entry.batch, signed)
            _, body = read_body(read_transaction(opened[1].batch.transactions[entry.index], self._params))
            assert isinstance(body, SubmitUpdate), "the log of a round names updates"
            size_bytes += len(body.payload)
            if addends and size_bytes > TOLD_BYTES:
                break
            addends.append(Addend(position, entry.member, entry.weight, entry.cid, body.payload))
        return addends

    def _say(self, begun: _Sum, closed: Closed) -> None:
        job_id, number = begun.key
        job, current = job_of(self._store.state, job_id), round_of(self._store.state, job_id, number)
        if job is None or current is None:
            return
        if current.phase == Phase.AGGREGATING and job.status == JobStatus.RUNNING:
            begun.results = tuple(cid for cid in (closed.model, closed.optimizer, closed.record) if cid)
            self._computed(_result(job_id, current, closed))
        elif current.phase == Phase.CLOSED and current.model != closed.model:
            sentence = (
                f"round {number} of job {job_id.hex()} closed with another model than this node computes: "
                "its arithmetic, its disk or its software is broken"
            )
            self._alarm(Alarm("RESULT_DIVERGED", sentence))

    # What others have

    def _want(self, job_id: bytes) -> None:
        """What the job's newest closed round left: asked for even if it should be here, for a disk may have lost it."""
        job = job_of(self._store.state, job_id)
        if job is None:
            return
        made = round_of(self._store.state, job_id, job.model_round)
        named = ((job.model, BlobKind.MODEL), (job.optimizer, BlobKind.OPTIMIZER))
        record = ((made.record, BlobKind.RECORD),) if made is not None else ()
        self._lacking[job_id] = tuple((cid, kind) for cid, kind in (*named, *record) if cid)
        self._lacks.set()
        older = self._fetching.get(job_id)
        if older is not None and not older.expired():
            older.reschedule(asyncio.get_running_loop().time())

    async def _fetch(self) -> None:
        while True:
            while not self._lacking:
                self._lacks.clear()
                await self._lacks.wait()
            job_id, blobs = self._lacking.popitem(last=False)
            if not await self._fetched(job_id, blobs):
                self._lacking.setdefault(job_id, blobs)
                await asyncio.sleep(ASK_AGAIN_S)

    async def _fetched(self, job_id: bytes, blobs: tuple[tuple[bytes, BlobKind], ...]) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(FETCHED_WITHIN_S) as patience:
                self._fetching[job_id] = patience
                try:
                    findings = [await self._obtained(cid, kind) for cid, kind in blobs]
                finally:
                    if self._fetching.get(job_id) is patience:
                        del self._fetching[job_id]
                return all(finding is Finding.OK for finding in findings)
        return False

    async def _obtained(self, cid: bytes, kind: BlobKind) -> Finding:
        return await self._data.insist(lambda: self._data.obtain(cid, kind))


def _result(job: bytes, current: Round, closed: Closed) -> Result:
    return Result(
        job=job,
        round=current.number,
        log_root=current.updates.root(),
        kernel_version=current.kernel_version,
        ok=closed.ok,
        code=closed.code,
        model=closed.model,
        optimizer=closed.optimizer,
        record=closed.record,
    )
