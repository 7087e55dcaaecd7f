"""What every Bulk promises, asked of the real one and of the simulated one alike; then the real one among those who do
not keep to the rules."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest
import uvloop

from chain.codec import CodecError
from chain.keys import SigningKey
from node.ports import Buffer, Bulk, DiskFailure, DiskFull, LeafOutcome, Peer, PeerAddress, PeerGone, Serve
from node.ports.bulk import BulkLimits, TlsBulk
from node.ports.bulk_wire import LEAF_LIMIT
from node.ports.identity import BULK_PROTOCOL, PROTOCOL, LinkIdentity
from tests.node.doors import free_port
from tests.simulation.bulk import BulkEndpoint, BulkNetwork, SimulatedBulk
from tests.simulation.loop import simulate

CHAIN = bytes(range(32))
CONSENSUS = sorted((SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3)), key=lambda key: key.public)
LINK = [SigningKey.from_seed(bytes([n]) * 32) for n in (11, 12, 13)]
PEERS = [key.public for key in CONSENSUS]
STRANGER = SigningKey.from_seed(bytes([99]) * 32)
PATIENCE_SECONDS = 60.0
QUICK = BulkLimits(handshake_s=5.0, stall_s=1.0, answer_s=5.0, idle_s=5.0, retry_s=(0.02, 0.1), penalty_s=(30.0, 60.0))
HELLO = b"quorate bulk\x01" + CHAIN


def echo(peer: Peer, request: bytes) -> Buffer:
    """A letter and a size: so many times that letter."""
    if request == b"broken":
        raise DiskFailure("the disk is gone")
    if request == b"nonsense":
        raise CodecError("a request of no known type")
    return memoryview(request[:1] * int(request[1:]))


class World(Protocol):
    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None: ...
    def bulk(self, number: int) -> Bulk: ...
    def addresses(self) -> dict[Peer, PeerAddress]: ...


class Real:
    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._loop_factory = loop_factory
        self._ports = [free_port() for _ in PEERS]

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(asyncio.wait_for(body(), PATIENCE_SECONDS))

    def bulk(self, number: int) -> Bulk:
        return TlsBulk(LINK[number], PEERS[number], CHAIN, ("127.0.0.1", self._ports[number]), QUICK)

    def addresses(self) -> dict[Peer, PeerAddress]:
        return {
            peer: PeerAddress(LINK[number].public, "127.0.0.1", self._ports[number])
            for number, peer in enumerate(PEERS)
        }


class Simulated:
    def __init__(self) -> None:
        self._network: BulkNetwork | None = None
        self._endpoints: list[BulkEndpoint] = []

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            self._network = BulkNetwork(seed=1)
            self._endpoints = [self._network.join(f"v{number}", peer) for number, peer in enumerate(PEERS)]
            await body()

        simulate(main)

    def bulk(self, number: int) -> Bulk:
        assert self._network is not None
        return SimulatedBulk(self._network, self._endpoints[number])

    def addresses(self) -> dict[Peer, PeerAddress]:
        return {peer: PeerAddress(LINK[number].public, "", 1 + number) for number, peer in enumerate(PEERS)}


@pytest.fixture(params=["asyncio", "uvloop", "simulated"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "simulated":
        return Simulated()
    return Real(asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop)


@asynccontextmanager
async def started(world: World, *numbers: int, serve: Serve = echo) -> AsyncIterator[list[Bulk]]:
    ports = [world.bulk(number) for number in numbers]
    try:
        for each in ports:
            await each.start(world.addresses(), serve)
        yield ports
    finally:
        for each in ports:
            await each.close()


async def eventually(attempt: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
    while True:
        with contextlib.suppress(PeerGone):
            return await attempt()
        await asyncio.sleep(0.02)


async def refused(bulk: Bulk, number: int) -> bool:
    try:
        await bulk.ask(PEERS[number], b"a1", 1)
    except PeerGone:
        return True
    return False


async def refused_from_now_on(bulk: Bulk, number: int) -> None:
    """Punishing takes a moment; a connection that was lost is made again in less than this."""
    while not await refused(bulk, number):
        await asyncio.sleep(0.02)
    for _ in range(3):
        await asyncio.sleep(0.1)
        assert await refused(bulk, number)


def test_each_side_asks_the_other_and_is_answered(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, b):
            assert a.own == PEERS[0]
            assert a.peers() == {PEERS[1], PEERS[2]}
            assert await a.ask(PEERS[1], b"a3", 10) == b"aaa"
            assert await b.ask(PEERS[0], b"b0", 10) == b""
            assert await b.ask(PEERS[0], b"b100000", 100_000) == b"b" * 100_000

    world.run(body)


def test_the_server_knows_who_asks(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1, 2, serve=lambda peer, request: peer) as (a, b, _):
            assert await a.ask(PEERS[2], b"who", 33) == PEERS[0]
            assert await b.ask(PEERS[2], b"who", 33) == PEERS[1]

    world.run(body)


def test_a_leaf_is_given_to_the_one_who_takes_it_or_is_absent(world: World) -> None:
    async def body() -> None:
        taken: list[bytes] = []

        def take(data: memoryview) -> bool:
            taken.append(bytes(data))
            return data[0] == ord("g")

        async with started(world, 0, 1) as (a, _):
            good, bad = b"g%d" % LEAF_LIMIT, b"b5"
            assert await a.leaf(PEERS[1], good, LEAF_LIMIT, take) is LeafOutcome.TAKEN
            assert await a.leaf(PEERS[1], bad, 5, take) is LeafOutcome.REJECTED
            assert await a.leaf(PEERS[1], b"n0", 5, take) is LeafOutcome.ABSENT
            assert taken == [b"g" * LEAF_LIMIT, b"b" * 5]

    world.run(body)


def test_many_requests_under_way_are_answered_each_with_its_own(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, _):
            answers = await asyncio.gather(*(a.ask(PEERS[1], b"x%d" % n, 1000) for n in range(200)))
            assert [len(answer) for answer in answers] == list(range(200))

    world.run(body)


def test_leaves_and_answers_keep_the_order_of_the_requests(world: World) -> None:
    async def body() -> None:
        order: list[int] = []

        async def one(number: int) -> None:
            if number % 2:
                await a.ask(PEERS[1], b"x%d" % (100 - number), 100)
            else:
                await a.leaf(PEERS[1], b"y%d" % (1 + number), 1 + number, lambda data: True)
            order.append(number)

        async with started(world, 0, 1) as (a, _):
            await asyncio.gather(*(one(number) for number in range(20)))
        assert order == list(range(20))

    world.run(body)


def test_an_answer_over_the_limit_is_not_taken_and_its_sender_punished(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, _):
            with pytest.raises(PeerGone):
                await a.ask(PEERS[1], b"x11", 10)
            await refused_from_now_on(a, 1)

    world.run(body)


def test_a_leaf_of_another_length_is_not_taken_and_its_sender_punished(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, _):
            with pytest.raises(PeerGone):
                await a.leaf(PEERS[1], b"x9", 10, lambda data: pytest.fail("taken"))
            await refused_from_now_on(a, 1)

    world.run(body)


def test_what_taking_a_leaf_raises_reaches_the_asker_and_costs_the_peer_nothing(world: World) -> None:
    async def body() -> None:
        def take(data: memoryview) -> bool:
            raise DiskFull("no room")

        async with started(world, 0, 1) as (a, _):
            with pytest.raises(DiskFull, match="no room"):
                await a.leaf(PEERS[1], b"x9", 9, take)
            assert await a.ask(PEERS[1], b"x1", 1) == b"x"

    world.run(body)


def test_a_cancelled_request_takes_nothing_and_leaves_the_others_in_order(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, _):
            await a.ask(PEERS[1], b"x1", 1)
            first = asyncio.ensure_future(a.leaf(PEERS[1], b"x9", 9, lambda data: pytest.fail("taken")))
            second = asyncio.ensure_future(a.ask(PEERS[1], b"y2", 2))
            first.cancel()
            assert await second == b"yy"
            with pytest.raises(asyncio.CancelledError):
                await first

    world.run(body)


def test_nobody_answers_for_those_who_are_not_there(world: World) -> None:
    async def body() -> None:
        a = world.bulk(0)
        unreachable = {PEERS[2]: PeerAddress(LINK[2].public, "127.0.0.1", 0)}
        await a.start(world.addresses() | unreachable, echo)
        for peer in (PEERS[1], PEERS[2], PEERS[0], bytes(33)):
            with pytest.raises(PeerGone):
                await a.ask(peer, b"x1", 1)
        await a.close()

    world.run(body)


def test_a_peer_that_goes_is_gone_and_when_it_returns_it_is_asked_again(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, b):
            assert await a.ask(PEERS[1], b"x1", 1) == b"x"
            await b.close()
            assert await refused(a, 1)
            async with started(world, 1):
                assert await eventually(lambda: a.ask(PEERS[1], b"y1", 1)) == b"y"

    world.run(body)


def test_requests_under_way_end_with_the_peer(world: World) -> None:
    async def body() -> None:
        held = threading.Event()

        def serve(peer: Peer, request: bytes) -> Buffer:
            if isinstance(world, Real):
                held.wait(0.5)
            return b"x" * 1000

        async with started(world, 0) as (a,):
            b = world.bulk(1)
            await b.start(world.addresses(), serve)
            asking = [asyncio.ensure_future(a.ask(PEERS[1], b"x", 1000)) for _ in range(5)]
            await asyncio.sleep(0.001)
            await b.close()
            results = await asyncio.gather(*asking, return_exceptions=True)
            assert isinstance(results[-1], PeerGone)

    world.run(body)


def test_a_request_that_fails_at_the_server_ends_nothing_else(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, _):
            with pytest.raises(PeerGone):
                await a.ask(PEERS[1], b"broken", 10)
            assert await a.ask(PEERS[1], b"x1", 1) == b"x"

    world.run(body)


def test_who_asks_for_nothing_that_there_is_is_punished(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, b):
            with pytest.raises(PeerGone):
                await a.ask(PEERS[1], b"nonsense", 10)
            await refused_from_now_on(a, 1)
            await refused_from_now_on(b, 0)

    world.run(body)


def test_a_punished_peer_is_neither_asked_nor_answered(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1) as (a, b):
            assert await b.ask(PEERS[0], b"x1", 1) == b"x"
            a.punish(PEERS[1], "a wrong leaf")
            assert await refused(a, 1)
            await refused_from_now_on(b, 0)

    world.run(body)


def test_who_is_no_longer_a_peer_is_neither_asked_nor_answered(world: World) -> None:
    async def body() -> None:
        async with started(world, 0, 1, 2) as (a, b, c):
            assert await b.ask(PEERS[0], b"x1", 1) == b"x"
            assert await c.ask(PEERS[0], b"x1", 1) == b"x"
            await a.update({peer: place for peer, place in world.addresses().items() if peer != PEERS[1]})
            assert a.peers() == {PEERS[2]}
            assert await refused(a, 1)
            await refused_from_now_on(b, 0)
            assert await c.ask(PEERS[0], b"y1", 1) == b"y"
            await a.update(world.addresses())
            assert await eventually(lambda: b.ask(PEERS[0], b"z1", 1)) == b"z"

    world.run(body)


# The real one among those who do not keep to the rules


@asynccontextmanager
async def node(number: int = 1, serve: Serve = echo, limits: BulkLimits = QUICK) -> AsyncIterator[tuple[TlsBulk, int]]:
    bulk = TlsBulk(LINK[number], PEERS[number], CHAIN, ("127.0.0.1", 0), limits)
    peers = {peer: PeerAddress(key.public, "127.0.0.1", 1) for peer, key in zip(PEERS, LINK, strict=True)}
    port = await bulk.start(peers, serve)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield bulk, port
    finally:
        await bulk.close()


def knock(
    port: int, key: SigningKey = LINK[0], protocol: str = BULK_PROTOCOL, hello: bytes = HELLO
) -> ssl.SSLSocket | None:
    """A connection that got as far as both hellos; None if it was refused."""
    identity = LinkIdentity(key, [each.public for each in LINK], protocol)
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    try:
        connection = identity.client().wrap_socket(plain)
        connection.sendall(hello)
        answer = connection.recv(100)
    except OSError:
        return None
    return connection if answer else None


def ends(connection: ssl.SSLSocket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


async def test_a_validator_is_heard() -> None:
    async with node() as (_, port):
        connection = await asyncio.to_thread(knock, port)
        assert connection is not None
        connection.sendall(b"\x00\x02x3")
        assert await asyncio.to_thread(connection.recv, 100) == b"\x00\x00\x00\x00\x03xxx"
        connection.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": STRANGER},
        {"protocol": PROTOCOL},
        {"hello": b"quorate bulk\x01" + bytes(32)},
        {"hello": b"quorate bulk\x02" + CHAIN},
    ],
    ids=["a stranger", "a link", "another chain", "another version"],
)
async def test_others_are_refused_before_they_ask(wrong: dict[str, Any]) -> None:
    async with node() as (_, port):
        assert await asyncio.to_thread(lambda: knock(port, **wrong)) is None


async def test_a_link_is_never_taken_for_a_bulk_connection() -> None:
    """The one who answers at the peer's address speaks for links."""
    context = LinkIdentity(LINK[0], [LINK[1].public], PROTOCOL).server()
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        plain, _ = listener.accept()
        with contextlib.suppress(OSError):
            connection = context.wrap_socket(plain, server_side=True)
            connection.sendall(HELLO)
            connection.recv(100)
            connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    async with node() as (bulk, _):
        await bulk.update({PEERS[0]: PeerAddress(LINK[0].public, "127.0.0.1", listener.getsockname()[1])})
        with pytest.raises(PeerGone, match="it speaks"):
            await bulk.ask(PEERS[0], b"x1", 1)
    await asyncio.to_thread(thread.join)
    listener.close()


