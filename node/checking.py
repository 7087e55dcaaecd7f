"""The application's verdict on offered batches: off the loop, one at a time, the creators in turn.

What no signature is needed for comes first. A batch that only waits for a job or a member to become known here is put
back for the price of reading it, however often it is asked about, so that nobody's batches hold up another's. Nor does
a batch that names a blob: its verdict is the data process's, once the blob is whole here and durable, and comes in its
own time. Room for a blob is a member's: one of a stranger's, or under a key that is not its member's, is not fetched,
or a creator could fill every disk in the names of accounts that it makes up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from chain.batch import SignedBatch
from chain.genesis import Params
from chain.transaction import verify_transaction
from consensus.availability import Verdict
from consensus.availability.guards import is_past_voting
from fl.blobs import Demand
from fl.check import check_transaction
from fl.errors import PendingJob, Refused
from fl.state import RulesOf
from node.data.messages import Finding
from node.dataplane import DataPlane
from node.ports import Offload, Peer

Creator = tuple[int, int]
"""Epoch and index in its set."""

AWAITED = 4_096
"""Batches that wait for blobs, all creators' together; the availability core holds fewer of them at any time."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What can be said of a batch without its blobs: a verdict of OK stands once each demand is met."""

    verdict: Verdict
    demands: tuple[Demand, ...] = ()


class BatchChecks:
    def __init__(
        self,
        chain_id: bytes,
        params: Params,
        offload: Offload,
        data: DataPlane,
        rules_of: RulesOf,
        *,
        may_bring: Callable[[bytes, bytes], bool],
        creator_of: Callable[[SignedBatch], Peer | None],
        disk_full: Callable[[], bool],
        checked: Callable[[bytes, Verdict], None],
    ) -> None:
        """`may_bring` says of an account and a key whether blobs are taken that the key signs for in its name."""
        self._chain_id = chain_id
        self._params = params
        self._offload = offload
        self._data = data
        self._rules_of = rules_of
        self._may_bring = may_bring
        self._creator_of = creator_of
        self._disk_full = disk_full
        self._checked = checked
        self._waiting: dict[Creator, deque[tuple[bytes, SignedBatch]]] = {}
        self._moved = asyncio.Event()
        self._awaited: dict[bytes, tuple[SignedBatch, asyncio.Task[None]]] = {}
        """Batches whose blobs are being waited for."""

    @property
    def awaited(self) -> int:
        return len(self._awaited)

    def ask(self, digest: bytes, signed: SignedBatch) -> None:
        """How many of one creator may wait is bounded by the availability core, which asks."""
        if digest in self._awaited:
            return
        creator = (signed.batch.epoch, signed.batch.creator)
        self._waiting.setdefault(creator, deque()).append((digest, signed))
        self._moved.set()

    def advanced(self, final: int) -> None:
        """Nobody waits for what may not be voted for any more."""
        for signed, task in list(self._awaited.values()):
            if is_past_voting(signed.reference, final, self._params):
                task.cancel()

    async def run(self) -> None:
        try:
            while True:
                while self._waiting:
                    await self._check(*self._next())
                self._moved.clear()
                await self._moved.wait()
        finally:
            for _, task in self._awaited.values():
                task.cancel()

    def _next(self) -> tuple[bytes, SignedBatch]:
        creator = next(iter(self._waiting))
        queue = self._waiting.pop(creator)
        found = queue.popleft()
        if queue:
            self._waiting[creator] = queue
        return found

    async def _check(self, digest: bytes, signed: SignedBatch) -> None:
        # A full disk promises nothing more; what it holds already goes on.
        full = self._disk_full()
        judged = Judged(Verdict.PENDING) if full else await self._offload.run(self.judge, signed)
        if not judged.demands:
            self._checked(digest, judged.verdict)
        elif len(self._awaited) >= AWAITED:
            self._checked(digest, Verdict.PENDING)
        elif digest not in self._awaited:
            task = asyncio.create_task(self._await(digest, signed, judged.demands), name="blobs of a batch")
            self._awaited[digest] = signed, task

    def judge(self, signed: SignedBatch) -> Judged:
        checked = []
        demands = []
        for data in signed.batch.transactions:
            try:
                found = check_transaction(data, self._chain_id, self._params, self._rules_of, verify_signature=False)
            except PendingJob:
                return Judged(Verdict.PENDING)
            except Refused:
                return Judged(Verdict.BAD)
            checked.append(found.reading)
            if found.demand is not None:
                if not self._may_bring(found.reading.tx.sender, found.reading.tx.key):
                    return Judged(Verdict.PENDING)
                demands.append(found.demand)
        if not all(verify_transaction(reading.tx, reading.id) for reading in checked):
            return Judged(Verdict.BAD)
        return Judged(Verdict.OK, tuple(demands))

    async def _await(self, digest: bytes, signed: SignedBatch, demands: tuple[Demand, ...]) -> None:
        creator = self._creator_of(signed)
        sources = () if creator is None else (creator,)
        verdict = Verdict.OK
        try:
            for demand in demands:
                verdict = await self._met(demand, sources)
                if verdict is not Verdict.OK:
                    break
        finally:
            del self._awaited[digest]
        self._checked(digest, verdict)

    async def _met(self, demand: Demand, sources: tuple[Peer, ...]) -> Verdict:
        finding, _ = await self._data.insist(lambda: self._data.judge(demand, sources, wait=True))
        if finding is Finding.OK:
            return Verdict.OK
        # There being no room for it may pass; that its bytes are bad does not.
        return Verdict.BAD if finding is Finding.BAD else Verdict.PENDING
