"""Connections for bytes in bulk between validators: TLS on blocking sockets, each served by a thread of its own.

An event loop would copy each byte several times and hold up every timer meanwhile; a thread that is blocked in the
kernel or in OpenSSL holds up nothing. Each side asks on the one connection that it dialled (`node.ports.bulk_line`),
and answers on those that others dialled, in the order of the requests, so that a leaf goes from a mapped file to the
wire without a queue between.

The number of threads is bounded by the number of peers: one that asks each, a few that answer each, and some for
those that have not yet proven who they are. So is memory: a thread holds one leaf that it receives, or one answer that
it sends. What peers ask beyond that waits in their own sockets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import cast

from chain.codec import CodecError
from chain.keys import SigningKey
from node.ports import LeafOutcome, Peer, PeerAddress, PeerGone, Serve
from node.ports import bulk_wire as wire
from node.ports.bulk_line import Line, Question
from node.ports.bulk_wire import LEAF_LIMIT, REQUEST_LIMIT, Breach, BulkLimits, Refused
from node.ports.identity import BULK_PROTOCOL, Impostor, LinkIdentity, link_key_of

__all__ = ["BulkLimits", "TlsBulk"]

_log = logging.getLogger("quorate.bulk")

_JOIN_S = 10.0
_BREATH_S = 0.5


class _Session:
    """One accepted connection, from its handshake to its end."""

    def __init__(self, bulk: TlsBulk, plain: socket.socket, host: str) -> None:
        self.peer: Peer = b""
        self.host = host
        self.thread = threading.Thread(target=self._run, name=f"bulk answer {host}", daemon=True)
        self._bulk = bulk
        self._plain = plain
        self._guard = threading.Lock()
        self._socket: socket.socket | None = plain
        self._ended = False

    def end(self) -> None:
        with self._guard:
            self._ended = True
            if self._socket is not None:
                wire.shut(self._socket)

    def _run(self) -> None:
        try:
            self._answer_all(self._meet())
        except (OSError, Refused, Impostor) as error:
            _log.info("connection ended", extra={"host": self.host, "peer": self.peer, "reason": str(error)})
            if isinstance(error, Breach):
                self._bulk.breached(self.peer, str(error))
        finally:
            with self._guard:
                sock, self._socket = self._socket, None
            if sock is not None:
                sock.close()
            self._bulk.left(self)

    def _meet(self) -> ssl.SSLSocket:
        wire.prepare(self._plain, self._bulk.limits)
        connection = self._bulk.context(server=True).wrap_socket(
            self._plain, server_side=True, do_handshake_on_connect=False
        )
        with self._guard:
            self._socket = connection
            if self._ended:
                raise Refused("closing")
        connection.do_handshake()
        link_key = link_key_of(connection, BULK_PROTOCOL)
        wire.hear_hello(connection, self._bulk.chain_id)
        self._bulk.met(self, link_key)
        wire.say_hello(connection, self._bulk.chain_id)
        return connection

    def _answer_all(self, connection: ssl.SSLSocket) -> None:
        limits, serve = self._bulk.limits, self._bulk.serve
        while True:
            connection.settimeout(2 * limits.idle_s)
            request = wire.receive_request(connection)
            connection.settimeout(limits.stall_s)
            try:
                answer = serve(self.peer, request)
            except CodecError as error:
                raise Breach(f"it asks for nothing that there is: {error}") from error
            except Exception:
                _log.warning("a peer's request could not be answered", extra={"peer": self.peer}, exc_info=True)
                wire.send_failure(connection)
                continue
            wire.send_answer(connection, answer)
            # Or a mapped file would stay mapped until the next request.
            del answer


class TlsBulk:
    """The Bulk of a validator: `key` is its link key, `own` its consensus key, by which peers name it."""

    def __init__(
        self,
        key: SigningKey,
        own: Peer,
        chain_id: bytes,
        listen: tuple[str, int],
        limits: BulkLimits | None = None,
    ) -> None:
        self.limits = limits or BulkLimits()
        self.chain_id = chain_id
        self.serve: Serve = _serve_nothing
        self._key = key
        self._own = own
        self._listen = listen
        self._guard = threading.RLock()
        """Of all below: threads meet here."""
        self._identity = LinkIdentity(key, (), BULK_PROTOCOL)
        self._peers: dict[Peer, PeerAddress] = {}
        self._names: frozenset[Peer] = frozenset()
        self._by_link_key: dict[bytes, Peer] = {}
        self._penalties: dict[Peer, tuple[float, float]] = {}
        self._lines: dict[Peer, Line] = {}
        self._sessions: list[_Session] = []
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: list[threading.Thread] = []
        self._closed = threading.Event()

    @property
    def own(self) -> Peer:
        return self._own

    def peers(self) -> frozenset[Peer]:
        return self._names

    async def start(self, peers: Mapping[Peer, PeerAddress], serve: Serve) -> int:
        self.serve = serve
        self._loop = asyncio.get_running_loop()
        await self.update(peers)
        host, port = self._listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._accepting = threading.Thread(target=self._accept, name="bulk accept", daemon=True)
        self._accepting.start()
        bound: int = self._listener.getsockname()[1]
        return bound

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None:
        wanted = {peer: address for peer, address in peers.items() if peer != self._own}
        by_link_key = {address.link_key: peer for peer, address in wanted.items()}
        if len(by_link_key) != len(wanted):
            raise ValueError("two validators have the same link key")
        with self._guard:
            for peer, address in self._peers.items():
                if wanted.get(peer) != address:
                    self._leave(peer, "no longer a peer at this address")
            if by_link_key.keys() != self._by_link_key.keys():
                self._identity = LinkIdentity(self._key, by_link_key, BULK_PROTOCOL)
            self._peers, self._names, self._by_link_key = wanted, frozenset(wanted), by_link_key

    async def ask(self, peer: Peer, request: bytes, limit_bytes: int) -> bytes:
        return cast(bytes, await self._put(peer, request, limit_bytes, None))

    async def leaf(
        self, peer: Peer, request: bytes, size_bytes: int, take: Callable[[memoryview], bool]
    ) -> LeafOutcome:
        if not 0 < size_bytes <= LEAF_LIMIT:
            raise ValueError(f"a leaf of {size_bytes} bytes cannot be asked for")
        return cast(LeafOutcome, await self._put(peer, request, size_bytes, take))

    def punish(self, peer: Peer, reason: str) -> None:
        shortest, longest = self.limits.penalty_s
        with self._guard:
            seconds = min(2 * self._penalties.get(peer, (0.0, shortest / 2))[1], longest)
            self._penalties[peer] = (time.monotonic() + seconds, seconds)
            self._leave(peer, f"punished: {reason}")
        _log.warning("peer punished", extra={"peer": peer, "seconds": seconds, "reason": reason})

    async def close(self) -> None:
        """No thread of this port runs when it returns, so that what they serve from may be closed next."""
        self._closed.set()
        if self._listener is not None:
            wire.shut(self._listener)
        with self._guard:
            for peer in tuple(self._lines):
                self._leave(peer, "closing")
            threads = [self._accepting, *self._ending, *(session.thread for session in self._sessions)]
            for session in self._sessions:
                session.end()
        for thread in threads:
            if thread is not None:
                await asyncio.to_thread(thread.join, _JOIN_S)
        if self._listener is not None:
            self._listener.close()

    # Asking

    def _put(
        self, peer: Peer, request: bytes, limit_bytes: int, take: Callable[[memoryview], bool] | None
    ) -> asyncio.Future[object]:
        if len(request) > REQUEST_LIMIT:
            raise ValueError(f"a request of {len(request)} bytes is over the limit")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._line(peer).put(Question(request, limit_bytes, take, future))
        return future

    def _line(self, peer: Peer) -> Line:
        with self._guard:
            address = self._peers.get(peer)
            if address is None or not address.port or self._closed.is_set():
                raise PeerGone("nobody knows where this peer listens")
            if self._penalty(peer) > 0:
                raise PeerGone("the peer is punished")
            line = self._lines.get(peer)
            if line is None:
                context = self.context
                line = self._lines[peer] = Line(
                    peer, address, self.chain_id, lambda: context(server=False), self.limits, self.punish
                )
            return line

    def _leave(self, peer: Peer, reason: str) -> None:
        line = self._lines.pop(peer, None)
        self._ending = [thread for thread in self._ending if thread.is_alive()]
        if line is not None and (thread := line.end(reason)) is not None:
            self._ending.append(thread)
        for session in self._sessions:
            if session.peer == peer:
                session.end()

    def _penalty(self, peer: Peer) -> float:
        return self._penalties.get(peer, (0.0, 0.0))[0] - time.monotonic()

    # Answering; on threads

    def context(self, *, server: bool) -> ssl.SSLContext:
        with self._guard:
            return self._identity.server() if server else self._identity.client()

    def met(self, session: _Session, link_key: bytes) -> None:
        with self._guard:
            peer = self._by_link_key.get(link_key)
            if peer is None:
                raise Refused("it is not a validator of this chain")
            if self._penalty(peer) > 0:
                raise Refused("it is punished")
            mine = [each for each in self._sessions if each.peer == peer]
            session.peer = peer
            for each in mine[: len(mine) + 1 - self.limits.sessions_per_peer]:
                # Most likely one whose other end is gone without a word.
                each.end()

    def left(self, session: _Session) -> None:
        with self._guard:
            self._sessions.remove(session)

    def breached(self, peer: Peer, reason: str) -> None:
        if peer:
            self.punish(peer, reason)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closed.is_set():
            try:
                plain, address = self._listener.accept()
            except OSError as error:
                if not self._closed.is_set():
                    # Out of descriptors, most likely: it is tried again when some are free.
                    _log.warning("cannot accept a connection: %s", error)
                    self._closed.wait(_BREATH_S)
                continue
            host = str(address[0])
            with self._guard:
                strangers = Counter(each.host for each in self._sessions if not each.peer)
                limits = self.limits
                full = strangers.total() >= limits.strangers or strangers[host] >= limits.strangers_by_address
                if full or self._closed.is_set():
                    plain.close()
                    continue
                session = _Session(self, plain, host)
                self._sessions.append(session)
                try:
                    session.thread.start()
                except RuntimeError:
                    # The system has no more threads to give.
                    self._sessions.remove(session)
                    plain.close()


def _serve_nothing(peer: Peer, request: bytes) -> bytes:
    return b""