async def test_another_validator_at_a_peers_address_is_refused() -> None:
    async with node(2) as (_, port), node(1) as (bulk, _):
        await bulk.update(
            {
                PEERS[0]: PeerAddress(LINK[0].public, "127.0.0.1", port),
                PEERS[2]: PeerAddress(LINK[2].public, "127.0.0.1", 1),
            }
        )
        with pytest.raises(PeerGone, match="another validator answers"):
            await bulk.ask(PEERS[0], b"x1", 1)


async def test_a_request_over_the_limit_ends_the_connection_and_is_punished() -> None:
    async with node() as (_, port):
        connection = await asyncio.to_thread(knock, port)
        assert connection is not None
        connection.sendall(b"\xff\xff")
        assert await asyncio.to_thread(ends, connection)
        assert await asyncio.to_thread(knock, port) is None


async def test_a_peer_has_a_few_connections_and_a_newer_one_replaces_the_oldest() -> None:
    async with node() as (_, port):
        first, second, third = [await asyncio.to_thread(knock, port) for _ in range(3)]
        assert first is not None
        assert await asyncio.to_thread(ends, first)
        for each in (second, third):
            assert each is not None
            each.sendall(b"\x00\x02x1")
            assert await asyncio.to_thread(each.recv, 100) == b"\x00\x00\x00\x00\x01x"


