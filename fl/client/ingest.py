"""Signed transactions of many, sent by streams: one to each node, many transactions on their way on each.

    send ─▶ queue ─▶ the next stream that has room ─▶ its node ─▶ answer
              ▲                                         │ the stream broke; busy, over a rate, not far enough in time
              └─────────────────────────────────────────┘ the same bytes again, to whichever stream is next

Whoever signs for many, a gateway or a generator of load, wants throughput and no outbox: nothing is kept on disk, and
a node's answer is its word, not a proof. What has a receipt can be proven afterwards by its id (`fl.client.reader`).
The same bytes may be sent any number of times: they are executed once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from types import TracebackType

import aiohttp

from chain.codec import CodecError
from fl.client.errors import Unreachable
from fl.client.nodes import CONNECT_TIMEOUT_S
from fl.client.sides import until_one_ends
from fl.ingest import (
    ANSWERS_BYTES,
    MESSAGE_BYTES,
    REFUSED,
    TRANSACTIONS_A_MESSAGE,
    Answer,
    read_answers,
    submission,
)

__all__ = ["Answer", "Ingest"]

log = logging.getLogger("quorate.client")

UNANSWERED = 1024
"""Of one stream; a node reads no further than that."""
PATIENCE_S = 60.0
_FRAMING_BYTES = 5
"""Before each transaction, and before all of them."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_HEARTBEAT_S = 30.0
_CROWDED = frozenset({"BUSY", "DISK_FULL"})
"""Said of the node, not of the transaction: another node may take it at once."""
_FAR = ("available", "final", "executed", "proven", "expired")


class _Gathering:
    """The answers to what was sent together."""

    def __init__(self, count: int) -> None:
        self.answers: list[Answer | None] = [None] * count
        self.left = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Parcel:
    """One transaction on its way."""

    __slots__ = ("data", "gathering", "place")

    def __init__(self, data: bytes, gathering: _Gathering, place: int) -> None:
        self.data = data
        self.gathering = gathering
        self.place = place

    @property
    def given_up(self) -> bool:
        return self.gathering.done.done()

    def answered(self, answer: Answer) -> None:
        gathering = self.gathering
        gathering.answers[self.place] = answer
        gathering.left -= 1
        if not gathering.left and not gathering.done.done():
            gathering.done.set_result(None)


class Ingest:
    """`async with Ingest(["http://127.0.0.1:7680", …]) as door: answer = await door.send(data)`.

    An answer comes when its transaction is as far as `wanted` says (`available`, `executed` or `proven`) or refused
    for good: `status` is how far it is, or `refused`, with a code. How much is on its way is the caller's affair.
    """

    def __init__(self, nodes: Sequence[str], wanted: str = "executed", patience_s: float = PATIENCE_S) -> None:
        self._wanted = wanted
        self._patience_s = patience_s
        self._queue: deque[_Parcel] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        """Streams that wait for something to send: the one that has waited longest is next."""
        self._streams = [_Stream(self, url.rstrip("/"), wanted) for url in nodes]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Ingest:
        self._tasks = [asyncio.create_task(stream.run()) for stream in self._streams]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send(self, transaction: bytes) -> Answer:
        return (await self.send_all((transaction,)))[0]

    async def send_all(self, transactions: Sequence[bytes]) -> list[Answer]:
        """An answer to each, in their order. Raises Unreachable if some have none in time: they may be executed all
        the same."""
        if not transactions:
            return []
        gathering = _Gathering(len(transactions))
        self._queue.extend(_Parcel(data, gathering, place) for place, data in enumerate(transactions))
        self.wake()
        try:
            async with asyncio.timeout(self._patience_s):
                await gathering.done
        except TimeoutError:
            raise self._unanswered(gathering) from None
        finally:
            gathering.done.cancel()
        return [answer for answer in gathering.answers if answer is not None]

    def _unanswered(self, gathering: _Gathering) -> Unreachable:
        reasons = "; ".join(f"{stream.url}: {stream.reason or 'no answer yet'}" for stream in self._streams)
        return Unreachable(
            "NO_ANSWER",
            f"{gathering.left} of {len(gathering.answers)} transactions have not come as far as {self._wanted} within "
            f"{self._patience_s:g} s ({reasons}).",
            "Send the same bytes again: what has been taken is known by its id, and executed once.",
        )

    # For the streams

    def wake(self) -> None:
        """There is something for the next stream."""
        while self._idle and self._queue:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def something(self) -> None:
        """Returns when there is something to send, and it is this stream's turn."""
        while not self._queue:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(turn)
            await turn

    def take(self, most: int) -> list[_Parcel]:
        """What fits into a message."""
        taken: list[_Parcel] = []
        left = MESSAGE_BYTES - _FRAMING_BYTES
        while self._queue and len(taken) < most:
            parcel = self._queue[0]
            size_bytes = len(parcel.data) + _FRAMING_BYTES
            if size_bytes > left and taken:
                break
            self._queue.popleft()
            if not parcel.given_up:
                taken.append(parcel)
                left -= size_bytes
        self.wake()
        return taken

    def put_back(self, parcels: Sequence[_Parcel]) -> None:
        self._queue.extendleft(reversed(parcels))
        self.wake()


