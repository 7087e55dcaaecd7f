"""Crashes at every operation of a disk or store, and of creators in the moment in which they promise.

Every run is the same short life of four validators: a job of one round, and memberships submitted to the machine that
will crash. The plan says at which of its numbered operations it does; the nightly form tries every one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

import pytest

from fl.retention import Policy
from node.admission import Status
from node.node import Node
from node.ports import PortError
from node.retention import Keeping
from node.segments import CorruptLog, LogMissing
from tests.simulation.claims import Promises, assert_alive, level, membership
from tests.simulation.cluster import LIMITS, Cluster, Host, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import Crash, simulate
from tests.simulation.outages import Plan, Ran, crash_by

SWEEPING = replace(LIMITS, keeping=Keeping(Policy(update_rounds=0), every_ms=700))
STRIDE = 17
"""Of the operations that the short form tries: a divisor of none of the node's own rhythms."""

DATA_STRIDE = 5


def run(plan: Plan, seed: int = 5) -> Ran:
    ran = Ran()

    async def main() -> None:
        cluster = Cluster(genesis_of(4, trainers=2), seed)
        for each in cluster.hosts:
            each.limits = SWEEPING
        crash_by(plan, cluster, ran)
        promises = Promises(cluster)
        for each in cluster.hosts:
            await each.live(cluster.genesis)
        training = Training(cluster, trainers=2, rounds=1, blobs=5)
        work: list[asyncio.Future[object]] = [asyncio.ensure_future(training.create())]
        for number in range(4):
            if cluster.hosts[plan.machine].up:
                data = cluster.sign("registrar", membership(number))
                work.append(asyncio.ensure_future(cluster.submit(plan.machine, data)))
            await asyncio.sleep(0.15)
        await asyncio.gather(*work)

        def over() -> bool:
            return ran.crashes == planned and len(cluster.running()) == 4 and training.finished()

        planned = 1 + len(plan.then) if plan.first else 0
        assert await cluster.until(over, within=60)
        assert await cluster.until(lambda: promises.kept() and level(cluster), within=20)
        assert await cluster.until(lambda: models_are_everywhere(cluster, training), within=20)
        host = cluster.hosts[plan.machine]
        ran.operations = (host.data if plan.data else host.machine).operations
        await assert_alive(cluster, number=100)

    simulate(main)
    return ran


def models_are_everywhere(cluster: Cluster, training: Training) -> bool:
    """The one that the round must have, on each node; and it is whole there, on the platter."""
    models = {training.expected_model(node, 1) for node in cluster.running()}
    return len(models) == 1 and all(host.data.is_durable(model) for host in cluster.hosts for model in models)


def assert_survived(plans: Sequence[Plan]) -> None:
    failed = []
    for plan in plans:
        try:
            run(plan)
        except Exception as error:
            failed.append(f"{plan}: {error!r}")
    assert not failed, "\n".join(failed)


def operations_of(machine: int, data: bool = False) -> int:
    return run(Plan(machine, data=data)).operations


def test_a_crash_at_an_operation_loses_nothing() -> None:
    assert_survived([Plan(0, number) for number in range(1, operations_of(0), STRIDE)])


def test_a_crash_loses_nothing_whatever_the_disk_kept() -> None:
    count = operations_of(1)
    assert_survived([Plan(1, number, survival=number) for number in range(5, count, 2 * STRIDE)])


def test_a_crash_at_an_operation_of_a_data_process_loses_nothing() -> None:
    count = operations_of(0, data=True)
    assert count > 20
    assert_survived([Plan(0, number, survival=number, data=True) for number in range(1, count, DATA_STRIDE)])


@pytest.mark.nightly
@pytest.mark.parametrize("survival", range(3))
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("machine", range(4))
def test_a_crash_at_every_operation_loses_nothing(machine: int, data: bool, survival: int) -> None:
    count = operations_of(machine, data)
    assert_survived([Plan(machine, number, survival=survival, data=data) for number in range(1, count + 1)])


RECOVERED = 12
"""Operations after the node is open again that still belong to its recovery."""


def recoveries(first: int, survival: int = 0) -> list[Plan]:
    opened = run(Plan(0, first, survival=survival)).opened
    return [Plan(0, first, (again,), survival) for again in range(1, opened + RECOVERED)]


