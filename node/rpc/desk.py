"""What happens to a request between a door and a handler: limited, matched, read and handed over; then its answer is
written. Nothing is decided here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from aiohttp import HttpVersion10, HttpVersion11, web

from node.ports import Buffer, Clock
from node.rpc.bodies import Arriving, read_whole
from node.rpc.connection import Connection, http_response
from node.rpc.limits import RpcLimits, Turnstile
from node.rpc.problems import Problem
from node.rpc.requests import Request, Response, problem_response, read_parameters, split_target
from node.rpc.table import Route, Table
from node.rpc.tally import Answered, Tally

log = logging.getLogger("quorate.rpc")

A = TypeVar("A")

PATHS_LOGGED = 200
_REQUEST_ID_BYTES = 8
_FIELDS = (
    "Accept",
    "Authorization",
    "Cache-Control",
    "Host",
    "If-None-Match",
    "If-Range",
    "Range",
    "Service-Worker",
)
"""The headers that handlers see."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "OPTIONS"})
_READABLE = "Accept-Ranges, Content-Range, ETag, Location, Retry-After, X-Request-Id"


@dataclass(slots=True)
class Reception:
    """What all doors of one process share."""

    limits: RpcLimits
    tally: Tally
    clock: Clock
    turnstile: Turnstile = field(init=False)

    def __post_init__(self) -> None:
        self.turnstile = Turnstile(self.limits)

    def now_s(self) -> float:
        return self.clock.now().mono_ms / 1000


@dataclass(slots=True)
class Exchange:
    """One request and what is noted of it."""

    id: str
    http: web.BaseRequest
    connection: Connection
    began_s: float
    route: str = "none"
    request: Request | None = None
    arriving: Arriving | None = None

    @property
    def bytes_in(self) -> int:
        if self.arriving is not None:
            return self.arriving.taken_bytes
        return 0 if self.request is None else self.request.held_bytes


Streaming = Callable[["Desk[A]", Exchange, Request, Route[A]], Awaitable[web.StreamResponse]]
"""Serves the routes that speak WebSocket."""


