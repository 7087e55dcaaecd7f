"""Aggregation beside execution: one closed round at a time, off the loop, its model written before its vote."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from chain.batch import SignedBatch
from chain.certificate import Result
from chain.codec import decode
from chain.genesis import Params
from consensus.effects import Alarm
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Update
from fl.execution import AggregationTask
from fl.kernels import FUSED
from fl.records import Job, JobRules, JobStatus, Phase, Round
from fl.rounds import SubmitUpdate, aggregation_task, entries_of, open_aggregations
from fl.rules import grid_of
from fl.state import MAX_VALUE_BYTES, job_of, round_of, rules_of
from fl.transactions import read_body, read_transaction
from node.batchlog import BatchLog
from node.blobs import Blobs
from node.ports import Offload
from node.store import Store

log = logging.getLogger("quorate.aggregator")

JOB_PREFIX = b"job/"


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
        check_kernels: Callable[[], None] | None = None,
    ) -> None:
        self._params = params
        self._store = store
        self._batches = batches
        self._blobs = blobs
        self._offload = offload
        self._computed = computed
        self._alarm = alarm
        self._check_kernels = check_kernels
        self.trouble = ""
        """Why this node signs no results, if it does not."""
        self._queue: deque[AggregationTask] = deque()
        self._lacking: deque[tuple[bytes, int, bytes]] = deque()
        self._changed = asyncio.Event()

    def submit(self, task: AggregationTask) -> None:
        self._queue.append(task)
        self._changed.set()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def resume(self) -> None:
        """Rounds that were being aggregated when the node went down, and models that it had not yet written."""
        state = self._store.state
        self._lacking = deque(
            (key[len(JOB_PREFIX) :], job.model_round, job.model)
            for key, row in self._store.state_rows(JOB_PREFIX)
            if not self._blobs.has((job := decode(Job, row, MAX_VALUE_BYTES)).model)
        )
        for task in open_aggregations(state):
            self.submit(task)

    async def _checked(self) -> None:
        """Before the first result is signed, this machine must show that it computes as all others do. Ordering and
        execution do not wait for it, and go on without results if it fails."""
        if self._check_kernels is None:
            return
        try:
            await self._offload.run(self._check_kernels)
        except Exception as error:
            self.trouble = str(error) or type(error).__name__
            log.critical("this node signs no results", extra={"code": "KERNELS_DIFFER", "reason": self.trouble})
            while True:
                self._queue.clear()
                self._changed.clear()
                await self._changed.wait()

    async def run(self) -> None:
        await self._checked()
        while True:
            while self._lacking:
                await self._model(*self._lacking.popleft())
            while self._queue:
                task = self._queue.popleft()
                outcome = await self._compute(task)
                if outcome is not None:
                    self._say(task, outcome)
            self._changed.clear()
            await self._changed.wait()

    async def _model(self, job: bytes, number: int, cid: bytes) -> bytes | None:
        """The blob of a model, computed again from recorded updates if it is not here: back to a model that is."""
        lacking: list[Round] = []
        while (blob := self._blobs.get(cid)) is None:
            made = self._made_by(job, number, cid)
            if made is None:
                return None
            lacking.append(made)
            cid, number = made.base, made.number - 1
        for made in reversed(lacking):
            outcome = await self._summed(aggregation_task(job, made), blob)
            blob = outcome.model
        return blob

    def _made_by(self, job: bytes, number: int, cid: bytes) -> Round | None:
        """The newest round up to `number` that ended with this model."""
        while number > 0:
            found = round_of(self._store.state, job, number)
            if found is not None and found.phase == Phase.CLOSED and found.model == cid:
                return found
            number -= 1
        return None

    async def _compute(self, task: AggregationTask) -> AggregationOutcome | None:
        base = await self._model(task.job, task.round - 1, task.base_model)
        # Without its base a round cannot be computed; it closes by the result of the others.
        return None if base is None else await self._summed(task, base)

    async def _summed(self, task: AggregationTask, base: bytes) -> AggregationOutcome:
        rules = rules_of(self._store.state, task.job)
        assert rules is not None, "a job's rules are written with it"
        outcome = await self._offload.run(self._sum, task, rules, base)
        await self._blobs.put(outcome.record_cid, outcome.record)
        if outcome.ok:
            await self._blobs.put(outcome.model_cid, outcome.model)
        return outcome

    def _say(self, task: AggregationTask, outcome: AggregationOutcome) -> None:
        job = job_of(self._store.state, task.job)
        current = round_of(self._store.state, task.job, task.round)
        if job is None or current is None:
            return
        if current.phase == Phase.AGGREGATING and job.status == JobStatus.RUNNING:
            self._computed(
                Result(
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
            )
        elif current.phase == Phase.CLOSED and current.model != outcome.model_cid:
            sentence = (
                f"round {task.round} of job {task.job.hex()} closed with another model than this node computes: "
                "its arithmetic, its disk or its software is broken"
            )
            self._alarm(Alarm("RESULT_DIVERGED", sentence))

    def _sum(self, task: AggregationTask, rules: JobRules, base: bytes) -> AggregationOutcome:
        grid = grid_of(rules)
        sums = Aggregation(AggregationRules(task.job, task.round, rules.schema, rules.encoding, grid))
        opened: tuple[bytes, SignedBatch] | None = None
        fused: list[Update] = []
        for position, entry in enumerate(entries_of(self._store.beside, task.job, task.round, task.size)):
            if opened is None or opened[0] != entry.batch:
                signed = self._batches.read(entry.batch)
                assert signed is not None, "an executed batch is in the log"
                opened = (entry.batch, signed)
            _, body = read_body(read_transaction(opened[1].batch.transactions[entry.index], self._params))
            assert isinstance(body, SubmitUpdate), "the log of a round names updates"
            fused.append(Update(position, entry.member, entry.weight, body.payload))
            if len(fused) == FUSED:
                sums.add(*fused)
                fused = []
        if fused:
            sums.add(*fused)
        return sums.finish(task.log_root, base)
