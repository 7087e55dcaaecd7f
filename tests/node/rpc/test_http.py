"""The server over real sockets: what clients may do to it, and what it makes of them."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chain.codec import pack
from node.buckets import Rate
from node.ports import PortError
from node.rpc.limits import RpcLimits, client_of
from node.rpc.server import RpcConfig
from tests.node.rpc.certificate import self_signed
from tests.node.rpc.host import LOOSE, Hosted, hosted
from tests.node.wire import HANG_S, Wire, wire_to

QUICK = replace(LOOSE, header_s=0.3, body_s=0.3, write_s=0.3, idle_s=0.6)

Open = Callable[..., AbstractAsyncContextManager[Hosted]]


@pytest.fixture
def host(tmp_path: Path) -> Open:
    def open_(limits: RpcLimits = LOOSE, **config: object) -> AbstractAsyncContextManager[Hosted]:
        return hosted(tmp_path, limits, **config)  # type: ignore[arg-type]

    return open_


def wire(host: Hosted) -> AbstractAsyncContextManager[Wire]:
    return wire_to(host.server.port)


def post(length: int | None, *lines: str, media: str = "application/msgpack") -> bytes:
    framing = [f"Content-Length: {length}"] if length is not None else ["Transfer-Encoding: chunked"]
    head = ["POST /v1/transactions HTTP/1.1", "Host: x", f"Content-Type: {media}", *framing, *lines]
    return "\r\n".join([*head, "", ""]).encode()


GET = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"


async def alive(host: Hosted) -> None:
    async with wire(host) as one:
        one.send(GET)
        assert (await one.answer())[0] == 200


# Bodies


async def test_a_body_declared_too_large_is_refused_before_it_is_read(host: Open) -> None:
    async with host() as node, wire(node) as one:
        one.send(post(4 * 1024 * 1024 + 1))
        await one.problem(413, "BODY_TOO_LARGE")
        await one.ended()
        await alive(node)


async def test_a_body_that_grows_too_large_is_refused_while_it_grows(host: Open) -> None:
    async with host(replace(LOOSE, body_bytes=100_000)) as node, wire(node) as one:
        one.send(post(None))
        for _ in range(10):
            one.send(b"4000\r\n" + bytes(0x4000) + b"\r\n")
        await one.problem(413, "BODY_TOO_LARGE")


async def test_json_is_held_to_a_smaller_size(host: Open) -> None:
    async with host() as node, wire(node) as one:
        one.send(post(1024 * 1024 + 1, media="application/json"))
        await one.problem(413, "BODY_TOO_LARGE")


async def test_bodies_under_way_together_have_a_bound(host: Open) -> None:
    async with host(replace(LOOSE, bodies_bytes=100_000)) as node, wire(node) as slow, wire(node) as other:
        slow.send(post(100_000) + bytes(60_000))
        while node.server.api.turnstile._bodies_bytes <= 40_000:
            await asyncio.sleep(0.01)
        other.send(post(60_000) + bytes(60_000))
        await other.problem(503, "BUSY")
        slow.send(bytes(40_000))
        await slow.problem(400, "MALFORMED_BODY")
        async with wire(node) as third:
            third.send(post(60_000) + bytes(60_000))
            await third.problem(400, "MALFORMED_BODY")


async def test_a_body_that_trickles_is_given_up(host: Open) -> None:
    async with host(QUICK) as node, wire(node) as one:
        one.send(post(1000))
        trickle = asyncio.create_task(send_slowly(one, bytes(100)))
        await one.problem(408, "TOO_SLOW")
        await one.ended()
        trickle.cancel()


async def send_slowly(one: Wire, data: bytes) -> None:
    for byte in data:
        one.send(bytes([byte]))
        await asyncio.sleep(0.05)


async def test_a_truncated_body_costs_nothing_for_long(host: Open) -> None:
    async with host() as node:
        async with wire(node) as one:
            one.send(post(1000) + bytes(500))
            await asyncio.sleep(0.05)
        while node.server.api.turnstile._bodies_bytes or node.server._public._places.total:
            await asyncio.sleep(0.01)
        await alive(node)


async def test_bodies_of_other_types_or_compressed_are_refused(host: Open) -> None:
    async with host() as node:
        for lines, media in (
            ((), "text/plain"),
            ((), ""),
            ((), "application/x-msgpack"),
            (("Content-Encoding: gzip",), "application/json"),
        ):
            async with wire(node) as one:
                one.send(post(3, *lines, media=media) + b"abc")
                await one.problem(415, "UNSUPPORTED_MEDIA_TYPE")


async def test_malformed_chunks_are_refused(host: Open) -> None:
    async with host() as node, wire(node) as one:
        one.send(post(None) + b"zz\r\nabc\r\n")
        found, headers, body = await one.answer()
        assert found == 400 and headers["content-type"] == "application/problem+json", body
        await one.ended()


async def test_100_continue_is_said_before_the_body_and_only_if_it_is_wanted(host: Open) -> None:
    async with host() as node, wire(node) as one:
        one.send(post(1, "Expect: 100-continue"))
        assert (await asyncio.wait_for(one.reader.readuntil(b"\r\n\r\n"), HANG_S)).startswith(b"HTTP/1.1 100")
        one.send(b"\x90")
        await one.problem(400, "MALFORMED_BODY")
        async with wire(node) as other:
            other.send(post(2**40, "Expect: 100-continue"))
            await other.problem(413, "BODY_TOO_LARGE")
        async with wire(node) as third:
            third.send(post(1, "Expect: miracles"))
            await third.problem(417, "EXPECTATION_FAILED")


# Requests


async def test_headers_that_trickle_are_given_up(host: Open) -> None:
    async with host(QUICK) as node, wire(node) as one:
        trickle = asyncio.create_task(send_slowly(one, GET))
        await one.problem(408, "TOO_SLOW")
        await one.ended()
        trickle.cancel()


async def test_connections_that_say_nothing_are_closed(host: Open) -> None:
    async with host(QUICK) as node, wire(node) as silent, wire(node) as idle:
        idle.send(GET)
        assert (await idle.answer())[0] == 200
        await silent.ended()
        await idle.ended()


async def test_a_second_request_on_a_connection_is_held_to_its_time_too(host: Open) -> None:
    async with host(replace(QUICK, idle_s=30)) as node, wire(node) as one:
        one.send(GET)
        assert (await one.answer())[0] == 200
        one.send(b"GET /v1/")
        await one.problem(408, "TOO_SLOW")


async def test_what_is_not_http_is_answered_with_a_problem_and_closed(host: Open) -> None:
    async with host() as node:
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
            b"GET /v1/health\r\n\r\n",
            b"GET /v1/health HTTP/9.9\r\n\r\n",
            b"GET /v1/health HTTP/1.1\r\nHost x\r\n\r\n",
            b"GET /v1/health HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET /v1/health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST /v1/transactions HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET /v1/health HTTP/1.1\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /v1/health HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % number for number in range(100)) + b"\r\n",
        ):
            async with wire(node) as one:
                one.send(data)
                await one.problem(400, "MALFORMED_REQUEST")
                await one.ended()
        await alive(node)


async def test_targets_of_any_form_are_matched_or_refused(host: Open) -> None:
    async with host() as node:
        for target, status in (
            ("http://elsewhere/v1/health", 200),
            ("/v1/health?", 200),
            ("/v1/%68ealth", 200),
            ("/v1/health#part", 200),
            ("*", 400),
            ("//v1/health", 404),
            ("/v1//health", 404),
            ("/v1/health/", 404),
            ("/v1/../v1/health", 404),
            ("/v1/health?a", 400),
            ("/v1/health?%", 400),
            ("/v1/%ff", 400),
            ("/%00", 404),
        ):
            async with wire(node) as one:
                one.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert (await one.answer())[0] == status, target


async def test_methods_that_a_path_does_not_take_are_refused_with_those_it_does(host: Open) -> None:
    async with host() as node, wire(node) as one:
        for method in ("DELETE", "OPTIONS", "TRACE", "PUT"):
            one.send(f"{method} /v1/health HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            headers = await one.problem(405, "METHOD_NOT_ALLOWED")
            assert headers["allow"] == "GET, HEAD"
            assert not any(name.startswith("access-control") for name in headers)


async def test_head_is_get_without_the_body(host: Open) -> None:
    async with host() as node, wire(node) as one:
        one.send(b"HEAD /v1/genesis HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        head = await asyncio.wait_for(one.reader.readuntil(b"\r\n\r\n"), HANG_S)
        assert b"200 OK" in head and b"Content-Length: " in head and b"Content-Length: 0" not in head
        assert (await one.answer())[2] == b'{"status":"alive"}'


# Connections


async def test_one_client_has_so_many_connections_and_all_together_so_many(host: Open) -> None:
    async with host(replace(LOOSE, connections_by_client=3)) as node:
        first = [await asyncio.open_connection("127.0.0.1", node.server.port) for _ in range(3)]
        for _, writer in first:
            writer.write(GET)
        assert all([await Wire(*each).answer() for each in first])
        async with wire(node) as fourth:
            await fourth.problem(503, "TOO_MANY_CONNECTIONS")
            await fourth.ended()
        first[0][1].close()
        while node.server._public._places.total == 3:
            await asyncio.sleep(0.01)
        await alive(node)
        for _, writer in first:
            writer.close()


async def test_an_address_has_a_rate_of_requests(host: Open) -> None:
    async with host(replace(RpcLimits(), requests=Rate(1, 4))) as node, wire(node) as one:
        for _ in range(4):
            one.send(GET)
            assert (await one.answer())[0] == 200
        one.send(GET)
        headers = await one.problem(429, "RATE_LIMITED")
        assert headers["retry-after"] == "1"


async def test_who_does_not_read_answers_is_given_up(host: Open) -> None:
    async with host(replace(QUICK, idle_s=30, header_s=30)) as node:
        with socket.socket() as mute:
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            mute.connect(("127.0.0.1", node.server.port))
            mute.setblocking(False)
            ask = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100
            while not node.server._public._places.total:
                await asyncio.sleep(0.01)
            asked = 0
            async with asyncio.timeout(HANG_S):
                while node.server._public._places.total:
                    with suppress(ConnectionError, BlockingIOError):
                        asked += mute.send(ask)
                    await asyncio.sleep(0.01)
            assert asked > 10_000
        await alive(node)


def test_clients_behind_one_ipv6_network_count_as_one() -> None:
    assert client_of("2001:db8:1:2:3:4:5:6") == client_of("2001:db8:1:2::1") != client_of("2001:db8:1:3::1")
    assert client_of("::ffff:10.0.0.1") == client_of("10.0.0.1")
    assert client_of("fe80::1%eth0") == client_of("fe80::2")


# Answers


async def test_every_answer_has_an_id_and_the_log_has_it_without_bodies(
    host: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "quorate.rpc")
    async with host() as node, wire(node) as one:
        secret = b"\xc4\x06SECRET"
        one.send(post(1 + len(secret)) + b"\x91" + secret)
        headers = await one.problem(400, "UNDECODABLE")
        record = next(each for each in caplog.records if each.getMessage() == "request")
        noted: dict[str, Any] = vars(record)
        assert noted["request"] == headers["x-request-id"]
        assert (noted["route"], noted["status"], noted["bytes_in"]) == ("/v1/transactions", 400, 9)
        assert "SECRET" not in str(noted)


async def test_a_fault_of_the_node_is_a_problem_too(host: Open, caplog: pytest.LogCaptureFixture) -> None:
    async with host() as node, wire(node) as one:
        node.server.api.health.reasons = lambda: 1 / 0  # type: ignore[method-assign,assignment]
        one.send(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        await one.problem(500, "INTERNAL")
        await alive(node)
    assert "ZeroDivisionError" in caplog.text


async def test_a_model_can_be_had_in_parts_and_need_not_be_had_twice(host: Open) -> None:
    async with host() as node, aiohttp.ClientSession(node.url) as client:
        await node.train_one_round()
        job = await (await client.get("/v1/jobs/digits")).json()
        path = f"/v1/models/{job['model']}"
        whole = await client.get(path)
        data, tag = await whole.read(), whole.headers["ETag"]
        assert tag == f'"{job["model"]}"' and "immutable" in whole.headers["Cache-Control"]
        for wanted, expected in (
            ("bytes=0-3", data[:4]),
            ("bytes=4-", data[4:]),
            ("bytes=-4", data[-4:]),
            ("bytes=0-999999", data),
            (f"bytes=-{10**9}", data),
        ):
            part = await client.get(path, headers={"Range": wanted})
            assert (part.status, await part.read()) == (206, expected), wanted
        assert (await client.get(path, headers={"If-None-Match": tag})).status == 304
        beyond = await client.get(path, headers={"Range": f"bytes={len(data)}-"})
        assert beyond.status == 416 and beyond.headers["Content-Range"] == f"bytes */{len(data)}"
        for odd in ("bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=a-b"):
            assert (await client.get(path, headers={"Range": odd})).status == 200


async def test_a_submission_goes_through_over_http_in_both_encodings(host: Open) -> None:
    from fl.jobs import CreateJob
    from tests.fl.builders import make_rules

    async with host() as node, aiohttp.ClientSession(node.url) as client:
        data = node.sign("creator", CreateJob(make_rules(), b""))
        reply = await client.post(
            "/v1/transactions?wait=proven", data=pack((data,)), headers={"Content-Type": "application/msgpack"}
        )
        answer = (await reply.json())["answers"][0]
        assert reply.status == 200 and answer["status"] == "proven"
        assert (await (await client.get(answer["location"])).json())["status"] == "proven"


async def test_pages_of_other_origins_read_nothing_unless_they_are_named(host: Open) -> None:
    async with host(cors=("https://board.example",)) as node, aiohttp.ClientSession(node.url) as client:
        named = await client.get("/v1/health", headers={"Origin": "https://board.example"})
        assert named.headers["Access-Control-Allow-Origin"] == "https://board.example"
        other = await client.get("/v1/health", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in other.headers
        asked = await client.options("/v1/transactions", headers={"Origin": "https://board.example"})
        assert asked.status == 204 and "POST" in asked.headers["Access-Control-Allow-Methods"]
        refused = await client.options("/v1/transactions", headers={"Origin": "https://evil.example"})
        assert refused.status == 405


# Streams


async def test_a_websocket_carries_events_and_is_told_when_the_node_stops(host: Open) -> None:
    async with aiohttp.ClientSession() as client:
        async with host() as node:
            stream = await client.ws_connect(f"{node.url}/v1/events/ws?from_index=0&heads=1")
            await node.train_one_round()
            kinds = []
            while "round_closed" not in kinds:
                kinds.append((await asyncio.wait_for(stream.receive_json(), HANG_S)).get("kind"))
        async with asyncio.timeout(HANG_S):
            while (last := await stream.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert (last.type, last.data) == (aiohttp.WSMsgType.CLOSE, 1001)


async def test_a_stream_that_nobody_reads_is_closed_with_its_code(host: Open) -> None:
    async with host(replace(LOOSE, write_s=0.3)) as node:
        rows = node.server.api.events

        def flood(first: int, limit: int, wanted: object) -> tuple[list[Any], int]:
            class Row:
                text = "x" * 100_000

            return [Row()] * limit, first + limit

        rows.page = flood  # type: ignore[method-assign,assignment]
        async with wire(node) as one:
            one.send(
                b"GET /v1/events/ws?from_index=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            while not node.server.api.subscribers.total:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(HANG_S):
                while node.server.api.subscribers.total:
                    await asyncio.sleep(0.05)
            await one.ended()


async def test_who_talks_on_a_stream_is_shown_out(host: Open) -> None:
    async with host() as node, aiohttp.ClientSession(node.url) as client:
        stream = await client.ws_connect("/v1/events/ws")
        await stream.send_str("hello")
        assert (await asyncio.wait_for(stream.receive(), HANG_S)).type is aiohttp.WSMsgType.CLOSE
        assert stream.close_code == 1008
        large = await client.ws_connect("/v1/events/ws")
        await large.send_str("x" * 10_000)
        await asyncio.wait_for(large.receive(), HANG_S)
        while node.server.api.subscribers.total:
            await asyncio.sleep(0.01)


async def test_streams_are_limited_and_checked_before_they_begin(host: Open) -> None:
    limits = replace(LOOSE, subscribers_by_client=1)
    async with host(limits) as node, aiohttp.ClientSession(node.url) as client:
        assert (await client.get("/v1/events/ws")).status == 426
        for query, status in (("job=none", 404), ("kinds=none", 400), ("from_index=0&from_height=0", 400)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"/v1/events/ws?{query}")
            assert refused.value.status == status
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
        assert (await client.get("/v1/events/ws", headers=upgrade)).status == 400
        one = await client.ws_connect("/v1/events/ws")
        with pytest.raises(aiohttp.WSServerHandshakeError) as second:
            await client.ws_connect("/v1/events/ws")
        assert second.value.status == 503
        await one.close()
        while node.server.api.subscribers.total:
            await asyncio.sleep(0.01)
        await (await client.ws_connect("/v1/events/ws")).close()


# Doors


async def test_the_operators_socket_is_for_this_user_alone_and_drains_and_stops(host: Open, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.touch()
    async with host(admin_socket=path) as node:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession("http://admin", connector=aiohttp.UnixConnector(str(path))) as client:
            assert (await client.get("/v1/admin/status")).status == 200
            assert (await client.get("/v1/status")).status == 404
            for body in (b"", b"{}", b'{"timeout_s": true}', b'{"timeout_s": 1e9}', b'{"timeout_s": NaN}'):
                reply = await client.post("/v1/admin/drain", data=body, headers={"Content-Type": "application/json"})
                assert reply.status == 400
            reply = await client.post("/v1/admin/drain", json={"timeout_s": 5})
            assert await reply.json() == {"drained": True, "unsettled": 0}
            assert (await (await client.get("/v1/admin/status")).json())["draining"]
            assert (await client.post("/v1/admin/stop")).status == 202
        async with aiohttp.ClientSession(node.url) as public:
            assert (await public.get("/v1/admin/status")).status == 404


async def test_tls_is_spoken_where_it_is_configured_and_nothing_else_is(host: Open, tmp_path: Path) -> None:
    cert, key, trust = self_signed(tmp_path)
    limits = replace(QUICK, handshake_s=0.3)
    async with host(limits, tls_cert=cert, tls_key=key) as node:
        url = f"https://localhost:{node.server.port}"
        async with aiohttp.ClientSession(url) as client:
            assert (await client.get("/v1/health", ssl=trust)).status == 200
        async with wire(node) as plain, wire(node) as silent:
            plain.send(GET)
            await plain.ended()
            await silent.ended()
        while node.server._public._places.total:
            await asyncio.sleep(0.01)


async def test_a_port_that_is_taken_is_said_in_a_sentence(host: Open, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(PortError, match=r"cannot listen on 127\.0\.0\.1:") as refused:
            async with host(port=taken.getsockname()[1]):
                pass
        assert refused.value.code == "CANNOT_LISTEN"


def test_a_certificate_without_its_key_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="go together"):
        RpcConfig(tls_cert=Path("x"))
