"""Crashes and full disks at every operation of the blob store.

Every run is the same short life of one store: blobs are leased, staged leaf by leaf, published, made, pinned, swept,
damaged and mended. The plan says at which of its numbered operations the machine loses its power, or the disk has no
room; then the store is opened again (or goes on) and lives the rest. After every interruption the books are opened:
what was acknowledged is there, byte for byte, and what is found is whole, whatever else may be gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from chain.unixfs import LEAF_BYTES, leaf_range, manifest_cid, manifest_of
from fl.blobs import BlobKind
from node.data.blobs import BlobLimits, BlobStore
from node.data.errors import NoSpace
from node.data.staging import DIRECTORY, Staging, whole_name
from node.ports import DiskFailure, DiskFull, PortError, Ports
from tests.simulation.loop import Crash, drawn_from, simulate
from tests.simulation.network import Network
from tests.simulation.ports import Machine, Power, SimulatedDisk, Traits

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


def operations() -> int:
    run = Run()
    live_through(run)
    return run.operations


def assert_survived(plans: list[Run]) -> None:
    failed = []
    for plan in plans:
        crashes = tuple(plan.crashes)
        try:
            live_through(plan)
        except Exception as error:
            failed.append(f"{crashes}, survival {plan.survival}: {error!r}")
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("survival", range(3))
def test_a_crash_at_any_operation_loses_nothing_that_was_acknowledged(survival: int) -> None:
    assert_survived([Run([number], survival) for number in range(1, operations() + 1)])


@pytest.mark.slow
@pytest.mark.parametrize("survival", range(2))
def test_a_crash_within_a_recovery_loses_nothing(survival: int) -> None:
    plans = [Run([first, again, again], survival) for first in range(3, operations() + 1, 5) for again in (1, 2, 4)]
    assert_survived(plans)


@pytest.mark.nightly
@pytest.mark.parametrize("survival", range(3, 40))
def test_a_crash_at_any_operation_loses_nothing_in_many_outcomes(survival: int) -> None:
    assert_survived([Run([number], survival) for number in range(1, operations() + 1)])


# Disks without room


def live_without_room(first: int, count: int) -> int:
    """Operations `first` to `first + count - 1` find no room. Each step is taken again until it succeeds, by a store
    that is opened anew if the failure leaves anything in doubt; says how many attempts failed."""
    failures = 0

    async def main() -> None:
        nonlocal failures
        machine, books = machine_of(8), Books()

        def on_operation(number: int, kind: str) -> None:
            # A write of rows that is known to be durable is not reported as failed.
            if first <= number < first + count and kind != "kv.synced":
                raise DiskFull(f"no space left on the device, at {kind}")

        async def incarnation(ports: Ports) -> None:
            nonlocal failures
            store: BlobStore | None = None
            for _ in range(count + 2):
                try:
                    store = store or await open_store(ports)
                    await Life(store, books, machine).live()
                    break
                except PortError as error:
                    assert isinstance(error, DiskFailure | NoSpace), repr(error)
                    failures += 1
                    if store is not None:
                        audit(store, books, machine)
                        if isinstance(error, DiskFailure):
                            await store.close()
                            store = None
            assert store is not None
            audit(store, books, machine)
            await assert_tidy(store, books, machine)
            await store.close()

        machine.on_operation = on_operation
        await machine.run(incarnation)

    simulate(main)
    return failures


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_a_disk_that_is_full_for_a_while_costs_a_retry_and_nothing_else(count: int) -> None:
    failures, failed = 0, []
    for first in range(1, operations() + 1):
        try:
            failures += live_without_room(first, count)
        except Exception as error:
            failed.append(f"{first}: {error!r}")
    assert not failed, "\n".join(failed)
    assert failures > operations() // 2


def test_a_file_whose_sync_failed_is_not_believed_again() -> None:
    async def main() -> None:
        machine, books = machine_of(9), Books()

        async def incarnation(ports: Ports) -> None:
            store = await open_store(ports)
            life = Life(store, books, machine)
            staging = life.stage(UPDATE, ALICE)
            fill(staging, UPDATE)
            draft = store.write(MODEL.kind, [MODEL.data])
            machine.traits.failing = {DIRECTORY}
            for publishing in (store.publish(staging), store.keep(draft)):
                with pytest.raises(DiskFailure):
                    await publishing
            machine.traits.failing = set()
            assert staging.missing() == [0, 1, 2] and store.find(UPDATE.cid) is None
            assert not machine.disk.entries
            await life.live()
            audit(store, books, machine)
            await assert_tidy(store, books, machine)

        await machine.run(incarnation)

    simulate(main)


def test_the_reserve_is_kept_and_given_back() -> None:
    async def main() -> None:
        machine, books = machine_of(10), Books()

        async def incarnation(ports: Ports) -> None:
            store = await open_store(ports)
            life = Life(store, books, machine)
            machine.traits.capacity_bytes = LIMITS.reserve_bytes + 3 * LEAF_BYTES
            await store.put(OLD.kind, OLD.data)
            with pytest.raises(PortError, match="reserve"):
                life.stage(UPDATE)
            with pytest.raises(PortError, match="reserve"):
                await store.lease(ALICE, UPDATE.cid, len(UPDATE.data), UPDATE.kind)
            with pytest.raises(PortError, match="reserve"):
                await store.put(UPDATE.kind, UPDATE.data)
            assert ports.disk.free_bytes() >= LIMITS.reserve_bytes and not store.full
            await store.sweep(store.mark(), set())
            staging = life.stage(UPDATE)
            ports.disk.append("elsewhere", bytes(2 * LEAF_BYTES))
            with pytest.raises(PortError, match="reserve"):
                fill(staging, UPDATE)
            ports.disk.unlink("elsewhere")
            fill(staging, UPDATE)
            await store.publish(staging)
            assert store.view(UPDATE.cid) == UPDATE.data

        await machine.run(incarnation)

    simulate(main)


# Files that are written again


async def leave_a_blank(store: BlobStore) -> None:
    await store.put(OLD.kind, OLD.data)
    await store.sweep(store.mark(), set())


def test_no_crash_leaves_one_file_to_two_blobs() -> None:
    """The file of a deleted blob is another's, and the blob itself comes again: whatever of the names survives."""

    def live(seed: int) -> None:
        async def main() -> None:
            machine = machine_of(seed)

            async def before(ports: Ports) -> None:
                life = Life(store := await open_store(ports), Books(), machine)
                await leave_a_blank(store)
                await asyncio.sleep(0.005 * (seed % 2))
                fill(life.stage(NEXT), NEXT, leaves=seed % 3)
                life.stage(OLD)
                await store.pin(SMALL.cid)
                machine.crash()

            async def after(ports: Ports) -> None:
                life = Life(store := await open_store(ports), Books(), machine)
                both = [(life.stage(each), each) for each in (OLD, NEXT)]
                for staging, sample in both:
                    await store.resumed(staging)
                    fill(staging, sample)
                for staging, _ in both:
                    await store.publish(staging)
                assert all(store.view(each.cid) == each.data for _, each in both)

            await asyncio.wait([machine.run(before)])
            machine.chance = drawn_from(seed, "survival")
            await machine.run(after)

        simulate(main)

    for seed in range(100):
        live(seed)


