"""The pipe between the two processes of a validator: a Unix socket pair, one end made over to the child.

Each frame is its length in four bytes and then itself. The first one is the child's set-up, so that no secret is on a
command line or in the environment, and no passphrase is asked for twice.

The end of the socket is the one sign of the other's end. Whatever becomes of the core, SIGKILL included, the system
closes its end, and the data process goes; whatever becomes of the data process, the core starts another one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from node.data.messages import FRAME_BYTES
from node.ports import PipeDown, PipeEvent, PipeUp

log = logging.getLogger("quorate.pipe")

FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 10.0
SETTLED_S = 60.0
"""Whoever lives that long is started again without delay when it ends."""

PATIENCE_S = 5.0
"""What a process that was asked to end is given before it is killed."""

UNREAD_BYTES = 8 * FRAME_BYTES
"""A process that takes none of so much hangs; it is killed and started again."""

SILENT_S = 60.0
"""One that says nothing for so long, after its first frame, hangs as well: it tells its figures each second."""

_LENGTH_BYTES = 4
_BUFFER_BYTES = 64 * 1024

UNHEARD_BYTES = 512 * 1024
"""Of frames that have come and wait to be heard. With more than that, nothing is read; a frame may go beyond it."""

_HOUSE = str(Path(__file__).resolve().parents[2])

PROGRAM = (sys.executable, "-P", "-m", "node.data")


class BrokenFrame(Exception):
    """A length that no frame has: the two programs differ."""


class _Frames(asyncio.BufferedProtocol):
    """What comes, as frames: small ones together from one buffer, a large one straight into its own."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._arrived: deque[bytes] = deque()
        self._arrived_bytes = 0
        self._paused = False
        self._over = False
        self._broken: BrokenFrame | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._room = memoryview(bytearray(_BUFFER_BYTES))
        self._held = 0
        """Bytes in it that are not part of a frame yet."""
        self._large: bytearray | None = None
        self._filled = 0

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[self._held :] if self._large is None else memoryview(self._large)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._large is None:
            self._held += nbytes
            self._cut()
        else:
            self._filled += nbytes
            if self._filled == len(self._large):
                self._take(bytes(self._large))
                self._large = None
        if self._arrived_bytes > UNHEARD_BYTES or self._broken is not None:
            self._pause()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._wake()

    # Frames

    def _cut(self) -> None:
        at = 0
        while self._held - at >= _LENGTH_BYTES and self._large is None:
            length = int.from_bytes(self._room[at : at + _LENGTH_BYTES], "big")
            if length > FRAME_BYTES:
                self._broken = BrokenFrame(f"a frame of {length} bytes, where {FRAME_BYTES} are allowed")
                self._held = 0
                return
            at += _LENGTH_BYTES
            here = self._room[at : min(at + length, self._held)]
            at += len(here)
            if len(here) == length:
                self._take(bytes(here))
            else:
                self._large, self._filled = bytearray(length), len(here)
                self._large[: self._filled] = here
        self._room[: self._held - at] = self._room[at : self._held]
        self._held -= at

    def _take(self, frame: bytes) -> None:
        self._arrived.append(frame)
        self._arrived_bytes += len(frame)

    def _pause(self) -> None:
        if not self._paused and not self._over and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self) -> bytes | None:
        """None at the end. May be cancelled and called again without loss. Raises BrokenFrame."""
        while not self._arrived:
            if self._broken is not None:
                raise self._broken
            if self._over:
                return None
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        frame = self._arrived.popleft()
        self._arrived_bytes -= len(frame)
        if self._paused and self._arrived_bytes <= UNHEARD_BYTES and self._broken is None and not self._over:
            assert self.transport is not None
            self._paused = False
            self.transport.resume_reading()
        return frame


class _End:
    """One end of a socket pair, as frames."""

    def __init__(self, transport: asyncio.Transport, frames: _Frames) -> None:
        self._transport = transport
        self._frames = frames

    @classmethod
    async def over(cls, end: socket.socket) -> _End:
        return cls(*await asyncio.get_running_loop().create_unix_connection(_Frames, sock=end))

    @property
    def unread_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def send(self, frame: bytes) -> bool:
        if len(frame) > FRAME_BYTES:
            raise ValueError(f"a frame has at most {FRAME_BYTES} bytes, not {len(frame)}")
        if self._transport.is_closing():
            return False
        self._transport.writelines((len(frame).to_bytes(_LENGTH_BYTES, "big"), frame))
        return True

    async def receive(self) -> bytes | None:
        """None at the end. May be cancelled and called again without loss."""
        return await self._frames.next()

    def close(self) -> None:
        self._transport.close()


