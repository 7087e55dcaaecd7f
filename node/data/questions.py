"""What the data process asks the core: for whom a key speaks, by the newest state.

Answers are kept for a moment, for a client that puts a thousand leaves asks a thousand times. A key that was revoked
is believed for that moment longer, and no more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from node.data.messages import Standing, WhoIs
from node.ports import Clock, PortError

KEPT_MS = 2_000
KEPT = 4_096
PATIENCE_S = 5.0


class Unanswered(PortError):
    """The core does not answer: it is busy beyond measure, or ending."""

    code = "CORE_SILENT"

    def __init__(self) -> None:
        super().__init__("the node does not answer at the moment; try again, or use another node")


class Questions:
    def __init__(self, clock: Clock, say: Callable[[object], None]) -> None:
        self._clock = clock
        self._say = say
        self._next_id = 1
        self._asked: dict[int, asyncio.Future[Standing]] = {}
        self._kept: OrderedDict[tuple[bytes, bytes], tuple[int, Standing]] = OrderedDict()

    async def standing(self, account: bytes, key: bytes) -> Standing:
        """Whether the key speaks for the account, and as what. Raises Unanswered."""
        kept = self._kept.get((account, key))
        if kept is not None and self._clock.now().mono_ms - kept[0] < KEPT_MS:
            return kept[1]
        standing = await self._ask(account, key)
        self._kept[account, key] = (self._clock.now().mono_ms, standing)
        self._kept.move_to_end((account, key))
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return standing

    async def _ask(self, account: bytes, key: bytes) -> Standing:
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._say(WhoIs(number, account, key))
            return await asyncio.wait_for(answer, PATIENCE_S)
        except TimeoutError:
            raise Unanswered from None
        finally:
            del self._asked[number]

    def answered(self, standing: Standing) -> None:
        answer = self._asked.get(standing.id)
        if answer is not None and not answer.done():
            answer.set_result(standing)
