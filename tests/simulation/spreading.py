"""A town of data processes that do nothing but spread blobs: real stores on simulated disks, real swarms over the
simulated bulk network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from chain.codec import encode
from chain.keys import SigningKey
from chain.unixfs import LEAF_BYTES, Manifest, leaf_range, manifest_cid, manifest_of
from fl.blobs import BlobKind
from node.data.blobs import Blob, BlobLimits, BlobStore
from node.data.bulk_messages import Have, HaveRequest, LeafRequest, ManifestRequest, Offer, from_request
from node.data.swarm import Check, Swarm
from node.ports import Buffer, Peer, PeerAddress, Serve
from tests.simulation.bulk import Answer, BulkEndpoint, BulkNetwork, SimulatedBulk
from tests.simulation.loop import drawn_from
from tests.simulation.ports import Computer, SimulatedClock, SimulatedDisk, SimulatedKv, SimulatedOffload, Traits


def some_blob(leaves: int, seed: int = 1, last: int = LEAF_BYTES) -> bytes:
    return random.Random(seed).randbytes((leaves - 1) * LEAF_BYTES + last)


class Home(Computer):
    """One data process, through all of its lives."""

    def __init__(self, name: str, seed: int, town: Town, endpoint: BulkEndpoint) -> None:
        super().__init__(name, seed, Traits())
        self.endpoint = endpoint
        self._town = town
        self._bulk: SimulatedBulk | None = None
        self._store: BlobStore | None = None
        self._swarm: Swarm | None = None

    @property
    def peer(self) -> Peer:
        return self.endpoint.key

    @property
    def store(self) -> BlobStore:
        assert self._store is not None, f"{self.name} is down"
        return self._store

    @property
    def swarm(self) -> Swarm:
        assert self._swarm is not None, f"{self.name} is down"
        return self._swarm

    async def begin(self) -> None:
        power = self.power_on()
        clock = SimulatedClock(self, power)
        bulk = self._bulk = SimulatedBulk(self._town.network, self.endpoint)
        disk, rows, offload = SimulatedDisk(self, power), SimulatedKv(self.kv, power), SimulatedOffload(self, power)

        async def open_all() -> None:
            self._store = await BlobStore.open(disk, rows, clock, offload, BlobLimits(reserve_bytes=0))
            self._swarm = Swarm(self._store, bulk, clock)
            await bulk.start(self._town.addresses(), self._swarm.serve)

        await self.start(open_all())

    def cut_off(self, noticed: bool) -> None:
        self._store = self._swarm = None
        if self._bulk is not None:
            self._bulk.cut_power(noticed=noticed)
            self._bulk = None

    async def put(self, data: bytes) -> bytes:
        """A client's upload."""
        manifest = manifest_of(data)
        staging = self.store.stage(manifest_cid(manifest), manifest, BlobKind.MODEL)
        for index in staging.missing():
            start, stop = leaf_range(len(data), index)
            assert staging.put(index, data[start:stop])
        return (await self.store.publish(staging)).cid

    def put_some(self, data: bytes, leaves: range) -> bytes:
        """An upload that stopped."""
        manifest = manifest_of(data)
        cid = manifest_cid(manifest)
        staging = self.store.stage(cid, manifest, BlobKind.MODEL)
        for index in leaves:
            start, stop = leaf_range(len(data), index)
            assert staging.put(index, data[start:stop])
        return cid

    def obtain(self, cid: bytes, *sources: Home, check: Check | None = None) -> asyncio.Task[Blob]:
        """As this process's own: it ends with it."""
        peers = tuple(home.peer for home in sources)
        return self.start(self.swarm.obtain(cid, BlobKind.MODEL, sources=peers, check=check))

    def holds(self, data: bytes, cid: bytes) -> bool:
        return self.store.find(cid) is not None and self.store.view(cid) == data


