"""Transactions by the stream: many on one WebSocket, each answered by its number as soon as it has come far enough.

    the client's messages ─▶ take: read, wait for room, admit ─▶ refused: answered at once
                                                              └▶ taken: watched ─▶ tell: answered, many a message

A message is read when there is room for what it brings. Of a stream so many transactions and bytes may be unanswered,
and an answer counts until the client has taken it; over a rate, the node reads later instead of refusing. Whoever does
not read its answers is not read either, and is given up after a while. A transaction that has not come as far as was
asked for within ten seconds is answered as it stands, as a request's is. What is said of a transaction means the same
as there: `available` and beyond is an acknowledgement, and nothing else is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from chain.codec import CodecError, encode
from fl.client.sides import until_one_ends
from fl.ingest import (
    DETAIL_BYTES,
    MESSAGE_BYTES,
    REFUSED,
    TRANSACTIONS_A_MESSAGE,
    Answer,
    answers_message,
    read_submission,
)
from node.admission import News, Standing, Status, Watch
from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import Request
from node.rpc.table import Line, Talk
from node.rpc.transactions import WAIT, problem_of, taken

LONGEST_MESSAGE = MESSAGE_BYTES


def begin(api: Api, request: Request) -> Talk:
    return _Intake(api, request.client, Status(request[WAIT])).talk


class _Asked(NamedTuple):
    """A transaction on the stream that is not yet answered."""

    number: int
    size_bytes: int


class _Intake:
    """One stream."""

    def __init__(self, api: Api, client: str, wanted: Status) -> None:
        self._api = api
        self._client = client
        self._moved = asyncio.Event()
        self._watch = Watch(wanted, self._moved)
        self._next = 0
        self._asked: dict[bytes, list[_Asked]] = {}
        """By id, what was taken and is watched."""
        self._due: deque[tuple[float, list[bytes]]] = deque()
        """When what was taken together is answered as it stands."""
        self._answers: list[tuple[Answer, int]] = []
        """To be told, with the size of each transaction."""
        self._unanswered = self._unanswered_bytes = 0
        self._room = asyncio.Event()

    async def talk(self, line: Line) -> None:
        """Until the client has gone, or says what nobody can read. Raises Problem for that."""
        try:
            await until_one_ends(self._take(line), self._tell(line))
        finally:
            self._api.node.admission.unwatch(self._watch, list(self._watch.waiting))

    # What the client says

    async def _take(self, line: Line) -> None:
        while True:
            message = await line.hear()
            try:
                transactions = read_submission(message)
            except CodecError as error:
                raise Problem("MALFORMED_BODY", f"Not a msgpack array of encoded transactions: {error}.") from None
            await self._wait_for_room(len(transactions), len(message))
            while wait_s := self._api.turnstile.pause_s(self._client, len(message), self._api.now_s()):
                await asyncio.sleep(wait_s)
            await self._admit(transactions)

    async def _wait_for_room(self, count: int, size_bytes: int) -> None:
        limits = self._api.limits
        while self._unanswered and (
            self._unanswered + count > limits.unanswered
            or self._unanswered_bytes + size_bytes > limits.unanswered_bytes
        ):
            self._room.clear()
            await self._room.wait()

    async def _admit(self, transactions: Sequence[bytes]) -> None:
        first, self._next = self._next, self._next + len(transactions)
        asked = [_Asked(first + place, len(data)) for place, data in enumerate(transactions)]
        self._unanswered += len(asked)
        self._unanswered_bytes += sum(each.size_bytes for each in asked)
        try:
            found = await taken(self._api, transactions)
        except Problem as problem:
            for each in asked:
                self._refuse(each, b"", problem)
            return
        watched: list[bytes] = []
        admission = self._api.node.admission
        for each, answer in zip(asked, found, strict=True):
            standing, refusal = answer.standing, problem_of(answer)
            if refusal is not None or standing is None:
                self._refuse(each, answer.id or b"", refusal or Problem("BUSY"))
            elif admission.watch(self._watch, standing):
                self._asked.setdefault(standing.id, []).append(each)
                watched.append(standing.id)
            else:
                self._answer(each, _news(standing))
        if watched:
            self._due.append((self._api.now_s() + self._api.limits.wait_s, watched))
            self._moved.set()

    # What it is told

    def _refuse(self, asked: _Asked, identity: bytes, problem: Problem) -> None:
        detail = problem.detail.encode()[:DETAIL_BYTES].decode(errors="ignore")
        answer = Answer(asked.number, identity, REFUSED, b"", problem.code, detail, problem.retry_after_s or 0)
        self._say(answer, asked.size_bytes)

    def _answer(self, asked: _Asked, news: News) -> None:
        if news.status is Status.UNKNOWN:
            self._refuse(asked, news.id, Problem("BUSY", "The node's pool of transactions is full."))
            return
        self._say(Answer(asked.number, news.id, str(news.status), news.receipt), asked.size_bytes)

    def _say(self, answer: Answer, size_bytes: int) -> None:
        if not self._answers:
            self._moved.set()
        self._answers.append((answer, size_bytes))

    async def _tell(self, line: Line) -> None:
        while True:
            await self._wait()
            for news in self._watch.take():
                if news.status is Status.EXPIRED:
                    # Another node's batch may have brought it to execution.
                    news = _news(self._api.node.admission.standing(news.id))
                for asked in self._asked.pop(news.id, ()):
                    self._answer(asked, news)
            self._answer_overdue()
            answers, self._answers = self._answers, []
            self._moved.clear()
            for start in range(0, len(answers), TRANSACTIONS_A_MESSAGE):
                part = answers[start : start + TRANSACTIONS_A_MESSAGE]
                await line.say(answers_message([answer for answer, _ in part]))
                self._unanswered -= len(part)
                self._unanswered_bytes -= sum(size_bytes for _, size_bytes in part)
                self._room.set()

    async def _wait(self) -> None:
        """Until there is something to say, or the oldest has waited long enough."""
        if not self._due or self._moved.is_set():
            await self._moved.wait()
            return
        left_s = max(0.0, self._due[0][0] - self._api.now_s())
        timer = asyncio.get_running_loop().call_later(left_s, self._moved.set)
        try:
            await self._moved.wait()
        finally:
            timer.cancel()

    def _answer_overdue(self) -> None:
        admission, now_s = self._api.node.admission, self._api.now_s()
        while self._due and (self._due[0][0] <= now_s or not any(each in self._asked for each in self._due[0][1])):
            _, ids = self._due.popleft()
            left = [identity for identity in ids if identity in self._asked]
            admission.unwatch(self._watch, left)
            for identity in left:
                news = _news(admission.standing(identity))
                for asked in self._asked.pop(identity):
                    self._answer(asked, news)


def _news(standing: Standing) -> News:
    receipt = b"" if standing.receipt is None else encode(standing.receipt)
    return News(standing.id, standing.status, receipt)
