"""Event streams over WebSocket: until the client goes, says something, or is too slow."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from node.rpc.api import Api
from node.rpc.connection import Connection
from node.rpc.desk import Desk, Exchange
from node.rpc.events import Close, check_stream
from node.rpc.problems import Problem
from node.rpc.requests import Request
from node.rpc.table import Route

log = logging.getLogger("quorate.rpc")

PING_S = 30.0
CLOSE_S = 5.0
LONGEST_CLIENT_MESSAGE = 1024


class Streams:
    """Those that are open."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._open: set[web.WebSocketResponse] = set()

    async def close(self, patience_s: float) -> None:
        closing = [stream.close(code=Close.GOING_AWAY, message=b"the node stops") for stream in self._open]
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*closing, return_exceptions=True)

    async def serve(
        self, desk: Desk[Api], exchange: Exchange, request: Request, route: Route[Api]
    ) -> web.StreamResponse:
        api, http, connection = self._api, exchange.http, exchange.connection
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
        desk.put_headers(exchange, socket)
        api.metrics.subscribers.inc()
        try:
            try:
                await socket.prepare(http)
            except (web.HTTPException, ValueError):
                raise Problem("MALFORMED_REQUEST", "The WebSocket handshake is not complete.") from None
            self._open.add(socket)
            desk.note(exchange, 101, 0)
            await self._feed(socket, connection, request, route)
        finally:
            self._open.discard(socket)
            api.subscribers.leave(connection.client)
            api.metrics.subscribers.dec()
        return socket

    async def _feed(
        self, socket: web.WebSocketResponse, connection: Connection, request: Request, route: Route[Api]
    ) -> None:
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
