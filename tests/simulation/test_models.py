"""Models that a disk lost are fetched again from those who have them."""

from __future__ import annotations

import asyncio

from fl.state import round_of
from node.data.staging import whole_name
from tests.simulation.cluster import Cluster, Host, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate


async def trained(seed: int) -> tuple[Cluster, Host, list[bytes]]:
    """A finished job, a host whose node is down, and the models that the job made."""
    cluster = Cluster(genesis_of(4), seed)
    await cluster.start()
    training = Training(cluster, trainers=4)
    await training.create()
    assert await cluster.until(training.finished, within=60)
    rounds = [round_of(cluster.node(2).store.state, training.id, number) for number in (1, 2, 3)]
    await asyncio.sleep(2)
    host = cluster.hosts[2]
    host.machine.kill()
    return cluster, host, [made.model for made in rounds if made is not None]


def test_models_whose_files_are_lost_are_fetched_from_the_others() -> None:
    async def main() -> None:
        cluster, host, models = await trained(3)
        for model in models:
            name = whole_name(model)
            del host.data.disk.entries[name], host.data.disk.durable[name]
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: host.up, within=5)
        assert await cluster.until(lambda: host.data.read(models[-1]) is not None, within=5)

    simulate(main)


def test_a_data_process_that_lost_everything_gets_the_newest_model_back() -> None:
    async def main() -> None:
        cluster, host, models = await trained(4)
        host.data.lose_everything()
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: host.up, within=5)
        assert await cluster.until(lambda: host.data.read(models[-1]) is not None, within=5)
        other = cluster.hosts[0].data.read(models[-1])
        assert host.data.read(models[-1]) == other

    simulate(main)
