"""The gateway's door: who is let in, how much is read, and that no call makes it fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.main import main
from fl.client.errors import BadFile, BadInput
from fl.client.flowergate import wire
from fl.client.flowergate.door import _CALLS
from fl.client.flowergate.objects import MOST_OBJECT_BYTES
from fl.client.flowergate.protobuf import encode
from fl.client.flowergate.serve import Place
from fl.client.flowergate.visitors import Stranger, Visitors, read_public_key
from tests.flower.supernode import Gateway, Refused, SuperNode, public_of


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


async def test_a_call_that_is_not_signed_by_its_key_now_is_not_let_in(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node, SuperNode(gateway) as other:
        body = encode(wire.RegisterNode(node.public))
        good = node.signed()
        assert (await node.post("register-node", body, good))[0] == 200
        for bad in (
            {"content-type": good["content-type"]},
            {**good, "flwr-signature": other.signed()["flwr-signature"]},
            {**good, "flwr-timestamp": datetime.now(UTC).isoformat()},
            {**good, "flwr-public-key": "AAAA"},
            {**good, "flwr-public-key": "not base 64"},
            {**good, "flwr-signature": ""},
            {**good, "flwr-public-key": "A" * 2000},
            node.signed(age_s=306),
            node.signed(age_s=-6),
        ):
            status, told = await node.post("register-node", body, bad)
            assert status == 401 and json.loads(told)["detail"].startswith("Not let in")
        assert (await node.post("register-node", body, node.signed(age_s=299)))[0] == 200


async def test_a_node_speaks_for_itself_alone(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node, SuperNode(gateway) as other:
        await node.start()
        other.node_id = node.node_id
        for call, message in (
            ("pull-messages", wire.PullMessages(other.node)),
            ("deactivate-node", wire.NodeIs(node.node_id)),
            ("send-node-heartbeat", wire.Heartbeat(None, 30.0)),
        ):
            with pytest.raises(Refused, match="401"):
                await other.call(call, message, wire.Nothing)
        with pytest.raises(Refused, match="not the one that signed"):
            await other.call("activate-node", wire.ActivateNode(node.public, 30.0), wire.NodeIs)


async def test_with_a_list_of_keys_no_other_is_let_in(tmp_path: Path) -> None:
    known = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "known.pub").write_bytes(openssh(known))
    visitors = Visitors([read_public_key(tmp_path / "known.pub")])
    gateway = Gateway(tmp_path, visitors=visitors)
    async with gateway, SuperNode(gateway, known) as node, SuperNode(gateway) as other:
        await node.start()
        with pytest.raises(Refused, match="not among them") as refused:
            await other.start()
        assert refused.value.status == 409
        other.node_id = visitors.check(other.signed()).node_id
        with pytest.raises(Refused, match="401"):
            await other.pull()


async def test_a_body_of_whoever_is_not_on_the_list_is_not_waited_for(tmp_path: Path) -> None:
    known = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "known.pub").write_bytes(openssh(known))
    gateway = Gateway(tmp_path, visitors=Visitors([read_public_key(tmp_path / "known.pub")]))
    over = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"\x0a"
        await over.wait()

    async with gateway, SuperNode(gateway, known) as node, SuperNode(gateway) as other:
        await node.start()
        held = [asyncio.create_task(other.post("push-object", slow())) for _ in range(8)]
        try:
            done, _ = await asyncio.wait(held, timeout=10)
            assert {each.result()[0] for each in done} == {401} and len(done) == len(held)
        finally:
            over.set()
            await asyncio.gather(*held, return_exceptions=True)


def test_only_keys_of_flowers_kind_are_keys(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "pem").write_bytes(public_of(key))
    (tmp_path / "ssh").write_bytes(openssh(key))
    assert read_public_key(tmp_path / "pem") == read_public_key(tmp_path / "ssh")
    small = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "small").write_bytes(small.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    rsa_key = rsa.generate_private_key(65537, 1024).public_key()
    (tmp_path / "rsa").write_bytes(rsa_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (tmp_path / "text").write_bytes(b"ecdsa-sha2-nistp384 AAAA")
    for name in ("small", "rsa", "text", "missing"):
        with pytest.raises(BadFile):
            read_public_key(tmp_path / name)


async def test_a_body_beyond_its_bound_is_not_read(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        assert (await node.post("pull-messages", bytes(17 * 1024)))[0] == 413
        assert (await node.post("push-object", bytes(MOST_OBJECT_BYTES + 17 * 1024)))[0] == 413


async def test_a_body_without_a_length_is_read_as_far_as_its_bound(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 64 * 1024
            yield bytes(64 * 1024)

    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        # The door may be shut while there is more to come.
        with contextlib.suppress(aiohttp.ClientConnectionError):
            assert (await node.post("pull-messages", endless()))[0] == 413
    assert sent < 64 << 20


async def test_a_compressed_body_is_refused(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        assert (await node.post("push-object", b"", {**node.signed(), "content-encoding": "gzip"}))[0] == 415


async def test_no_body_makes_the_gateway_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each refusal is a JSON with a code, and the gateway goes on."""
    caplog.set_level(logging.ERROR)
    async with Gateway(tmp_path, hold_s=0.0) as gateway, SuperNode(gateway) as node:
        await node.start()
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from([*_CALLS, "no-such-call"]), st.data())
        def call(name: str, data: st.DataObject) -> None:
            start = encode(wire.PullMessages(node.node)) if data.draw(st.booleans()) else b""
            body = start + data.draw(st.one_of(st.binary(max_size=120), likely()))
            status, told = asyncio.run_coroutine_threadsafe(node.post(name, body), loop).result()
            assert status in (200, 400, 401, 403, 404, 409)
            if status != 200:
                assert isinstance(json.loads(told)["code"], int)

        await asyncio.to_thread(call)
        await node.start()
    assert not caplog.records, caplog.text


