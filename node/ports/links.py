"""Links to the other validators over TLS: who may connect, how frames travel, what happens to the slow and
the silent.

Per pair there are two connections, one a channel, so that votes never queue behind bytes in bulk. The
validator with the lower consensus key dials, the other listens; a connection that ends is dialled again,
later each time, for ever. After the TLS handshake each side knows the other's link key
(`node.ports.identity`). Both then say hello: the chain that they belong to and, the dialler, the channel.
Only with the other's hello is the link up.

On the wire: length u32 (big endian), bytes. Length 0 says "I live". A length above the channel's limit ends
the link before a byte of it is stored. Every queue has a bound:

- to send, per link: a full CONSENSUS queue drops its oldest frames, a full DATA queue refuses the offered
one; - received and not yet taken, per peer and channel, through all its connections: beyond it reading stops,
and TCP holds the peer back; - connections that have not said hello: by address and in total, beyond which
they are closed at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections import Counter, deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from chain.keys import SigningKey
from consensus.messages import FRAME_LIMIT
from node.ports import Channel, Down, Frame, LinkEvent, Peer, PeerAddress, Up
from node.ports.identity import Impostor, LinkIdentity, link_key_of
from node.ports.inbox import Inbox

_log = logging.getLogger("quorate.links")

_MIB = 1024 * 1024
_LENGTH_BYTES = 4
_LIVING = bytes(_LENGTH_BYTES)
_HELLO_MAGIC = b"quorate\x01"
_HELLO_BYTES = len(_HELLO_MAGIC) + 32 + 1
_STAGING_BYTES = 64 * 1024
_GATHER_BYTES = 64 * 1024
_WRITE_AHEAD_BYTES = 256 * 1024
"""What is handed to the socket before a queue forms: what waits there can no longer be dropped in favour
of newer frames."""

_EVENT_BYTES = 256
"""What an event in the inbox counts for beside its bytes, so that empty frames are not free."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    frame_bytes: Mapping[Channel, int] = field(default_factory=lambda: dict(FRAME_LIMIT))
    queue_bytes: Mapping[Channel, int] = field(
        default_factory=lambda: {Channel.CONSENSUS: 4 * _MIB, Channel.DATA: 8 * _MIB}
    )
    """Of frames to send, and as much again of frames received."""
    handshake_s: float = 5.0
    ping_s: float = 1.0
    silence_s: float = 6.0
    """A link on which nothing came for so long is dead."""
    stall_s: float = 20.0
    """So is one whose peer has not taken a byte for so long while frames waited."""
    retry_s: tuple[float, float] = (0.1, 10.0)
    penalty_s: tuple[float, float] = (5.0, 300.0)
    strangers: int = 64
    strangers_by_address: int = 32


@dataclass(frozen=True, slots=True)
class LinkState:
    """For operators: why a link is not up."""

    peer: Peer
    channel: Channel
    up: bool
    dropped_frames: int
    trouble: str


class _Refused(Exception):
    """The sentence says why a connection ends."""


class _Lane:
    """One peer and channel, through all its connections."""

    __slots__ = (
        "channel",
        "connection",
        "dialler",
        "dropped",
        "frame_limit_bytes",
        "peer",
        "queue_bytes",
        "trouble",
        "waiting_bytes",
    )

    def __init__(self, peer: Peer, channel: Channel, limits: LinkLimits) -> None:
        self.peer = peer
        self.channel = channel
        self.frame_limit_bytes = limits.frame_bytes[channel]
        self.queue_bytes = limits.queue_bytes[channel]
        self.connection: _Connection | None = None
        self.dialler: asyncio.Task[None] | None = None
        self.waiting_bytes = 0
        self.dropped = 0
        self.trouble = ""

    @property
    def crowded(self) -> bool:
        return self.waiting_bytes >= self.queue_bytes

    def taken(self, size_bytes: int) -> None:
        self.waiting_bytes -= size_bytes
        if self.connection is not None and self.connection.paused and not self.crowded:
            self.connection.resume()


