"""Bodies on their way in: whole into memory, within limits, or in pieces that the handler asks for."""

from __future__ import annotations

import asyncio

from aiohttp import web

from node.rpc.limits import RpcLimits, Turnstile
from node.rpc.problems import Problem
from node.rpc.requests import Request
from node.rpc.table import Body

_CLOSE = {"Connection": "close"}


def too_slow() -> Problem:
    return Problem("TOO_SLOW", "The body of the request took too long.", headers=_CLOSE)


def ended_early() -> Problem:
    return Problem("MALFORMED_BODY", "The body is not framed as HTTP has it.", headers=_CLOSE)


def check_media(http: web.BaseRequest, body: Body, limits: RpcLimits) -> int:
    """The most bytes that may come."""
    media = body.media.get(http.content_type)
    if media is None or http.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem("UNSUPPORTED_MEDIA_TYPE", f"Send {' or '.join(body.media)}, not compressed.")
    most = media[1] if body.streamed else min(media[1], limits.body_bytes)
    if http.content_type == "application/json":
        most = min(most, limits.json_body_bytes)
    if http.content_length is not None and http.content_length > most:
        raise _too_large(most)
    return most


def _too_large(most: int) -> Problem:
    return Problem("BODY_TOO_LARGE", f"At most {most} bytes are taken here.")


async def say_continue(http: web.BaseRequest) -> None:
    """If the client waits for it."""
    expected = http.headers.get("Expect")
    if expected is None:
        return
    if expected.lower() != "100-continue":
        raise Problem("EXPECTATION_FAILED")
    await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    http.writer.output_size = 0


async def read_whole(http: web.BaseRequest, request: Request, body: Body, turnstile: Turnstile) -> None:
    """Puts it into the request; whatever of it was received is counted at the turnstile until `end_body`."""
    limits = turnstile.limits
    most = check_media(http, body, limits)
    await say_continue(http)
    whole = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in http.content.iter_any():
                if len(whole) + len(chunk) > most:
                    raise _too_large(most)
                turnstile.begin_body(len(chunk))
                request.held_bytes += len(chunk)
                whole += chunk
    except TimeoutError:
        raise too_slow() from None
    except web.RequestPayloadError:
        raise ended_early() from None
    request.body, request.media_type = bytes(whole), http.content_type


class Arriving:
    """A body in pieces; `Request.incoming`."""

    def __init__(self, http: web.BaseRequest, body: Body, limits: RpcLimits) -> None:
        check_media(http, body, limits)
        if http.content_length is None:
            raise Problem("LENGTH_REQUIRED")
        self._http = http
        self._size_bytes = http.content_length
        self._begun = False
        self._rest = memoryview(b"")
        """Of the last chunk, what there was no room for."""
        self.taken_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    async def fill(self, buffer: memoryview, within_s: float) -> None:
        if not self._begun:
            self._begun = True
            await say_continue(self._http)
        try:
            async with asyncio.timeout(within_s):
                await self._fill(buffer)
        except TimeoutError:
            raise too_slow() from None
        except web.RequestPayloadError:
            raise ended_early() from None

    async def _fill(self, buffer: memoryview) -> None:
        content, rest, filled = self._http.content, self._rest, 0
        while filled < len(buffer):
            if not rest:
                chunk, _ = await content.readchunk()
                if not chunk and content.at_eof():
                    raise ended_early()
                rest = memoryview(chunk)
            size = min(len(rest), len(buffer) - filled)
            buffer[filled : filled + size] = rest[:size]
            rest = rest[size:]
            filled += size
        self._rest = rest
        self.taken_bytes += filled
