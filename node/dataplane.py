"""The core's end of its data process: requests as calls that are awaited, and what the data process asks in turn.

The data process may die at any moment and comes back knowing nothing of what was asked. Every call that waits then
ends with DataGone, and whoever made it asks again: `insist` does so for those who cannot go on without an answer. A
call that is given up is forgotten over there too. What may be under way at once is bounded here for the short
questions, and by those who ask for the long ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from chain.codec import CodecError
from fl.blobs import BlobClaim, BlobKind, Demand
from fl.records import JobRules
from fl.tensors.layout import Schema
from node.data.bundles import Told
from node.data.messages import (
    BLOB_BYTES,
    ROOTS,
    Add,
    Begin,
    Close,
    Closed,
    DataPeer,
    Done,
    Drop,
    Failed,
    Figures,
    Finding,
    Forget,
    Judge,
    Judged,
    Keep,
    Kept,
    Mark,
    Marked,
    Obtain,
    Opened,
    Peers,
    Roots,
    Standing,
    Swept,
    WhoIs,
    Zeros,
    from_frame,
    to_frame,
)
from node.ports import Peer, Pipe, PipeDown, PipeUp, PortError

log = logging.getLogger("quorate.dataplane")

QUESTIONS_AT_ONCE = 64
OBTAINED_AT_ONCE = 16
ASK_AGAIN_S = 1.0
"""After a fault of the data process: a full disk, say, that somebody makes room on."""

_T = TypeVar("_T")

_ANSWERS = (Judged, Kept, Done, Closed, Marked, Swept, Failed)


class DataGone(PortError):
    """The data process is not there, or ended before it answered: ask again once it is back."""

    code = "DATA_DOWN"

    def __init__(self) -> None:
        super().__init__("the node's data process is not at work; it is started again by itself")


class DataFault(PortError):
    """The data process could not do what was asked, in its own words."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = code


