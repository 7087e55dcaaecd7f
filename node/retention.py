"""What the data process must keep: collected here every so often, for only the core knows what names a blob.

A mark comes first: whatever is stored or judged good after it stays. Then what is named without being in the state
yet, from the pool to final blocks that are not executed, and the state itself last, so that what moves from the one to
the other meanwhile is seen. Nothing goes before a state that no longer names it is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from chain.batch import SignedBatch
from chain.genesis import Params
from fl.datasets import RegisterDataset
from fl.errors import Refused
from fl.jobs import CreateJob
from fl.retention import Policy, roots
from fl.rounds import SubmitUpdate
from fl.transactions import read
from node.batchlog import BatchLog
from node.dataplane import DataFault, DataGone, DataPlane
from node.ports import Offload
from node.store import Store

log = logging.getLogger("quorate.retention")

LOOK_S = 1.0
LEAST_S = 2.0
"""Between two sweeps, whatever comes."""
SHARE = 20
"""And so many times as long as the last sweep took."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and how often the rest is swept out."""

    policy: Policy = field(default_factory=Policy)
    every_ms: int = 60_000
    sooner_bytes: int = 64 * 1024 * 1024
    """When so much has come since, the next sweep does not wait: files that are free are written again, and the sooner
    that is, the fewer new ones are needed. Less than a round of large updates, so that each round finds the files that
    the one before it set free."""


class Retention:
    def __init__(
        self,
        params: Params,
        keeping: Keeping,
        store: Store,
        batches: BatchLog,
        data: DataPlane,
        offload: Offload,
        *,
        open_batches: Callable[[], Iterable[bytes]],
        offered: Callable[[], Iterable[SignedBatch]],
        pooled: Callable[[], Iterable[bytes]],
        made_here: Callable[[], Iterable[bytes]],
    ) -> None:
        """`pooled`: transactions that no batch carries, at present or any more; `made_here`: blobs that no transaction
        and no state names yet."""
        self._params = params
        self._keeping = keeping
        self._store = store
        self._batches = batches
        self._data = data
        self._offload = offload
        self._open_batches = open_batches
        self._offered = offered
        self._pooled = pooled
        self._made_here = made_here
        self._final: dict[int, tuple[bytes, ...]] = {}
        """By height, the batches of blocks that are final and not executed."""
        self._named_by: dict[bytes, tuple[bytes, ...]] = {}
        """What batches name, for as long as they are looked at: they may be many, and some are a megabyte."""
        self.swept_blobs = 0
        self.swept_bytes = 0

    def final(self, height: int, batches: tuple[bytes, ...]) -> None:
        if batches:
            self._final[height] = batches

    def executed(self, height: int) -> None:
        for known in [known for known in self._final if known <= height]:
            del self._final[known]

    async def run(self) -> None:
        loop, took_s = asyncio.get_running_loop(), 0.0
        while True:
            await self._due(took_s)
            began = loop.time()
            try:
                await self.sweep()
                took_s = loop.time() - began
            except DataGone:
                continue
            except DataFault as fault:
                log.error("nothing was swept", extra={"code": fault.fault, "reason": str(fault)})

    async def _due(self, last_took_s: float) -> None:
        left_s = self._keeping.every_ms / 1000
        step_s = max(LEAST_S, SHARE * last_took_s)
        least = self._data.held_bytes
        while left_s > 0:
            await asyncio.sleep(min(left_s, step_s))
            left_s -= step_s
            step_s = LOOK_S
            held = self._data.held_bytes
            # What the last sweep has freed is known only a while after it.
            least = min(least, held)
            if held - least >= self._keeping.sooner_bytes:
                return

    async def sweep(self) -> None:
        token = await self._data.mark()
        final = [digest for digests in self._final.values() for digest in digests]
        batches = {*self._open_batches(), *final}
        named = set(self._made_here())
        named |= await self._offload.run(self._unexecuted, batches, list(self._offered()), list(self._pooled()))
        named |= await self._offload.run(self._in_state)
        await self._offload.run(self._store.sync)
        blobs, size_bytes = await self._data.sweep(token, sorted(named))
        self.swept_blobs += blobs
        self.swept_bytes += size_bytes
        if blobs:
            log.info("blobs were swept", extra={"blobs": blobs, "bytes": size_bytes, "named": len(named)})

    def _in_state(self) -> set[bytes]:
        store = self._store
        return set(roots(store.state, store.state_rows, store.leaves, self._keeping.policy))

    def _unexecuted(self, batches: set[bytes], offered: list[SignedBatch], pooled: list[bytes]) -> set[bytes]:
        """Named by batches that may be ordered, or are and wait for execution, and by what waits for a batch."""
        self._named_by = {digest: cids for digest in batches if (cids := self._named_in(digest)) is not None}
        named = {cid for cids in self._named_by.values() for cid in cids}
        named.update(self._named(pooled))
        for signed in offered:
            named.update(self._named(signed.batch.transactions))
        return named

    def _named_in(self, digest: bytes) -> tuple[bytes, ...] | None:
        known = self._named_by.get(digest)
        if known is not None:
            return known
        # None is a batch that others have certified, and not this node.
        signed = self._batches.read(digest)
        return None if signed is None else tuple(self._named(signed.batch.transactions))

    def _named(self, transactions: Iterable[bytes]) -> Iterator[bytes]:
        for data in transactions:
            try:
                body = read(data, self._params).body
            except Refused:
                continue
            match body:
                case SubmitUpdate(payload=b""):
                    yield body.cid
                case CreateJob(model=b""):
                    yield body.rules.initial
                case RegisterDataset(stored=True):
                    yield body.cid
