"""Aggregation beside execution: one closed round at a time, off the loop, its model written before its vote."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from chain.batch import SignedBatch
from chain.certificate import Result
from chain.codec import decode
from chain.genesis import Params
from consensus.effects import Alarm
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Update
from fl.execution import AggregationTask
from fl.records import Entry, JobRules, JobStatus, Phase
from fl.rounds import SubmitUpdate
from fl.rules import grid_of
from fl.state import entry_key, job_of, open_jobs, round_of, rules_of
from fl.transactions import read_body, read_transaction
from node.batchlog import BatchLog
from node.blobs import Blobs
from node.ports import Offload
from node.store import Store

FUSED_UPDATES = 8
ENTRY_LIMIT_BYTES = 1024


class Aggregator:
    """Results are computed in the order of the rounds, those that others closed long ago included: the next round
    stands on the model of the last."""

    def __init__(
        self,
        params: Params,
        store: Store,
        batches: BatchLog,
        blobs: Blobs,
        offload: Offload,
        *,
        computed: Callable[[Result], None],
        alarm: Callable[[Alarm], None],
    ) -> None:
        self._params = params
        self._store = store
        self._batches = batches
        self._blobs = blobs
        self._offload = offload
        self._computed = computed
        self._alarm = alarm
        self._queue: deque[AggregationTask] = deque()
        self._changed = asyncio.Event()

    def submit(self, task: AggregationTask) -> None:
        self._queue.append(task)
        self._changed.set()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def resume(self) -> None:
        """Rounds that were being aggregated when the node went down."""
        for entry in open_jobs(self._store.state).jobs:
            job = job_of(self._store.state, entry.job)
            current = round_of(self._store.state, entry.job, job.round) if job is not None and job.round else None
            if current is None or current.phase != Phase.AGGREGATING:
                continue
            self.submit(
                AggregationTask(
                    job=entry.job,
                    round=current.number,
                    log_root=current.updates.root(),
                    size=current.updates.size,
                    kernel_version=current.kernel_version,
                    base_model=current.base,
                    deadline_ms=current.aggregation_deadline_ms,
                )
            )

    async def run(self) -> None:
        while True:
            while self._queue:
                await self._aggregate(self._queue.popleft())
            self._changed.clear()
            await self._changed.wait()

    async def _aggregate(self, task: AggregationTask) -> None:
        rules = rules_of(self._store.state, task.job)
        base = self._blobs.get(task.base_model)
        if rules is None or base is None:
            # Without the base there is nothing to add to; the round closes by the others' result.
            return
        outcome = await self._offload.run(self._sum, task, rules, base)
        await self._blobs.put(outcome.record_cid, outcome.record)
        if outcome.ok:
            await self._blobs.put(outcome.model_cid, outcome.model)
        result = Result(
            job=task.job,
            round=task.round,
            log_root=task.log_root,
            kernel_version=task.kernel_version,
            ok=outcome.ok,
            code=outcome.code,
            model=outcome.model_cid,
            optimizer=b"",
            record=outcome.record_cid,
        )
        self._say(result)

    def _say(self, result: Result) -> None:
        job = job_of(self._store.state, result.job)
        current = round_of(self._store.state, result.job, result.round)
        if job is None or current is None:
            return
        if current.phase == Phase.AGGREGATING and job.status == JobStatus.RUNNING:
            self._computed(result)
        elif current.phase == Phase.CLOSED and current.model != result.model:
            sentence = (
                f"round {result.round} of job {result.job.hex()} closed with another model than this node computes: "
                "its arithmetic, its disk or its software is broken"
            )
            self._alarm(Alarm("RESULT_DIVERGED", sentence))

    def _sum(self, task: AggregationTask, rules: JobRules, base: bytes) -> AggregationOutcome:
        grid = grid_of(rules)
        sums = Aggregation(AggregationRules(task.job, task.round, rules.schema, rules.encoding, grid))
        opened: tuple[bytes, SignedBatch] | None = None
        fused: list[Update] = []
        for position in range(task.size):
            data = self._store.beside(entry_key(task.job, task.round, position))
            assert data is not None, "the entries of a frozen round were written with it"
            entry = decode(Entry, data, ENTRY_LIMIT_BYTES)
            if opened is None or opened[0] != entry.batch:
                signed = self._batches.read(entry.batch)
                assert signed is not None, "an executed batch is in the log"
                opened = (entry.batch, signed)
            _, body = read_body(read_transaction(opened[1].batch.transactions[entry.index], self._params))
            assert isinstance(body, SubmitUpdate), "the log of a round names updates"
            fused.append(Update(position, entry.member, entry.weight, body.payload))
            if len(fused) == FUSED_UPDATES:
                sums.add(*fused)
                fused = []
        if fused:
            sums.add(*fused)
        return sums.finish(task.log_root, base)