class DataPlane:
    def __init__(self, pipe: Pipe, *, who: Callable[[bytes, bytes], tuple[bool, tuple[str, ...]]]) -> None:
        """`who` says of an account and a key whether the key speaks for the account, and in which roles."""
        self._pipe = pipe
        self._who = who
        self._peers: tuple[DataPeer, ...] = ()
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._obtained = asyncio.Semaphore(OBTAINED_AT_ONCE)
        self._up = asyncio.Event()
        self.opened: Opened | None = None
        """Where it listens; None while it is not at work."""
        self.figures: Figures | None = None
        self.life = 0
        """Of the data process: whoever told an earlier one something has to tell it again."""
        self.on_opened: list[Callable[[Opened], None]] = []

    @property
    def full(self) -> bool:
        """Whether its disk has no room for anything more."""
        return self.figures is not None and self.figures.full

    @property
    def held_bytes(self) -> int:
        """Of whole blobs, as it said last."""
        figures = () if self.figures is None else self.figures.figures
        return next((figure.value for figure in figures if figure.name == BLOB_BYTES), 0)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # What it says

    async def run(self) -> None:
        while True:
            match await self._pipe.receive():
                case PipeUp():
                    self._gone()
                    self._say(Peers(self._peers))
                case PipeDown():
                    self._gone()
                case frame:
                    try:
                        self._hear(from_frame(bytes(frame)))
                    except CodecError as error:
                        log.error("the data process said what cannot be read", extra={"reason": str(error)})

    def _gone(self) -> None:
        self.opened = self.figures = None
        self._up.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(DataGone())

    def _hear(self, message: object) -> None:
        match message:
            case Opened():
                self.opened = message
                self.life += 1
                self._up.set()
                for tell in self.on_opened:
                    tell(message)
            case WhoIs(number, account, key):
                current, roles = self._who(account, key)
                self._say(Standing(number, current, roles))
            case Figures():
                self.figures = message
            case _ if isinstance(message, _ANSWERS):
                answer = self._waiting.pop(message.id, None)
                if answer is not None and not answer.done():
                    answer.set_result(message)

    # What is said to it

    def _say(self, message: object) -> bool:
        return self._pipe.send(to_frame(message))

    def meet(self, peers: Iterable[DataPeer]) -> None:
        """From whom blobs may be pulled; each life of the data process is told anew."""
        self._peers = tuple(peers)
        self._say(Peers(self._peers))

    def drop(self, job: bytes, number: int) -> None:
        if self.opened is not None:
            self._say(Drop(job, number))

    async def up(self) -> None:
        """Returns while it is at work."""
        await self._up.wait()

    async def insist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Asks until there is an answer, however often the data process dies or fails meanwhile."""
        while True:
            await self.up()
            try:
                return await ask()
            except DataGone:
                continue
            except DataFault as fault:
                log.error("the data process failed", extra={"code": fault.fault, "reason": str(fault)})
                await asyncio.sleep(ASK_AGAIN_S)

    async def _ask(self, wanted: type[_T], request: Callable[[int], object]) -> _T:
        if self.opened is None:
            raise DataGone
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if not self._say(request(number)):
                raise DataGone
            said = await answer
        finally:
            if self._waiting.pop(number, None) is not None and self.opened is not None:
                self._say(Forget(number))
        if isinstance(said, Failed):
            raise DataFault(said.code, said.sentence)
        if not isinstance(said, wanted):
            raise DataFault("WRONG_ANSWER", f"the data process answered with {type(said).__name__}")
        return said

    async def judge(self, demand: Demand, sources: Sequence[Peer] = (), *, wait: bool) -> tuple[Finding, str]:
        """The finding, and why the blob is bad if it is. With `wait`, returns once the blob has come."""
        if wait:
            judged = await self._judge(demand.claim, demand.rules, sources, wait)
        else:
            async with self._questions:
                judged = await self._judge(demand.claim, demand.rules, sources, wait)
        return Finding(judged.finding), judged.code

    async def _judge(self, claim: BlobClaim, rules: JobRules | None, sources: Sequence[Peer], wait: bool) -> Judged:
        return await self._ask(Judged, lambda number: Judge(number, claim, rules, tuple(sources), wait))

    async def obtain(self, cid: bytes, kind: BlobKind) -> Finding:
        """Returns once the blob is durable here, or there is no room for it."""
        async with self._obtained:
            judged = await self._ask(Judged, lambda number: Obtain(number, cid, kind))
        return Finding(judged.finding)

    async def keep(self, kind: BlobKind, data: bytes) -> bytes:
        kept = await self._ask(Kept, lambda number: Keep(number, kind, data))
        return kept.cid

    async def zeros(self, schema: Schema) -> bytes:
        kept = await self._ask(Kept, lambda number: Zeros(number, schema))
        return kept.cid

    def begin(self, job: bytes, round_number: int, rules: JobRules, step: int) -> None:
        """Once in each of its lives, before updates of the round are added."""
        if self.opened is None or not self._say(Begin(job, round_number, rules, step)):
            raise DataGone

    async def add(self, job: bytes, round_number: int, updates: Told) -> None:
        await self._ask(Done, lambda number: Add(number, job, round_number, updates.blobs, updates.bundles))

    async def close(
        self,
        job: bytes,
        round_number: int,
        log_root: bytes,
        size: int,
        kernel_version: int,
        base: bytes,
        optimizer: bytes,
    ) -> Closed:
        return await self._ask(
            Closed,
            lambda number: Close(number, job, round_number, log_root, size, kernel_version, base, optimizer),
        )

    async def mark(self) -> int:
        marked = await self._ask(Marked, lambda number: Mark(number))
        return marked.token

    async def sweep(self, token: int, roots: Sequence[bytes]) -> tuple[int, int]:
        """How many blobs went, and their bytes. In pieces, each answered before the next is sent."""
        starts = range(0, len(roots), ROOTS) or range(1)
        swept = Swept(0, 0, 0)
        for start in starts:
            piece, last = tuple(roots[start : start + ROOTS]), start + ROOTS >= len(roots)
            swept = await self._swept(token, piece, last)
        return swept.blobs, swept.size_bytes

    async def _swept(self, token: int, piece: tuple[bytes, ...], last: bool) -> Swept:
        return await self._ask(Swept, lambda number: Roots(number, token, piece, last))
