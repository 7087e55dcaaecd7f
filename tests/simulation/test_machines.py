"""Simulated disks: what a crash may take and what it never takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from node.ports import AlreadyLocked, DiskFull, Ports
from tests.simulation.loop import Crash, simulate
from tests.simulation.network import Network
from tests.simulation.ports import EPOCH_MS, Machine, Traits

SEEDS = range(200)


def on_machine(
    body: Callable[[Machine], Coroutine[Any, Any, None]], seed: int = 1, traits: Traits | None = None
) -> None:
    async def main() -> None:
        network = Network(seed)
        await body(Machine("v0", seed, network, network.join("v0", bytes(33)), traits))

    simulate(main)


def test_what_was_synced_survives_every_crash() -> None:
    async def body(machine: Machine) -> None:
        disk = machine.boot().disk
        disk.append("d/f", b"synced")
        await disk.sync("d/f")
        disk.append("d/f", b" and not")
        machine.crash()
        assert machine.boot().disk.read("d/f").startswith(b"synced")

    for seed in SEEDS:
        on_machine(body, seed)


def test_of_what_was_not_synced_a_crash_keeps_nothing_all_a_part_or_a_hole() -> None:
    outcomes: set[bytes | None] = set()

    async def body(machine: Machine) -> None:
        disk = machine.boot().disk
        disk.append("f", b"0")
        await disk.sync("f")
        disk.append("f", b"aaaa")
        disk.append("f", b"bbbb")
        machine.crash()
        outcomes.add(machine.boot().disk.read("f"))

    for seed in SEEDS:
        on_machine(body, seed)
    assert {b"0", b"0aaaa", b"0aaaabbbb"} <= outcomes
    assert any(each is not None and each.startswith(b"0\0\0\0\0bbbb") for each in outcomes)
    assert any(each is not None and 1 < len(each) < 5 for each in outcomes)


def test_a_file_that_was_never_synced_may_vanish_with_its_name() -> None:
    outcomes: set[int | None] = set()

    async def body(machine: Machine) -> None:
        disk = machine.boot().disk
        disk.append("d/f", b"four")
        machine.crash()
        outcomes.add(machine.boot().disk.size("d/f"))

    for seed in SEEDS:
        on_machine(body, seed)
    assert {None, 0, 4} <= outcomes


def test_a_rename_is_undone_or_done_until_its_directory_is_synced() -> None:
    outcomes: set[tuple[str, ...]] = set()

    async def body(machine: Machine, sync: bool) -> None:
        disk = machine.boot().disk
        disk.append("d/old", b"x")
        await disk.sync("d/old")
        disk.rename("d/old", "d/new")
        if sync:
            await disk.sync("d/new")
        machine.crash()
        names = tuple(machine.boot().disk.list())
        outcomes.add(names)

    for seed in SEEDS:
        on_machine(lambda machine: body(machine, sync=False), seed)
    assert outcomes == {("d/old",), ("d/new",)}
    outcomes.clear()
    for seed in SEEDS:
        on_machine(lambda machine: body(machine, sync=True), seed)
    assert outcomes == {("d/new",)}


def test_a_file_written_whole_is_the_old_or_the_new_one_at_every_crash() -> None:
    outcomes: set[bytes] = set()

    def crash_at(operation: int) -> Callable[[Machine], Coroutine[Any, Any, None]]:
        async def body(machine: Machine) -> None:
            def pull(number: int, _: str) -> None:
                if number == start + operation:
                    raise Crash

            ports = machine.boot()
            await ports.disk.write_whole("d/f", b"old")
            start = machine.operations
            machine.on_operation = pull
            with pytest.raises(Crash):
                await ports.disk.write_whole("d/f", b"new")
            machine.on_operation = None
            outcomes.add(machine.boot().disk.read("d/f"))

        return body

    for operation in range(1, 7):
        for seed in range(30):
            on_machine(crash_at(operation), seed)
    assert outcomes == {b"old", b"new"}


def test_of_the_rows_a_crash_takes_the_newest_writes_whole_and_none_that_was_synced() -> None:
    outcomes: set[tuple[bool, ...]] = set()

    async def body(machine: Machine) -> None:
        kv = machine.boot().kv
        kv.write({b"0": b"", b"00": b""})
        kv.write({b"1": b""}, sync=True)
        kv.write({b"2": b"", b"22": b""})
        kv.write({b"3": b""}, deletes=[b"0"])
        machine.crash()
        kv = machine.boot().kv
        assert kv.get(b"00") is not None
        assert kv.get(b"1") is not None
        assert kv.get(b"2") == kv.get(b"22")
        assert (kv.get(b"0") is None) == (kv.get(b"3") is not None)
        outcomes.add((kv.get(b"2") is not None, kv.get(b"3") is not None))

    for seed in SEEDS:
        on_machine(body, seed)
    assert outcomes == {(False, False), (True, False), (True, True)}


def test_a_killed_process_leaves_its_page_cache() -> None:
    async def body(machine: Machine) -> None:
        ports = machine.boot()
        ports.disk.append("f", b"not synced")
        ports.disk.lock("lock")
        ports.kv.write({b"k": b"v"})
        machine.kill()
        ports = machine.boot()
        ports.disk.lock("lock")
        assert ports.disk.read("f") == b"not synced"
        assert ports.kv.get(b"k") == b"v"

    on_machine(body)


def test_a_crash_ends_the_incarnation_with_all_its_tasks_and_ports() -> None:
    async def body(machine: Machine) -> None:
        ended: list[str] = []
        restarted = asyncio.Event()
        machine.on_crash = restarted.set

        async def child() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("child")

        async def node(ports: Ports) -> None:
            task = asyncio.ensure_future(child())
            await asyncio.sleep(5)
            ports.disk.append("f", b"x")
            await task

        bystander = asyncio.ensure_future(asyncio.sleep(20))
        task = machine.run(node)
        await asyncio.sleep(1)
        ports = machine.boots
        machine.crash()
        await restarted.wait()
        await asyncio.wait([task])
        assert task.cancelled()
        assert ended == ["child"]
        assert machine.disk.entries == {}
        assert not machine.running
        machine.boot()
        assert machine.boots == ports + 1
        await bystander

    on_machine(body)


def test_dead_ports_do_nothing_any_more() -> None:
    async def body(machine: Machine) -> None:
        ports = machine.boot()
        ports.disk.append("f", b"x")
        syncing = asyncio.ensure_future(ports.disk.sync("f"))
        working = asyncio.ensure_future(ports.offload.run(sum, [1, 2]))
        await asyncio.sleep(0)
        machine.kill()
        for task in (syncing, working):
            with pytest.raises(Crash):
                await task
        for act in (
            lambda: ports.disk.append("f", b"x"),
            lambda: ports.kv.write({b"k": b"v"}),
            lambda: ports.kv.get(b"k"),
            lambda: ports.links.send(bytes(33), 0, b""),  # type: ignore[arg-type]
        ):
            with pytest.raises(Crash):
                act()

    on_machine(body)


def test_operations_are_numbered_through_all_incarnations() -> None:
    async def body(machine: Machine) -> None:
        log: list[tuple[int, str]] = []
        machine.on_operation = lambda number, kind: log.append((number, kind))
        ports = machine.boot()
        ports.disk.append("f", b"x")
        await ports.disk.sync("f")
        machine.kill()
        ports = machine.boot()
        ports.kv.write({b"k": b"v"}, sync=True)
        ports.disk.unlink("f")
        kinds = ["disk.append", "disk.sync", "disk.synced", "kv.write_sync", "kv.synced", "disk.unlink"]
        assert log == list(enumerate(kinds, start=1))

    on_machine(body)


def test_a_full_disk_leaves_the_file_as_it_was() -> None:
    async def body(machine: Machine) -> None:
        disk = machine.boot().disk
        disk.append("f", b"12345678")
        with pytest.raises(DiskFull):
            disk.append("f", b"123")
        assert (disk.read("f"), disk.free_bytes()) == (b"12345678", 2)

    on_machine(body, traits=Traits(capacity_bytes=10))


def test_a_lock_is_given_back_by_a_crash() -> None:
    async def body(machine: Machine) -> None:
        ports = machine.boot()
        ports.disk.lock("lock")
        with pytest.raises(AlreadyLocked):
            ports.disk.lock("lock")
        machine.crash()
        machine.boot().disk.lock("lock")

    on_machine(body)


def test_the_wall_may_be_wrong_and_may_jump_but_monotonic_time_does_not() -> None:
    async def body(machine: Machine) -> None:
        clock = machine.boot().clock
        before = clock.now()
        assert abs(before.wall_ms - EPOCH_MS - 1_000_000 - 700) < 10
        machine.traits.skew_ms = -5_000
        await asyncio.sleep(1)
        after = clock.now()
        assert after.mono_ms - before.mono_ms == 1_000
        assert after.wall_ms - before.wall_ms == 1_000 - 5_700

    on_machine(body, traits=Traits(skew_ms=700))


def test_a_timer_for_a_millisecond_never_finds_itself_in_the_one_before() -> None:
    async def body(machine: Machine) -> None:
        clock = machine.boot().clock
        for wait_ms in range(1, 2_000):
            due = clock.now().mono_ms + wait_ms
            await asyncio.sleep(wait_ms / 1000)
            assert clock.now().mono_ms >= due

    on_machine(body)
