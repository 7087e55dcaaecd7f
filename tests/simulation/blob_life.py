"""The short life of one blob store: blobs are leased, staged leaf by leaf, published, made, pinned, swept, damaged and
mended. It can be interrupted at each of its operations, and then lives the rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from chain.unixfs import LEAF_BYTES, leaf_range, manifest_cid, manifest_of
from fl.blobs import BlobKind
from node.data.blobs import BlobLimits, BlobStore
from node.data.staging import DIRECTORY, Staging, whole_name
from node.ports import Ports
from tests.simulation.loop import Crash, drawn_from, simulate
from tests.simulation.network import Network
from tests.simulation.ports import Machine, Traits

LIMITS = BlobLimits(reserve_bytes=1 << 20, lease_ms=3_600_000, idle_ms=60_000)
ALICE = b"a" * 32


@dataclass(frozen=True)
class Sample:
    data: bytes
    kind: BlobKind

    @property
    def cid(self) -> bytes:
        return CIDS[self]


def _sample(seed: int, size: int, kind: BlobKind) -> Sample:
    sample = Sample(random.Random(seed).randbytes(size), kind)
    CIDS[sample] = manifest_cid(manifest_of(sample.data))
    return sample


CIDS: dict[Sample, bytes] = {}
UPDATE = _sample(1, 2 * LEAF_BYTES + 5, BlobKind.UPDATE)
MODEL = _sample(2, LEAF_BYTES + 9, BlobKind.MODEL)
SMALL = _sample(3, 700, BlobKind.RECORD)
EMPTY = _sample(4, 0, BlobKind.DATASET)
OLD = _sample(5, LEAF_BYTES + 1, BlobKind.MODEL)
LOST = _sample(6, LEAF_BYTES + 2, BlobKind.MODEL)
HALF = _sample(7, LEAF_BYTES + 3, BlobKind.UPDATE)
NEXT = _sample(8, LEAF_BYTES, BlobKind.UPDATE)
LONG = _sample(9, 3 * LEAF_BYTES, BlobKind.UPDATE)
BY_CID = {cid: sample for sample, cid in CIDS.items()}
MANIFESTS = {cid: manifest_of(sample.data) for cid, sample in BY_CID.items()}


@dataclass
class Books:
    """What the store has said, and must stand by."""

    acknowledged: set[bytes] = field(default_factory=set)
    deleted: set[bytes] = field(default_factory=set)
    uncertain: set[bytes] = field(default_factory=set)
    """In the middle of being deleted or found damaged."""
    leased: set[bytes] = field(default_factory=set)
    pinned: set[bytes] = field(default_factory=set)
    done: set[str] = field(default_factory=set)


def fill(staging: Staging, sample: Sample, leaves: int = 99) -> None:
    for index in staging.missing()[:leaves]:
        start, stop = leaf_range(len(sample.data), index)
        assert staging.put(index, sample.data[start:stop])


class Life:
    """Steps that can each be taken again after they failed half-way."""

    def __init__(self, store: BlobStore, books: Books, machine: Machine) -> None:
        self.store = store
        self.books = books
        self.machine = machine

    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.lease,
            self.upload,
            self.make,
            self.make_what_is_staged,
            self.pin,
            self.sweep,
            self.bring_back_beside_another,
            self.replace,
            self.lose_a_leaf,
            self.mend,
            self.begin_and_give_up,
        ]

    async def live(self) -> None:
        for step in self.steps():
            if step.__name__ not in self.books.done:
                await step()
                self.books.done.add(step.__name__)

    def stage(self, sample: Sample, account: bytes = b"") -> Staging:
        return self.store.stage(sample.cid, MANIFESTS[sample.cid], sample.kind, account)

    async def lease(self) -> None:
        await self.store.lease(ALICE, UPDATE.cid, len(UPDATE.data), UPDATE.kind)
        self.books.leased.add(UPDATE.cid)

    async def upload(self) -> None:
        staging = self.stage(UPDATE, ALICE)
        await self.store.resumed(staging)
        fill(staging, UPDATE, leaves=2)
        await asyncio.sleep(0)
        fill(staging, UPDATE)
        await asyncio.gather(self.store.publish(staging), self.store.publish(staging))
        self.books.acknowledged.add(UPDATE.cid)

    async def make(self) -> None:
        async def put(sample: Sample) -> None:
            await self.store.put(sample.kind, sample.data)
            self.books.acknowledged.add(sample.cid)

        results = await asyncio.gather(*map(put, (SMALL, EMPTY, OLD, LOST)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def make_what_is_staged(self) -> None:
        staging = self.stage(MODEL)
        fill(staging, MODEL, leaves=1)
        await self.store.put(MODEL.kind, MODEL.data)
        self.books.acknowledged.add(MODEL.cid)

    async def pin(self) -> None:
        await self.store.pin(SMALL.cid)
        self.books.pinned.add(SMALL.cid)

    async def sweep(self) -> None:
        token = self.store.mark()
        self.books.uncertain |= {OLD.cid, EMPTY.cid} - self.books.deleted
        assert self.store.touch(MODEL.cid)
        await self.store.sweep(token, {LOST.cid})
        self.books.uncertain -= {OLD.cid, EMPTY.cid}
        self.books.deleted |= {OLD.cid, EMPTY.cid}

    async def bring_back_beside_another(self) -> None:
        """What was deleted comes again while another one is written into the file that it had."""
        self.books.uncertain.add(OLD.cid)
        self.books.deleted.discard(OLD.cid)
        await asyncio.sleep(0.01)
        other, old = self.stage(NEXT), self.stage(OLD)
        await self.store.resumed(other)
        await self.store.resumed(old)
        fill(other, NEXT)
        fill(old, OLD, leaves=1)
        await asyncio.gather(self.store.publish(other), asyncio.sleep(0.001))
        self.books.acknowledged.add(NEXT.cid)
        fill(old, OLD)
        await self.store.publish(old)
        self.books.uncertain.discard(OLD.cid)

    async def replace(self) -> None:
        """A longer blob and a draft in the files of shorter ones."""
        self.books.uncertain |= {OLD.cid, NEXT.cid} - self.books.deleted
        await self.store.sweep(self.store.mark(), {LOST.cid, MODEL.cid})
        self.books.deleted |= {OLD.cid, NEXT.cid}
        self.books.uncertain -= {OLD.cid, NEXT.cid}
        await asyncio.sleep(0.01)
        staging = self.stage(LONG)
        await self.store.resumed(staging)
        fill(staging, LONG)
        await self.store.publish(staging)
        self.books.acknowledged.add(LONG.cid)

    async def lose_a_leaf(self) -> None:
        if (file := self.machine.disk.entries.get(whole_name(LOST.cid))) is not None:
            self.books.uncertain.add(LOST.cid)
            for content in (file.data, file.durable):
                content[5] = LOST.data[5] ^ 0x40
        if self.store.find(LOST.cid) is not None:
            assert await self.store.verify(LOST.cid) == [0]
            staging = await self.store.damaged(LOST.cid)
            assert staging is not None and staging.missing() == [0]
        self.books.uncertain.discard(LOST.cid)
        self.books.acknowledged.discard(LOST.cid)

    async def mend(self) -> None:
        staging = self.store.staging(LOST.cid)
        if self.store.find(LOST.cid) is None:
            assert staging is not None and staging.lost
            await self.store.resumed(staging)
            fill(staging, LOST)
            await self.store.publish(staging)
        self.books.acknowledged.add(LOST.cid)

    async def begin_and_give_up(self) -> None:
        fill(self.stage(HALF), HALF, leaves=1)
        self.store.write(HALF.kind, [HALF.data[:-1]])


def audit(store: BlobStore, books: Books, machine: Machine) -> None:
    listed = store.blobs(None, 100)
    for each in listed:
        if each.cid not in books.uncertain:
            assert store.view(each.cid) == BY_CID[each.cid].data, "something is found that is not whole"
            assert (each.size_bytes, each.kind) == (len(BY_CID[each.cid].data), BY_CID[each.cid].kind)
    found = {each.cid for each in listed}
    assert books.acknowledged - books.uncertain - books.deleted <= found, "what was acknowledged is lost"
    assert not books.deleted & found, "what was deleted came back"
    assert all(staging.cid == LOST.cid for staging in store.lost), "what was being deleted is taken for lost"
    assert (store.count, store.size_bytes) == (len(listed), sum(each.size_bytes for each in listed))
    for cid in books.leased:
        assert any(lease.account == ALICE for lease in store._leases.on(cid)), "a lease is lost"
    assert books.pinned <= store.pins, "a pin is lost"


async def assert_tidy(store: BlobStore, books: Books, machine: Machine) -> None:
    """A sweep long afterwards leaves exactly the files that have rows, and one that names nothing leaves none."""
    await asyncio.sleep(LIMITS.idle_ms / 1000 + 1)
    await store.sweep(store.mark(), books.acknowledged - books.deleted)
    found = {each.cid for each in store.blobs(None, 100)}
    assert found == books.acknowledged - books.deleted
    assert {name for name in machine.disk.entries if not is_blank(name)} == {whole_name(cid) for cid in found}
    for cid in books.pinned:
        await store.unpin(cid)
    await asyncio.sleep(LIMITS.lease_ms / 1000)
    await store.sweep(store.mark(), set())
    assert all(map(is_blank, machine.disk.entries)) and not machine.kv.rows
    await asyncio.sleep(1)
    assert machine.disk.used_bytes() == store.blanks.size_bytes == store.blanks.give_back(1 << 40)
    assert not machine.disk.entries
    assert (store.count, store.size_bytes) == (0, 0)


def is_blank(name: str) -> bool:
    return name.startswith(f"{DIRECTORY}blank-")


@dataclass
class Run:
    """One machine, and where it is interrupted: by numbers of operations since its last start."""

    crashes: list[int] = field(default_factory=list)
    survival: int = 0
    operations: int = 0
    kinds: list[str] = field(default_factory=list)
    interrupted: int = 0


def machine_of(seed: int) -> Machine:
    network = Network(seed=seed)
    return Machine("data", seed, network, network.join("data", b"data"), Traits())


async def open_store(ports: Ports) -> BlobStore:
    return await BlobStore.open(ports.disk, ports.kv, ports.clock, ports.offload, LIMITS)


def live_through(run: Run, store_of: Callable[[Ports], Awaitable[BlobStore]] = open_store) -> None:
    async def main() -> None:
        machine, books = machine_of(7), Books()
        base = 0

        def on_operation(number: int, kind: str) -> None:
            run.kinds.append(kind)
            if run.crashes and number - base >= run.crashes[0]:
                run.crashes.pop(0)
                run.interrupted += 1
                machine.chance = drawn_from(run.survival, "survival", number)
                raise Crash

        async def incarnation(ports: Ports) -> None:
            store = await store_of(ports)
            audit(store, books, machine)
            await Life(store, books, machine).live()
            audit(store, books, machine)
            run.operations = machine.operations
            run.crashes.clear()
            await assert_tidy(store, books, machine)
            await store.close()

        machine.on_operation = on_operation
        for _ in range(10):
            base = machine.operations
            task = machine.run(incarnation)
            await asyncio.wait([task])
            if not task.cancelled() and not isinstance(task.exception(), Crash):
                task.result()
                return
        raise AssertionError("it never came to its end")

    simulate(main)
