"""Changes of the validator set that the genesis lists, on whole nodes under load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace

import pytest

from chain.certificate import Validator
from chain.genesis import SetChange
from chain.light import (
    HandOver,
    StateBundle,
    Unproven,
    follow,
    genesis_checkpoint,
    verify_executed,
    verify_state_bundle,
)
from fl.state import VALIDATORS
from node.node import Node
from node.ports import Channel, Peer
from tests.simulation.claims import Promises, assert_alive, assert_one_history, level, membership
from tests.simulation.cluster import Cluster, genesis_of, validator
from tests.simulation.loop import simulate
from tests.simulation.network import Conditions
from tests.simulation.outages import Plan, Ran, crash_by

DUE = 12


def members(*indices: int) -> tuple[Validator, ...]:
    return tuple(validator(index) for index in indices)


def with_new_key(index: int, key_of: int) -> Validator:
    """The organisation `index` with the keys of machine `key_of`, which is its other one."""
    return replace(validator(key_of), name=validator(index).name)


class Load:
    """Memberships, submitted in turn to whoever is up, for as long as it runs."""

    def __init__(self, cluster: Cluster, every_ms: float = 60) -> None:
        self._cluster = cluster
        self._every_ms = every_ms
        self._task = asyncio.ensure_future(self._run())
        self.number = 1_000

    async def _run(self) -> None:
        submitted: list[asyncio.Future[object]] = []
        while True:
            up = [host for host in self._cluster.hosts if host.up and host.node is not None]
            taking = [host for host in up if host.node is not None and host.node.replica.me is not None]
            if taking:
                self.number += 1
                host = taking[self.number % len(taking)]
                data = self._cluster.sign("registrar", membership(self.number))
                submitted.append(asyncio.ensure_future(self._cluster.submit(host.index, data)))
            await asyncio.sleep(self._every_ms / 1000)

    def stop(self) -> None:
        self._task.cancel()


def in_office(cluster: Cluster, hosts: Iterable[int], epoch: int) -> bool:
    """The nodes of these hosts are all up and in this epoch."""
    nodes = [cluster.hosts[index].node for index in hosts]
    return all(node is not None and node.replica.validators.epoch == epoch for node in nodes)


def last_blocks(node: Node, epochs: int) -> list[HandOver]:
    """The hand-overs of the first epochs, from one node's rows."""
    found = []
    for epoch in range(epochs):
        height = node.store.last_height_of(epoch)
        assert height is not None
        block, finalization = node.store.block(height), node.store.finalization(height)
        assert block is not None and finalization is not None
        found.append(HandOver(block.header, finalization, node.sets[epoch + 1]))
    return found


def assert_light_client_follows(cluster: Cluster, node: Node, epochs: int) -> None:
    hand_overs = last_blocks(node, epochs)
    checkpoint = follow(genesis_checkpoint(cluster.genesis), hand_overs)
    assert checkpoint.validators == node.replica.validators
    certificate = node.store.newest_certificate()
    assert certificate is not None
    executed = verify_executed(checkpoint, certificate)
    height = executed.height
    value, proof = node.executor.tree.prove(height, VALIDATORS, node.store.state)
    bundle = StateBundle(height, certificate, VALIDATORS, value, proof)
    assert verify_state_bundle(checkpoint, bundle) == executed
    with pytest.raises(Unproven):
        verify_executed(genesis_checkpoint(cluster.genesis), certificate)
    with pytest.raises(Unproven):
        follow(
            genesis_checkpoint(cluster.genesis), hand_overs[1:] or [replace(hand_overs[0], finalization=certificate)]
        )


