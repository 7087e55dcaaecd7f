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
from tests.simulation.claims import Promises, assert_alive, level, membership
from tests.simulation.cluster import Cluster, genesis_of, validator
from tests.simulation.loop import simulate

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
) -> None:
    """All machines run from the start, under load, until the last set is in office; then the claims."""

    async def main() -> None:
        cluster = Cluster(genesis_of(n, set_changes=changes), seed, extra=extra)
        promises = Promises(cluster)
        await cluster.start()
        load = Load(cluster)
        if script is not None:
            await script(cluster)
        keys = {member.consensus_key for member in changes[-1].validators}
        office = [host.index for host in cluster.hosts if host.key.public in keys]
        epochs = len(changes)
        assert await cluster.until(lambda: in_office(cluster, office, epochs), within=60), state(cluster)
        await asyncio.sleep(1)
        load.stop()
        for host in cluster.hosts:
            if host.index not in office:
                host.machine.kill()
        assert await cluster.until(lambda: promises.kept() and level(cluster), within=30), state(cluster)
        await assert_alive(cluster, number=0)
        for index in office:
            assert_light_client_follows(cluster, cluster.node(index), epochs)

    simulate(main)


def state(cluster: Cluster) -> str:
    return repr(
        [
            (
                host.index,
                node.replica.validators.epoch,
                node.replica.ordering.view,
                node.executor.executed.lineage.height,
            )
            for host in cluster.hosts
            if (node := host.node) is not None
        ]
    )


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
