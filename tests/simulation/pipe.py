"""The pipe between a simulated core and its simulated data process, through the lives of both.

    pipe = SimulatedPipe()
    core = pipe.begin_core()      # a Pipe for a core; ends the data process of an earlier one
    data = pipe.begin_data()      # a Pipe for a data process; the core sees PipeUp
    pipe.end_data()               # it was killed: the core sees PipeDown, after all that it had sent
    pipe.end_core()               # the core was: the data process sees PipeDown

Who starts the data process again, and when, is the test's business. As with the real one, what was sent before a
death arrives, in order, and a core speaks to the life whose PipeUp it has taken and to no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from node.data.messages import FRAME_BYTES
from node.ports import PipeDown, PipeEvent, PipeUp

DELAY_S = 0.0001


class SimulatedEnd:
    def __init__(self, delay_s: Callable[[], float]) -> None:
        self._delay_s = delay_s
        self._travelling: deque[tuple[PipeEvent, SimulatedEnd]] = deque()
        self._arrived: deque[tuple[PipeEvent, SimulatedEnd]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.other: SimulatedEnd | None = None
        """To whom it speaks."""
        self.over = False
        self.sent = 0

    def send(self, frame: bytes) -> bool:
        if len(frame) > FRAME_BYTES:
            raise ValueError(f"a frame has at most {FRAME_BYTES} bytes, not {len(frame)}")
        if self.other is None or self.over:
            return False
        # Until it has taken the PipeDown, nobody knows that the other end is gone.
        self.sent += 1
        self.other.put(bytes(frame), self)
        return True

    async def receive(self) -> PipeEvent:
        while not self._arrived:
            if self._waiter is not None:
                raise RuntimeError("two tasks receive from one end of a pipe")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event, source = self._arrived.popleft()
        if isinstance(event, PipeUp):
            self.other = source
        elif isinstance(event, PipeDown) and self.other is source:
            self.other = None
        return event

    async def close(self) -> None:
        self.over = True

    def put(self, event: PipeEvent, source: SimulatedEnd) -> None:
        if not self.over:
            self._travelling.append((event, source))
            asyncio.get_running_loop().call_later(self._delay_s(), self._arrive)

    def _arrive(self) -> None:
        # Timers of one moment fire in any order; what they bring does not.
        self._arrived.append(self._travelling.popleft())
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SimulatedPipe:
    def __init__(self, delay_s: Callable[[], float] = lambda: DELAY_S) -> None:
        self._delay_s = delay_s
        self._core: SimulatedEnd | None = None
        self._data: SimulatedEnd | None = None

    def begin_core(self) -> SimulatedEnd:
        if self._core is not None:
            self.end_core()
        self._core = SimulatedEnd(self._delay_s)
        return self._core

    def begin_data(self) -> SimulatedEnd:
        assert self._core is not None, "a data process is started by its core"
        assert self._data is None, "the data process lives already"
        self._data = data = SimulatedEnd(self._delay_s)
        data.other = self._core
        self._core.put(PipeUp(), data)
        return data

    def end_data(self) -> None:
        data, self._data = self._data, None
        if data is not None:
            data.over = True
            if self._core is not None:
                self._core.put(PipeDown(), data)

    def end_core(self) -> None:
        """The data process is told, and is another core's no more; it has to end by itself."""
        core, self._core = self._core, None
        data, self._data = self._data, None
        if core is not None:
            core.over = True
            if data is not None:
                data.put(PipeDown(), core)
