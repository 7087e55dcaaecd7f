"""The virtual loop itself: time without waiting, the same order every time, and an end to everything."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from tests.simulation.loop import START_SECONDS, Crash, Stuck, VirtualLoop, drawn_from, simulate


def test_a_year_passes_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86_400)
        return asyncio.get_running_loop().time() - START_SECONDS

    assert simulate(main) == pytest.approx(365 * 86_400)


def test_timers_fire_in_order_and_at_their_time() -> None:
    fired: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            fired.append((name, loop.time() - START_SECONDS))

        await asyncio.gather(sleeper("c", 3), sleeper("a", 0.1), sleeper("b", 2.5))

    simulate(main)
    assert [name for name, _ in fired] == ["a", "b", "c"]
    assert [time for _, time in fired] == pytest.approx([0.1, 2.5, 3.0])


def test_waiting_for_what_never_comes_is_an_error_that_names_who_waits() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="the forgotten one")

    with pytest.raises(Stuck, match="the forgotten one"):
        simulate(main)


def test_running_for_ever_at_one_instant_is_an_error() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="without any time passing"):
        simulate(main)


def test_running_for_ever_is_an_error() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(Stuck, match="still running"):
        simulate(main, steps=1_000)


def test_threads_and_sockets_are_refused() -> None:
    async def thread() -> None:
        await asyncio.to_thread(threading.get_ident)

    async def sock() -> None:
        asyncio.get_running_loop().add_reader(0, print)

    for main in (thread, sock):
        with pytest.raises(Stuck):
            simulate(main)


def test_what_a_task_raised_and_nobody_awaited_fails_the_run() -> None:
    async def broken() -> None:
        raise LookupError("unseen")

    async def main() -> None:
        task = asyncio.ensure_future(broken())
        await asyncio.sleep(1)
        del task

    with pytest.raises(LookupError, match="unseen"):
        simulate(main)


def test_a_crash_that_nobody_awaited_is_no_failure() -> None:
    async def dying() -> None:
        raise Crash

    async def main() -> str:
        task = asyncio.ensure_future(dying())
        await asyncio.sleep(1)
        del task
        return "went on"

    assert simulate(main) == "went on"


def test_tasks_left_over_are_ended_oldest_first() -> None:
    ended: list[int] = []

    async def forever(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    async def main() -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(forever(number)) for number in range(20)]
        await asyncio.sleep(1)
        return tasks

    simulate(main)
    assert ended == list(range(20))


def test_concerns_draw_independently_and_repeatably() -> None:
    first = [drawn_from(7, "network").random(), drawn_from(7, "v0", "machine").random()]
    assert first == [drawn_from(7, "network").random(), drawn_from(7, "v0", "machine").random()]
    assert len({*first, drawn_from(8, "network").random(), drawn_from(7, "v1", "machine").random()}) == 4


def test_the_loop_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        VirtualLoop().close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_same_seed_gives_the_same_events_in_every_process() -> None:
    program = "from tests.simulation.test_network import gossip; print(gossip(seed=5), gossip(seed=6))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1
    first, second = outputs.pop().split()
    assert first != second
