"""The real links among those who do not keep to the rules. What all Links promise is in test_links_conformance."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from chain.keys import SigningKey
from node.ports import Channel, Down, Frame, PeerAddress, Up
from node.ports.identity import PROTOCOL, LinkIdentity, anchor, leaf
from node.ports.links import LinkLimits, TlsLinks, parse_address
from tests.node.doors import free_port

CHAIN = bytes(range(32))
PATIENCE_SECONDS = 20.0
CONSENSUS = [SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3)]
CONSENSUS.sort(key=lambda key: key.public)
LINK = [SigningKey.from_seed(bytes([n]) * 32) for n in (11, 12, 13)]
PEERS = [key.public for key in CONSENSUS]
STRANGER = SigningKey.from_seed(bytes([99]) * 32)
QUICK = LinkLimits(handshake_s=1.0, ping_s=0.1, silence_s=0.6, stall_s=5.0, retry_s=(0.02, 0.1), penalty_s=(0.4, 2.0))


class Town:
    """Three validators that know one another, and where each listens."""

    def __init__(self) -> None:
        self.ports = [free_port() for _ in PEERS]
        self.links: list[TlsLinks] = []

    def addresses(self, **moved: int) -> dict[bytes, PeerAddress]:
        return {
            peer: PeerAddress(LINK[number].public, "127.0.0.1", moved.get(f"v{number}", self.ports[number]))
            for number, peer in enumerate(PEERS)
        }

    async def settle(
        self,
        number: int,
        key: SigningKey | None = None,
        chain: bytes = CHAIN,
        limits: LinkLimits = QUICK,
        addresses: dict[bytes, PeerAddress] | None = None,
    ) -> TlsLinks:
        links = TlsLinks(key or LINK[number], PEERS[number], chain, ("127.0.0.1", self.ports[number]), limits)
        self.links.append(links)
        await links.start(addresses or self.addresses())
        return links


@asynccontextmanager
async def town() -> AsyncIterator[Town]:
    place = Town()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield place
    finally:
        for links in place.links:
            await links.close()


async def next_of(links: TlsLinks, *kinds: type[Any]) -> Any:
    while True:
        event = await links.receive()
        if isinstance(event, kinds):
            return event


async def both_up(links: TlsLinks) -> None:
    for _ in Channel:
        await next_of(links, Up)


async def comes_true(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def troubles(links: TlsLinks, number: int) -> str:
    return " ".join(state.trouble for state in links.states() if state.peer == PEERS[number])


def never_up(links: TlsLinks) -> bool:
    return not any(state.up for state in links.states())


async def knock(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="")


def hello(channel: Channel = Channel.CONSENSUS, chain: bytes = CHAIN) -> bytes:
    text = b"quorate\x01" + chain + bytes([channel])
    return len(text).to_bytes(4, "big") + text


async def is_shut_out(attempt: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]], said: bytes) -> None:
    """In TLS 1.3 a client learns only with its first read that its certificate was refused."""
    with contextlib.suppress(OSError):
        reader, writer = await attempt
        with contextlib.suppress(OSError):
            writer.write(said)
            await writer.drain()
            # Not even a hello in return.
            assert await reader.read(100) == b""
        writer.close()


async def test_a_validator_with_another_link_key_is_refused() -> None:
    async with town() as place:
        honest = await place.settle(1)
        impostor = await place.settle(0, key=STRANGER)
        await comes_true(lambda: "cannot connect" in troubles(impostor, 1))
        await asyncio.sleep(0.3)
        assert never_up(honest)
        assert never_up(impostor)


async def test_an_impostor_at_a_validators_address_is_refused() -> None:
    async with town() as place:
        await place.settle(1, key=STRANGER)
        honest = await place.settle(0)
        await comes_true(lambda: "certificate verify failed" in troubles(honest, 1))
        assert never_up(honest)


async def test_another_validator_at_a_validators_address_is_refused() -> None:
    async with town() as place:
        await place.settle(2)
        honest = await place.settle(0, addresses=place.addresses(v1=place.ports[2]))
        await comes_true(lambda: "another validator answers" in troubles(honest, 1))
        assert not any(state.up for state in honest.states() if state.peer == PEERS[1])


async def test_a_stranger_is_refused_whoever_it_trusts() -> None:
    async with town() as place:
        honest = await place.settle(1)
        identity = LinkIdentity(STRANGER, [key.public for key in LINK])
        await is_shut_out(knock(place.ports[1], identity.client()), hello())
        assert never_up(honest)


async def test_a_client_without_certificate_is_refused() -> None:
    async with town() as place:
        await place.settle(1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([PROTOCOL])
        await is_shut_out(knock(place.ports[1], context), hello())


async def test_a_validator_of_another_chain_is_refused() -> None:
    async with town() as place:
        await place.settle(1)
        other = await place.settle(0, chain=bytes(32))
        await comes_true(lambda: "cannot connect" in troubles(other, 1))
        assert never_up(other)


async def test_the_higher_key_does_not_dial() -> None:
    async with town() as place:
        await place.settle(0)
        identity = LinkIdentity(LINK[1], [LINK[0].public])
        await is_shut_out(knock(place.ports[0], identity.client()), hello())


def pem_of(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def forged(issuer_key: bytes, signer: SigningKey, *, through_a_certified_name: bool) -> bytes:
    """A leaf in the name of somebody else's link key, signed by one's own: directly, or by a CA of that name below
    one's own."""
    issuer = x509.load_der_x509_certificate(anchor(issuer_key)).subject
    own = x509.load_der_x509_certificate(anchor(signer.public)).subject
    now = datetime.now(UTC)
    secret = Ed25519PrivateKey.from_private_bytes(signer.seed)
    between, last = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()

    def certificate(subject: x509.Name, name: x509.Name, key: Ed25519PublicKey, *, ca: bool) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)

    somebody = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    end = certificate(somebody, issuer, last.public_key(), ca=False)
    if not through_a_certified_name:
        return pem_of(last) + end.sign(secret, None).public_bytes(Encoding.PEM)
    middle = certificate(issuer, own, between.public_key(), ca=True).sign(secret, None)
    chain = (end.sign(between, None), middle)
    return pem_of(last) + b"".join(each.public_bytes(Encoding.PEM) for each in chain)


