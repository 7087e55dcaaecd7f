"""A data process that says what a test says, at the other end of a core's pipe."""

from __future__ import annotations

import asyncio
from typing import Any

from node.data.messages import Opened, from_frame, to_frame
from tests.simulation.pipe import SimulatedEnd, SimulatedPipe

OPENED = Opened(7001, "127.0.0.1", 7002)


class Played:
    def __init__(self, pipe: SimulatedPipe) -> None:
        self._pipe = pipe
        self.end: SimulatedEnd = pipe.begin_data()
        self.say(OPENED)

    def say(self, message: object) -> None:
        assert self.end.send(to_frame(message))

    async def hears(self) -> Any:
        frame = await asyncio.wait_for(self.end.receive(), 5)
        assert isinstance(frame, bytes)
        return from_frame(frame)

    async def hears_of(self, kind: type) -> Any:
        """The next message of this kind, whatever comes before it."""
        while not isinstance(message := await self.hears(), kind):
            pass
        return message

    def dies(self) -> None:
        self._pipe.end_data()
