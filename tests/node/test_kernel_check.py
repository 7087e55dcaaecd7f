"""A machine whose kernels compute something else orders and executes, and signs no results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from chain.genesis import Params
from fl.execution import AggregationTask
from fl.kernels.golden import GoldenMismatch
from node.aggregator import Aggregator
from node.batchlog import BatchLog
from node.blobs import Blobs
from node.ports.offload import ThreadOffload
from node.store import Store

TASK = AggregationTask(bytes(32), 1, bytes(32), 0, 1, bytes(36), 0)


class Watched(Aggregator):
    """Notes what it would compute."""

    computed: list[AggregationTask]

    async def _compute(self, task: AggregationTask) -> Any:
        self.computed.append(task)


def aggregator(check: Callable[[], None] | None, offload: ThreadOffload) -> Watched:
    made = Watched(
        Params(),
        cast(Store, None),
        cast(BatchLog, None),
        cast(Blobs, None),
        offload,
        computed=lambda result: None,
        alarm=lambda alarm: None,
        check_kernels=check,
    )
    made.computed = []
    return made


async def computed_with(check: Callable[[], None] | None) -> Watched:
    offload = ThreadOffload(1)
    made = aggregator(check, offload)
    made.submit(TASK)
    running = asyncio.create_task(made.run())
    while made.waiting:
        await asyncio.sleep(0.01)
    made.submit(TASK)
    while made.waiting:
        await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    offload.close()
    return made


async def test_results_wait_for_the_check_of_the_kernels() -> None:
    order: list[str] = []
    made = await computed_with(lambda: order.append("checked"))
    assert order == ["checked"]
    assert made.computed == [TASK, TASK]
    assert made.trouble == ""


async def test_with_kernels_that_differ_no_result_is_computed_and_the_reason_is_kept() -> None:
    def differ() -> None:
        raise GoldenMismatch("sum_f32 gives 1 where 2 is right.")

    made = await computed_with(differ)
    assert made.computed == []
    assert "sum_f32" in made.trouble