async def test_those_who_say_nothing_cost_a_bounded_number_of_threads_for_a_while() -> None:
    limits = BulkLimits(handshake_s=0.5, strangers=8, strangers_by_address=4)
    async with node(limits=limits) as (_, port):
        before = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        await asyncio.sleep(0.2)
        assert threading.active_count() <= before + 4
        while threading.active_count() > before:
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(knock, port) is not None
        for each in silent:
            each.close()


async def test_a_peer_that_answers_nothing_is_given_up() -> None:
    held = threading.Event()

    def serve(peer: Peer, request: bytes) -> Buffer:
        held.wait(10)
        return b""

    async with node(2, serve=serve) as (_, port), node(1) as (bulk, _):
        await bulk.update({PEERS[2]: PeerAddress(LINK[2].public, "127.0.0.1", port)})
        with pytest.raises(PeerGone):
            await bulk.ask(PEERS[2], b"x1", 1)
        held.set()


async def test_what_is_cancelled_after_it_was_sent_is_read_and_not_taken() -> None:
    asked, held = threading.Event(), threading.Event()

    def serve(peer: Peer, request: bytes) -> Buffer:
        asked.set()
        held.wait(10)
        return echo(peer, request)

    async with node(2, serve=serve) as (_, port), node(1) as (bulk, _):
        await bulk.update({PEERS[2]: PeerAddress(LINK[2].public, "127.0.0.1", port)})
        taken: list[bytes] = []

        def take(data: memoryview) -> bool:
            taken.append(bytes(data))
            return True

        leaf = asyncio.ensure_future(bulk.leaf(PEERS[2], b"x9", 9, take))
        await asyncio.to_thread(asked.wait)
        leaf.cancel()
        held.set()
        assert await bulk.ask(PEERS[2], b"y1", 1) == b"y"
        assert taken == []


