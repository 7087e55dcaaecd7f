"""What a swarm answers, what bounds it keeps, and that it does the same over real sockets and disks."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chain.codec import CodecError, decode, encode
from chain.keys import SigningKey
from chain.unixfs import LEAF_BYTES, MAX_LEAVES, Manifest
from fl.blobs import BlobKind
from node.data.blobs import BlobStore
from node.data.bulk_messages import (
    HAVE_BYTES,
    MANIFEST_BYTES,
    REQUEST_BYTES,
    Have,
    HaveRequest,
    LeafRequest,
    ManifestRequest,
    Offer,
    Request,
    all_leaves,
    from_request,
    leaves_of,
    to_request,
)
from node.data.standing import Standing, SwarmLimits, Turns
from node.data.swarm import Swarm
from node.ports import LeafOutcome, Peer, PeerAddress, Serve
from node.ports.bulk import TlsBulk
from tests.node.data.worlds import HandClock, Room, fill, leaf, named, some_bytes
from tests.node.doors import free_port

DATA = some_bytes(4 * LEAF_BYTES + 17)
CID, MANIFEST = named(DATA)
PEERS = [bytes([1]) + bytes([n]) * 32 for n in range(1, 9)]
OWN = PEERS[0]


class Scripted:
    """A Bulk whose peers all have one blob and give a leaf when a test says so."""

    def __init__(self, peers: list[Peer] = PEERS[1:]) -> None:
        self._peers = frozenset(peers)
        self.under_way: Counter[Peer] = Counter()
        self.most: Counter[Peer] = Counter()
        self.most_in_all = 0
        self.gate = asyncio.Event()
        self.punished: list[Peer] = []

    @property
    def own(self) -> Peer:
        return OWN

    def peers(self) -> frozenset[Peer]:
        return self._peers

    async def start(self, peers: Mapping[Peer, PeerAddress], serve: Serve) -> int:
        return 1

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None: ...

    async def ask(self, peer: Peer, request: bytes, limit_bytes: int) -> bytes:
        await asyncio.sleep(0)
        if isinstance(from_request(request), ManifestRequest):
            return encode(Offer(MANIFEST, Have(True, b"")))
        return encode(Have(True, b""))

    async def leaf(
        self, peer: Peer, request: bytes, size_bytes: int, take: Callable[[memoryview], bool]
    ) -> LeafOutcome:
        asked = from_request(request)
        assert isinstance(asked, LeafRequest)
        self.under_way[peer] += 1
        self.most[peer] = max(self.most[peer], self.under_way[peer])
        self.most_in_all = max(self.most_in_all, self.under_way.total())
        try:
            await self.gate.wait()
            return LeafOutcome.TAKEN if take(memoryview(leaf(DATA, asked.index))) else LeafOutcome.REJECTED
        finally:
            self.under_way[peer] -= 1

    def punish(self, peer: Peer, reason: str) -> None:
        self.punished.append(peer)

    async def close(self) -> None: ...


def answered(swarm: Swarm, request: Request) -> bytes:
    return bytes(swarm.serve(PEERS[1], to_request(request)))


async def put(store: BlobStore, data: bytes, kind: BlobKind = BlobKind.MODEL) -> bytes:
    cid, manifest = named(data)
    staging = store.stage(cid, manifest, kind)
    fill(staging, data)
    return (await store.publish(staging)).cid


def test_requests_and_answers_keep_within_their_limits() -> None:
    cid = bytes([255]) * 36
    for request in (ManifestRequest(cid), HaveRequest(cid), LeafRequest(cid, 2**32 - 1)):
        assert len(to_request(request)) <= REQUEST_BYTES
        assert from_request(to_request(request)) == request
    have = Have(False, bytes(MAX_LEAVES // 8))
    assert len(encode(have)) <= HAVE_BYTES
    assert len(encode(Offer(Manifest(2**64 - 1, bytes(32 * MAX_LEAVES)), have))) <= MANIFEST_BYTES


def test_bits_beyond_a_blobs_leaves_are_no_leaves() -> None:
    assert leaves_of(Have(False, b"\xff\xff\xff"), 5) == all_leaves(5)
    assert leaves_of(Have(True, b""), 5) == 0b11111
    assert leaves_of(Have(False, b"\x02"), 5) == 0b10


async def test_a_whole_blob_is_served_to_its_last_byte_and_no_further(tmp_path: Path) -> None:
    async with Room(tmp_path).open() as store:
        swarm = Swarm(store, Scripted(), HandClock())
        await put(store, DATA)
        offer = decode(Offer, answered(swarm, ManifestRequest(CID)), MANIFEST_BYTES)
        assert offer == Offer(MANIFEST, Have(True, b""))
        served = [answered(swarm, LeafRequest(CID, index)) for index in range(6)]
        assert b"".join(served) == DATA
        assert served[5] == b""
        assert answered(swarm, LeafRequest(CID, 2**32 - 1)) == b""


async def test_leaves_of_a_whole_blob_are_not_copied(tmp_path: Path) -> None:
    async with Room(tmp_path).open() as store:
        swarm = Swarm(store, Scripted(), HandClock())
        await put(store, DATA)
        served = swarm.serve(PEERS[1], to_request(LeafRequest(CID, 1)))
        assert isinstance(served, memoryview)
        assert served.obj is store.view(CID).obj


async def test_a_part_is_served_as_a_part(tmp_path: Path) -> None:
    async with Room(tmp_path).open() as store:
        swarm = Swarm(store, Scripted(), HandClock())
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        staging.put(1, leaf(DATA, 1))
        staging.put(4, leaf(DATA, 4))
        have = decode(Have, answered(swarm, HaveRequest(CID)), HAVE_BYTES)
        assert (have.whole, leaves_of(have, MANIFEST.count)) == (False, 0b10010)
        assert answered(swarm, LeafRequest(CID, 4)) == leaf(DATA, 4)
        assert answered(swarm, LeafRequest(CID, 0)) == b""
        fill(staging, DATA)
        assert not decode(Have, answered(swarm, HaveRequest(CID)), HAVE_BYTES).whole


async def test_what_is_not_here_is_answered_with_nothing(tmp_path: Path) -> None:
    async with Room(tmp_path).open() as store:
        swarm = Swarm(store, Scripted(), HandClock())
        for request in (ManifestRequest(CID), HaveRequest(CID), LeafRequest(CID, 0)):
            assert answered(swarm, request) == b""


@pytest.mark.parametrize("request_bytes", [b"", b"\x09", b"\x01", b"\x03" + bytes(40), b"\x01" + bytes(200)])
async def test_what_is_no_request_is_refused(tmp_path: Path, request_bytes: bytes) -> None:
    async with Room(tmp_path).open() as store:
        with pytest.raises(CodecError):
            Swarm(store, Scripted(), HandClock()).serve(PEERS[1], request_bytes)


@pytest.mark.parametrize(
    ("peers", "limits", "a_peer", "in_all"),
    [
        (PEERS[1:], SwarmLimits(leaves_per_peer=1, leaves=3), 1, 3),
        (PEERS[1:2], SwarmLimits(leaves_per_peer=1), 1, 1),
        (PEERS[1:3], SwarmLimits(leaves_per_peer=2), 2, 4),
    ],
)
async def test_leaves_under_way_are_bounded_for_each_peer_and_in_all(
    tmp_path: Path, peers: list[Peer], limits: SwarmLimits, a_peer: int, in_all: int
) -> None:
    async with Room(tmp_path).open() as store:
        bulk = Scripted(peers)
        swarm = Swarm(store, bulk, HandClock(), limits)
        pulling = asyncio.ensure_future(swarm.obtain(CID, BlobKind.MODEL))
        await asyncio.sleep(0.05)
        assert bulk.under_way.total() == in_all
        bulk.gate.set()
        await pulling
        assert (bulk.most_in_all, max(bulk.most.values())) == (in_all, a_peer)
        assert store.view(CID) == DATA


async def test_a_restart_does_not_pull_what_was_staged_before_it(tmp_path: Path) -> None:
    room = Room(tmp_path)
    async with room.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.MODEL)
        staging.put(0, leaf(DATA, 0))
        staging.put(3, leaf(DATA, 3))
    async with room.open() as store:
        bulk = Scripted()
        bulk.gate.set()
        swarm = Swarm(store, bulk, HandClock())
        await swarm.obtain(CID, BlobKind.MODEL)
        assert swarm.tally.leaves == MANIFEST.count - 2
        assert store.view(CID) == DATA


async def test_a_cancelled_download_leaves_nothing_under_way(tmp_path: Path) -> None:
    async with Room(tmp_path).open() as store:
        bulk = Scripted()
        swarm = Swarm(store, bulk, HandClock())
        before = asyncio.all_tasks()
        pulling = asyncio.ensure_future(swarm.obtain(CID, BlobKind.MODEL))
        await asyncio.sleep(0.05)
        assert bulk.under_way.total() > 0
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        assert bulk.under_way.total() == 0
        assert asyncio.all_tasks() == before
        figures = swarm.figures()
        assert (figures["swarm_leaves_under_way"], figures["swarm_downloads"]) == (0, 0)


async def test_two_who_want_one_blob_pull_it_once(tmp_path: Path) -> None:
    async with Room(tmp_path).open() as store:
        bulk = Scripted()
        bulk.gate.set()
        swarm = Swarm(store, bulk, HandClock())
        blobs = await asyncio.gather(*(swarm.obtain(CID, BlobKind.MODEL) for _ in range(3)))
        assert {blob.cid for blob in blobs} == {CID}
        assert swarm.tally.leaves == MANIFEST.count


async def test_what_is_not_admitted_takes_no_room(tmp_path: Path) -> None:
    class TooLong(Exception):
        pass

    def admit(manifest: Manifest) -> None:
        if manifest.size_bytes > 100:
            raise TooLong

    async with Room(tmp_path).open() as store:
        with pytest.raises(TooLong):
            await Swarm(store, Scripted(), HandClock()).obtain(CID, BlobKind.MODEL, admit=admit)
        assert store.staging(CID) is None


# Standing and turns


def test_a_peer_waited_for_in_vain_gets_less_to_do_longer_to_do_it_and_rest() -> None:
    limits = SwarmLimits()
    standing = Standing(limits)
    for _ in range(5):
        standing.delivered(10)
    assert standing.allowance == limits.leaves_per_peer
    standing.failed(1_000, silent=True)
    assert standing.allowance == 1
    assert standing.wait_ms == 2 * limits.leaf_ms[0]
    assert standing.rests(1_000 + limits.rest_ms[0] - 1)
    assert not standing.rests(1_000 + limits.rest_ms[0])
    now_ms, rests = 10_000, []
    for _ in range(12):
        standing.failed(now_ms, silent=True)
        end_ms = next(ms for ms in range(now_ms, now_ms + 60_000, 50) if not standing.rests(ms))
        rests.append(end_ms - now_ms)
        now_ms = end_ms
    assert rests == sorted(rests)
    assert rests[-1] == limits.rest_ms[1]
    assert standing.wait_ms == limits.leaf_ms[1]
    standing.delivered(10)
    assert standing.wait_ms == limits.leaf_ms[0]


async def test_those_whose_turn_came_to_little_wait_for_all_others() -> None:
    turns = Turns(1)
    order: list[str] = []

    async def one(name: str, last: bool) -> None:
        async with turns.turn(last=last):
            order.append(name)
            await asyncio.sleep(0.01)

    def waiting(*names: tuple[str, bool]) -> list[Coroutine[Any, Any, None]]:
        return [one(name, last) for name, last in names]

    work = waiting(("first", False), ("slow", True), ("second", False), ("slower", True), ("third", False))
    await asyncio.gather(*work)
    assert order == ["first", "second", "third", "slow", "slower"]
    assert not turns.wanted


async def test_a_source_of_many_blobs_keeps_out_no_other() -> None:
    turns = Turns(4)
    order: list[str] = []

    async def one(name: str, source: bytes) -> None:
        async with turns.turn(last=False, source=source):
            order.append(name)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one("greedy", b"g") for _ in range(12)), *(one("modest", b"m") for _ in range(2)))
    assert order[:6] == ["greedy"] * 4 + ["modest"] * 2


async def test_a_cancelled_wait_for_a_turn_loses_no_place() -> None:
    turns = Turns(1)
    async with turns.turn(last=False):
        waiting = asyncio.ensure_future(turns.turn(last=False).__aenter__())
        await asyncio.sleep(0)
        assert turns.wanted
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not turns.wanted
    async with asyncio.timeout(1), turns.turn(last=True):
        pass


# Real sockets, real disks


async def test_a_blob_spreads_over_real_connections(tmp_path: Path) -> None:
    keys = [SigningKey.from_seed(bytes([40 + n]) * 32) for n in range(3)]
    ports = [free_port() for _ in keys]
    addresses = {key.public: PeerAddress(key.public, "127.0.0.1", port) for key, port in zip(keys, ports, strict=True)}
    before = threading.active_count()
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        swarms: list[Swarm] = []
        stores: list[BlobStore] = []
        for number, key in enumerate(keys):
            room = Room(tmp_path / str(number))
            room.clock = HandClock(1_000_000 + number)
            stores.append(await stack.enter_async_context(room.open()))
            bulk = TlsBulk(key, key.public, bytes(32), ("127.0.0.1", ports[number]))
            swarms.append(Swarm(stores[-1], bulk, room.clock))
            await bulk.start(addresses, swarms[-1].serve)
            stack.push_async_callback(bulk.close)
        data = some_bytes(16 * LEAF_BYTES + 1, 5)
        cid = await put(stores[0], data)
        source = (keys[0].public,)
        await asyncio.gather(*(swarm.obtain(cid, BlobKind.MODEL, sources=source) for swarm in swarms[1:]))
        assert all(store.view(cid) == data for store in stores)
        assert swarms[0].tally.served_leaves <= 2 * 17
    assert threading.active_count() <= before + 2
