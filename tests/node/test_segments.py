"""The segmented log, on simulated disks that crash and on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from node.ports import Disk, DiskFailure, DiskFull, Ports
from node.ports.disk import FileDisk
from node.segments import IDLE_S, CorruptLog, Location, LogExists, LogMissing, SegmentedLog, Writer
from tests.simulation.loop import Crash, simulate
from tests.simulation.network import Network
from tests.simulation.ports import Machine

SMALL = 400
"""Segments of a few records, so that every test crosses from one to the next."""


def one_machine(body: Callable[[Machine], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    async def main() -> None:
        network = Network(seed)
        await body(Machine("v0", seed, network, network.join("v0", bytes(33))))

    simulate(main)


def payload(number: int) -> bytes:
    return Random(number).randbytes(number * 7 % 90)


def fixed(size: int) -> bytes:
    return b"mark"[:size]


async def filled(disk: Disk, records: int) -> SegmentedLog:
    log = await SegmentedLog.create(disk, "journal", fixed, SMALL)
    for number in range(1, records + 1):
        assert log.append(number % 5, payload(number)) == number
        if number % 3 == 0:
            await log.durable(number)
    await log.durable(log.last)
    return log


def contents(log: SegmentedLog) -> list[tuple[int, int, bytes]]:
    return [(number, kind, data) for number, kind, data, _ in log.replay()]


def expected(first: int, last: int) -> list[tuple[int, int, bytes]]:
    return [(number, number % 5, payload(number)) for number in range(first, last + 1)]


def test_what_was_appended_is_replayed_in_order_through_all_segments(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        await filled(disk, 60)
        disk.close()
        disk = FileDisk(tmp_path)
        log = await SegmentedLog.open(disk, "journal", SMALL)
        assert len(disk.list("journal/")) > 3
        assert contents(log) == expected(1, 60)
        assert (log.first, log.last, log.synced) == (1, 60, 60)
        assert log.append(7, b"next") == 61
        await log.durable(61)
        assert contents(log)[-1] == (61, 7, b"next")
        assert [number for number, *_ in log.replay(start=40)] == list(range(40, 62))
        disk.close()

    asyncio.run(body())


def test_a_record_is_read_again_where_it_stands(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        log = await filled(disk, 20)
        number, location = log.append_at(1, b"a body")
        assert log.read(location) == b"a body"
        found = {each: where for each, _, _, where in log.replay()}
        assert found[number] == location
        assert all(log.read(found[each]) == payload(each) for each in range(1, 21))
        with pytest.raises(CorruptLog):
            log.read(Location(location.segment, location.offset + 1, location.size_bytes))
        disk.close()

    asyncio.run(body())


def test_starting_never_creates_a_log_and_creating_never_replaces_one(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        with pytest.raises(LogMissing):
            await SegmentedLog.open(disk, "journal")
        await SegmentedLog.create(disk, "journal", fixed)
        with pytest.raises(LogExists):
            await SegmentedLog.create(disk, "journal", fixed)
        disk.close()

    asyncio.run(body())


def test_a_creation_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        disk.append("journal/0000000001", b"quor")
        with pytest.raises(CorruptLog):
            await SegmentedLog.open(disk, "journal")
        log = await SegmentedLog.create(disk, "journal", fixed)
        assert log.append(1, b"x") == 1
        disk.close()

    asyncio.run(body())


def test_one_sync_serves_all_who_wait() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        syncs = 0

        def count(_: int, kind: str) -> None:
            nonlocal syncs
            syncs += kind == "disk.sync"

        machine.on_operation = count

        async def writer() -> None:
            for _ in range(10):
                await log.durable(log.append(1, b"vote"))

        await asyncio.gather(*(writer() for _ in range(50)))
        assert log.synced == 500
        assert syncs <= 21

    one_machine(body)


def test_logs_of_one_writer_are_synced_together_and_in_their_order() -> None:
    async def body(machine: Machine) -> None:
        disk = machine.boot().disk
        for name in ("batches", "journal"):
            await SegmentedLog.create(disk, name, fixed)
        writer = Writer(disk)
        batches, journal = [await SegmentedLog.open(disk, name, writer=writer) for name in ("batches", "journal")]
        synced: list[tuple[int, int]] = []

        def note(_: int, kind: str) -> None:
            if kind == "disk.synced":
                kept = [bytes(machine.disk.entries[f"{name}/0000000001"].durable) for name in ("batches", "journal")]
                synced.append((kept[0].count(b"batch"), kept[1].count(b"vote")))

        machine.on_operation = note
        journal.append(1, b"vote")
        batches.append(1, b"batch")
        await journal.durable(1)
        assert batches.synced == 1
        assert synced == [(1, 0), (1, 1)]
        await batches.durable(1)
        assert len(synced) == 2

    one_machine(body)


def test_a_burst_leaves_one_receipt_behind_it() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        empty_bytes = log.size_bytes
        for _ in range(5):
            await log.durable(log.append(1, b"vote"))
            await asyncio.sleep(IDLE_S / 2)
        size_bytes = log.size_bytes
        await asyncio.sleep(2 * IDLE_S)
        receipt_bytes = log.size_bytes - size_bytes
        assert receipt_bytes == 29
        assert size_bytes == empty_bytes + 5 * (receipt_bytes + len(b"vote"))
        await asyncio.sleep(2 * IDLE_S)
        assert log.size_bytes == size_bytes + receipt_bytes

    one_machine(body)


def test_whoever_asks_as_the_pause_ends_is_not_left_behind() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        moment = asyncio.Event()

        def at_the_end_of_the_pause(_: int, kind: str) -> None:
            if kind == "disk.synced":
                asyncio.get_running_loop().call_later(IDLE_S, moment.set)

        machine.on_operation = at_the_end_of_the_pause
        await log.durable(log.append(1, b"vote"))
        await moment.wait()
        await log.durable(log.append(1, b"vote"))
        assert log.synced == 2

    one_machine(body)


def test_durable_means_synced_and_not_before() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        number = log.append(1, b"vote")
        waiting = asyncio.ensure_future(log.durable(number))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert log.synced == 0
        await waiting
        assert log.synced == 1
        with pytest.raises(ValueError, match="never appended"):
            await log.durable(2)

    one_machine(body)


def test_a_waiter_that_gives_up_takes_nobody_with_it() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        number = log.append(1, b"vote")
        first, second = (asyncio.ensure_future(log.durable(number)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert log.synced == number

    one_machine(body)


def test_a_sync_whose_caller_gave_up_is_made_again() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        kept = machine.disk.entries["journal/0000000001"]
        waiting = asyncio.ensure_future(log.durable(log.append(1, b"vote")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert log.synced == 0 and b"vote" not in kept.durable
        await log.durable(1)
        assert log.synced == 1 and b"vote" in kept.durable

    one_machine(body)


def test_after_a_failed_sync_everything_raises_for_good() -> None:
    async def body(machine: Machine) -> None:
        log = await SegmentedLog.create(machine.boot().disk, "journal", fixed)
        await log.durable(log.append(1, b"vote"))
        machine.traits.failing.add("journal/")
        waiting = [asyncio.ensure_future(log.durable(log.append(1, b"vote"))) for _ in range(3)]
        assert {type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)} == {DiskFailure}
        machine.traits.failing.clear()
        with pytest.raises(DiskFailure):
            log.append(1, b"vote")
        with pytest.raises(DiskFailure):
            await log.durable(1)

    one_machine(body)


def test_a_full_disk_refuses_a_record_and_takes_it_when_there_is_room() -> None:
    async def body(machine: Machine) -> None:
        disk = machine.boot().disk
        log = await SegmentedLog.create(disk, "journal", fixed, SMALL)
        machine.traits.capacity_bytes = 700
        with pytest.raises(DiskFull):
            for _ in range(20):
                log.append(1, bytes(80))
        kept = log.last
        machine.traits.capacity_bytes = None
        assert log.append(1, b"again") == kept + 1
        await log.durable(kept + 1)
        assert (await SegmentedLog.open(disk, "journal", SMALL)).last == kept + 1

    one_machine(body)


def test_a_torn_tail_is_truncated(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        log = await filled(disk, 10)
        whole = {name: disk.size(name) for name in disk.list("journal/")}
        log.append(1, b"a vote that never became durable")
        last = disk.list("journal/")[-1]
        size = disk.size(last)
        assert size is not None
        disk.close()
        for cut in range(whole.get(last) or 0, size):
            disk = FileDisk(tmp_path)
            disk.truncate(last, cut) if cut < (disk.size(last) or 0) else disk.append(last, bytes(cut))
            log = await SegmentedLog.open(disk, "journal", SMALL)
            assert contents(log) == expected(1, 10)
            disk.close()

    asyncio.run(body())


def test_no_damaged_byte_costs_a_durable_record_unnoticed(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        await filled(disk, 24)
        await asyncio.sleep(2 * IDLE_S)
        names = disk.list("journal/")
        assert len(names) >= 3
        content = {name: disk.read(name) for name in names}
        disk.close()
        refused = 0
        for name in names:
            for offset in range(0, len(content[name]), 5):
                damaged = bytearray(content[name])
                damaged[offset] ^= 0x20
                (tmp_path / name).write_bytes(damaged)
                disk = FileDisk(tmp_path)
                try:
                    assert contents(await SegmentedLog.open(disk, "journal", SMALL)) == expected(1, 24)
                except CorruptLog as refusal:
                    assert name in str(refusal)
                    assert "offset" in str(refusal)
                    refused += 1
                disk.close()
            (tmp_path / name).write_bytes(content[name])
        assert refused > 100

    asyncio.run(body())


def test_damage_before_a_record_that_says_it_was_durable_is_never_taken_for_a_torn_tail(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        log = await SegmentedLog.create(disk, "journal", fixed)
        ends = []
        for number in range(1, 9):
            log.append(1, b"vote %d" % number)
            ends.append(disk.size("journal/0000000001") or 0)
            await log.durable(number)
        content = disk.read("journal/0000000001")
        disk.close()
        for bad in range(7):
            damaged = bytearray(content)
            damaged[ends[bad] - 1] ^= 1
            (tmp_path / "journal/0000000001").write_bytes(damaged)
            disk = FileDisk(tmp_path)
            with pytest.raises(CorruptLog, match=f"record {bad + 1} at offset"):
                await SegmentedLog.open(disk, "journal")
            disk.close()

    asyncio.run(body())


def test_a_missing_segment_in_the_middle_is_missed(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        await filled(disk, 40)
        names = disk.list("journal/")
        disk.unlink(names[1])
        with pytest.raises(CorruptLog, match=names[1]):
            await SegmentedLog.open(disk, "journal", SMALL)
        disk.close()

    asyncio.run(body())


def test_a_payload_that_looks_like_records_does_not_make_a_torn_tail_corrupt(tmp_path: Path) -> None:
    """A client cannot keep a validator from starting by hiding records in a transaction."""

    async def body() -> None:
        disk = FileDisk(tmp_path / "theirs")
        theirs = await SegmentedLog.create(disk, "journal", lambda size: b"them")
        for number in range(1, 40):
            theirs.append(1, b"bait")
            await theirs.durable(number)
        bait = disk.read("journal/0000000001")
        disk.close()
        disk = FileDisk(tmp_path / "ours")
        log = await SegmentedLog.create(disk, "journal", lambda size: b"ours")
        await log.durable(log.append(1, b"vote"))
        log.append(1, bait)
        disk.truncate("journal/0000000001", (disk.size("journal/0000000001") or 0) - 1)
        assert contents(await SegmentedLog.open(disk, "journal")) == [(1, 1, b"vote")]
        disk.close()

    asyncio.run(body())


def test_segments_are_dropped_whole_and_numbers_go_on(tmp_path: Path) -> None:
    async def body() -> None:
        disk = FileDisk(tmp_path)
        log = await filled(disk, 60)
        await log.drop_before(31)
        assert 1 < log.first <= 31
        first = log.first
        disk.close()
        disk = FileDisk(tmp_path)
        log = await SegmentedLog.open(disk, "journal", SMALL)
        assert log.first == first
        assert contents(log) == expected(first, 60)
        await log.drop_before(1_000)
        assert log.append(0, b"") == 61
        disk.close()

    asyncio.run(body())


async def worked(ports: Ports, said: list[int]) -> None:
    """Writes as a node does: many appends at once, roll-overs, deletions; notes what it was told to be
    durable."""
    log = await SegmentedLog.open(ports.disk, "journal", SMALL)
    said.append(log.last)

    async def writer(first: int) -> None:
        for turn in range(12):
            number = log.append(log.last % 5, payload(log.last + 1))
            if (turn + first) % 3:
                await log.durable(number)
                said.append(number)

    await asyncio.gather(*(writer(each) for each in range(3)))
    await log.drop_before(log.synced - 3)


def checked(log: SegmentedLog, said: list[int]) -> None:
    assert log.last >= max(said, default=0)
    for number, _, data, _ in log.replay():
        assert data == payload(number)


def test_nothing_said_to_be_durable_is_lost_by_a_crash_at_any_operation() -> None:
    """Every operation in turn, each with several draws of what else the disk keeps."""
    operations = 0

    def run(crash_at: int | None, seed: int) -> int:
        total = 0

        async def body(machine: Machine) -> None:
            nonlocal total
            ports = machine.boot()
            await SegmentedLog.create(ports.disk, "journal", ports.clock.entropy, SMALL)
            machine.crash()
            said: list[int] = []
            start = machine.operations

            def pull(number: int, _: str) -> None:
                if number - start == crash_at:
                    if seed % 2:
                        # The process dies, its page cache does not, until the next start is through.
                        machine.kill()
                    raise Crash

            machine.on_operation = pull
            task = machine.run(lambda ports: worked(ports, said))
            await asyncio.wait([task])
            if crash_at is None:
                task.result()
            total = machine.operations - start
            if seed % 2 == 0:
                machine.crash()
            machine.kill()
            machine.on_operation = None
            # Twice: the second start must find what the first one left in order.
            for _ in range(2):
                ports = machine.boot()
                log = await SegmentedLog.open(ports.disk, "journal", SMALL)
                checked(log, said)
                said.append(log.last)
                machine.crash()

        one_machine(body, seed)
        return total

    operations = run(None, 0)
    assert operations > 60
    for crash_at in range(1, operations + 1):
        for seed in range(4):
            run(crash_at, seed)
