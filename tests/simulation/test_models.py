"""Models that a crash took from a node are computed again from recorded updates."""

from __future__ import annotations

import asyncio

from fl.state import round_of
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate


def test_a_node_that_lost_its_models_computes_them_again_from_recorded_updates() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=3)
        await cluster.start()
        training = Training(cluster, trainers=4)
        await training.create()
        assert await cluster.until(lambda: training.finished(), within=60)
        node = cluster.node(2)
        models = [round_of(node.store.state, training.id, number) for number in (1, 2, 3)]
        await asyncio.sleep(2)
        host = cluster.hosts[2]
        host.machine.kill()
        for made in models:
            assert made is not None
            name = node.blobs._name(made.model)
            del host.machine.disk.entries[name], host.machine.disk.durable[name]
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: host.up, within=5)
        last = models[-1]
        assert last is not None
        assert await cluster.until(lambda: cluster.node(2).blobs.get(last.model) is not None, within=5)

    simulate(main)
