"""Streams over WebSocket: until either side has had enough, or the client is too slow."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from enum import IntEnum

from aiohttp import WSCloseCode, WSMsgType, web

from fl.client.sides import until_one_ends
from node.rpc.api import Api
from node.rpc.connection import Connection
from node.rpc.desk import Desk, Exchange
from node.rpc.problems import Problem
from node.rpc.requests import Request
from node.rpc.table import HungUp, Line, Route, Talk

log = logging.getLogger("quorate.rpc")

PING_S = 30.0
CLOSE_S = 5.0
NOTHING_BYTES = 1024
"""Of a message on a stream on which nothing may be said."""
_REASON_BYTES = 123
"""WebSocket has room for no more."""


class Close(IntEnum):
    """Why the node ends a stream."""

    GOING_AWAY = 1001
    BAD_MESSAGE = 1008
    TOO_SLOW = 4008


class _Line:
    def __init__(self, socket: web.WebSocketResponse, write_s: float) -> None:
        self._socket = socket
        self._write_s = write_s

    async def say(self, message: str | bytes) -> None:
        async with asyncio.timeout(self._write_s):
            if isinstance(message, str):
                await self._socket.send_str(message)
            else:
                await self._socket.send_bytes(message)

    async def hear(self) -> bytes:
        message = await self._socket.receive()
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is WSMsgType.TEXT:
            raise Problem("MALFORMED_BODY", "Messages are binary here.")
        raise HungUp


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
        stream = route.stream
        assert stream is not None
        talk, places = stream.begin(api, request), stream.places(api)
        if not places.take(connection.client):
            raise Problem("BUSY", "Too many of these streams are open.", retry_after_s=10)
        socket = web.WebSocketResponse(
            heartbeat=PING_S,
            timeout=CLOSE_S,
            compress=False,
            max_msg_size=stream.longest_message or NOTHING_BYTES,
            writer_limit=1,
        )
        desk.put_headers(exchange, socket)
        try:
            try:
                await socket.prepare(http)
            except (web.HTTPException, ValueError):
                raise Problem("MALFORMED_REQUEST", "The WebSocket handshake is not complete.") from None
            self._open.add(socket)
            desk.note(exchange, 101, 0)
            line = _Line(socket, api.limits.write_s)
            await _converse(socket, connection, talk if stream.longest_message else _unheard(talk), line)
        finally:
            self._open.discard(socket)
            places.leave(connection.client)
        return socket


def _unheard(talk: Talk) -> Talk:
    """The same, for a client who may say nothing."""

    async def unheard(line: Line) -> None:
        await line.hear()
        raise Problem("MALFORMED_BODY", "Nothing is taken on this stream.")

    async def talking(line: Line) -> None:
        await until_one_ends(unheard(line), talk(line))

    return talking


async def _converse(socket: web.WebSocketResponse, connection: Connection, talk: Talk, line: Line) -> None:
    try:
        await talk(line)
    except HungUp:
        pass
    except Problem as problem:
        reason = f"{problem.code}: {problem.detail}".encode()[:_REASON_BYTES].decode(errors="ignore")
        await _end(socket, connection, Close.BAD_MESSAGE, reason.encode())
    except TimeoutError:
        await _end(socket, connection, Close.TOO_SLOW, b"TOO_SLOW: what was said was not read in time")
    except ConnectionError:
        connection.abort()
    except Exception:
        log.exception("a stream met a fault")
        await _end(socket, connection, WSCloseCode.INTERNAL_ERROR, b"INTERNAL")


async def _end(socket: web.WebSocketResponse, connection: Connection, code: int, reason: bytes) -> None:
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(CLOSE_S):
            await socket.close(code=code, message=reason)
    if code != Close.BAD_MESSAGE:
        connection.abort()
