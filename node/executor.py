"""Execution: final blocks in order, each one's batches read from the log, its outcome written as one group of rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice

from chain.block import Block
from chain.certificate import Certificate, ValidatorSet
from chain.codec import decode
from chain.genesis import Genesis, genesis_header
from chain.log import EMPTY, Frontier, extend, leaf_digest
from chain.tree import StateTree
from consensus.lineage import Lineage, first_leader, unexecuted_loads
from consensus.replica import ChainExecuted
from fl.blobs import BlobKind
from fl.execution import BlockInput, BlockOutcome, Growth
from fl.machine import execute_block, genesis_state, wants_block_at
from fl.records import Event, EventKind
from fl.state import Known
from fl.transactions import read_all
from node.batchlog import BatchLog
from node.dataplane import DataPlane
from node.ports import Offload
from node.readings import ReadBatches, Readings
from node.store import ExecutedTo, JournalMark, Store, state_row

BLOCKS_LOG = b"blocks"
INLINE_TRANSACTIONS = 64
"""A block with more of them is executed off the loop."""
EVENT_LIMIT_BYTES = 4096
BLOCKS_AHEAD = 64
BATCHES_AHEAD = 64
"""So much is fetched before its turn comes."""

Contents = tuple[tuple[bytes, Readings], ...]
"""Of a block: what the transactions of its batches say."""

_ROUND_OVER = frozenset({EventKind.ROUND_CLOSED, EventKind.ROUND_FAILED})


@dataclass(frozen=True, slots=True)
class FinalBlock:
    block: Block
    lineage: Lineage
    finalization: Certificate | None
    mark: JournalMark
    validators: ValidatorSet


class Executor:
    def __init__(
        self,
        genesis: Genesis,
        store: Store,
        batches: BatchLog,
        read: ReadBatches,
        data: DataPlane,
        offload: Offload,
        executed: ExecutedTo,
        *,
        missing: Callable[[tuple[bytes, ...]], None],
        done: Callable[[ChainExecuted, BlockOutcome], Awaitable[None]],
    ) -> None:
        self._chain_id = genesis.chain_id
        self._params = genesis.params
        self._store = store
        self._batches = batches
        self._read = read
        self._data = data
        self._offload = offload
        self.executed = executed
        self.tree = StateTree(store.state_rows(), executed.lineage.height, genesis.params.state_history)
        self._known = Known()
        self._missing = missing
        self._done = done
        self.keeping: tuple[bytes, ...] = ()
        """Models that the block in execution brings inline: durable before the row that names them."""
        self._queue: deque[FinalBlock] = deque()
        self._changed = asyncio.Event()

    @staticmethod
    async def prepare(genesis: Genesis, store: Store, root: Lineage) -> ExecutedTo:
        """What was executed last; the genesis state where nothing was."""
        known = store.executed()
        if known is not None:
            return known
        rows = {state_row(key): value for key, value in genesis_state(genesis).items()}
        tree = StateTree(genesis_state(genesis).items())
        executed = ExecutedTo(root, tree.root, 0, 0)
        header = genesis_header(genesis)
        rows.update(store.log_rows([_block_logged(EMPTY, root.digest)]))
        rows[b"h/" + root.digest] = header.height.to_bytes(8, "big")
        key, value = store.executed_row(executed)
        store.write({**rows, key: value})
        return executed

    def submit(self, final: FinalBlock) -> None:
        if final.lineage.height > self.executed.lineage.height:
            self._queue.append(final)
            self._changed.set()

    def batch_here(self) -> None:
        self._changed.set()

    @property
    def waiting(self) -> int:
        """Final blocks that are not yet executed."""
        return len(self._queue)

    async def run(self) -> None:
        while True:
            while self._queue:
                final = self._queue[0]
                transactions = await self._bodies(final)
                await self._execute(final, transactions)
                self._queue.popleft()
            self._changed.clear()
            await self._changed.wait()

    async def _bodies(self, final: FinalBlock) -> Contents:
        """What the transactions of every batch say that the block names, once all of them are in the log."""
        digests = final.block.body.batches
        while True:
            self._changed.clear()
            lacking = tuple(digest for digest in digests if not self._batches.holds(digest))
            if not lacking:
                break
            self._missing(lacking + self._missing_later())
            await self._changed.wait()
        return tuple([(digest, self._read.take(digest) or await self._read_again(digest)) for digest in digests])

    async def _read_again(self, digest: bytes) -> Readings:
        signed = self._batches.read(digest)
        assert signed is not None, "its location is known"
        transactions = signed.batch.transactions
        if len(transactions) > INLINE_TRANSACTIONS:
            return await self._offload.run(read_all, transactions, self._params)
        return read_all(transactions, self._params)

    def _missing_later(self) -> tuple[bytes, ...]:
        """What the blocks behind the next one lack: fetched one block after the other, it would take a round trip or
        more for each."""
        later = (digest for final in islice(self._queue, 1, BLOCKS_AHEAD) for digest in final.block.body.batches)
        return tuple(islice((digest for digest in later if not self._batches.holds(digest)), BATCHES_AHEAD))

    def _input(self, final: FinalBlock, bodies: Contents) -> BlockInput:
        header, lineage, params = final.block.header, final.lineage, self._params
        loads = unexecuted_loads(lineage, header.executed_height) - bool(bodies)
        return BlockInput(
            chain_id=self._chain_id,
            params=params,
            height=header.height,
            digest=lineage.digest,
            time_ms=header.time_ms,
            epoch=header.epoch,
            proposer=(first_leader(final.validators) + header.view) % final.validators.n,
            f=final.validators.f,
            within_window=loads < params.execution_window,
            beacon=lineage.beacon,
            batches=bodies,
            items=final.block.body.items,
        )

    async def _execute(self, final: FinalBlock, bodies: Contents) -> None:
        block = self._input(final, bodies)
        if sum(len(transactions) for _, transactions in bodies) > INLINE_TRANSACTIONS:
            outcome = await self._offload.run(execute_block, self._store.state, block, self._known)
        else:
            outcome = execute_block(self._store.state, block, self._known)
        # Without the data process execution waits, and ordering goes on as far as the window allows. A model that came
        # as a blob is here if this node voted for it; what is not, and zeros, come in their own time.
        inline = [model for model in outcome.models if model.inline]
        self.keeping = tuple(model.cid for model in inline)
        for model in inline:
            await self._kept(model.inline)
        self._keep(final, outcome)
        self.keeping = ()
        events = [decode(Event, data, EVENT_LIMIT_BYTES) for data in outcome.events]
        over = tuple((event.job, event.round) for event in events if event.kind in _ROUND_OVER)
        executed = ChainExecuted(
            final.lineage.height,
            final.lineage.digest,
            self.executed.state_root,
            wants_block_at(self._store.state),
            over,
        )
        await self._done(executed, outcome)

    async def _kept(self, model: bytes) -> None:
        await self._data.insist(lambda: self._data.keep(BlobKind.MODEL, model))

    def _keep(self, final: FinalBlock, outcome: BlockOutcome) -> None:
        store, before, lineage, changes = self._store, self.executed, final.lineage, outcome.changes
        root = self.tree.apply(lineage.height, changes.writes, changes.replaced)
        rows = store.block_rows(final.block, final.finalization, lineage.digest)
        rows.update(store.marks(lineage.height, final.mark, self._batches.log.synced))
        rows.update({state_row(key): value for key, value in changes.writes.items() if value is not None})
        rows.update(store.receipt_index_rows(before.receipts, outcome.ids))
        rows.update(store.log_rows((*outcome.logs, _block_logged(before.lineage.log, lineage.digest))))
        self.executed = ExecutedTo(
            lineage, root, before.receipts + len(outcome.receipts), before.events + len(outcome.events)
        )
        key, value = store.executed_row(self.executed)
        rows[key] = value
        store.write(rows, [state_row(key) for key, value in changes.writes.items() if value is None])
        self._known.follow(changes)


def _block_logged(blocks: Frontier, identity: bytes) -> Growth:
    _, nodes = extend(blocks, [leaf_digest(identity)])
    return Growth(BLOCKS_LOG, blocks.size, (identity,), tuple(nodes))