class _Connection(asyncio.BufferedProtocol):
    """One TLS connection from its handshake to its end."""

    def __init__(self, links: TlsLinks, dialled: _Lane | None) -> None:
        self._links = links
        self._dialled = dialled
        self._limits = links.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.lane: _Lane | None = None
        self.link_key = b""
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.paused = False
        self._staging = bytearray(_STAGING_BYTES)
        self._view = memoryview(self._staging)
        self._end = 0
        self._large: bytearray | None = None
        self._filled = 0
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._flushing = False
        self._stalled_since: float | None = None
        self._received_at = self._sent_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not descend from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(_WRITE_AHEAD_BYTES)
        self._received_at = self._loop.time()
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            self.link_key = link_key_of(transport.get_extra_info("ssl_object"))
            if self._dialled is not None:
                self._links.expect(self._dialled.peer, self.link_key)
                self._hello(self._dialled.channel)
        except (Impostor, _Refused) as refusal:
            self.drop(str(refusal))

    def connection_lost(self, error: Exception | None) -> None:
        self.drop(str(error) if error else "the peer closed the connection")

    def drop(self, reason: str) -> None:
        """Ends the connection at once; what is queued is lost."""
        if self.closed.done():
            return
        self.closed.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(_Refused(reason))
            # Nobody may be waiting any more.
            self.ready.exception()
        if self._transport is not None:
            self._transport.abort()
        self._queue.clear()
        self._queued_bytes = 0
        if self.lane is not None:
            self._links.went_down(self.lane, self, reason)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return self._view[self._end :]

    def buffer_updated(self, count: int) -> None:
        if self.closed.done():
            return
        self._received_at = self._loop.time()
        try:
            if self._large is None:
                self._end += count
                self._take_staged()
                return
            self._filled += count
            if self._filled == len(self._large):
                frame, self._large = bytes(self._large), None
                self._take(frame)
        except _Refused as refusal:
            self.drop(str(refusal))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._stalled_since = self._loop.time()

    def resume_writing(self) -> None:
        self._stalled_since = None
        self._flush()

    def resume(self) -> None:
        self.paused = False
        self._received_at = self._loop.time()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, frame: bytes) -> bool:
        lane = self.lane
        assert lane is not None
        bound, size_bytes = lane.queue_bytes, _LENGTH_BYTES + len(frame)
        if self._queued_bytes + size_bytes > bound and lane.channel is Channel.DATA:
            lane.dropped += 1
            return False
        while self._queue and self._queued_bytes + size_bytes > bound:
            self._queued_bytes -= _LENGTH_BYTES + len(self._queue.popleft())
            lane.dropped += 1
        self._queue.append(frame)
        self._queued_bytes += size_bytes
        if not self._flushing and self._stalled_since is None:
            # Once a turn of the loop, so that the frames of one step share a TLS record and a system call.
            self._flushing = True
            self._loop.call_soon(self._flush)
        return True

    def beat(self, now: float, pardon: bool) -> None:
        """Called every now and then: shows that this side lives, and checks that the other does."""
        if pardon:
            self._received_at = now
        silent = not self.paused and now - self._received_at > self._limits.silence_s
        stalled = self._stalled_since is not None and now - self._stalled_since > self._limits.stall_s
        if silent or stalled:
            self.drop("the peer fell silent" if silent else "the peer takes no bytes")
        elif self._stalled_since is None and not self._queue and now - self._sent_at >= self._limits.ping_s:
            self._write(_LIVING)

    def _hello(self, channel: Channel) -> None:
        hello = _HELLO_MAGIC + self._links.chain_id + bytes([channel])
        self._write(len(hello).to_bytes(_LENGTH_BYTES, "big") + hello)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._sent_at = self._loop.time()
        self._transport.write(data)

    def _flush(self) -> None:
        self._flushing = False
        while self._queue and self._stalled_since is None and not self.closed.done():
            pieces: list[bytes] = []
            gathered = 0
            while self._queue and gathered < _GATHER_BYTES:
                frame = self._queue.popleft()
                pieces += (len(frame).to_bytes(_LENGTH_BYTES, "big"), frame)
                gathered += _LENGTH_BYTES + len(frame)
            self._queued_bytes -= gathered
            self._write(b"".join(pieces))

    def _take_staged(self) -> None:
        view, start, end = self._view, 0, self._end
        while end - start >= _LENGTH_BYTES and self._large is None and not self.closed.done():
            size_bytes = int.from_bytes(view[start : start + _LENGTH_BYTES], "big")
            limit = _HELLO_BYTES if self.lane is None else self.lane.frame_limit_bytes
            if size_bytes > limit:
                raise _Refused(f"a frame of {size_bytes} bytes, the limit is {limit}")
            body, after = start + _LENGTH_BYTES, start + _LENGTH_BYTES + size_bytes
            if after <= end:
                start = after
                if size_bytes:
                    self._take(bytes(view[body:after]))
            elif _LENGTH_BYTES + size_bytes <= _STAGING_BYTES:
                break
            else:
                self._large = bytearray(size_bytes)
                self._filled = end - body
                self._large[: self._filled] = view[body:end]
                start = end
        remaining = end - start
        if start and remaining:
            self._staging[:remaining] = self._staging[start:end]
        self._end = remaining

    def _take(self, frame: bytes) -> None:
        lane = self.lane
        if lane is None:
            self._meet(frame)
            return
        self._links.deliver(lane, Frame(lane.peer, lane.channel, frame), len(frame))
        if lane.crowded and not self.paused:
            self.paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    def _meet(self, hello: bytes) -> None:
        start = _HELLO_MAGIC + self._links.chain_id
        if len(hello) != _HELLO_BYTES or hello[:-1] != start or hello[-1] not in tuple(Channel):
            raise _Refused("it speaks for another chain or another version")
        channel = Channel(hello[-1])
        if self._dialled is None:
            lane = self._links.admit(self.link_key, channel)
            self._hello(channel)
        else:
            lane = self._links.confirm(self._dialled, channel)
        self._links.came_up(lane, self)
        if not self.ready.done():
            self.ready.set_result(None)