def play(
    changes: tuple[SetChange, ...],
    script: Callable[[Cluster], Coroutine[None, None, None]] | None = None,
    n: int = 4,
    extra: int = 1,
    seed: int = 3,
    every_ms: float = 60,
    conditions: Conditions | None = None,
) -> int:
    """All machines run from the start, under load, until the last set is in office; then the claims.

    Returns how many batches were named in a later epoch than the one that certified them.
    """
    handed_on: list[bytes] = []

    async def main() -> None:
        cluster = Cluster(genesis_of(n, set_changes=changes), seed, conditions, extra=extra)
        promises = Promises(cluster)
        await cluster.start()
        load = Load(cluster, every_ms)
        if script is not None:
            await script(cluster)
        keys = {member.consensus_key for member in changes[-1].validators}
        office = [host.index for host in cluster.hosts if host.key.public in keys]
        epochs = len(changes)
        assert await cluster.until(lambda: in_office(cluster, office, epochs), within=60), state(cluster)
        await asyncio.sleep(1)
        load.stop()
        nodes = [cluster.node(index) for index in office]
        assert await cluster.until(lambda: promises.kept(nodes), within=30), state(cluster)
        for host in cluster.hosts:
            if host.index not in office:
                host.machine.kill()
        assert await cluster.until(lambda: level(cluster), within=30), state(cluster)
        await assert_alive(cluster, number=0)
        for index in office:
            assert_light_client_follows(cluster, cluster.node(index), epochs)
        node = cluster.node(office[0])
        for block in node.store.blocks(1, max(cluster.heights())):
            for digest in block.body.batches:
                signed = node.batches.read(digest)
                assert signed is not None and signed.batch.epoch in (block.header.epoch, block.header.epoch - 1)
                handed_on.extend([digest] if signed.batch.epoch < block.header.epoch else [])

    simulate(main)
    return len(handed_on)


def state(cluster: Cluster) -> str:
    """Of each host: epoch, view and executed height, or why its node stopped."""
    lines = []
    for host in cluster.hosts:
        if (node := host.node) is not None:
            replica, height = node.replica, node.executor.executed.lineage.height
            lines.append(f"n{host.index}: {replica.validators.epoch} {replica.ordering.view} {height}")
        else:
            lines.append(f"n{host.index}: {host.failures}")
    return ", ".join(lines)


def test_a_validator_is_replaced() -> None:
    play((SetChange(DUE, members(0, 1, 2, 4)),))


def test_a_fifth_validator_is_added() -> None:
    play((SetChange(DUE, members(0, 1, 2, 3, 4)),))


def test_a_validator_is_removed() -> None:
    play((SetChange(DUE, members(0, 2, 3)),), extra=0)


def test_an_organisation_changes_its_keys() -> None:
    play((SetChange(DUE, (*members(0, 1, 2), with_new_key(3, 4))),))


def test_two_hand_overs_in_a_row() -> None:
    play((SetChange(DUE, members(0, 1, 2, 4)), SetChange(DUE + 1, members(1, 2, 4, 5))), extra=2)


def test_what_a_set_promised_is_kept_by_another_that_shares_no_member_with_it() -> None:
    assert play((SetChange(DUE, members(4, 5, 6, 7)),), extra=4, every_ms=10) > 0


def test_a_joiner_follows_the_chain_before_its_epoch_begins() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4, set_changes=(SetChange(10_000, members(0, 1, 2, 4)),)), seed=4, extra=1)
        await cluster.start()
        load = Load(cluster)
        joiner = cluster.node(4)
        for _ in range(2):
            await asyncio.sleep(2)
            behind = max(cluster.heights()) - joiner.executor.executed.lineage.height
            # It learns of blocks from what others say of themselves each second, and asks for them.
            assert behind <= 2_000 // cluster.genesis.params.min_block_interval_ms
        load.stop()
        assert_one_history(cluster)

    simulate(main)


def test_those_who_left_serve_what_they_signed_for() -> None:
    """No bytes reach those who stay or join until the others have left the set: then only leavers have them."""
    leaving = (1, 2, 3)

    async def script(cluster: Cluster) -> None:
        starved = {host.key.public for host in cluster.hosts if host.index not in leaving}

        def starve(peer: Peer, channel: Channel, frame: bytes) -> Iterable[tuple[Peer, Channel, bytes]]:
            return () if channel is Channel.DATA and peer in starved else ((peer, channel, frame),)

        for index in leaving:
            cluster.network.wrap(f"n{index}", starve)
        assert await cluster.until(lambda: in_office(cluster, leaving, 1), within=30), state(cluster)
        assert cluster.node(0).executor.executed.lineage.height < DUE
        for index in leaving:
            cluster.network.wrap(f"n{index}", None)

    play((SetChange(DUE, members(0, 4, 5, 6)),), script, extra=3)