def test_a_crash_at_an_operation_of_a_recovery_loses_nothing() -> None:
    assert_survived(recoveries(operations_of(0) * 2 // 3)[::2])


def test_crash_after_crash_in_recovery_loses_nothing() -> None:
    middle = operations_of(0) // 2
    assert_survived([Plan(0, middle, (again, again + 1, again)) for again in (1, 3, 6)])


@pytest.mark.nightly
def test_a_crash_at_every_operation_of_every_recovery_loses_nothing() -> None:
    for first in range(7, operations_of(0), STRIDE):
        assert_survived(recoveries(first, survival=first))


TRANSACTIONS = 8


def creator_dies(creator: int, promise: int, at_once: bool, frames_lost: bool) -> None:
    """The creator loses its power, for good, within the call by which it gives its promise of this number."""

    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=100 + creator)
        doomed = cluster.hosts[creator]

        def on_promise(host: Host, _: bytes) -> None:
            if host is doomed and len(promises.given) == promise + 1:
                if frames_lost:
                    for other in cluster.hosts:
                        if other is not doomed:
                            cluster.network.cut(doomed.machine.name, other.machine.name)
                doomed.machine.crash()
                raise Crash

        promises = Promises(cluster, on_promise=on_promise)
        await cluster.start()
        data = [cluster.sign("registrar", membership(number)) for number in range(TRANSACTIONS)]
        groups = [data] if at_once else [[each] for each in data]
        for group in groups:
            if doomed.up:
                await cluster.submit(creator, *group, within=3)
        assert not doomed.up and len(promises.given) >= promise + 1
        others = [node for node in cluster.running() if node is not doomed.node]
        assert len(others) == 3
        assert await cluster.until(lambda: promises.kept(others), within=30)
        await assert_alive(cluster, number=100)

    simulate(main)


@pytest.mark.parametrize("frames_lost", [False, True])
def test_what_a_creator_promised_outlives_it(frames_lost: bool) -> None:
    for promise in range(TRANSACTIONS):
        creator_dies(promise % 4, promise, at_once=False, frames_lost=frames_lost)
    creator_dies(2, 0, at_once=True, frames_lost=frames_lost)


@pytest.mark.nightly
@pytest.mark.parametrize("creator", range(4))
def test_what_any_creator_promised_outlives_it(creator: int) -> None:
    for promise in range(TRANSACTIONS):
        for frames_lost in (False, True):
            creator_dies(creator, promise, at_once=False, frames_lost=frames_lost)
            creator_dies(creator, promise, at_once=True, frames_lost=frames_lost)


# What a start makes of a damaged directory


async def killed_after_some_blocks(cluster: Cluster) -> Host:
    """The first validator, its process killed, its disk as the operating system holds it."""
    await cluster.start()
    for number in range(3):
        await cluster.submit(0, cluster.sign("registrar", membership(number)), wait=Status.EXECUTED)
    host = cluster.hosts[0]
    host.machine.kill()
    return host


async def refusal(cluster: Cluster, host: Host) -> PortError:
    """What opening the node raises."""
    ports = host.machine.boot()
    try:
        with pytest.raises(PortError) as caught:
            await Node.open(cluster.genesis, host.key, ports, limits=LIMITS)
    finally:
        host.machine.kill()
    return caught.value


def journal_of(host: Host) -> list[str]:
    return sorted(name for name in host.machine.disk.entries if name.startswith("journal/"))


def rewrite(host: Host, name: str, change: Callable[[bytearray], None]) -> None:
    file = host.machine.disk.entries[name]
    assert not file.pending or bytes(file.data).startswith(bytes(file.durable))
    change(file.data)
    file.durable[:] = file.data
    file.pending.clear()


def in_a_cluster(play: Callable[[Cluster], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        await play(Cluster(genesis_of(4), seed=9))

    simulate(main)


def test_a_deleted_journal_is_refused() -> None:
    async def play(cluster: Cluster) -> None:
        host = await killed_after_some_blocks(cluster)
        for name in journal_of(host):
            del host.machine.disk.entries[name], host.machine.disk.durable[name]
        error = await refusal(cluster, host)
        assert isinstance(error, LogMissing) and error.code == "LOG_MISSING"
        assert "journal" in str(error) and "node init" in str(error)

    in_a_cluster(play)


def test_a_damaged_middle_is_refused_with_its_file_and_offset() -> None:
    async def play(cluster: Cluster) -> None:
        host = await killed_after_some_blocks(cluster)
        (name,) = journal_of(host)
        at = len(host.machine.disk.entries[name].data) // 2

        def damage(data: bytearray) -> None:
            data[at] ^= 0x40

        rewrite(host, name, damage)
        error = await refusal(cluster, host)
        assert isinstance(error, CorruptLog) and name in str(error)
        found = re.search(r"offset (\d+)", str(error))
        assert found is not None and at - 2048 < int(found[1]) <= at

    in_a_cluster(play)


def test_a_torn_tail_starts_and_goes_on() -> None:
    async def play(cluster: Cluster) -> None:
        host = await killed_after_some_blocks(cluster)
        (name,) = journal_of(host)
        rewrite(host, name, lambda data: data.extend(bytes(data[-40:-7])))
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: host.up, within=5)
        await assert_alive(cluster, number=100)

    in_a_cluster(play)


@pytest.mark.parametrize("log", ["journal", "batches"])
def test_a_state_that_runs_ahead_of_a_log_is_refused(log: str) -> None:
    async def play(cluster: Cluster) -> None:
        await cluster.start()
        host = cluster.hosts[0]
        for number in range(2):
            await cluster.submit(0, cluster.sign("registrar", membership(number)), wait=Status.PROVEN)
        name = f"{log}/0000000001"
        older = bytes(host.machine.disk.entries[name].data)
        await cluster.submit(0, cluster.sign("registrar", membership(2)), wait=Status.PROVEN)
        host.machine.kill()
        rewrite(host, name, lambda data: data.__setitem__(slice(None), older))
        error = await refusal(cluster, host)
        assert error.code == "STATE_AHEAD" and f"{log}/" in str(error)

    in_a_cluster(play)