class Town:
    def __init__(self, size: int, seed: int = 1, egress_mib_s: float = 100.0) -> None:
        self.network = BulkNetwork(seed, egress_mib_s)
        self.chance = drawn_from(seed, "town")
        keys = [SigningKey.from_seed(bytes([1 + n]) * 32).public for n in range(size)]
        self.homes = [
            Home(f"v{number}", seed, self, self.network.join(f"v{number}", key))
            for number, key in enumerate(sorted(keys))
        ]

    async def begin(self) -> Town:
        for home in self.homes:
            await home.begin()
        return self

    def addresses(self) -> dict[Peer, PeerAddress]:
        return {home.peer: PeerAddress(home.peer, "", 1 + number) for number, home in enumerate(self.homes)}

    def faults(self) -> dict[str, int]:
        """All that were blamed, by what for."""
        found: dict[str, int] = {}
        for home in self.homes:
            for fault, count in home.swarm.tally.faults.items():
                found[str(fault)] = found.get(str(fault), 0) + count
        return found

    def blamed(self) -> set[str]:
        return {name for _, name, _ in self.network.punishments}


# What Byzantine homes answer


def spoiling(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
    """Leaves with one bit changed."""
    answer = serve(peer, request)
    if not isinstance(from_request(request), LeafRequest) or not len(answer):
        return answer
    spoilt = bytearray(answer)
    spoilt[len(spoilt) // 2] ^= 1
    return spoilt


def stalling_at_leaves(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
    return None if isinstance(from_request(request), LeafRequest) else serve(peer, request)


def stalling(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
    return None


def boasting(offer: Offer) -> Answer:
    """Says that it has all of the blob, and gives nothing."""

    def answer(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
        match from_request(request):
            case ManifestRequest():
                return encode(replace(offer, have=Have(True, b"")))
            case HaveRequest():
                return encode(Have(True, b""))
            case LeafRequest():
                return b""

    return answer


def pretending_to_pull(leaves: int) -> Answer:
    """Says for ever that it downloads the blob too, and has nothing yet."""

    def answer(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
        if isinstance(from_request(request), HaveRequest):
            return encode(Have(False, bytes((leaves + 7) // 8)))
        return b""

    return answer


def misnaming(offer: Offer) -> Answer:
    """Has a manifest for every CID: always the same."""

    def answer(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
        return encode(offer) if isinstance(from_request(request), ManifestRequest) else b""

    return answer


def misjudging(manifest: Manifest) -> Answer:
    """Says that the blob of one leaf is shorter than it is: its CID does not say otherwise."""
    offer = Offer(replace(manifest, size_bytes=manifest.size_bytes - 8), Have(True, b""))

    def answer(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
        match from_request(request):
            case ManifestRequest():
                return encode(offer)
            case HaveRequest():
                return encode(offer.have)
            case LeafRequest():
                return b""

    return answer


def flooding(size_bytes: int) -> Answer:
    """A manifest without end."""

    def answer(peer: Peer, request: bytes, serve: Serve) -> Buffer | None:
        return bytes(size_bytes) if isinstance(from_request(request), ManifestRequest) else b""

    return answer


# The bytes that one blob costs


@dataclass(frozen=True, slots=True)
class Spread:
    size: int
    leaves: int
    blob_bytes: int
    origin_bytes: int
    total_bytes: int
    most_bytes: int
    """Of all but the origin."""
    seconds: float
    """Simulated: until the last has it."""

    @property
    def origin(self) -> float:
        return self.origin_bytes / self.blob_bytes

    @property
    def total(self) -> float:
        """1 is as little as can be."""
        return self.total_bytes / ((self.size - 1) * self.blob_bytes)

    @property
    def most(self) -> float:
        return self.most_bytes / self.blob_bytes


async def spread(
    size: int, leaves: int, seed: int = 1, prepare: Callable[[Town], None] = lambda town: None, apart_s: float = 0.02
) -> Spread:
    """One blob from one home to all others, which begin within `apart_s` of one another."""
    town = await Town(size, seed).begin()
    prepare(town)
    origin, *others = town.homes
    data = some_blob(leaves)
    cid = await origin.put(data)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(home: Home) -> None:
        await asyncio.sleep(town.chance.uniform(0.0, apart_s))
        await home.obtain(cid, origin)

    await asyncio.gather(*(one(home) for home in others))
    assert all(home.holds(data, cid) for home in others)
    network = town.network
    return Spread(
        size=size,
        leaves=leaves,
        blob_bytes=len(data),
        origin_bytes=network.egress(origin.name),
        total_bytes=sum(network.sent.values()),
        most_bytes=max(network.egress(home.name) for home in others),
        seconds=loop.time() - began,
    )