def test_a_blank_takes_the_place_of_no_leaves_that_are_here() -> None:
    async def main() -> None:
        machine = machine_of(12)

        async def before(ports: Ports) -> None:
            fill(Life(await open_store(ports), Books(), machine).stage(LONG), LONG, leaves=1)
            machine.kill()

        async def after(ports: Ports) -> None:
            life = Life(store := await open_store(ports), Books(), machine)
            staging = life.stage(LONG)
            await store.resumed(staging)
            await leave_a_blank(store)
            await asyncio.sleep(0.1)
            assert staging.missing() == [1, 2] and store.blanks.size_bytes
            fill(staging, LONG)
            await store.publish(staging)
            assert store.view(LONG.cid) == LONG.data

        await asyncio.wait([machine.run(before)])
        await machine.run(after)

    simulate(main)


def test_a_file_that_somebody_reads_is_not_written_again() -> None:
    async def main() -> None:
        machine = machine_of(13)

        async def incarnation(ports: Ports) -> None:
            life = Life(store := await open_store(ports), Books(), machine)
            await store.put(OLD.kind, OLD.data)
            part = store.view(OLD.cid)[5:10]
            await store.sweep(store.mark(), set())
            await asyncio.sleep(0.1)
            assert not store.blanks.size_bytes and not machine.disk.entries
            fill(life.stage(NEXT), NEXT)
            assert part == OLD.data[5:10]

        await machine.run(incarnation)

    simulate(main)


