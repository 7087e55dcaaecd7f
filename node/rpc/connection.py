"""Clients' connections: how many, and how long each may take for what.

aiohttp speaks HTTP on them. What it leaves open is closed here: a connection has a deadline at every moment at which
it is the client's turn, trickled bytes do not move that deadline, and an answer counts as written when the kernel has
taken it, so that nobody can make this process hold answers that they do not read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from node.rpc.limits import Places, RpcLimits, client_of
from node.rpc.problems import Problem
from node.rpc.requests import Response, problem_response
from node.rpc.tally import Tally

log = logging.getLogger("quorate.rpc")

LINGER_S = 1.0
"""How long what a refused client still sends is read and thrown away, so that it can read why."""
_ACCEPT_AGAIN_S = 0.2
_SERVER = "quorate"


def http_response(response: Response) -> web.StreamResponse:
    headers = {"Content-Type": response.media_type, **response.headers}
    if response.pieces is None:
        return web.Response(body=response.body, status=response.status, headers=headers)
    answer = web.StreamResponse(status=response.status, headers=headers)
    answer.content_length = response.size_bytes
    return answer


def _canned(problem: Problem) -> bytes:
    """A whole answer, for whom no request was read of."""
    response = problem_response(problem)
    kind = problem.kind
    headers = {
        **response.headers,
        "Content-Type": response.media_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
        "Server": _SERVER,
    }
    lines = [f"HTTP/1.1 {int(kind.status)} {kind.status.phrase}"]
    lines += [f"{name}: {text}" for name, text in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + response.body


_CROWDED = _canned(Problem("TOO_MANY_CONNECTIONS"))
_TOO_SLOW = _canned(Problem("TOO_SLOW", "The headers of the request took too long."))


class Connection(RequestHandler):
    """From its acceptance to its end. `begin` and `end` enclose the answering of one request."""

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        limits: RpcLimits,
        client: str,
        left: Callable[[], None],
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_s,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.headers,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )
        self.client = client
        self._limits = limits
        self._left = left
        self._clock = loop
        self._deadline: asyncio.TimerHandle | None = None
        self._answering = False
        self._heard = False
        """Whether a byte of the next request has come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The buffer counts as full from its first byte. Under TLS, 0 would be reached by a buffer without any, and
        # writing would pause when nothing is left that could end the pause.
        high = 0 if transport.get_extra_info("sslcontext") is None else 1
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=high)
        super().connection_made(transport)
        self._give(self._limits.header_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._relax()
        super().connection_lost(exc)
        self._left()

    def data_received(self, data: bytes) -> None:
        if not self._answering and not self._heard:
            self._heard = True
            self._give(self._limits.header_s)
        super().data_received(data)

    def begin(self) -> None:
        self._answering = True
        self._relax()

    def end(self) -> None:
        self._answering = self._heard = False
        self._give(self._limits.idle_s)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _give(self, seconds: float) -> None:
        self._relax()
        self._deadline = self._clock.call_later(seconds, self._late)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        transport = self.transport
        if transport is None:
            return
        if self._heard:
            transport.write(_TOO_SLOW)
        self.force_close()
        self._clock.call_later(LINGER_S, transport.abort)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("an answer could not be given", exc_info=exc)
        if request.writer.output_size > 0:
            # Half of an answer is out; another one after it would be taken for the rest of it.
            raise ConnectionError("the answer had begun")
        problem = Problem("MALFORMED_REQUEST" if status < 500 else "INTERNAL")
        response = http_response(problem_response(problem))
        response.headers["Server"] = _SERVER
        response.force_close()
        return response


class Door:
    """One listening socket, and the connections that came in through it."""

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: RpcLimits,
        tally: Tally,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._tally = tally
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._places = Places(limits.connections, limits.connections_by_client)
        self._server = web.Server(answer, handler_cancellation=True)
        self._welcoming: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept(), name="rpc accept")

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    async def close(self, patience_s: float) -> None:
        """Takes no more connections; answers that are being given get so long."""
        self._accepting.cancel()
        for task in self._welcoming:
            task.cancel()
        await asyncio.gather(self._accepting, *self._welcoming, return_exceptions=True)
        self._listener.close()
        self._server.pre_shutdown()
        await self._server.shutdown(patience_s)

    async def _accept(self) -> None:
        while True:
            try:
                sock, address = await self._loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors, or a connection that was gone at once: the listener itself is as good as before.
                log.warning("cannot accept a connection", extra={"reason": str(error)})
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            client = client_of(address[0]) if address else "socket"
            if self._places.take(client):
                self._tally.connected()
                task = self._loop.create_task(self._welcome(sock, client))
                self._welcoming.add(task)
                task.add_done_callback(self._welcoming.discard)
            else:
                self._turn_away(sock)

    def _turn_away(self, sock: socket.socket) -> None:
        self._tally.turned_away("crowded")
        with sock:
            if self._tls is None:
                try:
                    sock.send(_CROWDED)
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass

    async def _welcome(self, sock: socket.socket, client: str) -> None:
        inside = True

        def left() -> None:
            nonlocal inside
            if inside:
                inside = False
                self._places.leave(client)
                self._tally.left()

        def connection() -> Connection:
            return Connection(self._server, self._loop, self._limits, client, left)

        patience = self._limits.handshake_s if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(
                connection, sock, ssl=self._tls, ssl_handshake_timeout=patience, ssl_shutdown_timeout=patience
            )
        except (OSError, TimeoutError) as error:
            log.debug("no TLS", extra={"client": client, "reason": str(error)})
            self._tally.turned_away("handshake")
            left()
            sock.close()
        except asyncio.CancelledError:
            left()
            sock.close()
            raise