def away(cluster: Cluster, absent: int, goes: int, epochs: int) -> Coroutine[None, None, None]:
    """One machine is off from a height below the first change until the last set has been in office for seconds."""

    async def script() -> None:
        host = cluster.hosts[absent]
        assert await cluster.until(lambda: max(cluster.heights()) >= goes, within=30)
        host.machine.crash()
        others = [other.index for other in cluster.hosts if other is not host and other.index != 0]
        assert await cluster.until(lambda: in_office(cluster, others, epochs), within=60), state(cluster)
        await asyncio.sleep(2)
        await host.live(cluster.genesis)

    return script()


def test_a_node_that_was_away_catches_up_across_a_hand_over() -> None:
    play((SetChange(DUE, members(0, 1, 2, 3, 4)),), lambda cluster: away(cluster, 1, DUE - 6, epochs=1))


def test_a_node_that_was_away_catches_up_across_two_hand_overs() -> None:
    changes = (SetChange(DUE, members(0, 1, 2, 3, 4)), SetChange(DUE + 30, members(1, 2, 3, 4, 5)))
    play(changes, lambda cluster: away(cluster, 1, DUE - 6, epochs=2), extra=2)


def operations_around_the_end(machine: int) -> range:
    """Those of a machine from some blocks before the end of its first epoch until some blocks after."""
    seen: list[int] = []

    async def script(cluster: Cluster) -> None:
        host = cluster.hosts[machine]
        assert await cluster.until(lambda: cluster.node(machine).replica.ordering.tree.root.height >= DUE - 1, 30, 0.01)
        seen.append(host.machine.operations)
        assert await cluster.until(lambda: in_office(cluster, [machine], 1), within=30, step=0.01)
        await asyncio.sleep(0.2)
        seen.append(host.machine.operations)

    play((SetChange(DUE, members(0, 1, 2, 4)),), script)
    return range(seen[0], seen[1] + 1)


def crashes_around_the_end(machine: int, stride: int) -> None:
    for number in operations_around_the_end(machine)[::stride]:
        plan, ran = Plan(machine, number, survival=number), Ran()
        play((SetChange(DUE, members(0, 1, 2, 4)),), crashing(plan, ran))
        assert ran.crashes == 1


def crashing(plan: Plan, ran: Ran) -> Callable[[Cluster], Coroutine[None, None, None]]:
    async def script(cluster: Cluster) -> None:
        crash_by(plan, cluster, ran)

    return script


@pytest.mark.parametrize("machine", [0, 4])
def test_a_crash_around_a_hand_over_loses_nothing(machine: int) -> None:
    crashes_around_the_end(machine, stride=37)


@pytest.mark.nightly
@pytest.mark.parametrize("machine", [0, 1, 4])
def test_a_crash_at_every_operation_around_a_hand_over_loses_nothing(machine: int) -> None:
    crashes_around_the_end(machine, stride=1)


def test_all_crash_as_the_last_block_becomes_final() -> None:
    async def script(cluster: Cluster) -> None:
        assert await cluster.until(lambda: any(in_office(cluster, [index], 1) for index in range(4)), 30, 0.002)
        for host in cluster.hosts:
            host.machine.crash()
        await asyncio.sleep(1)
        for host in cluster.hosts:
            await host.live(cluster.genesis)

    play((SetChange(DUE, members(0, 1, 2, 4)),), script)


@pytest.mark.parametrize(("n", "members_after"), [(1, (0, 1, 2, 3)), (4, (2,)), (3, (0, 1, 2, 3)), (2, (1, 2, 3))])
def test_small_sets_grow_and_shrink(n: int, members_after: tuple[int, ...]) -> None:
    play((SetChange(DUE, members(*members_after)),), n=n, extra=4 - n)


BAD_LINKS = Conditions(delay_ms=20.0, jitter_ms=40.0, loss=0.05, duplicate=0.05, reorder=0.2)


def hand_over_on_bad_links(seed: int) -> None:
    changes = (SetChange(DUE, members(0, 1, 2, 4)), SetChange(DUE + 20, members(2, 4, 5, 6)))
    play(changes, extra=3, seed=seed, conditions=BAD_LINKS)


def test_two_hand_overs_on_bad_links() -> None:
    hand_over_on_bad_links(1)


@pytest.mark.nightly
def test_many_hand_overs_on_bad_links() -> None:
    for seed in range(2, 40):
        hand_over_on_bad_links(seed)


def test_an_idle_chain_hands_over_too() -> None:
    play((SetChange(2, members(0, 1, 2, 4)), SetChange(3, members(1, 2, 4, 5))), extra=2, every_ms=1e9)
