"""Threads that work for a loop: how many there are, and who is told what, when work ends, fails or is dropped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial

import pytest

from node.ports.threads import Threads

HANG_S = 30.0


def nothing(failed: bool) -> None:
    pass


async def test_pieces_that_come_one_after_the_other_have_one_thread() -> None:
    threads = Threads(4, "test")
    idents = set()
    for _ in range(50):
        idents.add(await threads.run(threading.get_ident, nothing))
        # The thread counts its work as done only after it has told of it.
        await asyncio.sleep(0.002)
    threads.close()
    assert len(idents) == 1 and threading.get_ident() not in idents


async def test_there_are_as_many_threads_as_work_and_never_more_than_allowed() -> None:
    threads = Threads(3, "test")
    together, gate = threading.Barrier(3, timeout=HANG_S), threading.Event()
    working: list[int] = []
    most: list[int] = []

    def work() -> None:
        working.append(1)
        most.append(len(working))
        if len(most) <= 3:
            together.wait()
        working.pop()

    def late() -> None:
        gate.wait(HANG_S)

    await asyncio.gather(*(threads.run(work, nothing) for _ in range(3)))
    held = [threads.run(late, nothing) for _ in range(3)]
    queued = [threads.run(work, nothing) for _ in range(20)]
    await asyncio.sleep(0.05)
    assert not any(each.done() for each in queued)
    gate.set()
    await asyncio.gather(*held, *queued)
    threads.close()
    assert max(most) == 3


async def test_it_is_over_before_anybody_learns_of_it_even_if_nobody_waits() -> None:
    threads = Threads(1, "test")
    gate = threading.Event()
    said: list[str] = []

    def fail() -> None:
        raise ArithmeticError("of the work")

    def over(failed: bool) -> None:
        assert threading.current_thread() is threading.main_thread()
        said.append("failed" if failed else "done")

    with pytest.raises(ArithmeticError, match="of the work"):
        await threads.run(fail, over)
    assert said == ["failed"]
    left = threads.run(lambda: gate.wait(HANG_S), over)
    left.cancel()
    await asyncio.sleep(0.01)
    assert said == ["failed"]
    gate.set()
    assert await threads.run(lambda: list(said), nothing) in (["failed"], ["failed", "done"])
    assert said == ["failed", "done"]
    threads.close()


@pytest.mark.parametrize("drop", [False, True])
async def test_closing_does_what_is_queued_or_drops_it_and_says_so(drop: bool) -> None:
    threads = Threads(1, "test")
    begun, gate = threading.Event(), threading.Event()
    done: list[int] = []
    over: list[bool] = []

    def first() -> str:
        begun.set()
        gate.wait(HANG_S)
        return "first"

    running = threads.run(first, over.append)
    queued = [threads.run(partial(done.append, number), over.append) for number in range(5)]
    assert begun.wait(HANG_S)
    threading.Timer(0.05, gate.set).start()
    threads.close(drop=drop)
    assert done == ([] if drop else [0, 1, 2, 3, 4])
    results = await asyncio.gather(*queued, return_exceptions=True)
    assert await running == "first"
    assert [isinstance(each, asyncio.CancelledError) for each in results] == [drop] * 5
    assert sorted(over) == [False, *[drop] * 5]
    with pytest.raises(RuntimeError):
        threads.run(first, nothing)


def test_a_process_whose_threads_were_never_closed_ends_when_their_work_is_done() -> None:
    program = (
        "import asyncio, sys, time\n"
        "from node.ports.threads import Threads\n"
        "async def main():\n"
        "    threads = Threads(2, 'test')\n"
        "    await threads.run(lambda: None, lambda failed: None)\n"
        "    threads.run(lambda: (time.sleep(0.1), print('done')), lambda failed: None)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert ended.stdout == "done\n"
