"""What is told of accepted updates, when, and from where: as they come out of execution, or from the logs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from fl.execution import Accepted
from fl.records import Entry
from node import aggregator
from node.aggregator import TOLD_AFTER_S, _Sum, _told_from, _with
from node.data.messages import Closed
from node.dataplane import DataFault, DataPlane
from tests.fl.builders import running_job
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate

JOB = bytes(32)


def member(index: int) -> bytes:
    return bytes([index]) * 32


def accepted(first: int, sizes: Sequence[int]) -> Accepted:
    entries = tuple(
        Entry(bytes(32), member(first + at), 1, 1 + at, 0, bytes(36), bytes(32), at).fields for at in range(len(sizes))
    )
    return Accepted(JOB, 1, first, entries, tuple(bytes(size) for size in sizes), sum(sizes), all(sizes))


def test_what_was_accepted_is_told_from_any_place_on_with_its_positions() -> None:
    fresh = accepted(5, [3, 0, 2, 2])
    told = _told_from(fresh, 6)
    assert told.count == 3
    (blob,), (bundle,) = told.blobs, told.bundles
    assert (blob.index, blob.member, blob.weight) == (6, member(6), 2)
    assert bundle.indices == b"".join(each.to_bytes(8, "little") for each in (7, 8))
    assert bundle.weights == b"".join(each.to_bytes(4, "little") for each in (3, 4))
    assert bundle.members == member(7) + member(8)
    assert bundle.payloads == bytes(4)


def test_a_message_holds_so_many_updates_and_so_many_bytes_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregator, "ADDENDS_BYTES", 10)
    monkeypatch.setattr(aggregator, "ADDENDS", 3)
    assert _told_from(accepted(0, [1] * 5), 0).count == 3
    assert _told_from(accepted(0, [1] * 5), 3).count == 2
    assert _told_from(accepted(0, [6, 4, 1]), 0).count == 2
    assert _told_from(accepted(0, [11, 1]), 0).count == 1


def test_what_was_told_is_let_go() -> None:
    begun = _Sum((JOB, 1), running_job().round)
    for each in (accepted(0, [1, 1]), accepted(2, [1]), accepted(7, [1, 1])):
        begun.accepted(each)
    held_back, later = begun.fresh[1], begun.fresh[2]
    assert begun.fresh_bytes == 5
    assert begun.fresh_from(1) is not None and begun.fresh_bytes == 5
    assert begun.fresh_from(2) is held_back
    # There is a gap: what is in it has to be read.
    assert begun.fresh_from(3) is later and later.first == 7
    assert begun.fresh_from(8) is later and begun.fresh_bytes == 2
    assert begun.fresh_from(9) is None and begun.fresh_bytes == 0


def test_small_updates_wait_for_others_but_not_for_long_and_large_ones_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aggregator, "TOLD_AT_ONCE_BYTES", 10)

    def taken(begun: _Sum, sizes: Sequence[int]) -> None:
        begun.accepted(accepted(0, sizes))
        begun.tell(begun.fresh[-1])

    async def main() -> None:
        begun = _Sum((JOB, 1), running_job().round)
        taken(begun, [4])
        await asyncio.sleep(TOLD_AFTER_S / 2)
        taken(begun, [4])
        assert not begun.moved.is_set()
        await asyncio.sleep(0.6 * TOLD_AFTER_S)
        assert begun.moved.is_set()
        for sizes in ([6, 4], [0]):
            begun = _Sum((JOB, 1), running_job().round)
            taken(begun, sizes)
            assert begun.moved.is_set()

    simulate(main)


def test_what_is_left_of_a_frozen_round_is_told_with_the_question_for_its_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    add, close = DataPlane.add, DataPlane.close

    async def counted_add(plane: DataPlane, *args: Any) -> None:
        said.append("add")
        await add(plane, *args)
        said.append("added")

    async def counted_close(plane: DataPlane, *args: Any) -> Closed:
        said.append("close")
        return await close(plane, *args)

    monkeypatch.setattr(DataPlane, "add", counted_add)
    monkeypatch.setattr(DataPlane, "close", counted_close)

    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=3)
        await cluster.start()
        training = Training(cluster, trainers=4)
        await training.create()
        assert await cluster.until(lambda: training.finished(), within=60)

    simulate(main)
    assert ["add", "close"] in [said[at : at + 2] for at in range(len(said))]


def test_whichever_fails_of_the_two_ends_the_other() -> None:
    async def fails() -> Closed:
        raise DataFault("SOME", "it failed")

    async def main() -> None:
        for failing_first in (True, False):
            ended: list[bool] = []

            async def waits(ended: list[bool] = ended) -> Any:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    ended.append(True)
                    raise

            pair: tuple[Any, Any] = (fails(), waits()) if failing_first else (waits(), fails())
            with pytest.raises(DataFault):
                await _with(*pair)
            await asyncio.sleep(0)
            assert ended == [True]

    simulate(main)