class TlsLinks:
    """The Links of a validator: `key` is its link key, `own` its consensus key, by which peers name it."""

    def __init__(
        self,
        key: SigningKey,
        own: Peer,
        chain_id: bytes,
        listen: tuple[str, int],
        limits: LinkLimits | None = None,
    ) -> None:
        self.limits = limits or LinkLimits()
        self.chain_id = chain_id
        self._key = key
        self._own = own
        self._listen = listen
        self._identity = LinkIdentity(key, ())
        self._peers: dict[Peer, PeerAddress] = {}
        self._by_link_key: dict[bytes, Peer] = {}
        self._lanes: dict[tuple[Peer, Channel], _Lane] = {}
        self._penalties: dict[Peer, tuple[float, float]] = {}
        self._inbox = Inbox()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        assert self._listener is not None
        port: int = self._listener.getsockname()[1]
        return port

    def states(self) -> list[LinkState]:
        return [
            LinkState(lane.peer, lane.channel, lane.connection is not None, lane.dropped, lane.trouble)
            for lane in self._lanes.values()
        ]

    async def start(self, peers: Mapping[Peer, PeerAddress]) -> None:
        host, port = self._listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener), "links accept")
        self._spawn(self._beat(), "links beat")
        await self.update(peers)

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None:
        wanted = {peer: address for peer, address in peers.items() if peer != self._own}
        if len({address.link_key for address in wanted.values()}) != len(wanted):
            raise ValueError("two validators have the same link key")
        for peer, address in list(self._peers.items()):
            if wanted.get(peer) != address:
                self._leave(peer)
        fresh = [peer for peer in wanted if self._peers.get(peer) != wanted[peer]]
        self._peers = wanted
        self._by_link_key = {address.link_key: peer for peer, address in wanted.items()}
        self._identity = LinkIdentity(self._key, self._by_link_key)
        for peer in fresh:
            for channel in Channel:
                lane = self._lanes[peer, channel] = _Lane(peer, channel, self.limits)
                if self._own < peer:
                    lane.dialler = self._spawn(self._dial(lane), f"links dial {peer[1:5].hex()} {channel.name}")

    def send(self, peer: Peer, channel: Channel, frame: bytes) -> bool:
        if len(frame) > self.limits.frame_bytes[channel]:
            raise ValueError(f"a frame of {len(frame)} bytes is over the limit of its channel")
        lane = self._lanes.get((peer, channel))
        return lane is not None and lane.connection is not None and lane.connection.send(frame)

    def receive(self) -> Coroutine[Any, Any, LinkEvent]:
        return self._inbox.get()

    @property
    def waiting(self) -> int:
        return len(self._inbox)

    def punish(self, peer: Peer, reason: str) -> None:
        shortest, longest = self.limits.penalty_s
        seconds = min(2 * self._penalties.get(peer, (0.0, shortest / 2))[1], longest)
        self._penalties[peer] = (asyncio.get_running_loop().time() + seconds, seconds)
        _log.warning("peer %s punished for %.1f s: %s", peer[1:5].hex(), seconds, reason)
        for channel in Channel:
            lane = self._lanes.get((peer, channel))
            if lane is not None and lane.connection is not None:
                lane.connection.drop(f"punished: {reason}")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in list(self._peers):
            self._leave(peer)
        self._peers = {}
        if self._listener is not None:
            self._listener.close()

    def expect(self, peer: Peer, link_key: bytes) -> None:
        if self._by_link_key.get(link_key) != peer:
            raise _Refused("another validator answers at its address")

    def confirm(self, lane: _Lane, channel: Channel) -> _Lane:
        if channel is not lane.channel:
            raise _Refused("it answered for another channel")
        if self._penalty(lane.peer) > 0:
            raise _Refused("it is punished")
        return lane

    def admit(self, link_key: bytes, channel: Channel) -> _Lane:
        peer = self._by_link_key.get(link_key)
        if peer is None:
            raise _Refused("it is not a validator of this chain")
        if peer > self._own:
            raise _Refused("this side dials that peer, not the other way round")
        if self._penalty(peer) > 0:
            raise _Refused("it is punished")
        lane = self._lanes[peer, channel]
        if lane.crowded:
            raise _Refused("what it sent before is still waiting")
        return lane

    def came_up(self, lane: _Lane, connection: _Connection) -> None:
        if lane.connection is not None:
            lane.connection.drop("replaced by a newer connection")
        lane.connection = connection
        connection.lane = lane
        lane.trouble = ""
        self.deliver(lane, Up(lane.peer, lane.channel), 0)

    def went_down(self, lane: _Lane, connection: _Connection, reason: str) -> None:
        if lane.connection is connection:
            lane.connection = None
            lane.trouble = reason
            self.deliver(lane, Down(lane.peer, lane.channel), 0)

    def deliver(self, lane: _Lane, event: LinkEvent, size_bytes: int) -> None:
        size_bytes += _EVENT_BYTES
        lane.waiting_bytes += size_bytes
        self._inbox.put(lane.channel, event, lane.taken, size_bytes)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("%s ended by a defect", task.get_name(), exc_info=failure)

    def _leave(self, peer: Peer) -> None:
        for channel in Channel:
            lane = self._lanes.pop((peer, channel))
            if lane.dialler is not None:
                lane.dialler.cancel()
            if lane.connection is not None:
                lane.connection.drop("no longer a peer")

    def _penalty(self, peer: Peer) -> float:
        return self._penalties.get(peer, (0.0, 0.0))[0] - asyncio.get_running_loop().time()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(self.limits.ping_s / 2)
            now = loop.time()
            # After a pause of this process, what the peers sent meanwhile is still to be read: they were not silent.
            paused = now - before > self.limits.silence_s / 2
            for lane in list(self._lanes.values()):
                if lane.connection is not None:
                    lane.connection.beat(now, pardon=paused)

    async def _dial(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        shortest, longest = self.limits.retry_s
        pause = shortest
        while True:
            await asyncio.sleep(max(0.0, self._penalty(lane.peer)))
            began = loop.time()
            try:
                await self._connect(lane)
            except (OSError, TimeoutError, _Refused) as error:
                lane.trouble = f"cannot connect: {error}" if str(error) else "cannot connect: no answer in time"
                _log.info("peer %s %s: %s", lane.peer[1:5].hex(), lane.channel.name, lane.trouble)
            if loop.time() - began > longest:
                pause = shortest
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, longest)

    async def _connect(self, lane: _Lane) -> None:
        """Returns when the connection has ended."""
        loop = asyncio.get_running_loop()
        address = self._peers[lane.peer]
        connection = _Connection(self, lane)
        try:
            async with asyncio.timeout(2 * self.limits.handshake_s):
                await loop.create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=self._identity.client(),
                    server_hostname="",
                    ssl_handshake_timeout=self.limits.handshake_s,
                )
                await connection.ready
            # Shielded, for a cancelled future would pass for an ended connection.
            await asyncio.shield(connection.closed)
        finally:
            connection.drop("this side gave up")

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: the listener stays, and tries again when some are free.
                _log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(0.5)
                continue
            host = str(address[0])
            full = self._strangers.total() >= self.limits.strangers
            if full or self._strangers[host] >= self.limits.strangers_by_address:
                sock.close()
                continue
            self._strangers[host] += 1
            task = self._spawn(self._welcome(sock, host), "links welcome")
            task.add_done_callback(partial(self._met, host))

    def _met(self, host: str, _: asyncio.Task[None]) -> None:
        self._strangers[host] -= 1
        if not self._strangers[host]:
            del self._strangers[host]

    async def _welcome(self, sock: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        connection = _Connection(self, None)
        try:
            async with asyncio.timeout(2 * self.limits.handshake_s):
                await loop.connect_accepted_socket(
                    lambda: connection,
                    sock,
                    ssl=self._identity.server(),
                    ssl_handshake_timeout=self.limits.handshake_s,
                )
                await connection.ready
        except (OSError, TimeoutError, _Refused) as error:
            connection.drop("this side gave up")
            sock.close()
            _log.info("connection from %s refused: %s", host, error or "no hello in time")
        except asyncio.CancelledError:
            connection.drop("closing")
            sock.close()
            raise


def parse_address(address: str) -> tuple[str, int]:
    """`host:port` or `[host]:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{address!r} is not of the form host:port")
    return host, int(port)
