"""What the state names and is not here: fetched from those who have it.

A node need not have voted for a batch to execute it, nor have computed a round to see it closed; and a disk may lose
what it had. So whatever the state comes to name is asked for once, and all of it when the node starts: the data
process answers at once for what it has. A job that starts from zeros has its first model made here, from its schema:
gigabytes may have to be written, and execution waits for neither the disk nor its room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

from chain.codec import decode
from fl.blobs import BlobKind
from fl.execution import BlockOutcome
from fl.jobrules import zero_model_cid
from fl.records import Dataset, Event, EventKind
from fl.state import DATASETS, JOBS, dataset_key, job_of, read_record, round_of, rules_of
from fl.tensors.layout import Schema
from node.data.messages import Finding
from node.dataplane import ASK_AGAIN_S, DataPlane
from node.store import Store

log = logging.getLogger("quorate.lacking")

AT_ONCE = 4
WITHIN_S = 60.0
"""Then it is another's turn, for nobody may have this one."""
EVENT_LIMIT_BYTES = 4096

Named = tuple[tuple[bytes, BlobKind], ...]


class Lacking:
    def __init__(self, store: Store, data: DataPlane) -> None:
        self._store = store
        self._data = data
        self._named: OrderedDict[bytes, Named] = OrderedDict()
        """By job or data set, or by CID: a job's newer model takes the place of the one before it."""
        self._zeros: OrderedDict[bytes, Schema] = OrderedDict()
        """By CID, models of zeros."""
        self._fetching: dict[bytes, asyncio.Timeout] = {}
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._named) + len(self._fetching) + len(self._zeros)

    def resume(self) -> None:
        for key, _ in self._store.state_rows(JOBS):
            self._want_job(key[len(JOBS) :])
        for key, _ in self._store.state_rows(DATASETS):
            self._want_dataset(key[len(DATASETS) :])

    def executed(self, outcome: BlockOutcome) -> None:
        for model in outcome.models:
            if model.zeros is not None:
                self._make(model.cid, model.zeros)
            elif not model.inline:
                self._want(model.cid, [(model.cid, BlobKind.MODEL)])
        for data in outcome.events:
            event = decode(Event, data, EVENT_LIMIT_BYTES)
            if event.kind == EventKind.ROUND_CLOSED:
                self._want_job(event.job)
            elif event.kind == EventKind.DATASET_REGISTERED:
                self._want_dataset(event.subject)

    def _want_job(self, identity: bytes) -> None:
        """What its newest closed round left."""
        job = job_of(self._store.state, identity)
        if job is None:
            return
        rules = rules_of(self._store.state, identity)
        if not job.model_round and rules is not None and zero_model_cid(rules.schema) == job.model:
            self._make(job.model, rules.schema)
            return
        made = round_of(self._store.state, identity, job.model_round)
        named = [(job.model, BlobKind.MODEL), (job.optimizer, BlobKind.OPTIMIZER)]
        if made is not None:
            named.append((made.record, BlobKind.RECORD))
        self._want(identity, named)

    def _want_dataset(self, identity: bytes) -> None:
        known = read_record(self._store.state, Dataset, dataset_key(identity))
        if known is not None and known.stored and not known.withdrawn_height:
            self._want(identity, [(known.cid, BlobKind.DATASET)])

    def _want(self, what: bytes, named: Iterable[tuple[bytes, BlobKind]]) -> None:
        self._named[what] = tuple((cid, kind) for cid, kind in named if cid)
        self._changed.set()
        older = self._fetching.get(what)
        if older is not None and not older.expired():
            older.reschedule(asyncio.get_running_loop().time())

    def _make(self, cid: bytes, schema: Schema) -> None:
        self._zeros[cid] = schema
        self._changed.set()

    async def run(self) -> None:
        work = [asyncio.create_task(self._fetch(), name="fetch") for _ in range(AT_ONCE)]
        work.append(asyncio.create_task(self._write_zeros(), name="zeros"))
        try:
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()

    async def _write_zeros(self) -> None:
        while True:
            while not self._zeros:
                self._changed.clear()
                await self._changed.wait()
            cid, schema = next(iter(self._zeros.items()))
            await self._made(schema)
            del self._zeros[cid]

    async def _made(self, schema: Schema) -> None:
        await self._data.insist(lambda: self._data.zeros(schema))

    async def _fetch(self) -> None:
        while True:
            while not self._named:
                self._changed.clear()
                await self._changed.wait()
            what, named = self._named.popitem(last=False)
            if not await self._fetched(what, named):
                self._named.setdefault(what, named)
                await asyncio.sleep(ASK_AGAIN_S)

    async def _fetched(self, what: bytes, named: Named) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S) as patience:
                self._fetching[what] = patience
                try:
                    return all([await self._is_here(cid, kind) for cid, kind in named])
                finally:
                    if self._fetching.get(what) is patience:
                        del self._fetching[what]
        return False

    async def _is_here(self, cid: bytes, kind: BlobKind) -> bool:
        return await self._data.insist(lambda: self._data.obtain(cid, kind)) is Finding.OK
