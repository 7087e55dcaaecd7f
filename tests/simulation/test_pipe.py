"""The simulated pipe keeps the real one's promises: order, an end that comes after what was sent, lives kept apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from node.data.messages import FRAME_BYTES
from node.ports import PipeDown, PipeUp
from tests.simulation.loop import simulate
from tests.simulation.pipe import SimulatedPipe


def story(tell: Callable[[SimulatedPipe], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await tell(SimulatedPipe())

    simulate(main)


def test_frames_come_in_order_after_the_pipe_is_up() -> None:
    async def tell(pipe: SimulatedPipe) -> None:
        core, data = pipe.begin_core(), pipe.begin_data()
        for number in range(50):
            assert data.send(bytes([number]))
        assert isinstance(await core.receive(), PipeUp)
        assert [await core.receive() for _ in range(50)] == [bytes([number]) for number in range(50)]
        for number in range(50):
            assert core.send(bytes([number]))
        assert [await data.receive() for _ in range(50)] == [bytes([number]) for number in range(50)]

    story(tell)


def test_nothing_is_sent_before_the_pipe_is_up() -> None:
    async def tell(pipe: SimulatedPipe) -> None:
        core = pipe.begin_core()
        assert not core.send(b"too early")
        pipe.begin_data()
        assert not core.send(b"still too early")
        assert isinstance(await core.receive(), PipeUp)
        assert core.send(b"now")

    story(tell)


def test_what_a_data_process_said_before_its_death_comes_before_the_news_of_it() -> None:
    async def tell(pipe: SimulatedPipe) -> None:
        core, data = pipe.begin_core(), pipe.begin_data()
        data.send(b"last words")
        pipe.end_data()
        assert not data.send(b"from the grave")
        assert isinstance(await core.receive(), PipeUp)
        assert core.send(b"nobody hears this")
        assert await core.receive() == b"last words"
        assert isinstance(await core.receive(), PipeDown)
        assert not core.send(b"gone")

    story(tell)


def test_what_was_meant_for_one_life_never_reaches_the_next() -> None:
    async def tell(pipe: SimulatedPipe) -> None:
        core = pipe.begin_core()
        pipe.begin_data()
        assert isinstance(await core.receive(), PipeUp)
        pipe.end_data()
        second = pipe.begin_data()
        assert core.send(b"for the first")
        assert isinstance(await core.receive(), PipeDown)
        assert isinstance(await core.receive(), PipeUp)
        assert core.send(b"for the second")
        assert await second.receive() == b"for the second"

    story(tell)


def test_the_end_of_the_core_is_the_last_that_a_data_process_hears() -> None:
    async def tell(pipe: SimulatedPipe) -> None:
        core, data = pipe.begin_core(), pipe.begin_data()
        assert isinstance(await core.receive(), PipeUp)
        core.send(b"one more")
        pipe.end_core()
        assert await data.receive() == b"one more"
        assert isinstance(await data.receive(), PipeDown)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(data.receive(), 3600)

    story(tell)


def test_a_frame_beyond_the_limit_is_a_fault_of_the_sender() -> None:
    async def tell(pipe: SimulatedPipe) -> None:
        core, _ = pipe.begin_core(), pipe.begin_data()
        with pytest.raises(ValueError, match="at most"):
            core.send(bytes(FRAME_BYTES + 1))

    story(tell)
