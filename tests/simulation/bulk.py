"""Bulk connections in memory: every byte takes its time, and is counted by who sent it to whom.

Each endpoint has one way out, of so many bytes a second, which it shares answer by answer among the connections
that wait; then the answer travels for the latency. As with the real port, each side asks on a connection of its own,
answers come in the order of the requests, and whoever cancels a request has its answer sent all the same. A
connection breaks when it is cut, or when the other side is gone; what was asked on it ends in PeerGone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from struct import Struct
from typing import Any

from chain.codec import CodecError
from node.ports import Buffer, LeafOutcome, Peer, PeerAddress, PeerGone, PortError, Serve
from tests.simulation.loop import Crash, drawn_from

MIB = 1024 * 1024
DIAL_SECONDS = 0.02
UNREACHABLE_SECONDS = 0.2
"""So long it takes to find that nobody listens."""

STALL_SECONDS = 20.0
"""An answer of which nothing has come for so long ends its connection."""

PENALTY_SECONDS = 5.0
PENALTY_LIMIT_SECONDS = 300.0
HEADER_BYTES = 5
_ORDER_SECONDS = 1e-6

_EVENT = Struct("<dHHII")

Answer = Callable[[Peer, bytes, Serve], Buffer | None]
"""What a Byzantine endpoint answers instead: the asker, its request, and what the honest part would do. None: it never
answers."""

Take = Callable[[memoryview], bool]


@dataclass(slots=True, eq=False)
class _Question:
    request: bytes
    limit_bytes: int
    take: Take | None
    future: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Connection:
    """Dialled by `source` to ask `target`."""

    source: BulkEndpoint
    target: BulkEndpoint
    asked: deque[_Question] = field(default_factory=deque)
    """In the order in which answers are due; all have arrived at the target."""
    sending: bool = False
    broken: bool = False
    refused: bool = False
    """It never came about, which its source has yet to notice."""
    due: deque[_Question] = field(default_factory=deque)
    """All that are not answered, in order."""
    silence: asyncio.TimerHandle | None = None
    last: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """When the newest request, and the newest answer, arrives: none overtakes another."""


class BulkEndpoint:
    """A place on the network, the same through all incarnations of the data process there."""

    def __init__(self, number: int, name: str, key: Peer, egress_bytes_s: float, latency_s: float) -> None:
        self.number = number
        self.name = name
        self.key = key
        self.egress_bytes_s = egress_bytes_s
        self.latency_s = latency_s
        self.answer: Answer | None = None
        """Set to make it Byzantine."""
        self.port: SimulatedBulk | None = None
        self.penalties: dict[Peer, tuple[float, float]] = {}
        self.ready: deque[_Connection] = deque()
        self.busy = False


class BulkNetwork:
    def __init__(self, seed: int, egress_mib_s: float = 100.0, latency_ms: float = 5.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._random = drawn_from(seed, "bulk")
        self._egress_bytes_s = egress_mib_s * MIB
        self._latency_s = latency_ms / 1000
        self._endpoints: dict[Peer, BulkEndpoint] = {}
        self._connections: dict[tuple[Peer, Peer], _Connection] = {}
        self._blocked: set[tuple[Peer, Peer]] = set()
        self._hash = sha256()
        self.sent: Counter[tuple[str, str]] = Counter()
        """Bytes of answers, by source and target."""
        self.punishments: list[tuple[str, str, str]] = []
        """Who punished whom, and why."""

    def join(self, name: str, key: Peer) -> BulkEndpoint:
        endpoint = BulkEndpoint(len(self._endpoints), name, key, self._egress_bytes_s, self._latency_s)
        self._endpoints[key] = endpoint
        return endpoint

    def event_hash(self) -> str:
        """Equal for two runs if and only if the same answers were sent at the same times in the same order."""
        return self._hash.hexdigest()

    def egress(self, name: str) -> int:
        return sum(count for (source, _), count in self.sent.items() if source == name)

    def cut(self, a: Peer, b: Peer) -> None:
        """The connections between the two break; they will be dialled again."""
        for pair in ((a, b), (b, a)):
            self._break(self._connections.get(pair), "the connection was cut")

    def block(self, a: Peer, b: Peer) -> None:
        """Nothing passes between the two, and nobody is told."""
        self._blocked |= {(a, b), (b, a)}

    def unblock(self, a: Peer, b: Peer) -> None:
        self._blocked -= {(a, b), (b, a)}
        for pair in ((a, b), (b, a)):
            connection = self._connections.get(pair)
            if connection is not None and connection.asked:
                self._queue(connection)

    # For the ports

    def attach(self, endpoint: BulkEndpoint, port: SimulatedBulk) -> None:
        endpoint.port = port

    def detach(self, endpoint: BulkEndpoint, *, noticed: bool) -> None:
        """The process is gone. Its peers notice at once, or after the silence of a machine without power."""
        endpoint.port = None
        endpoint.ready.clear()
        for pair, connection in list(self._connections.items()):
            if endpoint.key not in pair:
                continue
            if noticed or connection.source is endpoint:
                self._break(connection, "the peer closed the connection")
            else:
                connection.asked.clear()
                del self._connections[pair]
                self._loop.call_later(
                    self._random.uniform(0.5, 1.0) * STALL_SECONDS, self._break, connection, "the peer fell silent"
                )

    def ask(self, source: BulkEndpoint, peer: Peer, question: _Question) -> None:
        target = self._endpoints.get(peer)
        port = source.port
        if port is None or target is None or peer not in port.addresses or not port.addresses[peer].port:
            raise PeerGone("nobody knows where this peer listens")
        if _punished(source, peer, self._loop.time()):
            raise PeerGone("the peer is punished")
        connection = self._connections.get((source.key, peer))
        when = self._loop.time() + target.latency_s
        if connection is None:
            connection = self._connections[source.key, peer] = _Connection(source, target)
            when += DIAL_SECONDS
        connection.due.append(question)
        if len(connection.due) == 1:
            self._watch(connection)
        when = connection.last[0] = max(when, connection.last[0] + _ORDER_SECONDS)
        self._loop.call_at(when, self._arrive, connection, question)

    def punish(self, source: BulkEndpoint, peer: Peer, reason: str) -> None:
        seconds = min(
            2 * source.penalties.get(peer, (0.0, PENALTY_SECONDS / 2))[1],
            PENALTY_LIMIT_SECONDS,
        )
        source.penalties[peer] = (self._loop.time() + seconds, seconds)
        self.punishments.append((source.name, self._endpoints[peer].name, reason))
        self.cut(source.key, peer)

    def leave(self, a: Peer, b: Peer) -> None:
        self.cut(a, b)

    # Within

    def _arrive(self, connection: _Connection, question: _Question) -> None:
        if connection.broken or connection.refused:
            return
        target, source = connection.target, connection.source
        port = target.port
        if port is None or source.key not in port.addresses or _punished(target, source.key, self._loop.time()):
            # What follows on this connection is lost with it, even if the peer is up again by then.
            connection.refused = True
            self._loop.call_later(
                UNREACHABLE_SECONDS if port is None else 0.0, self._break, connection, "the peer refuses"
            )
            return
        connection.asked.append(question)
        self._queue(connection)

    def _queue(self, connection: _Connection) -> None:
        if not connection.sending and connection not in connection.target.ready:
            connection.target.ready.append(connection)
        self._pump(connection.target)

    def _pump(self, endpoint: BulkEndpoint) -> None:
        while not endpoint.busy and endpoint.ready:
            connection = endpoint.ready.popleft()
            port = endpoint.port
            blocked = (connection.source.key, endpoint.key) in self._blocked
            if connection.broken or not connection.asked or port is None or blocked:
                continue
            question = connection.asked.popleft()
            connection.sending = True
            try:
                answer = self._answer(endpoint, port, connection.source.key, question.request)
            except CodecError as error:
                self.punish(endpoint, connection.source.key, f"it asks for nothing that there is: {error}")
                continue
            except PortError:
                connection.sending = False
                connection.due.remove(question)
                _fail(question.future, PeerGone("the peer could not answer"))
                self._queue(connection)
                continue
            except Crash:
                # Its machine went down while it looked for the answer.
                continue
            if answer is None:
                # It blocks what comes after it, for answers keep their order.
                continue
            endpoint.busy = True
            size_bytes = len(memoryview(answer)) + HEADER_BYTES
            self._loop.call_later(
                size_bytes / endpoint.egress_bytes_s, self._sent, connection, question, answer, size_bytes
            )

    def _answer(self, endpoint: BulkEndpoint, port: SimulatedBulk, peer: Peer, request: bytes) -> Buffer | None:
        if endpoint.answer is not None:
            return endpoint.answer(peer, request, port.serve)
        return port.serve(peer, request)

    def _sent(self, connection: _Connection, question: _Question, answer: Buffer, size_bytes: int) -> None:
        endpoint = connection.target
        endpoint.busy = connection.sending = False
        if not connection.broken:
            now = self._loop.time()
            source, target = endpoint, connection.source
            self.sent[source.name, target.name] += size_bytes
            self._hash.update(_EVENT.pack(now, source.number, target.number, size_bytes, sum(question.request)))
            when = connection.last[1] = max(now + endpoint.latency_s, connection.last[1] + _ORDER_SECONDS)
            self._loop.call_at(when, self._deliver, connection, question, answer)
            if connection.asked:
                endpoint.ready.append(connection)
        self._pump(endpoint)

    def _deliver(self, connection: _Connection, question: _Question, answer: Buffer) -> None:
        if connection.broken:
            return
        assert connection.due.popleft() is question
        self._watch(connection)
        view = memoryview(answer)
        leaf = question.take is not None
        if len(view) > question.limit_bytes or (leaf and view and len(view) != question.limit_bytes):
            _fail(question.future, PeerGone("the connection ended"))
            self.punish(connection.source, connection.target.key, f"an answer of {len(view)} bytes")
            return
        if question.future.done():
            return
        if question.take is None:
            question.future.set_result(bytes(view))
        elif not view:
            question.future.set_result(LeafOutcome.ABSENT)
        else:
            try:
                taken = question.take(view)
            except (Exception, Crash) as error:
                _fail(question.future, error)
            else:
                question.future.set_result(LeafOutcome.TAKEN if taken else LeafOutcome.REJECTED)

    def _watch(self, connection: _Connection) -> None:
        """Ends the connection if the answer that is due does not come."""
        if connection.silence is not None:
            connection.silence.cancel()
        connection.silence = None
        if connection.due:
            connection.silence = self._loop.call_later(STALL_SECONDS, self._break, connection, "the peer fell silent")

    def _break(self, connection: _Connection | None, reason: str) -> None:
        if connection is None or connection.broken:
            return
        connection.broken = True
        if connection.silence is not None:
            connection.silence.cancel()
        pair = (connection.source.key, connection.target.key)
        if self._connections.get(pair) is connection:
            del self._connections[pair]
        for question in connection.due:
            _fail(question.future, PeerGone(reason))


def _punished(endpoint: BulkEndpoint, peer: Peer, now: float) -> bool:
    return endpoint.penalties.get(peer, (0.0, 0.0))[0] > now


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        # The one who asked may be gone.
        future.exception()


class SimulatedBulk:
    """The Bulk of one incarnation."""

    def __init__(self, network: BulkNetwork, endpoint: BulkEndpoint) -> None:
        self._network = network
        self._endpoint = endpoint
        self._names: frozenset[Peer] = frozenset()
        self._powered = True
        self.addresses: dict[Peer, PeerAddress] = {}
        self.serve: Serve = lambda peer, request: b""

    @property
    def own(self) -> Peer:
        return self._endpoint.key

    def peers(self) -> frozenset[Peer]:
        return self._names

    async def start(self, peers: Mapping[Peer, PeerAddress], serve: Serve) -> int:
        self._check()
        self.serve = serve
        self._network.attach(self._endpoint, self)
        await self.update(peers)
        return 1 + self._endpoint.number

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None:
        self._check()
        wanted = {peer: address for peer, address in peers.items() if peer != self.own}
        for peer, address in self.addresses.items():
            if wanted.get(peer) != address:
                self._network.leave(self.own, peer)
        self.addresses, self._names = wanted, frozenset(wanted)

    async def ask(self, peer: Peer, request: bytes, limit_bytes: int) -> bytes:
        return bytes(await self._put(peer, request, limit_bytes, None))

    async def leaf(self, peer: Peer, request: bytes, size_bytes: int, take: Take) -> LeafOutcome:
        if not 0 < size_bytes <= MIB:
            raise ValueError(f"a leaf of {size_bytes} bytes cannot be asked for")
        outcome: LeafOutcome = await self._put(peer, request, size_bytes, take)
        return outcome

    def punish(self, peer: Peer, reason: str) -> None:
        self._check()
        self._network.punish(self._endpoint, peer, reason)

    async def close(self) -> None:
        self._check()
        if self._endpoint.port is self:
            self._network.detach(self._endpoint, noticed=True)

    def cut_power(self, *, noticed: bool = False) -> None:
        """`noticed`: only the process ended, and its system said so to all."""
        self._powered = False
        if self._endpoint.port is self:
            self._network.detach(self._endpoint, noticed=noticed)

    def _put(self, peer: Peer, request: bytes, limit_bytes: int, take: Take | None) -> asyncio.Future[Any]:
        self._check()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._network.ask(self._endpoint, peer, _Question(request, limit_bytes, take, future))
        return future

    def _check(self) -> None:
        if not self._powered:
            raise Crash