def test_blanks_are_given_up_before_anything_is_refused() -> None:
    async def main() -> None:
        machine = machine_of(14)

        async def incarnation(ports: Ports) -> None:
            life = Life(store := await open_store(ports), Books(), machine)
            machine.traits.capacity_bytes = LIMITS.reserve_bytes + len(LONG.data)
            await leave_a_blank(store)
            await asyncio.sleep(0.1)
            assert machine.disk.used_bytes() == store.blanks.size_bytes == len(OLD.data) and not store.full
            staging = life.stage(LONG)
            assert not machine.disk.entries
            fill(staging, LONG)
            await store.publish(staging)
            await leave_no_room(ports, machine, store)

        async def leave_no_room(ports: Ports, machine: Machine, store: BlobStore) -> None:
            await store.sweep(store.mark(), set())
            ports.disk.append("elsewhere", bytes(LEAF_BYTES))
            assert store.blanks.size_bytes and not store.full
            assert not store.blanks.size_bytes

        await machine.run(incarnation)

    simulate(main)


# Everything at once


def jostle(seed: int) -> None:
    """Publishers, makers and sweepers of a few blobs, all at once, over a crash."""

    async def main() -> None:
        machine, books = machine_of(seed), Books()
        chance = drawn_from(seed, "jostle")
        samples = [UPDATE, MODEL, SMALL, EMPTY]
        sweeps = 0

        async def upload(store: BlobStore) -> None:
            sample = chance.choice(samples)
            staging = store.stage(sample.cid, MANIFESTS[sample.cid], sample.kind)
            fill(staging, sample)
            await asyncio.sleep(chance.random() * 0.004)
            assert (await store.publish(staging)).cid == sample.cid

        async def make(store: BlobStore) -> None:
            sample = chance.choice(samples)
            await asyncio.sleep(chance.random() * 0.004)
            mark = sweeps
            assert (await store.put(sample.kind, sample.data)).cid == sample.cid
            await asyncio.sleep(0)
            assert mark != sweeps or store.find(sample.cid) is not None, "what came after the mark was swept"

        async def look(store: BlobStore) -> None:
            for sample in samples:
                if store.find(sample.cid) is not None:
                    assert store.view(sample.cid) == sample.data

        async def sweep(store: BlobStore) -> None:
            nonlocal sweeps
            sweeps += 1
            mine = sweeps
            token, wanted = store.mark(), chance.choice(samples).cid
            before = store.find(wanted)
            await asyncio.sleep(chance.random() * 0.004)
            await store.sweep(token, {wanted})
            # A later mark may belong to roots that do not name it.
            assert before is None or mine != sweeps or store.find(wanted) == before

        async def throw_away(store: BlobStore) -> None:
            await store.discard(chance.choice(samples).cid)

        async def act(store: BlobStore) -> None:
            for _ in range(6):
                await asyncio.sleep(chance.random() * 0.006)
                try:
                    await chance.choice([upload, upload, make, look, sweep, throw_away])(store)
                except PortError as error:
                    assert error.code in {"BLOB_DISCARDED", "STALE_MARK", "BLOB_UNFINISHED"}, repr(error)

        async def incarnation(ports: Ports) -> None:
            store = await open_store(ports)
            audit(store, books, machine)
            await asyncio.gather(*(act(store) for _ in range(4)))
            audit(store, books, machine)
            await assert_tidy(store, books, machine)

        async def crash() -> None:
            await asyncio.sleep(chance.random() * 0.04)
            machine.crash()

        task = machine.run(incarnation)
        crashing = asyncio.ensure_future(crash())
        await asyncio.wait([task, crashing], return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            task.result()
        await crashing
        await asyncio.wait([task])
        machine.chance = drawn_from(seed, "second life")
        await machine.run(incarnation)

    simulate(main)


def test_publishing_and_deleting_at_once_end_in_whole_blobs_or_none() -> None:
    failed = []
    for seed in range(25):
        try:
            jostle(seed)
        except Exception as error:
            failed.append(f"{seed}: {error!r}")
    assert not failed, "\n".join(failed)


# What a crash does to bytes that were written in place


def test_unsynced_writes_are_lost_torn_or_kept_in_any_order() -> None:
    outcomes: set[bytes] = set()

    async def main() -> None:
        machine = machine_of(11)
        for survival in range(200):
            disk, name = SimulatedDisk(machine, Power(machine)), f"f{survival}"
            disk.write_at(name, 0, b"oooo")
            await disk.sync(name)
            disk.write_at(name, 0, b"aa")
            disk.write_at(name, 2, b"bb")
            disk.write_at(name, 6, b"cc")
            machine.disk.survive(drawn_from(survival))
            outcomes.add(disk.read(name))

    simulate(main)
    assert {b"oooo", b"aabb\0\0cc", b"oobb", b"aaoo", b"oooo\0\0cc"} <= outcomes
    torn = {outcome for outcome in outcomes if outcome[:2] not in (b"oo", b"aa")}
    assert torn, "no write was torn"