@pytest.mark.parametrize("through_a_certified_name", [False, True])
async def test_no_validator_can_certify_the_name_of_another(tmp_path: Path, through_a_certified_name: bool) -> None:
    async with town() as place:
        honest = await place.settle(2)
        path = tmp_path / "forged.pem"
        path.write_bytes(forged(LINK[0].public, LINK[1], through_a_certified_name=through_a_certified_name))
        context = LinkIdentity(LINK[1], [LINK[2].public]).client()
        context.load_cert_chain(path)
        await is_shut_out(knock(place.ports[2], context), hello())
        assert never_up(honest)


async def test_an_expired_leaf_is_refused(tmp_path: Path) -> None:
    async with town() as place:
        await place.settle(2)
        path = tmp_path / "old.pem"
        path.write_bytes(leaf(LINK[0], datetime.now(UTC) - timedelta(days=400)))
        context = LinkIdentity(LINK[0], [LINK[2].public]).client()
        context.load_cert_chain(path)
        await is_shut_out(knock(place.ports[2], context), hello())


async def test_nothing_below_tls_1_3_is_spoken() -> None:
    async with town() as place:
        await place.settle(2)
        context = LinkIdentity(LINK[0], [LINK[2].public]).client()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        await is_shut_out(knock(place.ports[2], context), hello())


