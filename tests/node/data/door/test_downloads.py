"""What the door gives: to whom, how much of it, and how it is answered to those who may not have it."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain.cid import cid_text
from chain.codec import encode
from chain.unixfs import LEAF_BYTES, leaf_cid
from fl.access import Action
from fl.blobs import BlobKind
from node.data.door.permits import NO_CID
from node.rpc.limits import RpcLimits
from node.rpc.problems import Problem
from node.rpc.ranges import wanted_part
from node.rpc.requests import Request
from tests.node.data.door.host import LOOSE, Hosted, Upload, blob_of, hosted, person
from tests.node.rpc.certificate import self_signed
from tests.node.wire import wire_to

Open = Callable[..., AbstractAsyncContextManager[Hosted]]
PUBLIC = Upload(blob_of(2 * LEAF_BYTES + 77))
PRIVATE = Upload(blob_of(LEAF_BYTES + 3, seed=2), BlobKind.UPDATE)
ABSENT = Upload(blob_of(10, seed=3), BlobKind.UPDATE)
PATHS = ("", "/stat", "/manifest")


@pytest.fixture
def open_host(tmp_path: Path) -> Open:
    def open_(limits: RpcLimits = LOOSE, **config: object) -> AbstractAsyncContextManager[Hosted]:
        return hosted(tmp_path, limits, **config)

    return open_


async def code_of(host: Hosted, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    status, _, body = await host.call("GET", path, headers=headers)
    return status, json.loads(body)["code"]


# Whole blobs and parts of them


async def test_a_public_blob_is_given_to_anyone_and_may_be_kept_for_ever(open_host: Open) -> None:
    async with open_host() as host:
        await host.put(PUBLIC)
        tag = f'"{cid_text(PUBLIC.cid)}"'
        for path in (PUBLIC.path, PUBLIC.path.replace("blobs", "models")):
            status, headers, body = await host.call("GET", path)
            assert (status, body) == (200, PUBLIC.data)
            assert headers["etag"] == tag and headers["accept-ranges"] == "bytes"
            assert headers["cache-control"] == "public, max-age=31536000, immutable"
            status, headers, body = await host.call("HEAD", path)
            assert (status, headers["content-length"], body) == (200, str(len(PUBLIC.data)), b"")
            for known in (tag, f'"x", {tag}', f"W/{tag}", "*"):
                status, headers, body = await host.call("GET", path, headers={"If-None-Match": known})
                assert (status, headers["etag"], body) == (304, tag, b"")
        _, _, body = await host.call("GET", PUBLIC.path + "/stat")
        assert json.loads(body) == {
            "cid": cid_text(PUBLIC.cid),
            "size_bytes": len(PUBLIC.data),
            "leaves": 3,
            "kind": "model",
            "account": person("alice").account.hex(),
        }
        assert (await host.call("GET", PUBLIC.path + "/manifest"))[2] == encode(PUBLIC.manifest)
        assert host.asked == 1, "nobody is asked about who reads what is public"


async def test_the_empty_blob_is_a_blob(open_host: Open) -> None:
    empty = Upload(b"")
    async with open_host() as host:
        await host.put(empty)
        status, headers, body = await host.call("GET", empty.path)
        assert (status, headers["content-length"], body) == (200, "0", b"")
        assert (await host.call("HEAD", empty.path))[0] == 200
        assert await code_of(host, empty.path, {"Range": "bytes=0-"}) == (416, "BAD_RANGE")


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        (f"bytes=0-{10**15 - 1}", 0, None),
        (f"bytes={LEAF_BYTES - 1}-{LEAF_BYTES}", LEAF_BYTES - 1, LEAF_BYTES + 1),
        (f"bytes={LEAF_BYTES}-{2 * LEAF_BYTES - 1}", LEAF_BYTES, 2 * LEAF_BYTES),
    ],
)
async def test_a_range_is_given_as_it_was_asked_for(open_host: Open, wanted: str, start: int, stop: int | None) -> None:
    async with open_host() as host:
        await host.put(PUBLIC)
        status, headers, body = await host.call("GET", PUBLIC.path, headers={"Range": wanted})
        assert (status, body) == (206, PUBLIC.data[start:stop])
        first = start % len(PUBLIC.data)
        assert headers["content-range"] == f"bytes {first}-{first + len(body) - 1}/{len(PUBLIC.data)}"
        status, headers, body = await host.call("HEAD", PUBLIC.path, headers={"Range": wanted})
        assert (status, int(headers["content-length"])) == (206, len(PUBLIC.data[start:stop]))


async def test_ranges_that_there_are_not_and_ranges_of_something_else(open_host: Open) -> None:
    async with open_host() as host:
        await host.put(PUBLIC)
        size = len(PUBLIC.data)
        for wanted in (f"bytes={size}-", "bytes=-0", "bytes=5-4"):
            status, headers, _ = await host.call("GET", PUBLIC.path, headers={"Range": wanted})
            assert (status, headers["content-range"]) == (416, f"bytes */{size}"), wanted
        for wanted in ("bytes=0-1,3-4", "lines=0-1", "bytes=-", "bytes=a-b", "bytes=1", "bytes=+1-2", "bytes=٣-٤"):
            status, _, body = await host.call("GET", PUBLIC.path, headers={"Range": wanted})
            assert (status, len(body)) == (200, size), wanted
        tag = f'"{cid_text(PUBLIC.cid)}"'
        for known, expected in ((tag, 206), ('"other"', 200), (f"W/{tag}", 200)):
            headers = {"Range": "bytes=0-1", "If-Range": known}
            assert (await host.call("GET", PUBLIC.path, headers=headers))[0] == expected


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 2**40), first=st.integers(0, 2**41), length=st.integers(0, 2**41), form=st.integers(0, 2))
def test_a_range_never_leaves_the_blob_and_says_what_it_is(size: int, first: int, length: int, form: int) -> None:
    cid = PUBLIC.cid
    text = (f"{first}-{first + length}", f"{first}-", f"-{first}")[form]
    try:
        part = wanted_part(Request("GET", "x", headers={"Range": f"bytes={text}"}), cid, size, public=True)
    except Problem as problem:
        assert problem.code == "BAD_RANGE" and problem.headers == {"Content-Range": f"bytes */{size}"}
        assert first >= size if form < 2 else first == 0 or size == 0
        return
    assert 0 <= part.start < part.stop <= size and part.status == 206
    assert part.headers["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
    if form < 2:
        assert part.start == first and part.stop == (min(size, first + length + 1) if form == 0 else size)
    else:
        assert part.stop == size and part.stop - part.start == min(first, size)


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=40) | st.from_regex(r"bytes=[0-9,\- ]{0,30}", fullmatch=True))
def test_no_text_of_a_range_is_a_fault(text: str) -> None:
    try:
        part = wanted_part(Request("GET", "x", headers={"Range": text}), PUBLIC.cid, 1000, public=True)
        assert 0 <= part.start <= part.stop <= 1000
    except Problem as problem:
        assert problem.code == "BAD_RANGE"


# Private ones


async def test_a_private_blob_is_for_its_owner_for_auditors_and_for_validators(open_host: Open) -> None:
    async with open_host() as host:
        await host.put(PRIVATE)
        for name in ("alice", "auditor", "operator"):
            headers = host.reading(PRIVATE.cid, name)
            status, answered, body = await host.call("GET", PRIVATE.path, headers=headers)
            assert (status, body) == (200, PRIVATE.data)
            assert answered["cache-control"] == "no-store"
            assert (await host.call("GET", PRIVATE.path + "/manifest", headers=headers))[0] == 200
            assert (await host.call("GET", PRIVATE.path + "/stat", headers=headers))[0] == 200


async def test_to_a_stranger_a_private_blob_is_no_different_from_none(open_host: Open) -> None:
    async with open_host() as host:
        await host.put(PRIVATE)

        async def answer(upload: Upload, more: str, name: str | None) -> tuple[object, ...]:
            headers = host.reading(upload.cid, name) if name else None
            status, answered, body = await host.call("GET", upload.path + more, headers=headers)
            document = json.loads(body)
            del document["request_id"], answered["x-request-id"], answered["date"]
            return status, answered, document

        for more in PATHS:
            for name in (None, "stranger"):
                seen = await answer(PRIVATE, more, name)
                assert seen == await answer(ABSENT, more, name)
                assert seen[0] == 404
            assert await code_of(host, PRIVATE.path + more, host.reading(PRIVATE.cid, "bob")) == (
                403,
                "BLOB_NOT_YOURS",
            )
        assert await code_of(host, f"/ipfs/{cid_text(PRIVATE.cid)}?format=raw") == (404, "UNKNOWN_BLOB")
        leaf = cid_text(leaf_cid(PRIVATE.manifest.leaf(0)))
        assert await code_of(host, f"/ipfs/{leaf}?format=raw") == (404, "UNKNOWN_BLOB")


async def test_only_a_good_leave_to_read_this_very_blob_opens_it(open_host: Open) -> None:
    async with open_host() as host:
        await host.put(PRIVATE)
        now_ms = host.clock.now().wall_ms
        for headers, code in (
            (host.putting(PRIVATE), "LEAVE_MISMATCH"),
            (host.reading(PUBLIC.cid), "LEAVE_MISMATCH"),
            (host.reading(NO_CID), "LEAVE_MISMATCH"),
            (host.reading(PRIVATE.cid, chain=bytes(32)), "LEAVE_MISMATCH"),
            (host.reading(PRIVATE.cid, valid_until_ms=now_ms - 1), "LEAVE_EXPIRED"),
            ({"Authorization": "Quorate x"}, "NO_LEAVE"),
            (host.reading(PRIVATE.cid, account=person("bob").account), "UNKNOWN_BLOB"),
        ):
            assert (await code_of(host, PRIVATE.path, headers))[1] == code
        host.silent = True
        assert await code_of(host, PRIVATE.path, host.reading(PRIVATE.cid)) == (503, "CORE_DOWN")
        assert (await host.call("GET", PUBLIC.path, headers={"Authorization": "Quorate x"}))[0] != 200


# Lists


async def test_a_list_has_the_public_blobs_and_those_that_the_bearer_may_read(open_host: Open) -> None:
    async with open_host() as host:
        uploads = [Upload(blob_of(20 + seed, seed)) for seed in range(7)]
        secrets = [Upload(blob_of(90 + seed, seed), BlobKind.UPDATE) for seed in range(4)]
        for upload in uploads + secrets:
            await host.put(upload)

        async def listed(limit: int, name: str | None = None) -> list[str]:
            names: list[str] = []
            cursor, headers = "", host.reading(NO_CID, name) if name else None
            while True:
                status, _, body = await host.call("GET", f"/v1/blobs?limit={limit}{cursor}", headers=headers)
                assert status == 200
                page = json.loads(body)
                assert len(page["blobs"]) <= limit
                names += [each["cid"] for each in page["blobs"]]
                if page["next"] is None:
                    return names
                cursor = f"&cursor={page['next']}"

        public = sorted(cid_text(each.cid) for each in uploads)
        everything = sorted(cid_text(each.cid) for each in uploads + secrets)
        for limit in (1, 2, 3, 100):
            assert sorted(await listed(limit)) == public
            assert sorted(await listed(limit, "bob")) == public
            assert sorted(await listed(limit, "alice")) == everything
            assert sorted(await listed(limit, "auditor")) == everything
            assert sorted(await listed(limit, "operator")) == everything
        assert await code_of(host, "/v1/blobs?limit=0") == (400, "BAD_PARAMETER")
        assert await code_of(host, "/v1/blobs?cursor=x") == (400, "BAD_PARAMETER")
        assert await code_of(host, "/v1/blobs", host.reading(PUBLIC.cid)) == (403, "LEAVE_MISMATCH")


async def test_leases_are_shown_to_whose_they_are(open_host: Open) -> None:
    async with open_host() as host:
        _, answer = await host.offer(PRIVATE)
        assert await code_of(host, "/v1/leases") == (401, "NO_LEAVE")
        _, _, body = await host.call("GET", "/v1/leases", headers=host.reading(NO_CID))
        held = {
            "cid": cid_text(PRIVATE.cid),
            "size_bytes": len(PRIVATE.data),
            "kind": "update",
            "until_ms": answer["lease_until_ms"],
        }
        assert json.loads(body) == {"leased_bytes": len(PRIVATE.data), "leases": [held]}
        _, _, body = await host.call("GET", "/v1/leases", headers=host.reading(NO_CID, "bob"))
        assert json.loads(body) == {"leased_bytes": 0, "leases": []}


# The gateway


async def test_ipfs_clients_get_blocks_and_trees_of_public_blobs(open_host: Open) -> None:
    async with open_host() as host:
        await host.put(PUBLIC)
        leaf = cid_text(leaf_cid(PUBLIC.manifest.leaf(1)))
        status, headers, body = await host.call(
            "GET", f"/ipfs/{leaf}", headers={"Accept": "application/vnd.ipld.raw, */*;q=0.1"}
        )
        assert (status, headers["content-type"], body) == (200, "application/vnd.ipld.raw", PUBLIC.leaf(1))
        assert headers["x-ipfs-roots"] == leaf
        status, headers, body = await host.call("GET", f"/ipfs/{cid_text(PUBLIC.cid)}?format=car&unknown=1")
        assert status == 200 and headers["content-type"].startswith("application/vnd.ipld.car;")
        assert all(PUBLIC.leaf(index) in body for index in range(3))
        status, headers, body = await host.call("HEAD", f"/ipfs/{leaf}?format=raw")
        assert (status, headers["content-length"], body) == (200, str(LEAF_BYTES), b"")
        tag = headers["etag"]
        assert (await host.call("GET", f"/ipfs/{leaf}?format=raw", headers={"If-None-Match": tag}))[0] == 304
        assert await code_of(host, f"/ipfs/{leaf}/below?format=raw") == (400, "BAD_PARAMETER")
        assert await code_of(host, "/ipfs/x?format=raw") == (400, "BAD_PARAMETER")
        assert (await host.call("POST", f"/ipfs/{leaf}"))[0] == 405
        assert (await host.call("GET", "/ipfs/bafkqaaa?format=raw"))[2] == b""


# Clients that do not take what they asked for


async def test_a_client_that_does_not_read_is_given_up(open_host: Open) -> None:
    large = Upload(blob_of(24 * LEAF_BYTES))
    async with open_host(replace(LOOSE, write_s=0.3)) as host:
        await host.put(large)
        async with wire_to(host.port) as one:
            one.send(f"GET {large.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await one.reader.readexactly(1000)
            async with asyncio.timeout(10):
                while host.door.figures()["door_connections"] > 1:
                    await asyncio.sleep(0.02)
        assert (await host.call("GET", PUBLIC.path))[0] == 404


async def test_a_client_that_leaves_in_the_middle_is_no_fault(
    open_host: Open, caplog: pytest.LogCaptureFixture
) -> None:
    large = Upload(blob_of(24 * LEAF_BYTES))
    async with open_host() as host:
        await host.put(large)
        for _ in range(5):
            async with wire_to(host.port) as one:
                one.send(f"GET {large.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await one.reader.readexactly(1000)
                one.writer.transport.abort()
        status, _, body = await host.call("GET", large.path)
        assert (status, body) == (200, large.data)
        assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_rates_hold_strangers_and_requests_are_counted(open_host: Open) -> None:
    async with open_host(replace(LOOSE, requests=replace(LOOSE.requests, per_second=1, burst=3))) as host:
        statuses = [(await host.call("GET", PUBLIC.path))[0] for _ in range(5)]
        assert statuses == [404, 404, 404, 429, 429]
        figures = host.door.figures()
        assert figures["door_requests"] == figures["door_refusals"] == 5
        assert figures["door_connections"] == 1 and figures["door_failures"] == 0


# TLS, and the operator's socket


async def test_blobs_are_put_and_got_under_tls(open_host: Open, tmp_path: Path) -> None:
    cert, key, trusting = self_signed(tmp_path)
    async with open_host(tls_cert=cert, tls_key=key) as host:
        url = f"https://localhost:{host.port}{PUBLIC.path}"
        headers = host.putting(PUBLIC) | {"Content-Type": "application/octet-stream"}
        async with host.session.put(url, data=PUBLIC.data, headers=headers, ssl=trusting) as answer:
            assert answer.status == 200
        async with host.session.get(url, ssl=trusting) as answer:
            assert await answer.read() == PUBLIC.data


async def test_the_operator_pins_and_verifies_through_a_socket_of_its_own(open_host: Open, tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    async with open_host(admin_socket=path) as host:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await host.put(PUBLIC)
        name = cid_text(PUBLIC.cid)
        connector = aiohttp.UnixConnector(str(path))
        async with aiohttp.ClientSession("http://operator", connector=connector) as session:

            async def post(what: str, cid: str = name) -> tuple[int, dict[str, object]]:
                async with session.post(f"/v1/admin/blobs/{cid}/{what}") as answer:
                    return answer.status, await answer.json(content_type=None)

            assert await post("pin") == (200, {"cid": name, "pinned": True})
            assert host.store.pins == {PUBLIC.cid}
            assert await post("unpin") == (200, {"cid": name, "pinned": False})
            assert host.store.pins == frozenset()
            assert (await post("pin", cid_text(ABSENT.cid)))[0] == 404
            assert (await post("verify", cid_text(ABSENT.cid)))[0] == 404
            assert await post("verify") == (200, {"cid": name, "damaged": [], "sound": True})
            assert await post("verify?repair=1") == (200, {"cid": name, "damaged": [], "sound": True})
            with open(tmp_path / "disk" / "blobs" / name, "r+b") as file:
                file.seek(LEAF_BYTES + 5)
                file.write(b"????")
            assert await post("verify") == (200, {"cid": name, "damaged": [1], "sound": False})
            host.remote[PUBLIC.cid] = PUBLIC
            assert await post("verify?repair=1") == (200, {"cid": name, "damaged": [1], "sound": True})
            assert host.obtained == [(PUBLIC.cid, BlobKind.MODEL, person("alice").account)]
            assert (await host.call("GET", PUBLIC.path))[2] == PUBLIC.data
            assert (await session.get("/v1/blobs")).status == 404
        assert (await host.call("POST", f"/v1/admin/blobs/{name}/pin"))[0] == 404


async def test_a_leave_to_put_is_no_leave_to_list(open_host: Open) -> None:
    async with open_host() as host:
        text = host.leave("alice", Action.PUT, NO_CID)
        assert await code_of(host, "/v1/leases", {"Authorization": text}) == (403, "LEAVE_MISMATCH")


async def test_the_door_documents_its_own_routes(open_host: Open) -> None:
    async with open_host() as host:
        _, _, body = await host.call("GET", "/v1/openapi.json")
        assert {"/v1/blobs", "/v1/blobs/{cid}", "/v1/blobs/{cid}/leaves/{index}"} <= set(json.loads(body)["paths"])
