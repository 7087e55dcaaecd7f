from __future__ import annotations

import asyncio

from chain.block import block_digest
from chain.genesis import Params
from consensus.messages import BlockAnswer, Channel, FetchBlock, to_frame
from fl.jobs import CreateJob
from fl.state import round_of
from node.admission import Status
from tests.fl.builders import make_rules
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate


def test_four_nodes_agree_execute_and_certify_the_same_states() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=1)
        await cluster.start()
        rules = make_rules()
        answers = await cluster.submit(0, cluster.sign("creator", CreateJob(rules, b"")), wait=Status.PROVEN)
        assert answers[0].id is not None
        standing = cluster.node(0).admission.standing(answers[0].id)
        assert standing.status is Status.PROVEN
        assert standing.receipt is not None and standing.receipt.status == "ok"
        await asyncio.sleep(2)
        roots = {node.executor.tree.root_at(standing.receipt.height) for node in cluster.running()}
        assert len(roots) == 1

    simulate(main)


def test_the_state_that_the_genesis_gives_is_certified_before_the_first_block() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=4)
        await cluster.start()
        assert await cluster.until(
            lambda: all(node.store.newest_certificate() is not None for node in cluster.running()), within=2
        )
        assert set(cluster.heights()) == {0}

    simulate(main)


def test_a_job_trains_to_its_end_on_four_nodes() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=2)
        await cluster.start()
        training = Training(cluster, trainers=4)
        await training.create()
        assert await cluster.until(lambda: training.finished(), within=60)
        models = {training.job(node).model for node in cluster.running()}
        assert len(models) == 1
        for node in cluster.running():
            for number in range(1, 4):
                current = round_of(node.store.state, training.id, number)
                assert current is not None and current.model == training.expected_model(node, number)

    simulate(main)


def test_a_final_block_of_long_ago_is_served_by_its_digest() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4, Params(heartbeat_ms=100)), seed=5)
        await cluster.start()
        assert await cluster.until(lambda: min(cluster.executed()) > 80, within=60)
        first = cluster.node(0).store.block(1)
        assert first is not None
        answered: list[bytes] = []
        cluster.network.tap(
            lambda at, source, target, channel, frame: answered.append(frame) if source == "n1" else None
        )
        question = to_frame(FetchBlock(block_digest(first.header)))
        cluster.network.inject("n0", cluster.hosts[1].key.public, Channel.CONSENSUS, question)
        wanted = to_frame(BlockAnswer(first))
        assert await cluster.until(lambda: wanted in answered, within=2)

    simulate(main)
