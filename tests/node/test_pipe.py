"""The pipe to a process of its own: it lives and dies with the core, and is started again when it dies alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from node.data.messages import FRAME_BYTES
from node.ports import PipeDown, PipeEvent, PipeUp
from node.ports import pipe as pipes
from node.ports.pipe import CorePipe

HANG_S = 120.0

ECHO = """
import asyncio, os, signal, sys
from node.ports import PipeDown
from node.ports.pipe import DataEnd

async def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    core = await DataEnd.open(int(sys.argv[1]))
    while not isinstance(frame := await core.receive(), PipeDown):
        if frame == b"die":
            os._exit(3)
        if frame == b"hang":
            signal.pause()
        core.send(frame)

asyncio.run(main())
"""
"""Answers with what it is told, the set-up included."""

PARENT = """
import asyncio, sys
from node.ports.pipe import CorePipe

async def main():
    pipe = CorePipe(b"setup", sys.argv[1:])
    while True:
        await pipe.receive()
        print(pipe.pid, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "echo.py"
    path.write_text(ECHO)
    return (sys.executable, str(path))


@asynccontextmanager
async def piped(program: tuple[str, ...]) -> AsyncIterator[CorePipe]:
    pipe = CorePipe(b"setup", program)
    try:
        yield pipe
    finally:
        await pipe.close()


async def said(pipe: CorePipe) -> PipeEvent:
    return await asyncio.wait_for(pipe.receive(), HANG_S)


async def up(pipe: CorePipe) -> int:
    """Started, and at work; its number."""
    assert isinstance(await said(pipe), PipeUp)
    assert await said(pipe) == b"setup"
    assert pipe.pid is not None
    return pipe.pid


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


async def gone(pid: int) -> None:
    deadline = time.monotonic() + HANG_S
    while alive(pid):
        assert time.monotonic() < deadline, "it is still there"
        await asyncio.sleep(0.02)


async def test_the_set_up_is_the_first_frame_that_the_process_hears(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        await up(pipe)


@pytest.mark.parametrize("size", [0, 1, 65_536, FRAME_BYTES])
async def test_frames_of_every_size_come_whole_and_in_order(program: tuple[str, ...], size: int) -> None:
    async with piped(program) as pipe:
        await up(pipe)
        frames = [bytes([number]) * size for number in range(3)]
        for frame in frames:
            assert pipe.send(frame)
        assert [await said(pipe) for _ in frames] == frames


async def test_a_frame_beyond_the_limit_is_a_fault_of_the_sender(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        await up(pipe)
        with pytest.raises(ValueError, match="at most"):
            pipe.send(bytes(FRAME_BYTES + 1))


async def test_nothing_is_sent_while_nobody_is_there(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        assert not pipe.send(b"hello")


async def test_waiting_for_a_frame_may_be_given_up_without_losing_any(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        await up(pipe)
        frames = [bytes([number]) * 300_000 for number in range(20)]
        for frame in frames:
            pipe.send(frame)
        heard: list[PipeEvent] = []
        while len(heard) < len(frames):
            with suppress(TimeoutError):
                heard.append(await asyncio.wait_for(pipe.receive(), 0.0005))
        assert heard == frames


async def test_a_process_that_is_killed_is_started_again(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        first = await up(pipe)
        os.kill(first, signal.SIGKILL)
        assert isinstance(await said(pipe), PipeDown)
        assert not pipe.send(b"hello")
        second = await up(pipe)
        assert second != first
        assert pipe.send(b"hello")
        assert await said(pipe) == b"hello"


async def test_a_process_that_ends_by_itself_is_started_again(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        await up(pipe)
        pipe.send(b"die")
        assert isinstance(await said(pipe), PipeDown)
        await up(pipe)


async def test_each_death_in_a_row_doubles_the_wait_for_the_next_life_up_to_ten_seconds() -> None:
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    pipe = CorePipe(b"setup", ("/bin/false",), pause)
    for _ in range(8):
        while not isinstance(await said(pipe), PipeDown):
            pass
    await pipe.close()
    assert waits == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]


async def test_a_program_that_is_not_there_is_tried_again_and_again() -> None:
    tries: list[float] = []
    enough = asyncio.Event()

    async def pause(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 4:
            enough.set()
        await asyncio.sleep(0)

    pipe = CorePipe(b"setup", ("/nowhere/at/all",), pause)
    receiving = asyncio.create_task(pipe.receive())
    await asyncio.wait_for(enough.wait(), HANG_S)
    receiving.cancel()
    await pipe.close()
    assert tries[:4] == [0.0, 0.2, 0.4, 0.8]


async def test_closing_ends_the_process(program: tuple[str, ...]) -> None:
    async with piped(program) as pipe:
        pid = await up(pipe)
    await gone(pid)


async def test_a_process_that_hangs_is_killed_when_the_pipe_is_closed(
    program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "PATIENCE_S", 0.2)
    async with piped(program) as pipe:
        pid = await up(pipe)
        pipe.send(b"hang")
    await gone(pid)


async def test_a_process_that_takes_nothing_any_more_is_killed(
    program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "UNREAD_BYTES", 1024 * 1024)
    async with piped(program) as pipe:
        await up(pipe)
        pipe.send(b"hang")
        for _ in range(3):
            pipe.send(bytes(FRAME_BYTES))
        while not isinstance(await said(pipe), PipeDown):
            pass
        await up(pipe)


async def test_a_process_that_says_nothing_any_more_is_killed(
    program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with piped(program) as pipe:
        await up(pipe)
        monkeypatch.setattr(pipes, "SILENT_S", 0.1)
        pipe.send(b"hang")
        assert isinstance(await said(pipe), PipeDown)


async def test_the_process_is_gone_when_its_core_was_killed(program: tuple[str, ...], tmp_path: Path) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(PARENT)
    core = await asyncio.create_subprocess_exec(sys.executable, str(parent), *program, stdout=asyncio.subprocess.PIPE)
    assert core.stdout is not None
    pid = int(await asyncio.wait_for(core.stdout.readline(), HANG_S))
    await asyncio.wait_for(core.stdout.readline(), HANG_S)
    assert alive(pid)
    core.kill()
    await core.wait()
    await gone(pid)


async def test_no_secret_is_on_the_command_line_or_in_the_environment(program: tuple[str, ...]) -> None:
    pipe = CorePipe(b"Open Sesame", program)
    try:
        assert isinstance(await said(pipe), PipeUp)
        await said(pipe)
        for place in ("cmdline", "environ"):
            assert b"Sesame" not in Path(f"/proc/{pipe.pid}/{place}").read_bytes()
    finally:
        await pipe.close()


class _Transport:
    """Says whether it was told to stop reading."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def come(frames: pipes._Frames, data: bytes, most: int) -> None:
    """As an event loop that has never more than so many bytes at a time."""
    while data:
        room = frames.get_buffer(-1)
        size = min(most, len(room), len(data))
        assert size, "there is always room for more"
        room[:size] = data[:size]
        frames.buffer_updated(size)
        data = data[size:]


@pytest.mark.parametrize("most", [1, 3, 7, 1_000, 100_000])
async def test_frames_are_the_same_however_their_bytes_are_cut(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(pipes, "_BUFFER_BYTES", 16)
    sent = [bytes([at]) * size for at, size in enumerate((0, 1, 11, 12, 13, 0, 300, 5, 16, 20, 2_000, 3))]
    frames = pipes._Frames()
    frames.connection_made(_Transport())  # type: ignore[arg-type]
    come(frames, b"".join(len(each).to_bytes(4, "big") + each for each in sent), most)
    assert [await frames.next() for _ in sent] == sent
    frames.connection_lost(None)
    assert await frames.next() is None


async def test_nothing_more_is_read_while_too_much_waits_to_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "UNHEARD_BYTES", 100)
    frames, transport = pipes._Frames(), _Transport()
    frames.connection_made(transport)  # type: ignore[arg-type]
    frame = (60).to_bytes(4, "big") + bytes(60)
    come(frames, frame, 64)
    assert transport.reading
    come(frames, frame, 64)
    assert not transport.reading
    await frames.next()
    assert transport.reading


async def test_a_length_that_no_frame_has_is_told_after_what_came_before_it() -> None:
    frames, transport = pipes._Frames(), _Transport()
    frames.connection_made(transport)  # type: ignore[arg-type]
    come(frames, (1).to_bytes(4, "big") + b"a" + (FRAME_BYTES + 1).to_bytes(4, "big"), 9)
    assert not transport.reading
    assert await frames.next() == b"a"
    with pytest.raises(pipes.BrokenFrame):
        await frames.next()
    assert not transport.reading
