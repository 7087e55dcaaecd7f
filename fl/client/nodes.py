"""The nodes of a network as one place to ask: another one answers when the first does not, or answers nonsense.

Nothing here is believed. An answer is handed to the caller's `read`, which verifies it and says by its exception
whether the next node should be asked (`Unusable`, `Behind`) or whether it is final.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from fl.client.errors import QuorateError, Unreachable, Unverified

log = logging.getLogger("quorate.client")

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 20.0
"""A node holds a request for at most ten seconds while it waits for a status."""
SMALL_BYTES = 4 * 1024 * 1024
_NOT_NOW = frozenset({429, 500, 502, 503, 504, 507})
_PAUSE_S = 0.05
_MAX_PAUSE_S = 2.0
_COOL_S = 1.0
_MAX_COOL_S = 30.0


class Unusable(Exception):
    """This node's answer is no good; the next one may do better."""


class Untrue(Unusable):
    """This node's answer does not follow from the network file. `lie` says in a word or two what it is."""

    def __init__(self, what: str, lie: str = "forged answer") -> None:
        super().__init__(f"{lie}: {what}")
        self.lie = lie


class Behind(Exception):
    """This node is not as far as the caller needs; it or another one will be in a moment."""


class Stale(Behind):
    """It is so far behind that it stands still, or withholds what it knows."""

    def __init__(self, what: str, lie: str) -> None:
        super().__init__(f"{lie}: {what}")
        self.lie = lie


@dataclass(frozen=True, slots=True)
class Reply:
    node: str
    status: int
    body: bytes
    retry_after_s: float

    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Unusable(f"status {self.status} without a JSON object")
        return found

    def fields(self) -> dict[str, Any]:
        """The JSON of a good answer."""
        if self.status != 200:
            raise Unusable(self.problem())
        return self.json()

    def problem(self) -> str:
        """Why the node would not answer, for a person."""
        code = self.problem_code()
        return f"status {self.status} {code}".rstrip()

    def problem_code(self) -> str:
        try:
            code = json.loads(self.body).get("code", "")
        except (ValueError, RecursionError, AttributeError):
            return ""
        return code if isinstance(code, str) else ""


def from_base64(text: object) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unusable("a binary field that is not base64") from None


@dataclass(slots=True)
class Node:
    name: str
    url: str
    cool_until: float = 0.0
    faults: int = 0
    reason: str = ""
    beside: bool = False
    """Of no validator: its word on what is newest counts for nothing."""
    named_for: set[str] = field(default_factory=set)
    """Lies that people were told of."""

    def caught(self, error: Untrue | Stale) -> None:
        """Once for each sort of lie: whoever asks again every second need not be told again."""
        if error.lie not in self.named_for:
            self.named_for.add(error.lie)
            log.warning("node %s is not to be believed (%s)", self.name, error)

    def failed(self, reason: str, retry_after_s: float = 0.0) -> None:
        self.faults += 1
        pause = max(retry_after_s, _COOL_S * 2 ** min(self.faults - 1, 5))
        self.cool_until = time.monotonic() + min(pause, _MAX_COOL_S)
        self.reason = reason

    def answered(self) -> None:
        self.faults, self.cool_until, self.reason = 0, 0.0, ""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    limit_bytes: int = SMALL_BYTES


