"""Work that one call shares out among the threads, and those who wait for a thread meanwhile."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from node.ports.offload import ThreadOffload


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_piece_is_done_once_and_results_stand_in_their_order(workers: int, count: int) -> None:
    done: list[int] = []

    def piece(number: int) -> int:
        done.append(number)
        return number * number

    async def story() -> list[int]:
        offload = ThreadOffload(workers)
        try:
            return await offload.run(offload.spread, [partial(piece, number) for number in range(count)])
        finally:
            offload.close()

    assert asyncio.run(story()) == [number * number for number in range(count)]
    assert sorted(done) == list(range(count))


def test_pieces_are_done_by_several_threads_at_a_time() -> None:
    both = threading.Barrier(2, timeout=30)

    async def story() -> list[int]:
        offload = ThreadOffload(2)
        try:
            return await offload.run(offload.spread, [both.wait, both.wait])
        finally:
            offload.close()

    assert sorted(asyncio.run(story())) == [0, 1]


def test_whoever_waits_for_a_thread_has_it_before_the_pieces_are_done() -> None:
    asked = threading.Event()
    done: list[str] = []

    def piece() -> None:
        asked.wait(30)
        # As a kernel does, it lets go of the interpreter.
        threading.Event().wait(0.002)
        done.append("piece")

    async def story() -> None:
        offload = ThreadOffload(2)
        try:
            working = asyncio.ensure_future(offload.run(offload.spread, [piece] * 200))
            other = asyncio.ensure_future(offload.run(done.append, "other"))
            await asyncio.sleep(0.05)
            asked.set()
            await asyncio.gather(working, other)
        finally:
            offload.close()

    asyncio.run(story())
    assert done.index("other") < 100 and done.count("piece") == 200


def test_a_piece_that_fails_ends_the_work() -> None:
    done: list[int] = []

    def piece(number: int) -> None:
        if number == 3:
            raise ArithmeticError("three")
        done.append(number)

    async def story() -> None:
        offload = ThreadOffload(2)
        try:
            await offload.run(offload.spread, [partial(piece, number) for number in range(10_000)])
        finally:
            offload.close()

    with pytest.raises(ArithmeticError, match="three"):
        asyncio.run(story())
    assert len(done) < 9_999


def test_calls_that_share_out_work_do_not_wait_for_one_another() -> None:
    async def story() -> list[list[int]]:
        offload = ThreadOffload(2)
        work = [[partial(int, number) for number in range(200)] for _ in range(8)]
        try:
            return list(await asyncio.gather(*(offload.run(offload.spread, pieces) for pieces in work)))
        finally:
            offload.close()

    assert asyncio.run(story()) == [list(range(200))] * 8