async def test_a_connection_that_died_unnoticed_is_dialled_again_for_the_next_request() -> None:
    place = ("127.0.0.1", free_port())
    peers = {peer: PeerAddress(key.public, "127.0.0.1", 1) for peer, key in zip(PEERS, LINK, strict=True)}
    async with node(1) as (bulk, _):
        await bulk.update({PEERS[2]: PeerAddress(LINK[2].public, *place)})
        for letter in (b"x", b"y", b"z"):
            other = TlsBulk(LINK[2], PEERS[2], CHAIN, place, QUICK)
            await other.start(peers, echo)
            # Without the connection of before this would be the first request on it.
            assert await bulk.ask(PEERS[2], letter + b"1", 1) == letter
            await other.close()


async def test_a_peer_that_does_not_read_holds_one_thread_for_a_while() -> None:
    async with node() as (_, port):
        before = threading.active_count()
        connection = await asyncio.to_thread(knock, port)
        assert connection is not None
        request = b"x%d" % (64 * 1024 * 1024)
        connection.sendall(len(request).to_bytes(2, "big") + request)
        await asyncio.sleep(0.1)
        assert threading.active_count() <= before + 2
        while any(each.name.startswith("bulk answer") for each in threading.enumerate()):
            await asyncio.sleep(0.05)


async def test_closing_leaves_no_thread_behind() -> None:
    async with node(2) as (_, port), node(1) as (bulk, _):
        await bulk.update({PEERS[2]: PeerAddress(LINK[2].public, "127.0.0.1", port)})
        with pytest.raises(PeerGone):
            # That node does not know this one's address, but it knows its key.
            await bulk.ask(PEERS[0], b"x1", 1)
        assert await bulk.ask(PEERS[2], b"x1", 1) == b"x"
        assert any(each.name.startswith("bulk") for each in threading.enumerate())
    assert not [each.name for each in threading.enumerate() if each.name.startswith("bulk")]
