"""The application's verdict on offered batches: off the loop, one at a time, the creators in turn.

What no signature is needed for comes first. A batch that only waits for a job or a member to become known here is put
back for the price of reading it, however often it is asked about, so that nobody's batches hold up another's. Nor does
a batch that names a blob: its verdict is the data process's, once the blob is whole here and durable, and comes in its
own time. Room for a blob is a member's: one of a stranger's, under a key that is not its member's, or without that
key's signature, is not fetched, or a creator could fill every disk in the names of others.

The other signatures are verified if it is this validator's turn to look, in groups, on all threads, for as long as the
verdict is wanted: of what a certificate covers meanwhile others have seen them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from chain.batch import SignedBatch
from chain.genesis import Params
from chain.transaction import verify_transaction
from consensus.availability import Verdict
from consensus.availability.guards import is_past_voting
from fl.blobs import Demand
from fl.check import check_all
from fl.errors import PendingJob, Refused
from fl.state import RulesOf
from fl.transactions import Reading
from node.data.messages import Finding
from node.dataplane import DataPlane
from node.ports import Offload, Peer
from node.readings import ReadBatches

READ_TOGETHER = 64
"""Transactions: what comes behind a bad one, or one that has to wait, costs no more than this."""
SIGNATURES_TOGETHER = 16
"""A millisecond's work for a thread."""

Creator = tuple[int, int]
"""Epoch and index in its set."""

AWAITED = 4_096
"""Batches that wait for blobs, all creators' together; the availability core holds fewer of them at any time."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    digest: bytes
    signed: SignedBatch
    look: bool
    """Whether every signature is to be verified."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What can be said of a batch without its blobs: a verdict of OK stands once each demand is met."""

    verdict: Verdict
    demands: tuple[Demand, ...] = ()
    readings: tuple[Reading, ...] = field(default=(), compare=False)
    """Of all its transactions, or of none."""


class BatchChecks:
    def __init__(
        self,
        chain_id: bytes,
        params: Params,
        offload: Offload,
        data: DataPlane,
        rules_of: RulesOf,
        read: ReadBatches,
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
        self._read = read
        self._may_bring = may_bring
        self._creator_of = creator_of
        self._disk_full = disk_full
        self._checked = checked
        self._waiting: dict[Creator, deque[Question]] = {}
        self._moved = asyncio.Event()
        self._wanted: dict[bytes, Question] = {}
        """By digest, neither answered nor spared."""
        self._awaited: dict[bytes, tuple[SignedBatch, asyncio.Task[None]]] = {}
        """Batches whose blobs are being waited for."""

    @property
    def awaited(self) -> int:
        return len(self._awaited)

    def ask(self, digest: bytes, signed: SignedBatch, look: bool) -> None:
        """How many of one creator may wait is bounded by the availability core, which asks."""
        if digest in self._awaited:
            return
        question = self._wanted[digest] = Question(digest, signed, look)
        creator = (signed.batch.epoch, signed.batch.creator)
        self._waiting.setdefault(creator, deque()).append(question)
        self._moved.set()

    def spare(self, digest: bytes) -> None:
        """No verdict is wanted any more. What is alone in its batch may name a blob, which is to come all the same."""
        question = self._wanted.get(digest)
        if question is not None and question.signed.reference.transactions > 1:
            del self._wanted[digest]

    def advanced(self, final: int) -> None:
        """Nobody waits for what may not be voted for any more."""
        for signed, task in list(self._awaited.values()):
            if is_past_voting(signed.reference, final, self._params):
                task.cancel()

    async def run(self) -> None:
        try:
            while True:
                while self._waiting:
                    await self._answer(self._next())
                self._moved.clear()
                await self._moved.wait()
        finally:
            for _, task in self._awaited.values():
                task.cancel()

    def _next(self) -> Question:
        creator = next(iter(self._waiting))
        queue = self._waiting.pop(creator)
        found = queue.popleft()
        if queue:
            self._waiting[creator] = queue
        return found

    async def _answer(self, question: Question) -> None:
        digest, signed = question.digest, question.signed

        def wanted() -> bool:
            return self._wanted.get(digest) is question

        if not wanted():
            return
        # A full disk promises nothing more; what it holds already goes on.
        full = self._disk_full()
        judged = Judged(Verdict.PENDING) if full else await self._offload.run(self.judge, signed, question.look, wanted)
        if judged.readings:
            self._read.judged(signed, judged.readings)
        if not wanted():
            return
        del self._wanted[digest]
        if not judged.demands:
            self._checked(digest, judged.verdict)
        elif len(self._awaited) >= AWAITED:
            self._checked(digest, Verdict.PENDING)
        elif digest not in self._awaited:
            task = asyncio.create_task(self._await(digest, signed, judged.demands), name="blobs of a batch")
            self._awaited[digest] = signed, task

    def judge(self, signed: SignedBatch, look: bool, wanted: Callable[[], bool]) -> Judged:
        readings: list[Reading] = []
        bringing: list[Reading] = []
        demands: list[Demand] = []
        transactions = signed.batch.transactions
        for start in range(0, len(transactions), READ_TOGETHER):
            some = transactions[start : start + READ_TOGETHER]
            for found in check_all(some, self._chain_id, self._params, self._rules_of, verify_signatures=False):
                if isinstance(found, PendingJob):
                    return Judged(Verdict.PENDING)
                if isinstance(found, Refused):
                    return Judged(Verdict.BAD)
                readings.append(found.reading)
                if found.demand is not None:
                    if not self._may_bring(found.reading.tx.sender, found.reading.tx.key):
                        return Judged(Verdict.PENDING)
                    bringing.append(found.reading)
                    demands.append(found.demand)
        verdict = self._signatures(readings if look else bringing, wanted)
        return Judged(verdict, tuple(demands) if verdict is Verdict.OK else (), tuple(readings))

    def _signatures(self, readings: Sequence[Reading], wanted: Callable[[], bool]) -> Verdict:
        """In groups, none of which begins once one is bad, or nobody wants to know."""
        bad = threading.Event()

        def look(group: Sequence[Reading]) -> Verdict:
            if bad.is_set() or not wanted():
                return Verdict.PENDING
            if all(verify_transaction(reading.tx, reading.id) for reading in group):
                return Verdict.OK
            bad.set()
            return Verdict.BAD

        starts = range(0, len(readings), SIGNATURES_TOGETHER)
        groups = [readings[start : start + SIGNATURES_TOGETHER] for start in starts]
        found = self._offload.spread([partial(look, group) for group in groups])
        return next((verdict for verdict in (Verdict.BAD, Verdict.PENDING) if verdict in found), Verdict.OK)

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
