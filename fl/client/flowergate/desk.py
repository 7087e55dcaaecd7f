"""What the SuperNode is told and what it hands in: one SuperNode, one question at a time.

A member's account is one trainer to the chain, so one SuperNode answers for it; a second one is refused while the first
is heard of. A question waits until the SuperNode asks for messages, is in its hands until the reply is whole, and goes
back to waiting if the SuperNode left, fell silent and was replaced, or asks for messages again: that it only does when
it has lost the one that it had. An app's error and a reply that is wrong end the question with WrongReply, and whoever
asked may ask again. A reply to a question that is not open any more is turned away as late.

The SuperNode's calls are the methods here; they raise `Refusal` for what cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fl.client.flowergate.arrivals import Arrival
from fl.client.flowergate.forms import Answer, Question, Records, WrongReply, answered, asked
from fl.client.flowergate.objects import BadObject
from fl.client.flowergate.parcels import Parcel, Shipment
from fl.client.flowergate.visitors import Visitor, Visitors
from fl.client.flowergate.wire import Metadata, PushMessages, PushObject, Run, Tree

log = logging.getLogger("quorate.flower")

GATEWAY_ID = 1
"""The node id that replies are addressed to."""

HOLD_S = 10.0
"""How long a SuperNode that asks for messages is kept waiting for one. It sleeps three seconds after every time that
there is none, and gives up on an answer after thirty."""

_TTL_S = 43_200.0
_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 10.0, 1800.0
_PATIENCE = 2
"""Heartbeats that may be missed before a SuperNode counts as gone."""

_MOST_LOST = 3
_REMEMBERED = 256


class Refusal(Exception):
    """`status` is HTTP's, and decides what the SuperNode does: at 401 it ends, at 403 it drops the message, at others
    it ends if it is just starting and drops the reply if it is sending one."""

    def __init__(self, status: int, code: int, what: str) -> None:
        super().__init__(what)
        self.status = status
        self.code = code
        self.what = what


def _stranger(what: str) -> Refusal:
    return Refusal(401, 9401, what)


def _late(what: str) -> Refusal:
    return Refusal(403, 9403, what)


def _wrong(what: str) -> Refusal:
    return Refusal(400, 9400, what)


@dataclass(slots=True)
class _Seat:
    node_id: int
    interval_s: float
    heard_at: float


@dataclass(slots=True, eq=False)
class _Matter:
    """A question on its way through here."""

    question: Question
    parcel: Parcel
    directory: Path
    answer: asyncio.Future[Answer]
    shipment: Shipment | None = None
    node_id: int = 0
    arrival: Arrival | None = None
    session: str = ""
    lost: int = 0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def end(self, error: WrongReply) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def take_back(self) -> None:
        self.shipment, self.node_id, self.arrival, self.session = None, 0, None, ""


class Desk:
    """`directory` is for replies on their way in."""

    def __init__(
        self,
        run: Run,
        fab: bytes,
        form: Records,
        visitors: Visitors,
        directory: Path,
        clock: Callable[[], float] = time.monotonic,
        hold_s: float = HOLD_S,
    ) -> None:
        self.run = run
        self.fab = fab
        self.visitors = visitors
        self._form = form
        self._directory = directory
        self._clock = clock
        self._hold_s = hold_s
        self._seat: _Seat | None = None
        self._waiting: deque[_Matter] = deque()
        self._in_hand: _Matter | None = None
        self._past: deque[str] = deque(maxlen=_REMEMBERED)
        self._moved = asyncio.Condition()
        self._concluding: set[asyncio.Task[None]] = set()
        self._numbered = 0

    # The member's side

    async def ask(self, question: Question) -> Answer:
        """Waits for as long as it takes; cancelling it withdraws the question. The answer's arrays are mapped files
        that have no name any more."""
        parcel = await asyncio.to_thread(Parcel, asked(question, self._form))
        self._numbered += 1
        directory = self._directory / str(self._numbered)
        matter = _Matter(question, parcel, directory, asyncio.get_running_loop().create_future())
        self._waiting.append(matter)
        await self._stir()
        try:
            return await matter.answer
        finally:
            if matter in self._waiting:
                self._waiting.remove(matter)
            if matter is self._in_hand:
                self._close()
            async with matter.writing:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def is_seated(self) -> bool:
        return self._seat is not None and not self._is_silent(self._seat)

    # The SuperNode's side

    def register(self, visitor: Visitor, key: bytes) -> int:
        self._check_own_key(visitor, key)
        return visitor.node_id

    def activate(self, visitor: Visitor, key: bytes, interval_s: float) -> int:
        self._check_own_key(visitor, key)
        self._sit(visitor.node_id, interval_s)
        return visitor.node_id

    def heartbeat(self, node_id: int, interval_s: float) -> bool:
        self._sit(node_id, interval_s)
        return True

    def leave(self, node_id: int) -> None:
        if self._seat is not None and self._seat.node_id == node_id:
            self._seat = None
            log.info("SuperNode %d left", node_id)
            self._take_back("it left")

    async def pull(self, node_id: int) -> Shipment | None:
        """The next message, as soon as there is one."""
        self._sit(node_id)
        if self._in_hand is not None:
            self._count_lost(self._in_hand)
        matter = await self._next(node_id)
        if matter is None:
            return None
        self._in_hand, matter.node_id = matter, node_id
        question = matter.question
        matter.shipment = matter.parcel.addressed(
            Metadata(
                run_id=self.run.run_id,
                src_node_id=GATEWAY_ID,
                dst_node_id=node_id,
                group_id=str(question.round),
                ttl=_TTL_S,
                message_type=question.kind,
                created_at=time.time(),
            )
        )
        log.info("%s given to SuperNode %d: %d bytes", question, node_id, matter.parcel.size_bytes)
        return matter.shipment

    def content(self, node_id: int, named: str) -> bytes | None:
        """Of the message in hand. Reads files: call it in a thread."""
        held = self._in_hand
        return held.shipment.content(named) if held and held.shipment and held.node_id == node_id else None

    async def push(self, node_id: int, given: PushMessages) -> tuple[list[str], str]:
        """A reply without its objects; those that are wanted, and the session to send them in."""
        self._sit(node_id)
        if len(given.messages) != 1 or len(given.trees) != 1 or given.messages[0].metadata is None:
            raise _wrong("A reply is one message and one tree of objects.")
        message, tree = given.messages[0], given.trees[0]
        matter = self._answered(node_id, given.messages[0].metadata)
        try:
            _check_address(matter, node_id, self.run.run_id, given.messages[0].metadata, tree)
            if message.error is not None:
                raise WrongReply(f"the app failed, code {message.error.code}: {message.error.reason[:500]!r}.")
            matter.session = secrets.token_hex(16)
            directory = matter.directory / matter.session
            directory.mkdir(mode=0o700, parents=True)
            matter.arrival = Arrival(tree, matter.parcel, directory)
        except (WrongReply, BadObject, OSError) as error:
            self._end(matter, error)
            if message.error is not None:
                return [], ""
            raise _wrong(str(error)) from None
        return list(matter.arrival.wanted), matter.session

    async def put(self, node_id: int, given: PushObject) -> bool:
        """An object of the reply in hand; False if there is no such session."""
        self._sit(node_id)
        matter = self._in_hand
        if matter is None or matter.arrival is None or matter.node_id != node_id or matter.session != given.session_id:
            return False
        arrival = matter.arrival
        try:
            async with matter.writing:
                if matter.answer.done():
                    return False
                await asyncio.to_thread(arrival.take, given.object_id, given.object_content)
        except (BadObject, OSError) as error:
            if matter.arrival is arrival:
                self._end(matter, error)
            raise _wrong(str(error)) from None
        if arrival.is_whole and matter.arrival is arrival and matter is self._in_hand:
            self._close()
            task = asyncio.create_task(self._conclude(matter, arrival))
            self._concluding.add(task)
            task.add_done_callback(self._concluding.discard)
        return True

    # Between the two

    async def _conclude(self, matter: _Matter, arrival: Arrival) -> None:
        try:
            async with matter.writing:
                records = await asyncio.to_thread(arrival.records)
            answer = answered(matter.question, self._form, records)
        except (WrongReply, BadObject, OSError) as error:
            self._end(matter, error)
            return
        if not matter.answer.done():
            log.info("%s answered by SuperNode %d", matter.question, matter.node_id)
            matter.answer.set_result(answer)

    async def _next(self, node_id: int) -> _Matter | None:
        try:
            async with asyncio.timeout(self._hold_s), self._moved:
                await self._moved.wait_for(lambda: self._waiting and self._in_hand is None)
        except TimeoutError:
            return None
        self._sit(node_id)
        return self._waiting.popleft()

    async def _stir(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    def _sit(self, node_id: int, interval_s: float | None = None) -> None:
        """Whoever calls is here. Raises Refusal if another is."""
        if interval_s is not None and not _LEAST_INTERVAL_S <= interval_s <= _MOST_INTERVAL_S:
            raise _wrong(f"A heartbeat every {interval_s} s is none.")
        seat, now = self._seat, self._clock()
        if seat is not None and seat.node_id != node_id:
            if not self._is_silent(seat):
                log.warning("SuperNode %d is refused: %d is here", node_id, seat.node_id)
                raise Refusal(
                    409,
                    9409,
                    f"Another SuperNode (ID {seat.node_id}) is connected to this gateway, which serves one: stop that "
                    f"one, or wait until it has not been heard of for {_PATIENCE * seat.interval_s:.0f} s.",
                )
            log.warning("SuperNode %d fell silent, and %d takes its place", seat.node_id, node_id)
            self._take_back("it fell silent")
            seat = None
        if seat is None:
            log.info("SuperNode %d is here", node_id)
            seat = self._seat = _Seat(node_id, _LEAST_INTERVAL_S * 3, now)
        seat.heard_at = now
        if interval_s is not None:
            seat.interval_s = interval_s

    def _is_silent(self, seat: _Seat) -> bool:
        return self._clock() - seat.heard_at > _PATIENCE * seat.interval_s

    def _check_own_key(self, visitor: Visitor, key: bytes) -> None:
        if key != visitor.key:
            raise _stranger("The key in the call is not the one that signed it.")
        if not self.visitors.is_listed(visitor):
            log.warning("SuperNode %d is refused: its key is not listed", visitor.node_id)
            raise Refusal(
                409, 9410, "This gateway knows its SuperNodes by their keys, and this one's is not among them."
            )

    def _answered(self, node_id: int, metadata: Metadata) -> _Matter:
        held = self._in_hand
        if held is not None and held.shipment is not None and held.shipment.named == metadata.reply_to_message_id:
            return held
        if metadata.reply_to_message_id in self._past:
            log.warning("SuperNode %d answers too late: %.40r %.20r", node_id, metadata.message_type, metadata.group_id)
            raise _late("The reply comes too late: nobody waits for it any more.")
        # As one does whose gateway was started anew meanwhile: it is to go on, too.
        log.warning("SuperNode %d answers a message that it was not given here", node_id)
        raise _late("The reply is to a message that was not given here.")

    def _count_lost(self, matter: _Matter) -> None:
        matter.lost += 1
        if matter.lost >= _MOST_LOST:
            self._end(matter, WrongReply(f"the SuperNode lost it {matter.lost} times.", "See the SuperNode's log."))
        else:
            self._take_back("it asks for messages again")

    def _take_back(self, why: str) -> None:
        matter = self._in_hand
        if matter is not None:
            log.warning("%s is taken back from SuperNode %d: %s", matter.question, matter.node_id, why)
            self._close()
            matter.take_back()
            self._waiting.appendleft(matter)

    def _end(self, matter: _Matter, error: Exception) -> None:
        if matter is self._in_hand:
            self._close()
        matter.end(error if isinstance(error, WrongReply) else WrongReply(f"the reply is wrong: {error}."))

    def _close(self) -> None:
        """Nothing is in the SuperNode's hands any more; a reply to what was is late."""
        if self._in_hand is not None and self._in_hand.shipment is not None:
            self._past.append(self._in_hand.shipment.named)
        self._in_hand = None


def _check_address(matter: _Matter, node_id: int, run_id: int, given: Metadata, tree: Tree) -> None:
    assert matter.shipment is not None
    sent = matter.shipment.metadata
    if (given.src_node_id, given.dst_node_id) != (node_id, GATEWAY_ID) or node_id != matter.node_id:
        raise WrongReply("its sender or its address is another.")
    if (given.run_id, given.group_id, given.message_type) != (run_id, sent.group_id, sent.message_type):
        raise WrongReply("it is of another run, round or type.")
    if given.message_id != tree.object_id:
        raise WrongReply("its id is not that of its objects.")
