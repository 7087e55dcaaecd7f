"""Aggregation beside execution: rounds are summed in the data process, and their results voted for here.

The updates of a round are told to the data process as they are accepted, so that little is left to do when its log is
frozen; then it is asked for the result. They are told as they come out of execution, as long as it takes them; what it
was too slow for is read again from the logs. A data process that was started again knows of nothing, so every open
round is told to it from its first update on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import islice

from chain.batch import SignedBatch
from chain.certificate import Result
from chain.codec import decode
from chain.genesis import Params
from consensus.effects import Alarm
from fl.execution import Accepted
from fl.records import Entry, EntryFields, JobRules, JobStatus, Phase, Round
from fl.rounds import SubmitUpdate
from fl.state import MAX_VALUE_BYTES, job_of, open_jobs, round_of, rules_of, updates_log
from fl.transactions import read
from node.batchlog import BatchLog
from node.data.bundles import Told, told
from node.data.messages import ADDENDS, ADDENDS_BYTES, Closed
from node.dataplane import ASK_AGAIN_S, DataFault, DataGone, DataPlane
from node.ports import Offload
from node.store import Store

log = logging.getLogger("quorate.aggregator")

KERNELS_DIFFER = "KERNELS_DIFFER"
TOLD_AT_ONCE_BYTES = 1024 * 1024
TOLD_AFTER_S = 0.2
"""Inline updates of a round are told when there are so many bytes of them, when they have waited for so long, and when
the round is frozen: what a message takes, it takes once for all that are in it."""
FRESH_BYTES = 16 * 1024 * 1024
"""Of inline payloads of all rounds, accepted and not yet told."""
LATE_ROUNDS = 4
"""Of rounds long over, updates may be lacking that nobody has any more."""
LONGEST_PAUSE_S = 60.0

RoundKey = tuple[bytes, int]
"""A job and the number of a round."""


@dataclass(eq=False)
class _Sum:
    """A round on its way through the data process."""

    key: RoundKey
    current: Round
    """As the newest executed block left it."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is something to do about it."""
    soon: asyncio.TimerHandle | None = None
    """Sets it for what may wait a little."""
    fresh: deque[Accepted] = field(default_factory=deque)
    """What came out of execution lately and was not told, in the order of the log."""
    fresh_bytes: int = 0
    closing: bool = False
    task: asyncio.Task[None] | None = None
    results: tuple[bytes, ...] = ()
    """Blobs that it made, which the state does not name yet."""

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def accepted(self, taken: Accepted) -> None:
        self.fresh.append(taken)
        self.fresh_bytes += taken.size_bytes

    def tell(self, taken: Accepted) -> None:
        """At once, or soon."""
        if self.fresh_bytes >= TOLD_AT_ONCE_BYTES or not taken.inline:
            self.moved.set()
        elif self.soon is None:
            self.soon = asyncio.get_running_loop().call_later(TOLD_AFTER_S, self._waited)

    def _waited(self) -> None:
        self.soon = None
        self.moved.set()

    def fresh_from(self, position: int) -> Accepted | None:
        """What stands at this place of the log or later; what is before it was told."""
        while self.fresh and self.fresh[0].first + len(self.fresh[0].entries) <= position:
            self.fresh_bytes -= self.fresh.popleft().size_bytes
        return self.fresh[0] if self.fresh else None


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
        self._late: dict[asyncio.Task[None], None] = {}
        """Rounds that others closed while the data process was at their last step: compared all the same, oldest
        first."""
        self._changed = asyncio.Event()
        data.on_opened.append(lambda _: self._tell_again())

    @property
    def waiting(self) -> int:
        """Frozen rounds without a result of this node's."""
        return sum(not each.done and each.current.phase == Phase.AGGREGATING for each in self._open.values())

    def roots(self) -> list[bytes]:
        """Blobs that were made here and that no state names yet."""
        return [cid for each in self._open.values() for cid in each.results]

    # What execution tells

    def resume(self) -> None:
        """Rounds that were open when the node went down."""
        self._changed.set()

    def executed(
        self,
        over: Iterable[RoundKey],
        rounds: Iterable[tuple[bytes, Round]] = (),
        accepted: Iterable[Accepted] = (),
    ) -> None:
        """A block was executed: of these jobs it changed rounds, some of which ended, and it had updates accepted."""
        for job, current in rounds:
            self._look_at(job, current)
        for key in over:
            self._end(key)
        room = FRESH_BYTES - sum(each.fresh_bytes for each in self._open.values())
        for taken in accepted:
            begun = self._open.get((taken.job, taken.round))
            if begun is None or begun.done:
                continue
            room -= taken.size_bytes
            if room >= 0:
                begun.accepted(taken)
            begun.tell(taken)

    def _tell_again(self) -> None:
        """Another life of the data process."""
        for each in self._open.values():
            each.moved.set()

    def _end(self, key: RoundKey) -> None:
        current = round_of(self._store.state, *key)
        closed = current is not None and current.phase == Phase.CLOSED
        ended = self._open.pop(key, None)
        if ended is None or ended.task is None or ended.done:
            return
        if closed and ended.closing:
            self._late[ended.task] = None
            ended.task.add_done_callback(self._compared)
            if len(self._late) > LATE_ROUNDS:
                next(iter(self._late)).cancel()
        else:
            ended.task.cancel()

    def _compared(self, task: asyncio.Task[None]) -> None:
        self._late.pop(task, None)

    async def run(self) -> None:
        try:
            while True:
                self._changed.clear()
                self._begin()
                await self._changed.wait()
        finally:
            sums = [each.task for each in self._open.values() if each.task is not None]
            for task in (*sums, *self._late):
                task.cancel()

    # Sums

    def _begin(self) -> None:
        for opened in open_jobs(self._store.state).jobs:
            job = job_of(self._store.state, opened.job)
            current = None if job is None else round_of(self._store.state, opened.job, job.round)
            if current is not None:
                self._look_at(opened.job, current)

    def _look_at(self, job: bytes, current: Round) -> None:
        key, is_frozen = (job, current.number), current.phase == Phase.AGGREGATING
        begun = self._open.get(key)
        if begun is not None:
            begun.current = current
            if is_frozen:
                begun.moved.set()
        elif not self.trouble and (is_frozen or current.phase == Phase.COLLECTING):
            begun = self._open[key] = _Sum(key, current)
            begun.task = asyncio.create_task(self._sum(begun), name="sum a round")

    async def _sum(self, begun: _Sum) -> None:
        rules = rules_of(self._store.state, begun.key[0])
        assert rules is not None, "a job's rules are written with it"
        pause_s = ASK_AGAIN_S
        try:
            while not self.trouble:
                await self._data.up()
                begun.closing = False
                try:
                    closed = await self._through(begun, rules)
                    if closed is not None:
                        self._say(begun, closed)
                    return
                except DataGone:
                    continue
                except DataFault as fault:
                    if self._distrusts(fault):
                        return
                    self._failed(begun.key, fault)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self._data.drop(*begun.key)

    def _distrusts(self, fault: DataFault) -> bool:
        """Whether this machine does not compute as all others do: ordering and execution go on without its results."""
        if fault.fault != KERNELS_DIFFER:
            return False
        if not self.trouble:
            self.trouble = str(fault)
            log.critical("this node signs no results", extra={"code": fault.fault, "reason": self.trouble})
        return True

    def _failed(self, key: RoundKey, fault: DataFault) -> None:
        log.error(
            "a round could not be summed; it is tried again",
            extra={"job": key[0].hex(), "round": key[1], "code": fault.fault, "reason": str(fault)},
        )
        self._data.drop(*key)

    async def _through(self, begun: _Sum, rules: JobRules) -> Closed | None:
        """Tells the data process every update of the round, from the first on, and asks for the result. None if the
        round was over before it could be asked for."""
        job, number = begun.key
        count, life = 0, self._data.life
        last: Told | None = None
        known = job_of(self._store.state, job)
        if known is None or known.round != number:
            return None
        # These stay as they are as long as the round is open.
        optimizer = known.optimizer
        self._data.begin(job, number, rules, known.completed + 1)
        while True:
            begun.moved.clear()
            self._check_life(life)
            current = begun.current
            if count < current.updates.size:
                fresh = begun.fresh_from(count)
                if fresh is not None and fresh.first <= count:
                    updates = _told_from(fresh, count)
                else:
                    stop = min(count + ADDENDS, current.updates.size if fresh is None else fresh.first)
                    updates = await self._offload.run(self._from_logs, begun.key, count, stop)
                self._check_life(life)
                if current.phase == Phase.AGGREGATING and count + updates.count == current.updates.size:
                    last = updates
                    break
                await self._data.add(job, number, updates)
                count += updates.count
            elif current.phase == Phase.AGGREGATING:
                break
            elif current.phase in (Phase.CLOSED, Phase.FAILED):
                return None
            else:
                await begun.moved.wait()
        begun.closing = True
        closing = self._data.close(
            job,
            number,
            current.updates.root(),
            current.updates.size,
            current.kernel_version,
            current.base,
            optimizer,
        )
        return await closing if last is None else await _with(self._data.add(job, number, last), closing)

    def _check_life(self, life: int) -> None:
        """A data process that began meanwhile knows nothing of what its predecessor was told."""
        if self._data.life != life:
            raise DataGone

    def _from_logs(self, key: RoundKey, start: int, stop: int) -> Told:
        """Entries of the round's log as far as one message holds them, at least one."""
        entries: list[EntryFields] = []
        payloads: list[bytes] = []
        size_bytes = 0
        opened: tuple[bytes, SignedBatch] | None = None
        for leaf in self._store.leaves(updates_log(*key), start, stop):
            entry = decode(Entry, leaf, MAX_VALUE_BYTES)
            if opened is None or opened[0] != entry.batch:
                signed = self._batches.read(entry.batch)
                assert signed is not None, "an executed batch is in the log"
                opened = (entry.batch, signed)
            body = read(opened[1].batch.transactions[entry.index], self._params).body
            assert isinstance(body, SubmitUpdate), "the log of a round names updates"
            size_bytes += len(body.payload)
            if entries and size_bytes > ADDENDS_BYTES:
                break
            entries.append(entry.fields)
            payloads.append(body.payload)
        return told(range(start, start + len(entries)), entries, payloads)

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


async def _with(adding: Coroutine[object, object, None], closing: Coroutine[object, object, Closed]) -> Closed:
    """Both are asked at once: over there, what closes the round waits for what is added. The first to fail ends the
    other."""
    added, closed = asyncio.ensure_future(adding), asyncio.ensure_future(closing)
    try:
        await asyncio.gather(added, closed)
        return closed.result()
    finally:
        added.cancel()
        closed.cancel()


def _told_from(accepted: Accepted, start: int) -> Told:
    """As far as one message holds it, at least one update."""
    skipped, size_bytes = start - accepted.first, 0
    stop = skipped
    for payload in islice(accepted.payloads, skipped, skipped + ADDENDS):
        size_bytes += len(payload)
        if size_bytes > ADDENDS_BYTES and stop > skipped:
            break
        stop += 1
    indices = range(start, accepted.first + stop)
    return told(indices, accepted.entries[skipped:stop], accepted.payloads[skipped:stop])


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