class _Stream:
    """To one node, opened again whenever it breaks."""

    def __init__(self, door: Ingest, url: str, wanted: str) -> None:
        self._door = door
        self._wanted = wanted
        self._enough = frozenset(_FAR[_FAR.index(wanted) :])
        self.url = url
        self.reason = ""
        """Why the node does not take what it is sent."""
        self._next = 0
        self._sent: dict[int, _Parcel] = {}
        self._room = asyncio.Event()
        self._rests_until = 0.0

    async def run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    async with session.ws_connect(
                        f"{self.url}/v1/ingest",
                        params={"wait": self._wanted},
                        heartbeat=_HEARTBEAT_S,
                        max_msg_size=ANSWERS_BYTES,
                    ) as socket:
                        pause_s = _FIRST_PAUSE_S
                        await until_one_ends(self._say(socket), self._hear(socket))
                        self.reason = f"it closed the stream with {socket.close_code}"
                except (aiohttp.ClientError, TimeoutError, OSError, CodecError) as error:
                    self.reason = str(error) or type(error).__name__
                finally:
                    unanswered, self._sent, self._next = list(self._sent.values()), {}, 0
                    self._door.put_back(unanswered)
                log.info("the stream to %s is to be opened again: %s", self.url, self.reason)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _say(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        door, loop = self._door, asyncio.get_running_loop()
        while True:
            while len(self._sent) >= UNANSWERED:
                self._room.clear()
                await self._room.wait()
            if (rest_s := self._rests_until - loop.time()) > 0:
                await asyncio.sleep(rest_s)
            await door.something()
            parcels = door.take(min(TRANSACTIONS_A_MESSAGE, UNANSWERED - len(self._sent)))
            if not parcels:
                continue
            self._sent.update(enumerate(parcels, self._next))
            self._next += len(parcels)
            await socket.send_bytes(submission([parcel.data for parcel in parcels]))
            # The others' turn, while there is more.
            await asyncio.sleep(0)

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise CodecError("it says what is no answer")
            for answer in read_answers(message.data):
                parcel = self._sent.pop(answer.number, None)
                if parcel is None:
                    raise CodecError("it answers what was not asked")
                if answer.status in self._enough:
                    parcel.answered(answer)
                else:
                    self._settle(parcel, answer)
            self._room.set()

    def _settle(self, parcel: _Parcel, answer: Answer) -> None:
        """Of one that has not come far enough."""
        door, loop = self._door, asyncio.get_running_loop()
        if answer.status != REFUSED:
            door.put_back([parcel])
        elif not answer.retry_after_s:
            parcel.answered(answer)
        elif answer.code in _CROWDED:
            self.reason = f"{answer.code}: {answer.detail}"
            self._rests_until = loop.time() + answer.retry_after_s
            door.put_back([parcel])
        else:
            self.reason = f"{answer.code}: {answer.detail}"
            loop.call_later(answer.retry_after_s, door.put_back, [parcel])
