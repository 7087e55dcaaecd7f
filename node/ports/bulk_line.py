"""The asking side of bulk connections: one dialled connection to a peer and the thread that serves it.

The thread sends what is waiting, as far as the peer's answers keep up, and reads the answers in their order. It is
there while there is something to ask, and for a while longer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from node.ports import LeafOutcome, Peer, PeerAddress, PeerGone
from node.ports import bulk_wire as wire
from node.ports.bulk_tls import BufferedTls
from node.ports.bulk_wire import LEAF_LIMIT, Breach, BulkLimits, Refused
from node.ports.identity import BULK_PROTOCOL, Impostor, link_key_of

_log = logging.getLogger("quorate.bulk")

Take = Callable[[memoryview], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    request: bytes
    limit_bytes: int
    """Of the answer; of a leaf, its size."""
    take: Take | None
    future: asyncio.Future[Any]


class Line:
    def __init__(
        self,
        peer: Peer,
        address: PeerAddress,
        chain_id: bytes,
        context: Callable[[], ssl.SSLContext],
        limits: BulkLimits,
        punish: Callable[[Peer, str], None],
    ) -> None:
        self._peer = peer
        self._address = address
        self._chain_id = chain_id
        self._context = context
        self._limits = limits
        self._punish = punish
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._waiting: deque[Question] = deque()
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._ended = ""
        self._pause_s = limits.retry_s[0]
        self._retry_at = 0.0
        self._buffer: bytearray | None = None

    def put(self, question: Question) -> None:
        with self._changed:
            if self._ended:
                raise PeerGone(self._ended)
            if time.monotonic() < self._retry_at:
                raise PeerGone("the peer could not be reached a moment ago")
            if len(self._waiting) >= self._limits.waiting:
                raise PeerGone("too much is being asked of the peer")
            if self._thread is None:
                name = f"bulk ask {self._peer[1:5].hex()}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise PeerGone(f"the system has no more threads to give: {error}") from error
                self._thread = thread
            self._waiting.append(question)
            self._changed.notify()

    def end(self, reason: str) -> threading.Thread | None:
        """Nothing is asked any more; the thread, if there is one, is about to end."""
        with self._changed:
            self._ended = reason
            if self._socket is not None:
                wire.shut(self._socket)
            self._changed.notify()
            return self._thread

    # On the thread

    def _run(self) -> None:
        while self._has_work():
            try:
                connection = self._connect()
            except (OSError, Refused, Impostor) as error:
                self._unreachable(str(error) or "no answer in time")
                continue
            try:
                self._talk(connection)
            finally:
                with self._changed:
                    self._socket = None
                connection.close()

    def _has_work(self) -> bool:
        with self._changed:
            if self._waiting and not self._ended:
                return True
            self._thread = None
            self._fail_waiting(self._ended or "the connection was idle")
            self._buffer = None
            return False

    def _connect(self) -> BufferedTls:
        limits, place = self._limits, (self._address.host, self._address.port)
        plain = socket.create_connection(place, timeout=limits.handshake_s)
        try:
            with self._changed:
                if self._ended:
                    raise Refused(self._ended)
                self._socket = plain
            wire.prepare(plain, limits)
            connection = BufferedTls(plain, self._context())
            connection.shake_hands(limits.handshake_s)
            if link_key_of(connection.session, BULK_PROTOCOL) != self._address.link_key:
                raise Refused("another validator answers at its address")
            wire.say_hello(connection, self._chain_id)
            wire.hear_hello(connection, self._chain_id)
            connection.settimeout(limits.stall_s)
        except BaseException:
            with self._changed:
                self._socket = None
            plain.close()
            raise
        return connection

    def _unreachable(self, reason: str) -> None:
        _log.info("cannot connect", extra={"peer": self._peer, "reason": reason})
        with self._changed:
            self._retry_at = time.monotonic() + self._pause_s * random.uniform(0.5, 1.5)
            self._pause_s = min(2 * self._pause_s, self._limits.retry_s[1])
            self._fail_waiting(f"the peer cannot be reached: {reason}")

    def _talk(self, connection: BufferedTls) -> None:
        under_way: deque[Question] = deque()
        answered = idled = False
        try:
            while True:
                with self._changed:
                    if not under_way:
                        idled = answered
                        if not self._waiting and not self._ended:
                            self._changed.wait(self._limits.idle_s)
                    if self._ended or not (under_way or self._waiting):
                        break
                    fresh = self._next(self._limits.under_way - len(under_way))
                if fresh:
                    under_way.extend(fresh)
                    wire.send_requests(connection, (question.request for question in fresh))
                if under_way:
                    self._take_answer(connection, under_way[0])
                    under_way.popleft()
                    answered, idled = True, False
                    self._pause_s = self._limits.retry_s[0]
        except (OSError, Refused) as error:
            if isinstance(error, Breach):
                self._tell(self._punish, self._peer, str(error))
            elif idled:
                # The peer was gone before it was asked, and nobody had looked.
                with self._changed:
                    self._waiting.extendleft(reversed(under_way))
                return
            self._give_up(under_way, f"the connection ended: {error}")
            return
        self._give_up(under_way, self._ended or "the connection was idle")

    def _next(self, count: int) -> list[Question]:
        """Nobody waits any more for those that were cancelled."""
        fresh: list[Question] = []
        while self._waiting and len(fresh) < count:
            question = self._waiting.popleft()
            if not question.future.cancelled():
                fresh.append(question)
        return fresh

    def _take_answer(self, connection: BufferedTls, question: Question) -> None:
        until = time.monotonic() + self._limits.answer_s
        status, size_bytes = wire.receive_header(connection)
        if status == wire.FAILED:
            self._tell(_fail, question.future, PeerGone("the peer could not answer"))
        elif question.take is not None:
            self._take_leaf(connection, question, question.take, size_bytes, until)
        else:
            if size_bytes > question.limit_bytes:
                raise Breach(f"an answer of {size_bytes} bytes where {question.limit_bytes} are the limit")
            answer = bytes(wire.received(connection, size_bytes, until))
            self._tell(_give, question.future, answer)

    def _take_leaf(
        self, connection: BufferedTls, question: Question, take: Take, size_bytes: int, until: float
    ) -> None:
        if not size_bytes:
            self._tell(_give, question.future, LeafOutcome.ABSENT)
            return
        if size_bytes != question.limit_bytes:
            raise Breach(f"a leaf of {size_bytes} bytes where it has {question.limit_bytes}")
        if self._buffer is None:
            self._buffer = bytearray(LEAF_LIMIT)
        view = memoryview(self._buffer)[:size_bytes]
        wire.receive(connection, view, until)
        if question.future.cancelled():
            return
        try:
            taken = take(view)
        except Exception as error:
            self._tell(_fail, question.future, error)
        else:
            self._tell(_give, question.future, LeafOutcome.TAKEN if taken else LeafOutcome.REJECTED)

    def _give_up(self, under_way: deque[Question], reason: str) -> None:
        for question in under_way:
            self._tell(_fail, question.future, PeerGone(reason))
        under_way.clear()

    def _fail_waiting(self, reason: str) -> None:
        while self._waiting:
            self._tell(_fail, self._waiting.popleft().future, PeerGone(reason))

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _give(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