class Desk(Generic[A]):
    """Answers the requests of one door. `trusted`: those of the operator, which are not limited."""

    def __init__(
        self,
        api: A,
        table: Table[A],
        reception: Reception,
        origins: tuple[str, ...] = (),
        *,
        streaming: Streaming[A] | None = None,
        trusted: bool = False,
    ) -> None:
        self._api = api
        self._table = table
        self._reception = reception
        self._origins = origins
        self._streaming = streaming
        self._trusted = trusted

    async def answer(self, http: web.BaseRequest) -> web.StreamResponse:
        reception = self._reception
        connection = cast(Connection, http.protocol)
        connection.begin()
        exchange = Exchange(
            reception.clock.entropy(_REQUEST_ID_BYTES).hex(), http, connection, began_s=reception.now_s()
        )
        try:
            answered: Response | web.StreamResponse
            try:
                answered = await self._answered(exchange)
            except Problem as problem:
                answered = problem_response(problem, exchange.id)
            except Exception:
                log.exception("a request met a fault", extra={"request": exchange.id, "route": exchange.route})
                answered = problem_response(Problem("INTERNAL"), exchange.id)
            if isinstance(answered, web.StreamResponse):
                return answered
            return await self._write(exchange, answered)
        finally:
            connection.end()
            if exchange.request is not None:
                reception.turnstile.end_body(exchange.request.held_bytes)

    async def _answered(self, exchange: Exchange) -> Response | web.StreamResponse:
        http, connection, reception = exchange.http, exchange.connection, self._reception
        if http.version not in (HttpVersion10, HttpVersion11):
            raise Problem("MALFORMED_REQUEST", "HTTP/1.1 is spoken here.", headers={"Connection": "close"})
        segments, query = split_target(http.raw_path)
        if http.method == "OPTIONS" and http.headers.get("Origin") in self._origins:
            return self._preflight()
        try:
            route, path = self._table.find(http.method, segments)
        except Problem:
            self._admit(connection, 1)
            raise
        exchange.route = route.path
        self._admit(connection, route.cost)
        request = exchange.request = Request(
            http.method if http.method == "HEAD" else route.method,
            connection.client,
            read_parameters(route.params, path, "" if route.passed_on else query),
            {name: ", ".join(http.headers.getall(name)) for name in _FIELDS if name in http.headers},
        )
        if route.passed_on:
            request.target = _target(http.raw_path)
        if route.stream is not None:
            assert self._streaming is not None
            return await self._streaming(self, exchange, request, route)
        if route.body is not None:
            if route.body.streamed:
                request.incoming = exchange.arriving = Arriving(http, route.body, reception.limits)
            else:
                await read_whole(http, request, route.body, reception.turnstile)
        assert route.handler is not None
        return await route.handler(self._api, request)

    def _admit(self, connection: Connection, cost: int) -> None:
        if not self._trusted:
            self._reception.turnstile.admit(connection.client, cost, self._reception.now_s())

    def _preflight(self) -> Response:
        methods = sorted({"HEAD", *(route.method for route in self._table.routes)})
        headers = {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Range",
            "Access-Control-Max-Age": "3600",
        }
        return Response(b"", "text/plain", 204, headers)

    # Answers

    async def _write(self, exchange: Exchange, response: Response) -> web.StreamResponse:
        connection = exchange.connection
        answer = http_response(response)
        self.put_headers(exchange, answer)
        if response.headers.get("Connection") == "close":
            answer.force_close()
        bytes_out = 0
        try:
            if response.pieces is None or exchange.http.method == "HEAD":
                async with self._in_time():
                    await answer.prepare(exchange.http)
                    # Returns once the kernel has it all: the connection's write buffer counts as full from its first
                    # byte.
                    await answer.write_eof()
                bytes_out = len(response.body)
            else:
                async with self._in_time():
                    await answer.prepare(exchange.http)
                bytes_out = await self._write_pieces(answer, response.pieces)
        except TimeoutError:
            connection.abort()
        except ConnectionError:
            pass
        except Exception:
            log.exception("half of an answer met a fault", extra={"request": exchange.id, "route": exchange.route})
            connection.abort()
        self.note(exchange, response.status, bytes_out)
        return answer

    async def _write_pieces(self, answer: web.StreamResponse, pieces: AsyncGenerator[Buffer, None]) -> int:
        bytes_out = 0
        async with aclosing(pieces):
            async for piece in pieces:
                async with self._in_time():
                    await answer.write(piece)
                bytes_out += len(piece)
        async with self._in_time():
            await answer.write_eof()
        return bytes_out

    def _in_time(self) -> asyncio.Timeout:
        return asyncio.timeout(self._reception.limits.write_s)

    def put_headers(self, exchange: Exchange, answer: web.StreamResponse) -> None:
        headers = answer.headers
        headers["Server"] = "quorate"
        headers["X-Request-Id"] = exchange.id
        headers["X-Content-Type-Options"] = "nosniff"
        headers.setdefault("Cache-Control", "no-store")
        origin = exchange.http.headers.get("Origin")
        if origin is not None and origin in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _READABLE
            headers["Vary"] = ", ".join((*headers.getall("Vary", ()), "Origin"))

    def note(self, exchange: Exchange, status: int, bytes_out: int) -> None:
        http = exchange.http
        seconds = self._reception.now_s() - exchange.began_s
        method = http.method if http.method in _METHODS else "other"
        bytes_in = exchange.bytes_in
        self._reception.tally.answered(Answered(exchange.route, method, status, seconds, bytes_in, bytes_out))
        # A chain in use answers thousands of questions a minute; what went wrong is what an operator looks for.
        log.log(
            logging.DEBUG if status < 400 else logging.INFO,
            "request",
            extra={
                "request": exchange.id,
                "client": exchange.connection.client,
                "method": method,
                "path": http.raw_path.partition("?")[0][:PATHS_LOGGED],
                "route": exchange.route,
                "status": status,
                "duration_ms": round(seconds * 1000),
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
            },
        )


def _target(raw: str) -> str:
    """Of a request to a proxy, only what follows the authority."""
    return raw if raw.startswith("/") else "/" + raw.partition("://")[2].partition("/")[2]
