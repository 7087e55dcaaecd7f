"""What members, and others, may put through the door: every refusal, and what is left of an upload in each case."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain.cid import cid_text
from chain.codec import encode
from chain.unixfs import LEAF_BYTES, Manifest
from fl.access import MAX_LEAVE_MS, Action
from fl.blobs import BlobKind
from node.data.blobs import BlobLimits
from node.data.door import api
from node.data.door.api import LEAVES_AN_ACCOUNT, STREAMS_AN_ACCOUNT, STREAMS_AT_ONCE
from node.rpc.limits import RpcLimits
from tests.node.data.door.host import LOOSE, STORE, Hosted, Upload, blob_of, hosted, person
from tests.node.wire import Wire, wire_to

Open = Callable[..., AbstractAsyncContextManager[Hosted]]
SMALL = Upload(blob_of(1000))
LARGE = Upload(blob_of(3 * LEAF_BYTES + 5))
MANIFEST = {"Content-Type": "application/msgpack"}
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def open_host(tmp_path: Path) -> Open:
    def open_(
        limits: RpcLimits = LOOSE, store: BlobLimits = STORE, **config: object
    ) -> AbstractAsyncContextManager[Hosted]:
        return hosted(tmp_path, limits, store, **config)

    return open_


def lacking(answer: Any) -> list[int]:
    bits = base64.b64decode(answer["missing"])
    return [index for index in range(8 * len(bits)) if bits[index >> 3] >> (index & 7) & 1]


def head(method: str, path: str, headers: dict[str, str], length: int | None, *lines: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    fields = [f"{name}: {text}" for name, text in headers.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", framing, *fields, *lines, "", ""]).encode()


async def refused(host: Hosted, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, str]:
    status, answered, document = await host.call(method, path, body, headers)
    assert answered["content-type"] == "application/problem+json", document
    assert ("retry-after" in answered) == (status in (429, 503, 507))
    assert ("www-authenticate" in answered) == (status == 401)
    return status, json.loads(document)["code"]


# The road that most blobs take


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES])
async def test_a_blob_of_any_size_is_put_leaf_by_leaf_and_found_when_the_last_is_answered(
    open_host: Open, size: int
) -> None:
    upload = Upload(blob_of(size), BlobKind.DATASET)
    async with open_host() as host:
        status, answer = await host.offer(upload)
        count = upload.manifest.count
        assert (status, answer["leaves"], lacking(answer)) == (200, count, list(range(count)))
        assert answer["size_bytes"] == size and not answer["whole"]
        for index in reversed(range(count)):
            assert host.store.find(upload.cid) is None
            assert await host.put_leaf(upload, index) == (200, {"missing": index, "whole": index == 0})
        found = host.store.find(upload.cid)
        assert found is not None and found.kind is BlobKind.DATASET and found.account == person("alice").account
        assert bytes(host.store.view(upload.cid)) == upload.data


async def test_leaves_come_in_parallel_and_a_repeat_is_harmless(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        answers = await asyncio.gather(*(host.put_leaf(LARGE, index) for index in [0, 1, 2, 3] * 3))
        assert {status for status, _ in answers} == {200}
        assert await host.put_leaf(LARGE, 2) == (200, {"missing": 0, "whole": True})
        assert host.store.staging(LARGE.cid) is None


async def test_an_offer_that_is_repeated_says_what_is_missing_by_then(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        await host.put_leaf(LARGE, 1)
        _, answer = await host.offer(LARGE)
        assert lacking(answer) == [0, 2, 3] and not answer["whole"]
        for index in (0, 2, 3):
            await host.put_leaf(LARGE, index)
        _, answer = await host.offer(LARGE)
        assert answer["whole"] and lacking(answer) == []


async def test_an_upload_goes_on_after_a_restart_with_what_was_missing(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        await host.put_leaf(LARGE, 3)
        await host.put_leaf(LARGE, 0)
    async with open_host() as host:
        _, answer = await host.offer(LARGE)
        assert lacking(answer) == [1, 2]
        await host.put_leaf(LARGE, 1)
        assert (await host.put_leaf(LARGE, 2))[1]["whole"]


async def test_two_members_put_the_same_blob_at_once(open_host: Open) -> None:
    async with open_host() as host:
        first, second = await asyncio.gather(host.offer(LARGE), host.offer(LARGE, "bob"))
        assert first[0] == second[0] == 200
        answers = await asyncio.gather(*(host.put_leaf(LARGE, index) for index in (0, 1, 2, 3)), host.put(LARGE, "bob"))
        assert {status for status, _ in answers} == {200}
        assert bytes(host.store.view(LARGE.cid)) == LARGE.data


async def test_a_blob_is_put_as_one_stream(open_host: Open) -> None:
    async with open_host() as host:
        status, answer = await host.put(LARGE)
        assert (status, answer["whole"], lacking(answer), answer["leaves"]) == (200, True, [], 4)
        assert bytes(host.store.view(LARGE.cid)) == LARGE.data
        assert (await host.put(LARGE))[0] == 200
        assert (await host.put(SMALL))[0] == 200


# Leaves


async def test_a_leave_is_looked_at_from_the_cheapest_question_to_the_dearest(open_host: Open) -> None:
    async with open_host() as host:
        now_ms = host.clock.now().wall_ms

        async def answer(text: str | None) -> tuple[int, str]:
            headers = MANIFEST | ({} if text is None else {"Authorization": text})
            return await refused(host, "POST", SMALL.path, encode(SMALL.manifest), headers)

        def leave(**changes: Any) -> str:
            return host.leave("alice", changes.pop("action", Action.PUT), SMALL.cid, 1000, 1, **changes)

        for text in (None, "", "Bearer x", "Quorate", "Quorate !!!", "Quorate AAAA", "Quorate " + "A" * 4000):
            assert await answer(text) == (401, "NO_LEAVE"), text
        assert await answer(leave() + "AAAA") == (401, "NO_LEAVE")
        assert await answer(leave(chain=bytes(32))) == (403, "LEAVE_MISMATCH")
        assert await answer(leave(valid_until_ms=now_ms - 1)) == (401, "LEAVE_EXPIRED")
        assert await answer(leave(valid_until_ms=now_ms + MAX_LEAVE_MS + 60_000)) == (401, "LEAVE_EXPIRED")
        assert await answer(leave(action=Action.READ)) == (403, "LEAVE_MISMATCH")
        assert await answer(leave(cid=LARGE.cid)) == (403, "LEAVE_MISMATCH")
        assert host.asked == 0, "the core was asked although the leave was no good"
        assert await answer(leave(account=person("bob").account)) == (403, "WRONG_KEY")
        assert await answer(leave(size_bytes=999)) == (403, "LEAVE_MISMATCH")
        assert await answer(leave(kind=BlobKind.RECORD)) == (403, "KIND_NOT_TAKEN")
        assert await answer(leave(kind=BlobKind.OPTIMIZER)) == (403, "KIND_NOT_TAKEN")
        assert await answer(leave(kind=99)) == (403, "KIND_NOT_TAKEN")
        assert await answer(leave(size_bytes=2**40)) == (413, "BODY_TOO_LARGE")
        assert host.store.staging(SMALL.cid) is None


async def test_a_leave_with_anothers_signature_is_none(open_host: Open) -> None:
    async with open_host() as host:
        mine = host.leave("alice", Action.PUT, SMALL.cid, 1000, 1, key=person("bob").key.public)
        code = await refused(host, "POST", SMALL.path, encode(SMALL.manifest), MANIFEST | {"Authorization": mine})
        assert code == (401, "NO_LEAVE")


@pytest.mark.parametrize("name", ["stranger", "operator"])
async def test_only_members_put_blobs(open_host: Open, name: str) -> None:
    async with open_host() as host:
        for method, path, body, media in (
            ("POST", SMALL.path, encode(SMALL.manifest), MANIFEST),
            ("PUT", SMALL.path + "/leaves/0", SMALL.data, OCTETS),
            ("PUT", SMALL.path, SMALL.data, OCTETS),
        ):
            headers = host.putting(SMALL, name) | media
            assert await refused(host, method, path, body, headers) == (403, "NOT_MEMBER")
        assert host.store.staging(SMALL.cid) is None and not host.store.leases(person(name).account)


async def test_without_the_core_nobody_is_anybody(open_host: Open) -> None:
    async with open_host() as host:
        host.silent = True
        headers = host.putting(SMALL) | MANIFEST
        assert await refused(host, "POST", SMALL.path, encode(SMALL.manifest), headers) == (503, "CORE_DOWN")
        host.silent = False
        assert (await host.offer(SMALL))[0] == 200


async def test_a_leave_that_runs_out_on_the_way_is_renewed_and_the_upload_goes_on(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        headers = host.putting(LARGE) | OCTETS
        assert (await host.call("PUT", LARGE.path + "/leaves/0", LARGE.leaf(0), headers))[0] == 200
        host.clock.ahead_ms = 3_600_001
        code = await refused(host, "PUT", LARGE.path + "/leaves/1", LARGE.leaf(1), headers)
        assert code == (401, "LEAVE_EXPIRED")
        await host.offer(LARGE)
        assert [(await host.put_leaf(LARGE, index))[0] for index in (1, 2, 3)] == [200] * 3


async def test_a_key_that_is_revoked_meanwhile_puts_nothing_more(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        host.standings[person("alice").key.public] = ()
        assert (await host.put_leaf(LARGE, 0))[0] == 403


async def test_a_leave_for_one_blob_moves_no_other(open_host: Open) -> None:
    other = Upload(blob_of(3 * LEAF_BYTES + 5, seed=1))
    async with open_host() as host:
        await host.offer(LARGE)
        headers = host.putting(other) | OCTETS
        code = await refused(host, "PUT", LARGE.path + "/leaves/0", LARGE.leaf(0), headers)
        assert code == (403, "LEAVE_MISMATCH")
        wrong_size = host.leave("alice", Action.PUT, LARGE.cid, 17, BlobKind.MODEL)
        headers = OCTETS | {"Authorization": wrong_size}
        code = await refused(host, "PUT", LARGE.path + "/leaves/0", LARGE.leaf(0), headers)
        assert code == (403, "LEAVE_MISMATCH")


# Manifests and leaves that are not what they should be


async def test_a_manifest_that_does_not_lead_to_the_cid_is_refused(open_host: Open) -> None:
    async with open_host() as host:
        headers = host.putting(LARGE) | MANIFEST
        swapped = LARGE.manifest.digests[32:] + LARGE.manifest.digests[:32]
        for manifest in (
            Manifest(LARGE.manifest.size_bytes, swapped),
            Manifest(LARGE.manifest.size_bytes, LARGE.manifest.digests[:-32]),
        ):
            assert await refused(host, "POST", LARGE.path, encode(manifest), headers) == (422, "WRONG_MANIFEST")
        other_size = Manifest(LARGE.manifest.size_bytes - 1, LARGE.manifest.digests)
        assert await refused(host, "POST", LARGE.path, encode(other_size), headers) == (403, "LEAVE_MISMATCH")
        assert await refused(host, "POST", LARGE.path, bytes(100), headers) == (400, "MALFORMED_BODY")
        assert await refused(host, "POST", LARGE.path, b"", headers) == (400, "MALFORMED_BODY")
        assert host.store.staging(LARGE.cid) is None


async def test_a_manifest_longer_than_its_blob_needs_is_not_even_read(open_host: Open) -> None:
    async with open_host() as host, wire_to(host.port) as one:
        one.send(head("POST", SMALL.path, host.putting(SMALL) | MANIFEST, 1024 * 1024))
        await one.problem(422, "WRONG_MANIFEST")
        async with wire_to(host.port) as two:
            two.send(head("POST", SMALL.path, host.putting(SMALL) | MANIFEST, 3 * 1024 * 1024))
            await two.problem(413, "BODY_TOO_LARGE")


async def test_a_wrong_leaf_is_refused_and_the_right_one_taken_afterwards(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        changed = bytearray(LARGE.leaf(1))
        changed[77] ^= 1
        for wrong in (bytes(changed), LARGE.leaf(0), LARGE.leaf(1)[:-1], b""):
            status, answer = await host.put_leaf(LARGE, 1, wrong)
            assert (status, answer["code"]) == (422, "WRONG_LEAF")
        staging = host.store.staging(LARGE.cid)
        assert staging is not None and staging.missing() == [0, 1, 2, 3]
        assert await host.put_leaf(LARGE, 1) == (200, {"missing": 3, "whole": False})


async def test_a_leaf_of_what_nobody_offered_finds_no_place(open_host: Open) -> None:
    async with open_host() as host:
        assert (await host.put_leaf(LARGE, 0))[1]["code"] == "NO_MANIFEST"
        await host.offer(LARGE)
        headers = host.putting(LARGE) | OCTETS
        for index in ("4", "65535"):
            code = await refused(host, "PUT", f"{LARGE.path}/leaves/{index}", b"x", headers)
            assert code == (400, "BAD_PARAMETER"), index
        for index in ("-1", "65536", "00", "x", "1%2F..", "%30"):
            status, _, _ = await host.call("PUT", f"{LARGE.path}/leaves/{index}", b"x", headers)
            assert status in (400, 404, 422), index


@pytest.mark.parametrize("change", ["bytes", "name"])
async def test_of_a_stream_that_is_not_the_blob_nothing_stays(open_host: Open, tmp_path: Path, change: str) -> None:
    async with open_host() as host:
        headers = host.putting(LARGE) | OCTETS
        data = bytearray(LARGE.data)
        data[-1] ^= 1
        code = await refused(host, "PUT", LARGE.path, bytes(data), headers)
        assert code == (422, "WRONG_CID")
        assert host.store.find(LARGE.cid) is None and host.store.count == 0
        assert list((tmp_path / "disk" / "blobs").iterdir()) == []


# Lengths


async def test_a_body_must_say_its_length_and_the_length_must_be_that_of_the_leave(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        for method, path, media in (
            ("POST", LARGE.path, MANIFEST),
            ("PUT", LARGE.path, OCTETS),
            ("PUT", LARGE.path + "/leaves/0", OCTETS),
        ):
            async with wire_to(host.port) as one:
                one.send(head(method, path, host.putting(LARGE) | media, None) + b"0\r\n\r\n")
                await one.problem(411, "LENGTH_REQUIRED")
        for length in (0, len(LARGE.data) - 1, len(LARGE.data) + 1):
            async with wire_to(host.port) as one:
                one.send(head("PUT", LARGE.path, host.putting(LARGE) | OCTETS, length))
                await one.problem(403, "LEAVE_MISMATCH")
        async with wire_to(host.port) as one:
            one.send(head("PUT", LARGE.path + "/leaves/0", host.putting(LARGE) | OCTETS, LEAF_BYTES + 1))
            await one.problem(413, "BODY_TOO_LARGE")


async def nothing_held(host: Hosted) -> None:
    most = host.door.api.reception.limits.bodies_bytes // LEAF_BYTES
    while host.door.api.buffers.left != most or host.door.api.reception.turnstile._bodies_bytes:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("sent", [0, 1, LEAF_BYTES - 1])
async def test_a_truncated_leaf_is_no_leaf_and_costs_nothing_for_long(open_host: Open, sent: int) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        async with wire_to(host.port) as one:
            one.send(head("PUT", LARGE.path + "/leaves/0", host.putting(LARGE) | OCTETS, LEAF_BYTES))
            one.send(LARGE.leaf(0)[:sent])
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await nothing_held(host)
        staging = host.store.staging(LARGE.cid)
        assert staging is not None and not staging.has(0)
        assert (await host.put_leaf(LARGE, 0))[0] == 200


async def test_of_a_truncated_stream_nothing_stays(open_host: Open, tmp_path: Path) -> None:
    def files() -> list[Path]:
        return list((tmp_path / "disk" / "blobs").glob("*"))

    async with open_host() as host:
        async with asyncio.timeout(10):
            async with wire_to(host.port) as one:
                one.send(head("PUT", LARGE.path, host.putting(LARGE) | OCTETS, len(LARGE.data)))
                one.send(LARGE.data[: 2 * LEAF_BYTES + 3])
                while not files():
                    await asyncio.sleep(0.01)
            await nothing_held(host)
            while files():
                await asyncio.sleep(0.01)
        assert host.store.find(LARGE.cid) is None
        assert (await host.put(LARGE))[0] == 200


async def test_bytes_after_the_declared_length_are_another_request(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(LARGE)
        async with wire_to(host.port) as one:
            one.send(head("PUT", LARGE.path + "/leaves/3", host.putting(LARGE) | OCTETS, 5))
            one.send(LARGE.leaf(3))
            status, _, body = await one.answer()
            assert (status, json.loads(body)["missing"]) == (200, 3)
            one.send(b"GARBAGE AFTER\r\n\r\n")
            assert (await one.answer())[0] == 400
            await one.ended()


async def test_a_leaf_that_trickles_is_given_up(open_host: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.data.door.uploads.LEAF_S", 0.3)
    async with open_host() as host:
        await host.offer(LARGE)
        for path, length in ((LARGE.path + "/leaves/0", LEAF_BYTES), (LARGE.path, len(LARGE.data))):
            async with wire_to(host.port) as one:
                one.send(head("PUT", path, host.putting(LARGE) | OCTETS, length))
                trickle = asyncio.create_task(_trickle(one))
                await one.problem(408, "TOO_SLOW")
                await one.ended()
                trickle.cancel()
        async with asyncio.timeout(10):
            await nothing_held(host)


async def _trickle(one: Wire) -> None:
    while True:
        one.send(b"x")
        await asyncio.sleep(0.02)


async def test_100_continue_is_said_only_to_those_whose_bytes_are_wanted(open_host: Open) -> None:
    async with open_host() as host:
        await host.offer(SMALL)
        path = SMALL.path + "/leaves/0"
        async with wire_to(host.port) as one:
            one.send(head("PUT", path, host.putting(SMALL, "stranger") | OCTETS, 1000, "Expect: 100-continue"))
            await one.problem(403, "NOT_MEMBER")
        async with wire_to(host.port) as one:
            one.send(head("PUT", path, host.putting(SMALL) | OCTETS, 1000, "Expect: 100-continue"))
            assert (await one.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            one.send(SMALL.data)
            assert (await one.answer())[0] == 200
        async with wire_to(host.port) as one:
            one.send(head("PUT", path, host.putting(SMALL) | OCTETS, 1000, "Expect: 100-continue"))
            assert (await one.answer())[0] == 200, "a leaf that is here is not asked for again"


async def test_other_media_and_methods_are_refused(open_host: Open) -> None:
    async with open_host() as host:
        headers = host.putting(SMALL)
        for method, path in (("POST", SMALL.path), ("PUT", SMALL.path), ("PUT", SMALL.path + "/leaves/0")):
            for more in ({"Content-Type": "text/plain"}, OCTETS | {"Content-Encoding": "gzip"}):
                code = await refused(host, method, path, b"x", headers | more)
                assert code == (415, "UNSUPPORTED_MEDIA_TYPE")
        for method, path in (
            ("DELETE", SMALL.path),
            ("PATCH", SMALL.path),
            ("POST", SMALL.path + "/leaves/0"),
            ("GET", SMALL.path + "/leaves/0"),
            ("PUT", SMALL.path + "/stat"),
            ("POST", "/v1/blobs"),
        ):
            assert await refused(host, method, path, None, {}) == (405, "METHOD_NOT_ALLOWED"), (method, path)


# Room


async def test_a_member_puts_no_more_than_its_quota_and_others_are_not_touched(open_host: Open) -> None:
    async with open_host(store=replace(STORE, member_bytes=5 * LEAF_BYTES)) as host:
        assert (await host.offer(LARGE))[0] == 200
        other = Upload(blob_of(2 * LEAF_BYTES))
        for status, answer in (await host.offer(other), await host.put(other)):
            assert (status, answer["code"]) == (413, "QUOTA_EXCEEDED")
        assert host.store.staging(other.cid) is None and host.store.count == 0
        assert (await host.offer(other, "bob"))[0] == 200
        assert (await host.offer(LARGE))[0] == 200, "what is leased already is no more of it"


async def test_below_the_reserve_nothing_is_taken_and_it_works_again_once_there_is_room(
    open_host: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_host(store=replace(STORE, reserve_bytes=1000)) as host:
        await host.offer(SMALL)
        disk = host.store._disk
        with monkeypatch.context() as full:
            full.setattr(disk, "free_bytes", lambda: 1001)
            for method, path, body, media in (
                ("POST", LARGE.path, encode(LARGE.manifest), MANIFEST),
                ("PUT", LARGE.path, LARGE.data, OCTETS),
            ):
                headers = host.putting(LARGE) | media
                assert await refused(host, method, path, body, headers) == (507, "DISK_FULL")
            status, answer = await host.put_leaf(SMALL, 0)
            assert (status, answer["code"]) == (507, "DISK_FULL")
        assert (await host.put_leaf(SMALL, 0))[1]["whole"]
        assert (await host.put(LARGE))[0] == 200


async def test_leaves_under_way_together_have_a_bound(open_host: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "TURN_S", 0.1)
    async with open_host(replace(LOOSE, bodies_bytes=2 * LEAF_BYTES)) as host:
        await host.offer(LARGE)
        put = head("PUT", LARGE.path + "/leaves/0", host.putting(LARGE) | OCTETS, LEAF_BYTES)
        async with wire_to(host.port) as first, wire_to(host.port) as second, wire_to(host.port) as third:
            first.send(put + LARGE.leaf(0)[:1000])
            second.send(put + LARGE.leaf(0)[:1000])
            while host.door.api.buffers.left:
                await asyncio.sleep(0.01)
            third.send(put)
            await third.problem(503, "BUSY")
            first.send(LARGE.leaf(0)[1000:])
            assert (await first.answer())[0] == 200
        async with asyncio.timeout(10):
            await nothing_held(host)
        assert (await host.put_leaf(LARGE, 1))[0] == 200


async def test_a_leaf_that_finds_no_room_waits_for_its_turn(open_host: Open) -> None:
    async with open_host(replace(LOOSE, bodies_bytes=LEAF_BYTES)) as host:
        await host.offer(LARGE)
        put = head("PUT", LARGE.path + "/leaves/0", host.putting(LARGE) | OCTETS, LEAF_BYTES)
        line = host.door.api.buffers._line
        async with wire_to(host.port) as first:
            first.send(put + LARGE.leaf(0)[:1000])
            while host.door.api.buffers.left:
                await asyncio.sleep(0.01)
            async with wire_to(host.port) as gone:
                gone.send(put)
                while len(line) < 1:
                    await asyncio.sleep(0.01)
                waiting = asyncio.create_task(host.put_leaf(LARGE, 1))
                while len(line) < 2:
                    await asyncio.sleep(0.01)
            first.send(LARGE.leaf(0)[1000:])
            assert (await first.answer())[0] == 200
            assert (await waiting)[0] == 200
        async with asyncio.timeout(10):
            await nothing_held(host)
        assert not line


async def test_one_that_sends_its_leaves_slowly_leaves_room_for_others(
    open_host: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "TURN_S", 0.1)
    async with open_host() as host:
        await host.offer(LARGE)
        put = head("PUT", LARGE.path + "/leaves/0", host.putting(LARGE) | OCTETS, LEAF_BYTES)
        wires = [wire_to(host.port) for _ in range(LEAVES_AN_ACCOUNT)]
        buffers = host.door.api.buffers
        most = buffers.left
        for each in wires:
            (await each.__aenter__()).send(put + b"x")
        while buffers.left > most - LEAVES_AN_ACCOUNT:
            await asyncio.sleep(0.01)
        status, answer = await host.put_leaf(LARGE, 1)
        assert (status, answer["code"]) == (503, "BUSY")
        assert (await host.put(SMALL, "bob"))[0] == 200
        for each in wires:
            await each.__aexit__(None, None, None)
        async with asyncio.timeout(10):
            await nothing_held(host)
        assert not buffers._held
        assert (await host.put_leaf(LARGE, 1))[0] == 200


async def test_streams_under_way_together_have_a_bound(open_host: Open) -> None:
    async with open_host() as host:
        wires = [wire_to(host.port) for _ in range(STREAMS_AT_ONCE)]
        opened = [await each.__aenter__() for each in wires]
        streams = host.door.api._streams
        for name, some in (("alice", opened[:STREAMS_AN_ACCOUNT]), ("bob", opened[STREAMS_AN_ACCOUNT:])):
            for one in some:
                one.send(head("PUT", LARGE.path, host.putting(LARGE, name) | OCTETS, len(LARGE.data)) + b"x")
            while streams[person(name).account] < len(some):
                await asyncio.sleep(0.01)
            status, answer = await host.put(SMALL, name)
            assert (status, answer["code"]) == (503, "BUSY")
        status, answer = await host.put(SMALL, "auditor")
        assert (status, answer["code"]) == (503, "BUSY")
        for each in wires:
            await each.__aexit__(None, None, None)
        async with asyncio.timeout(10):
            await nothing_held(host)
        assert (await host.put(SMALL))[0] == 200


async def test_a_client_that_leaves_while_its_leaf_is_written_spoils_no_other(open_host: Open) -> None:
    """Its buffer must not be given to the next request while a thread still reads from it."""
    others = [Upload(blob_of(2 * LEAF_BYTES, seed)) for seed in range(1, 9)]
    async with open_host() as host:
        await host.offer(LARGE)
        for upload in others:
            await host.offer(upload, "bob")

        async def cut(index: int) -> None:
            async with wire_to(host.port) as one:
                one.send(head("PUT", f"{LARGE.path}/leaves/{index}", host.putting(LARGE) | OCTETS, LEAF_BYTES))
                one.send(LARGE.leaf(index))
                await one.writer.drain()
                one.writer.transport.abort()

        async def whole(upload: Upload) -> None:
            for index in (0, 1):
                assert (await host.put_leaf(upload, index, name="bob"))[0] == 200

        await asyncio.gather(*(cut(index % 3) for index in range(24)), *(whole(upload) for upload in others))
        for upload in others:
            assert bytes(host.store.view(upload.cid)) == upload.data
            assert await host.store.verify(upload.cid) == []


async def test_a_path_leads_nowhere_but_to_a_cid(open_host: Open) -> None:
    name = cid_text(SMALL.cid)
    async with open_host() as host:
        await host.put(SMALL)
        for target in (
            f"/v1/blobs/{name}/../{name}",
            f"/v1/blobs/..%2F{name}",
            f"/v1/blobs/%2e%2e/{name}",
            f"/v1/blobs//{name}",
            f"/v1/blobs/{name}/",
            f"/v1/blobs/{name}%00",
            f"/v1/blobs/{name.upper()}",
            f"/v1/blobs/{name}=",
            f"/v1/blobs/{name}.part",
            "/v1/blobs/draft-1.part",
            "/v1/blobs/../../rows/CURRENT",
            "/v1/blobs/%FF%FE",
        ):
            async with wire_to(host.port) as one:
                one.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, _, body = await one.answer()
                assert status in (400, 404), (target, body)
        async with wire_to(host.port) as one:
            one.send(f"GET http://x/v1/blobs/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await one.answer())[0] == 200