def likely() -> st.SearchStrategy[bytes]:
    """Bodies that get past the decoder more often than not."""
    names = st.sampled_from(["", "a" * 64, "0" * 64, "../x", "é"])
    numbers = st.sampled_from([0, 1, 77, 2**64 - 1])
    metadata = st.builds(wire.Metadata, numbers, names, numbers, numbers, names, names)
    messages = st.builds(wire.Message, metadata, st.just(wire.Content()), st.none())
    leaf = st.builds(wire.Tree, names)
    trees = st.recursive(leaf, lambda some: st.builds(wire.Tree, names, st.lists(some).map(tuple)), max_leaves=6)
    pushed = st.builds(
        wire.PushMessages, st.none(), st.lists(messages, max_size=2).map(tuple), st.lists(trees, max_size=2).map(tuple)
    )
    objects = st.builds(wire.PushObject, st.none(), numbers, names, st.binary(max_size=30), names)
    return st.one_of(pushed, objects).map(encode)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["flwr-public-key", "flwr-timestamp", "flwr-signature"]), st.text(max_size=80)))
def test_no_headers_make_the_check_fail_in_another_way(headers: dict[str, str]) -> None:
    with pytest.raises(Stranger):
        Visitors().check(headers)


# Where it listens


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    Place(host, 8000).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example", ""])
def test_an_address_that_others_reach_needs_tls_and_keys_or_consent(host: str) -> None:
    certificate = Path("cert.pem")
    for place in (
        Place(host, 8000),
        Place(host, 8000, certificate, certificate),
        Place(host, 8000, keys=(b"key",)),
    ):
        with pytest.raises(BadInput) as refused:
            place.check()
        assert refused.value.code == "INSECURE_ADDRESS"
    Place(host, 8000, certificate, certificate, (b"key",)).check()
    Place(host, 8000, is_insecure=True).check()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--app", ".", "--listen", "0.0.0.0:8000"], "INSECURE_ADDRESS"),
        (["--app", ".", "--listen", "8000"], "BAD_ADDRESS"),
        (["--app", ".", "--fab", "x.fab"], "Give one of --app and --fab"),
        (["--app", "."], "NO_APP"),
        (["--fab", "missing.fab"], "UNREADABLE"),
        (["--app", ".", "--tls-cert", "cert.pem"], "Give --tls-cert and --tls-key"),
    ],
    ids=str,
)
def test_the_command_refuses_before_it_asks_the_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["flower", "serve", "digits", *options])
    assert ended.value.code == 2
    assert what in capsys.readouterr().err
