"""What a node tells its data process to keep."""

from __future__ import annotations

import asyncio
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
from tests.simulation.loop import simulate

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
        self.held_bytes = 0

    async def mark(self) -> int:
        self.said.append(("mark", None))
        return 7

    async def sweep(self, token: int, roots: list[bytes]) -> tuple[int, int]:
        self.said.append(("sweep", (token, set(roots))))
        return 0, 0


async def at_once(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def retention_of(store: Any, batches: Any, data: Heard, **named: Any) -> Retention:
    run = SimpleNamespace(run=at_once, close=lambda: None)
    return Retention(GENESIS.params, Keeping(), store, batches, data, run, **named)  # type: ignore[arg-type]


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
    retention = retention_of(
        store,
        batches,
        data,
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


def test_what_comes_in_bulk_brings_the_next_sweep_forward() -> None:
    """Each of these lists is of (second, bytes held from then on)."""

    def swept_at(*held: tuple[float, int], until_s: float = 70.0) -> list[float]:
        data, sweeps = Heard(), list[float]()

        async def main() -> None:
            loop = asyncio.get_running_loop()
            retention = retention_of(None, None, data, open_batches=list, offered=list, pooled=list, made_here=list)

            async def sweep() -> None:
                sweeps.append(loop.time() - began)

            began = loop.time()
            retention.sweep = sweep  # type: ignore[method-assign]
            running = asyncio.create_task(retention.run())
            for second, size_bytes in (*held, (until_s, 0)):
                await asyncio.sleep(began + second - loop.time())
                data.held_bytes = size_bytes
            running.cancel()

        simulate(main)
        return [round(each, 3) for each in sweeps]

    much = Keeping().sooner_bytes
    assert swept_at((0, much - 1)) == [60]
    assert swept_at((10.5, much)) == [11]
    assert swept_at((10.5, much), (11.5, 1), (20.5, much), (30.5, much + 1)) == [11, 31]
    # More and more of it: not without a pause.
    assert swept_at(*((tenth / 10, tenth * much) for tenth in range(1, 70)), until_s=7) == [2, 4, 6]


def test_a_sweep_that_takes_long_is_not_repeated_at_once() -> None:
    async def main() -> None:
        data, loop, sweeps = Heard(), asyncio.get_running_loop(), list[float]()
        retention = retention_of(None, None, data, open_batches=list, offered=list, pooled=list, made_here=list)
        began = loop.time()

        async def sweep() -> None:
            sweeps.append(round(loop.time() - began, 3))
            await asyncio.sleep(0.5)

        retention.sweep = sweep  # type: ignore[method-assign]
        running = asyncio.create_task(retention.run())
        while loop.time() < began + 14:
            data.held_bytes += Keeping().sooner_bytes
            await asyncio.sleep(0.1)
        running.cancel()
        assert sweeps == [2, 12.5]

    simulate(main)