class _Life:
    """One data process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, end: _End, began_s: float) -> None:
        self.process = process
        self.end = end
        self.began_s = began_s
        self.heard = False

    @classmethod
    async def begin(cls, program: Sequence[str], setup: bytes) -> _Life:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                ours.setblocking(False)
                # The same program as this one, wherever it was started from.
                path = os.pathsep.join(filter(None, (_HOUSE, os.environ.get("PYTHONPATH"))))
                process = await asyncio.create_subprocess_exec(
                    *program,
                    str(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, "PYTHONPATH": path},
                )
            end = await _End.over(ours)
        except BaseException:
            ours.close()
            raise
        end.send(setup)
        return cls(process, end, asyncio.get_running_loop().time())

    async def over(self) -> int:
        """Lets it end, or ends it; how it ended, as the system says."""
        self.end.close()
        try:
            return await asyncio.wait_for(asyncio.shield(self.process.wait()), PATIENCE_S)
        except TimeoutError:
            log.warning("the data process does not end and is killed", extra={"pid": self.process.pid})
            self.kill()
            return await self.process.wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()


class CorePipe:
    """The core's end. `receive` also starts the process, at first and again whenever it is gone: it must be called
    all the time, by one task."""

    def __init__(
        self,
        setup: bytes,
        program: Sequence[str] = PROGRAM,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._setup = setup
        self._program = program
        self._pause = pause
        self._life: _Life | None = None
        self._backoff_s = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the data process, while there is one."""
        return None if self._life is None else self._life.process.pid

    def send(self, frame: bytes) -> bool:
        life = self._life
        if life is None:
            return False
        # What the socket takes no more is lost as it would be in it: PipeDown comes, and says so to everyone at once.
        life.end.send(frame)
        if life.end.unread_bytes > UNREAD_BYTES:
            log.error("the data process takes no more frames and is killed", extra={"pid": life.process.pid})
            life.kill()
        return True

    async def receive(self) -> PipeEvent:
        while not self._closed:
            if self._life is None:
                await self._pause(self._backoff_s)
                if await self._begin():
                    return PipeUp()
                continue
            life = self._life
            frame: bytes | None = None
            try:
                async with asyncio.timeout(SILENT_S if life.heard else None):
                    frame = await life.end.receive()
            except BrokenFrame as error:
                log.error("the data process cannot be understood", extra={"reason": str(error)})
                life.kill()
            except TimeoutError:
                log.error("the data process says nothing any more and is killed", extra={"pid": life.process.pid})
                life.kill()
            if frame is not None:
                life.heard = True
                return frame
            if not self._closed:
                await self._bury(life)
                return PipeDown()
        # Nothing comes any more; whoever waits is ended by its owner.
        never: asyncio.Future[PipeEvent] = asyncio.get_running_loop().create_future()
        return await never

    async def close(self) -> None:
        self._closed = True
        life, self._life = self._life, None
        if life is not None:
            await life.over()

    async def _begin(self) -> bool:
        try:
            life = await _Life.begin(self._program, self._setup)
        except OSError as error:
            log.error("the data process cannot be started", extra={"reason": str(error)})
            self._lengthen_backoff()
            return False
        if self._closed:
            await life.over()
            return False
        self._life = life
        log.debug("the data process was started", extra={"pid": life.process.pid})
        return True

    async def _bury(self, life: _Life) -> None:
        self._life = None
        code = await life.over()
        lived_s = asyncio.get_running_loop().time() - life.began_s
        if lived_s >= SETTLED_S:
            self._backoff_s = 0.0
        self._lengthen_backoff()
        log.error(
            "the data process ended; another one is started",
            extra={"pid": life.process.pid, "exit": code, "lived_s": round(lived_s, 1), "in_s": self._backoff_s},
        )

    def _lengthen_backoff(self) -> None:
        self._backoff_s = min(LAST_BACKOFF_S, 2 * self._backoff_s or FIRST_BACKOFF_S)


class DataEnd:
    """The data process's end. Its `receive` says PipeDown once, and with that the process has no purpose."""

    def __init__(self, end: _End, ended: Callable[[], object]) -> None:
        self._end = end
        self._ended = ended

    @classmethod
    async def open(cls, descriptor: int, ended: Callable[[], object] = lambda: None) -> DataEnd:
        """`ended` is called when the pipe is."""
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        end.set_inheritable(False)
        return cls(await _End.over(end), ended)

    def send(self, frame: bytes) -> bool:
        return self._end.send(frame)

    async def receive(self) -> PipeEvent:
        try:
            frame = await self._end.receive()
        except BrokenFrame:
            frame = None
        if frame is None:
            self._ended()
            return PipeDown()
        return frame

    async def close(self) -> None:
        self._end.close()