class Nodes:
    """`patience_s` is how long a question is repeated when no node gives a usable answer."""

    def __init__(self, addresses: Sequence[tuple[str, str]], first: int = 0, patience_s: float = 30.0) -> None:
        ordered = [*addresses[first % len(addresses) :], *addresses[: first % len(addresses)]]
        self._nodes = [Node(name, url.rstrip("/")) for name, url in ordered]
        self._preferred = 0
        self.patience_s = patience_s
        self._session: aiohttp.ClientSession | None = None

    def add(self, url: str) -> None:
        """One more to ask, beside those that the network file names: nothing is believed of anyone."""
        self._nodes.append(Node(url, url.rstrip("/"), beside=True))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._session

    def in_order(self) -> list[Node]:
        """The one that answered last, then the others; those that failed lately come last."""
        now = time.monotonic()
        turned = [*self._nodes[self._preferred :], *self._nodes[: self._preferred]]
        return sorted(turned, key=lambda node: node.cool_until if node.cool_until > now else 0.0)

    def ready(self) -> list[Node]:
        """Those that have not failed lately; all, when there are none of them."""
        now = time.monotonic()
        ordered = self.in_order()
        return [node for node in ordered if node.cool_until <= now] or ordered

    def cool_s(self) -> float:
        """Until the first of them may be asked again; 0 when one may be now."""
        return max(0.0, min(node.cool_until for node in self._nodes) - time.monotonic())

    def prefer(self, node: Node) -> None:
        self._preferred = self._nodes.index(node)

    def turn(self) -> None:
        """Ask another node first from here on."""
        self._preferred = (self._preferred + 1) % len(self._nodes)

    async def ask(self, request: Request, read: Callable[[Reply], T], patience_s: float | None = None) -> T:
        """The first answer that `read` accepts. Raises Unreachable when nobody gave one in time."""
        return await self.ask_in_turn(request.path, lambda node: self.ask_one(node, request, read), patience_s)

    async def ask_in_turn(self, what: str, work: Callable[[Node], Awaitable[T]], patience_s: float | None = None) -> T:
        """The same for a question that takes several requests, all of them to one node."""
        ends = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        pause = _PAUSE_S
        while True:
            failures: dict[str, Exception] = {}
            for node in self.ready():
                try:
                    answer = await work(node)
                except (Unusable, Behind) as error:
                    failures[node.name] = error
                    continue
                self.prefer(node)
                return answer
            if time.monotonic() + pause > ends or all(isinstance(error, Untrue) for error in failures.values()):
                raise _given_up(what, failures)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    async def ask_one(self, node: Node, request: Request, read: Callable[[Reply], T]) -> T:
        retry_after_s = 0.0
        try:
            reply = await self._fetch(node, request)
            retry_after_s = reply.retry_after_s
            if reply.status in _NOT_NOW:
                raise Unusable(reply.problem())
            answer = read(reply)
        except Unusable as error:
            node.failed(str(error), retry_after_s)
            if isinstance(error, Untrue):
                node.caught(error)
            raise
        except Stale as error:
            node.caught(error)
            raise
        node.answered()
        return answer

    async def ask_several(self, request: Request, read: Callable[[Reply], T], wanted: int) -> list[T]:
        """Answers of the nodes of `wanted` validators; fewer only by raising Unreachable, or Unverified if some lie."""
        ends = time.monotonic() + self.patience_s
        pause = _PAUSE_S
        answers: dict[str, T] = {}
        while True:
            failures: dict[str, Exception] = {}
            left = [node for node in self.in_order() if not node.beside and node.name not in answers]
            while left and len(answers) < wanted:
                asked, left = left[: wanted - len(answers)], left[wanted - len(answers) :]
                found = await asyncio.gather(
                    *(self.ask_one(node, request, read) for node in asked), return_exceptions=True
                )
                for node, answer in zip(asked, found, strict=True):
                    if not isinstance(answer, BaseException):
                        answers[node.name] = answer
                    elif not isinstance(answer, (Unusable, Behind)):
                        raise answer
                    else:
                        failures[node.name] = answer
            if len(answers) >= wanted:
                return list(answers.values())
            untrue = sum(isinstance(each, Untrue) for each in failures.values())
            if sum(not node.beside for node in self._nodes) - untrue < wanted:
                raise _given_up(request.path, failures)
            if time.monotonic() + pause > ends:
                raise Unreachable(
                    "TOO_FEW_NODES",
                    f"{len(answers)} of the {wanted} nodes whose heads must be compared answer ({_reasons(failures)}).",
                    "Check the network: with fewer, an outdated node could not be told from a current one.",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    async def _fetch(self, node: Node, request: Request) -> Reply:
        headers = {"Content-Type": "application/msgpack"} if request.body is not None else None
        try:
            async with self.session().request(
                request.method, node.url + request.path, params=request.query, data=request.body, headers=headers
            ) as response:
                body = await limited(response, request.limit_bytes)
                return Reply(node.name, response.status, body, seconds(response.headers.get("Retry-After")))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unusable(str(error) or type(error).__name__) from None

    async def listen(self, path: str, query: Mapping[str, str]) -> AsyncIterator[str]:
        """Text messages of some node's WebSocket until it ends; raises Unusable when none opens."""
        for node in self.in_order():
            try:
                async with self.session().ws_connect(
                    node.url + path, params=query, heartbeat=10.0, max_msg_size=SMALL_BYTES
                ) as socket:
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            yield message.data
                    return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                node.failed(str(error) or type(error).__name__)
        raise Unusable("no node streams events")


def _given_up(what: str, failures: Mapping[str, Exception]) -> QuorateError:
    reasons = _reasons(failures)
    if any(isinstance(error, Untrue) for error in failures.values()):
        return Unverified(
            "NOT_PROVEN",
            f"No node could prove its answer to {what} ({reasons}).",
            "Check that the network file is of the chain that these nodes are on; if it is, they lie.",
        )
    return Unreachable(
        "NO_ANSWER",
        f"No node gave a usable answer to {what} ({reasons}).",
        "Check the network and the addresses in the network file.",
    )


def _reasons(failures: Mapping[str, Exception]) -> str:
    return "; ".join(f"{name}: {str(error).rstrip('.')}" for name, error in failures.items())


async def limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise Unusable(f"an answer of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text)) if text is not None else 0.0
    except ValueError:
        return 0.0
