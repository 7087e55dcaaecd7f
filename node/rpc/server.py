"""The servers of one node: the public one over TCP, the operator's over a Unix socket. HTTP in, HTTP out.

Nothing is decided here. A request is limited, matched, read and handed to its handler; what comes back is written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from aiohttp import HttpVersion10, HttpVersion11, WSCloseCode, WSMessage, WSMsgType, web

from node.health import Health
from node.metrics import Metrics
from node.node import Node
from node.rpc import openapi
from node.rpc.api import Api
from node.rpc.connection import Connection, Door, http_response, listen_tcp, listen_unix
from node.rpc.events import Close, check_stream
from node.rpc.limits import RpcLimits
from node.rpc.problems import Problem
from node.rpc.requests import (
    Request,
    Response,
    problem_response,
    read_parameters,
    split_target,
    to_json,
)
from node.rpc.routes import ADMIN, PUBLIC, Route, Table

log = logging.getLogger("quorate.rpc")

PING_S = 30.0
CLOSE_S = 5.0
LONGEST_CLIENT_MESSAGE = 1024
PATHS_LOGGED = 200
_REQUEST_ID_BYTES = 8
_FIELDS = ("If-None-Match", "If-Range", "Range")
"""The headers that handlers see."""


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """Where to listen; port 0 takes any that is free. Raises ValueError for what cannot be meant."""

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    admin_socket: Path | None = None
    cors: tuple[str, ...] = ()
    """Origins whose pages may read answers; none unless named."""
    limits: RpcLimits = field(default_factory=RpcLimits)

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("a TLS certificate and its key go together")


class RpcServer:
    """What `start` returns."""

    def __init__(self, api: Api, public: Door, admin: Door | None, streams: set[web.WebSocketResponse]) -> None:
        self.api = api
        self._public = public
        self._admin = admin
        self._streams = streams

    @property
    def address(self) -> tuple[str, int]:
        return self._public.address

    @property
    def port(self) -> int:
        return self._public.address[1]

    async def close(self, patience_s: float = 2.0) -> None:
        """Ends streams, gives answers under way a moment, and closes every connection."""
        closing = [stream.close(code=Close.GOING_AWAY, message=b"the node stops") for stream in self._streams]
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*closing, return_exceptions=True)
        await self._public.close(patience_s)
        if self._admin is not None:
            await self._admin.close(patience_s)


async def start(node: Node, config: RpcConfig) -> RpcServer:
    """Answers from here on, whether the node runs or not. Raises CannotListen, and ssl.SSLError or OSError for TLS
    files that cannot be used."""
    health = Health(node)
    api = Api(node, health, Metrics(node, health, _version()), config.limits, _version())
    api.openapi = to_json(openapi.document(PUBLIC, api.version))
    streams: set[web.WebSocketResponse] = set()
    tls = _tls(config)
    public = Desk(api, Table(PUBLIC), streams, config.cors)
    door = Door(listen_tcp(config.host, config.port), public.answer, config.limits, api.metrics, tls)
    admin = None
    if config.admin_socket is not None:
        try:
            listener = listen_unix(os.fspath(config.admin_socket))
        except Exception:
            await door.close(0)
            raise
        operator = Desk(api, Table(ADMIN), streams, (), trusted=True)
        admin = Door(listener, operator.answer, config.limits, api.metrics)
    if tls is None and config.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("clients are answered in the clear: no TLS is configured", extra={"host": config.host})
    return RpcServer(api, door, admin, streams)


def _version() -> str:
    try:
        return version("quorate")
    except PackageNotFoundError:
        return "0"


def _tls(config: RpcConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context


@dataclass(slots=True)
class Exchange:
    """One request and what is noted of it."""

    id: str
    began_s: float
    route: str = "none"
    bytes_in: int = 0


class Desk:
    """Answers the requests of one door. `trusted`: those of the operator, which are not limited."""

    def __init__(
        self,
        api: Api,
        table: Table,
        streams: set[web.WebSocketResponse],
        origins: tuple[str, ...],
        *,
        trusted: bool = False,
    ) -> None:
        self._api = api
        self._table = table
        self._streams = streams
        self._origins = origins
        self._trusted = trusted

    async def answer(self, http: web.BaseRequest) -> web.StreamResponse:
        api = self._api
        connection = cast(Connection, http.protocol)
        connection.begin()
        exchange = Exchange(api.node.ports.clock.entropy(_REQUEST_ID_BYTES).hex(), api.now_s())
        try:
            answered: Response | web.StreamResponse
            try:
                answered = await self._answered(http, connection, exchange)
            except Problem as problem:
                answered = problem_response(problem, exchange.id)
            except Exception:
                log.exception("a request met a fault", extra={"request": exchange.id, "route": exchange.route})
                answered = problem_response(Problem("INTERNAL"), exchange.id)
            if isinstance(answered, web.StreamResponse):
                return answered
            return await self._write(http, connection, exchange, answered)
        finally:
            connection.end()
            api.turnstile.end_body(exchange.bytes_in)

    async def _answered(
        self, http: web.BaseRequest, connection: Connection, exchange: Exchange
    ) -> Response | web.StreamResponse:
        api = self._api
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
        request = Request(
            route.method,
            connection.client,
            read_parameters(route.params, path, query),
            {name: http.headers[name] for name in _FIELDS if name in http.headers},
        )
        if route.stream is not None:
            return await self._stream(http, connection, exchange, request, route)
        if route.body is not None:
            await self._read_body(http, exchange, request, route)
        assert route.handler is not None
        return await route.handler(api, request)

    def _admit(self, connection: Connection, cost: int) -> None:
        if not self._trusted:
            self._api.turnstile.admit(connection.client, cost, self._api.now_s())

    @staticmethod
    def _preflight() -> Response:
        headers = {"Access-Control-Allow-Methods": "GET, HEAD, POST", "Access-Control-Allow-Headers": "Content-Type"}
        return Response(b"", "text/plain", 204, {**headers, "Access-Control-Max-Age": "3600"})

    # Bodies

    async def _read_body(self, http: web.BaseRequest, exchange: Exchange, request: Request, route: Route) -> None:
        api = self._api
        assert route.body is not None
        media = route.body.media.get(http.content_type)
        if media is None or http.headers.get("Content-Encoding", "identity") != "identity":
            raise Problem("UNSUPPORTED_MEDIA_TYPE", f"Send {' or '.join(route.body.media)}, not compressed.")
        most = min(media[1], api.limits.body_bytes)
        if http.content_type == "application/json":
            most = min(most, api.limits.json_body_bytes)
        too_large = Problem("BODY_TOO_LARGE", f"At most {most} bytes are taken here.")
        if http.content_length is not None and http.content_length > most:
            raise too_large
        await self._expected(http)
        body = bytearray()
        try:
            async with asyncio.timeout(api.limits.body_s):
                async for chunk in http.content.iter_any():
                    if len(body) + len(chunk) > most:
                        raise too_large
                    api.turnstile.begin_body(len(chunk))
                    exchange.bytes_in += len(chunk)
                    body += chunk
        except TimeoutError:
            close = {"Connection": "close"}
            raise Problem("TOO_SLOW", "The body of the request took too long.", headers=close) from None
        except web.RequestPayloadError:
            raise Problem("MALFORMED_BODY", "The body is not framed as HTTP has it.") from None
        request.body, request.media_type = bytes(body), http.content_type

    @staticmethod
    async def _expected(http: web.BaseRequest) -> None:
        expected = http.headers.get("Expect")
        if expected is None:
            return
        if expected.lower() != "100-continue":
            raise Problem("EXPECTATION_FAILED")
        await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http.writer.output_size = 0

    # Answers

    async def _write(
        self, http: web.BaseRequest, connection: Connection, exchange: Exchange, response: Response
    ) -> web.StreamResponse:
        answer = http_response(response)
        self._put_headers(http, exchange, answer)
        if response.headers.get("Connection") == "close":
            answer.force_close()
        try:
            async with asyncio.timeout(self._api.limits.write_s):
                await answer.prepare(http)
                # Returns once the kernel has it all: the connection's write buffer counts as full from its first byte.
                await answer.write_eof()
        except TimeoutError:
            connection.abort()
        except ConnectionError:
            pass
        self._note(http, connection, exchange, response.status, len(response.body))
        return answer

    def _put_headers(self, http: web.BaseRequest, exchange: Exchange, answer: web.StreamResponse) -> None:
        headers = answer.headers
        headers["Server"] = "quorate"
        headers["X-Request-Id"] = exchange.id
        headers["X-Content-Type-Options"] = "nosniff"
        headers.setdefault("Cache-Control", "no-store")
        origin = http.headers.get("Origin")
        if origin is not None and origin in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = "ETag, Retry-After, X-Request-Id"
            headers["Vary"] = "Origin"

    def _note(
        self, http: web.BaseRequest, connection: Connection, exchange: Exchange, status: int, bytes_out: int
    ) -> None:
        api = self._api
        seconds = api.now_s() - exchange.began_s
        method = http.method if http.method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        api.metrics.requests.labels(exchange.route, method, str(status)).inc()
        api.metrics.request_seconds.labels(exchange.route).observe(seconds)
        # A chain in use answers thousands of questions a minute; what went wrong is what an operator looks for.
        log.log(
            logging.DEBUG if status < 400 else logging.INFO,
            "request",
            extra={
                "request": exchange.id,
                "client": connection.client,
                "method": method,
                "path": http.raw_path.partition("?")[0][:PATHS_LOGGED],
                "route": exchange.route,
                "status": status,
                "duration_ms": round(seconds * 1000),
                "bytes_in": exchange.bytes_in,
                "bytes_out": bytes_out,
            },
        )

    # Streams

    async def _stream(
        self, http: web.BaseRequest, connection: Connection, exchange: Exchange, request: Request, route: Route
    ) -> web.StreamResponse:
        api = self._api
        if http.headers.get("Upgrade", "").strip().lower() != "websocket":
            raise Problem("NOT_A_WEBSOCKET", headers={"Upgrade": "websocket", "Connection": "Upgrade"})
        check_stream(api, request)
        if not api.subscribers.take(connection.client):
            raise Problem("BUSY", "Too many event streams are open.", retry_after_s=10)
        socket = web.WebSocketResponse(
            heartbeat=PING_S,
            timeout=CLOSE_S,
            compress=False,
            max_msg_size=LONGEST_CLIENT_MESSAGE,
            writer_limit=1,
        )
        self._put_headers(http, exchange, socket)
        api.metrics.subscribers.inc()
        try:
            try:
                await socket.prepare(http)
            except (web.HTTPException, ValueError):
                raise Problem("MALFORMED_REQUEST", "The WebSocket handshake is not complete.") from None
            self._streams.add(socket)
            self._note(http, connection, exchange, 101, 0)
            await self._feed(socket, connection, request, route)
        finally:
            self._streams.discard(socket)
            api.subscribers.leave(connection.client)
            api.metrics.subscribers.dec()
        return socket

    async def _feed(
        self, socket: web.WebSocketResponse, connection: Connection, request: Request, route: Route
    ) -> None:
        """Until the client goes, says something, or is too slow."""
        limits = self._api.limits
        assert route.stream is not None

        async def send(text: str) -> None:
            async with asyncio.timeout(limits.write_s):
                await socket.send_str(text)

        sending = asyncio.ensure_future(route.stream(self._api, request, send))
        hearing = asyncio.ensure_future(socket.receive())
        try:
            await asyncio.wait((sending, hearing), return_when=asyncio.FIRST_COMPLETED)
            await self._end(socket, connection, sending, hearing)
        finally:
            for task in (sending, hearing):
                task.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def _end(
        self,
        socket: web.WebSocketResponse,
        connection: Connection,
        sending: asyncio.Future[None],
        hearing: asyncio.Future[WSMessage],
    ) -> None:
        if hearing.done():
            said = hearing.result().type if hearing.exception() is None else None
            if said in (WSMsgType.TEXT, WSMsgType.BINARY):
                await socket.close(code=Close.BAD_MESSAGE, message=b"nothing is taken on this stream")
            return
        failure = sending.exception()
        code: int = Close.TOO_SLOW if isinstance(failure, TimeoutError) else WSCloseCode.INTERNAL_ERROR
        if code == WSCloseCode.INTERNAL_ERROR and not isinstance(failure, ConnectionError):
            log.error("a stream met a fault", exc_info=failure)
        hearing.cancel()
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(CLOSE_S):
                await socket.close(code=code)
        connection.abort()