async def test_who_does_not_speak_tls_or_says_no_hello_is_shut_out() -> None:
    async with town() as place:
        await place.settle(2)
        reader, writer = await asyncio.open_connection("127.0.0.1", place.ports[2])
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() is not None
        writer.close()
        for said in (b"", b"\x00\x00\x00\x05hello", b"\xff" * 40, hello()[:-1] + b"\x07"):
            identity = LinkIdentity(LINK[0], [LINK[2].public])
            await is_shut_out(knock(place.ports[2], identity.client()), said)


async def test_a_crowd_of_strangers_is_turned_away_and_validators_still_come_in() -> None:
    async with town() as place:
        limits = LinkLimits(handshake_s=0.5, retry_s=(0.02, 0.1), strangers=8, strangers_by_address=8)
        honest = await place.settle(1, limits=limits)
        crowd = [await asyncio.open_connection("127.0.0.1", place.ports[1]) for _ in range(40)]
        other = await place.settle(0)
        await both_up(honest)
        await both_up(other)
        for _, writer in crowd:
            writer.close()


async def as_validator(place: Town, channel: Channel) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of the first validator to the third, its bytes written by hand."""
    identity = LinkIdentity(LINK[0], [LINK[2].public])
    reader, writer = await knock(place.ports[2], identity.client())
    writer.write(hello(channel))
    assert await reader.readexactly(len(hello())) == hello(channel)
    return reader, writer


@pytest.mark.parametrize("channel", list(Channel))
async def test_an_oversize_frame_ends_the_link_before_its_bytes_come(channel: Channel) -> None:
    async with town() as place:
        links = await place.settle(2)
        reader, writer = await as_validator(place, channel)
        assert await next_of(links, Up) == Up(PEERS[0], channel)
        writer.write((5).to_bytes(4, "big") + b"valid")
        assert (await next_of(links, Frame)).data == b"valid"
        limit = QUICK.frame_bytes[channel]
        writer.write((limit + 1).to_bytes(4, "big") + b"and more")
        assert await next_of(links, Down) == Down(PEERS[0], channel)
        assert f"a frame of {limit + 1} bytes, the limit is {limit}" in troubles(links, 0)
        assert await reader.read() is not None
        writer.close()


async def test_frames_are_put_together_however_their_bytes_arrive() -> None:
    async with town() as place:
        links = await place.settle(2)
        _, writer = await as_validator(place, Channel.DATA)
        sizes = [1, 3, 70_000, 65_532, 65_533, 5, 200_001, 64]
        frames = [bytes([number]) * size for number, size in enumerate(sizes)]
        stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        step = 1
        while stream:
            writer.write(stream[:step])
            await writer.drain()
            stream, step = stream[step:], step * 3 % 50_021
        for frame in frames:
            assert (await next_of(links, Frame)).data == frame
        writer.close()


async def test_a_second_connection_of_a_peer_replaces_the_first() -> None:
    async with town() as place:
        links = await place.settle(2)
        first, writer = await as_validator(place, Channel.CONSENSUS)
        await next_of(links, Up)
        _, other = await as_validator(place, Channel.CONSENSUS)
        assert isinstance(await links.receive(), Down)
        assert isinstance(await links.receive(), Up)
        assert await first.read() is not None
        other.write((3).to_bytes(4, "big") + b"new")
        assert (await next_of(links, Frame)).data == b"new"
        writer.close()
        other.close()


async def test_a_silent_peer_loses_its_link() -> None:
    async with town() as place:
        links = await place.settle(2)
        _, writer = await as_validator(place, Channel.CONSENSUS)
        await next_of(links, Up)
        await next_of(links, Down)
        assert "fell silent" in troubles(links, 0)
        writer.close()


class Proxy:
    """Between two validators; can fall silent without closing anything, as a dead router does."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self.kill()

    def kill(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += (writer, onward_writer)
        for source, sink in ((reader, onward_writer), (onward_reader, writer)):
            self._tasks.append(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self.flowing.wait()
                sink.write(data)
                await sink.drain()


async def test_a_half_open_link_dies_on_both_sides_and_comes_back() -> None:
    async with town() as place, Proxy(place.ports[1]) as proxy:
        low = await place.settle(0, addresses=place.addresses(v1=proxy.port))
        high = await place.settle(1)
        await both_up(low)
        await both_up(high)
        proxy.flowing.clear()
        for links in (low, high):
            for _ in Channel:
                await next_of(links, Down)
        proxy.kill()
        proxy.flowing.set()
        await both_up(low)
        await both_up(high)


async def test_a_killed_connection_is_dialled_again_for_ever() -> None:
    async with town() as place, Proxy(place.ports[1]) as proxy:
        low = await place.settle(0, addresses=place.addresses(v1=proxy.port))
        high = await place.settle(1)
        for turn in range(4):
            await both_up(low)
            await both_up(high)
            assert low.send(PEERS[1], Channel.CONSENSUS, b"turn %d" % turn)
            assert (await next_of(high, Frame)).data == b"turn %d" % turn
            proxy.kill()


async def test_an_idle_link_stays_up() -> None:
    async with town() as place:
        low, high = await place.settle(0), await place.settle(1)
        await both_up(low)
        await both_up(high)
        await asyncio.sleep(2 * QUICK.silence_s)
        assert low.send(PEERS[1], Channel.CONSENSUS, b"still here")
        event = await high.receive()
        assert event == Frame(PEERS[0], Channel.CONSENSUS, b"still here")


async def test_a_full_consensus_queue_drops_its_oldest_frames_and_keeps_the_order() -> None:
    async with town() as place:
        limits = LinkLimits(
            queue_bytes={Channel.CONSENSUS: 200_000, Channel.DATA: 200_000}, retry_s=(0.02, 0.1), silence_s=60.0
        )
        low, high = await place.settle(0, limits=limits), await place.settle(1, limits=limits)
        await both_up(low)
        await both_up(high)
        count = 20_000
        for number in range(count):
            assert low.send(PEERS[1], Channel.CONSENSUS, number.to_bytes(4, "big") + bytes(1_000))
            if number % 50 == 0:
                await asyncio.sleep(0)
        received: list[int] = []
        while not received or received[-1] != count - 1:
            received.append(int.from_bytes((await next_of(high, Frame)).data[:4], "big"))
        assert received == sorted(set(received))
        dropped = next(state.dropped_frames for state in low.states() if state.channel is Channel.CONSENSUS)
        assert dropped == count - len(received) > 0


async def test_a_punished_peer_comes_back_after_a_penalty_that_doubles(caplog: pytest.LogCaptureFixture) -> None:
    async with town() as place:
        low, high = await place.settle(0), await place.settle(1)
        for _ in range(3):
            await both_up(low)
            await both_up(high)
            high.punish(PEERS[0], "an invalid signature")
        await both_up(high)
    penalties = [record.getMessage() for record in caplog.records if "punished" in record.getMessage()]
    assert [text.split(" for ")[1] for text in penalties] == [
        f"{seconds} s: an invalid signature" for seconds in (0.4, 0.8, 1.6)
    ]


async def test_a_peer_whose_address_changes_is_dialled_there() -> None:
    async with town() as place:
        low = await place.settle(0, addresses=place.addresses(v1=free_port()))
        high = await place.settle(1)
        await comes_true(lambda: "cannot connect" in troubles(low, 1))
        await low.update(place.addresses())
        await both_up(low)
        await both_up(high)


async def test_closing_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with town() as place:
        low, high = await place.settle(0), await place.settle(1)
        await both_up(low)
        await both_up(high)
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before


def test_addresses_are_host_and_port() -> None:
    assert parse_address("north.example:26600") == ("north.example", 26_600)
    assert parse_address("[::1]:1") == ("::1", 1)
    for text in ("north.example", ":1", "north:", "north:0", "north:65536", "north:x"):
        with pytest.raises(ValueError, match="host:port"):
            parse_address(text)
