"""The application's verdict on offered batches: off the loop, one at a time, the creators in turn.

What no signature is needed for comes first. A batch that only waits for a job to become known here is put back for the
price of reading it, however often it is asked about, so that nobody's batches hold up another's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from chain.batch import SignedBatch
from chain.genesis import Params
from chain.transaction import verify_transaction
from consensus.availability import Verdict
from fl.check import check_transaction
from fl.errors import PendingJob, Refused
from fl.state import RulesOf
from node.ports import Offload

Creator = tuple[int, int]
"""Epoch and index in its set."""


class BatchChecks:
    def __init__(
        self,
        chain_id: bytes,
        params: Params,
        offload: Offload,
        rules_of: RulesOf,
        *,
        disk_full: Callable[[], bool],
        checked: Callable[[bytes, Verdict], None],
    ) -> None:
        self._chain_id = chain_id
        self._params = params
        self._offload = offload
        self._rules_of = rules_of
        self._disk_full = disk_full
        self._checked = checked
        self._waiting: dict[Creator, deque[tuple[bytes, SignedBatch]]] = {}
        self._moved = asyncio.Event()

    def ask(self, digest: bytes, signed: SignedBatch) -> None:
        """How many of one creator may wait is bounded by the availability core, which asks."""
        creator = (signed.batch.epoch, signed.batch.creator)
        self._waiting.setdefault(creator, deque()).append((digest, signed))
        self._moved.set()

    async def run(self) -> None:
        while True:
            while self._waiting:
                digest, signed = self._next()
                # A full disk promises nothing more; what it holds already goes on.
                full = self._disk_full()
                verdict = Verdict.PENDING if full else await self._offload.run(self.judge, signed)
                self._checked(digest, verdict)
            self._moved.clear()
            await self._moved.wait()

    def _next(self) -> tuple[bytes, SignedBatch]:
        creator = next(iter(self._waiting))
        queue = self._waiting.pop(creator)
        found = queue.popleft()
        if queue:
            self._waiting[creator] = queue
        return found

    def judge(self, signed: SignedBatch) -> Verdict:
        checked = []
        for data in signed.batch.transactions:
            try:
                found = check_transaction(data, self._chain_id, self._params, self._rules_of, verify_signature=False)
            except PendingJob:
                return Verdict.PENDING
            except Refused:
                return Verdict.BAD
            checked.append(found.tx)
        return Verdict.OK if all(verify_transaction(tx) for tx in checked) else Verdict.BAD
