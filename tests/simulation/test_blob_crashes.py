"""Crashes and full disks at every operation of the blob store.

Every run is the same short life of one store (`blob_life`). The plan says at which of its numbered operations the
machine loses its power, or the disk has no room; then the store is opened again (or goes on) and lives the rest. After
every interruption the books are opened: what was acknowledged is there, byte for byte, and what is found is whole,
whatever else may be gone.
"""

from __future__ import annotations

import asyncio

import pytest

from chain.unixfs import LEAF_BYTES
from node.data.blobs import BlobStore
from node.data.errors import NoSpace
from node.data.staging import DIRECTORY
from node.ports import DiskFailure, DiskFull, PortError, Ports
from tests.simulation.blob_life import (
    ALICE,
    EMPTY,
    LIMITS,
    LONG,
    MANIFESTS,
    MODEL,
    NEXT,
    OLD,
    SMALL,
    UPDATE,
    Books,
    Life,
    Run,
    assert_tidy,
    audit,
    fill,
    live_through,
    machine_of,
    open_store,
)
from tests.simulation.loop import drawn_from, simulate
from tests.simulation.ports import Machine, Power, SimulatedDisk


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
