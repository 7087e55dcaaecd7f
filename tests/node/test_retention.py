"""What a node tells its data process to keep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chain.batch import Batch, SignedBatch, batch_digest
from chain.cid import raw_cid
from consensus.availability import BatchStored
from fl.datasets import RegisterDataset
from node.batchlog import BatchLog
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.retention import Keeping, Retention
from node.segments import SegmentedLog
from node.store import Store
from tests.fl.builders import actor, make_genesis

GENESIS = make_genesis()
CHAIN = GENESIS.chain_id


def registration(number: int) -> bytes:
    body = RegisterDataset(f"set-{number}", cid(number), 10, True, "", "", "")
    return actor("trainer-000", CHAIN).sign(body, nonce=number)


def cid(number: int) -> bytes:
    return raw_cid(b"blob %d" % number)


def batch(*numbers: int) -> SignedBatch:
    return SignedBatch(Batch(CHAIN, 0, 1, numbers[0], 0, 64, tuple(map(registration, numbers))), bytes(64))


class Heard:
    """A data process that deletes nothing."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    async def mark(self) -> int:
        self.said.append(("mark", None))
        return 7

    async def sweep(self, token: int, roots: list[bytes]) -> tuple[int, int]:
        self.said.append(("sweep", (token, set(roots))))
        return 0, 0


async def at_once(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


async def test_whatever_waits_anywhere_names_its_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, kv, data = FileDisk(tmp_path / "files"), LevelKv(tmp_path / "rows"), Heard()
    store = Store(kv, CHAIN)
    batches = BatchLog(await SegmentedLog.create(disk, "batches", bytes), store)
    voted, final, offered = batch(1, 2), batch(3), batch(4)
    digests = [batch_digest(each.batch) for each in (voted, final)]
    batches.append(BatchStored(final, True))
    await batches.log.durable(batches.log.last)
    batches.settle()
    # Voted for in this moment: nothing of it is durable yet.
    batches.append(BatchStored(voted, True))
    retention = Retention(
        GENESIS.params,
        Keeping(),
        store,
        batches,
        data,  # type: ignore[arg-type]
        SimpleNamespace(run=at_once, close=lambda: None),
        open_batches=lambda: [digests[0], bytes(32)],
        offered=lambda: [offered],
        pooled=lambda: [registration(5), b"no transaction"],
        made_here=lambda: [cid(6)],
    )
    retention.final(9, (digests[1],))
    await retention.sweep()
    assert data.said == [("mark", None), ("sweep", (7, {cid(number) for number in range(1, 7)}))]
    # Each batch is read once.
    monkeypatch.setattr(batches, "read", lambda digest: None)
    await retention.sweep()
    assert data.said[2:] == data.said[:2]
    retention.executed(9)
    await retention.sweep()
    assert data.said[-1] == ("sweep", (7, {cid(number) for number in (1, 2, 4, 5, 6)}))
    kv.close()
    disk.close()
