"""What reviews of the data plane found, and what must hold instead."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from chain.cid import raw_cid
from fl.blobs import BlobKind
from fl.datasets import RegisterDataset
from fl.jobrules import rules_hash, zero_model
from fl.jobs import CreateJob, JoinJob
from fl.records import Phase
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from node.admission import WAITING_WITH_BLOBS, Answer, Busy, Status
from node.data.blobs import BlobLimits
from tests.simulation.claims import assert_alive
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.datamachine import LIMITS
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate

LARGE = Schema((TensorSpec("weight", "F32", (700, 1000), AVERAGED),))


def test_a_round_is_summed_although_every_data_process_was_started_again_between_its_updates() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=91)
        await cluster.start()
        training = Training(cluster, trainers=2, blobs=10, rounds=1)
        training.id = await training._certainly("creator", CreateJob(training.rules, b""))
        for name in training.names:
            await training._certainly(name, JoinJob(training.id, rules_hash(training.rules)))

        def opened() -> bool:
            rounds = [training.round(node, 1) for node in cluster.running()]
            return all(each is not None and each.phase == Phase.COLLECTING for each in rounds)

        def summed() -> bool:
            return all(host.data.node is not None and host.data.node.sums.open for host in cluster.hosts)

        async def answer(place: int) -> None:
            name = training.names[place]
            await training._certainly(name, training.update(name, 1, training.rules.initial, place))

        assert await cluster.until(opened, within=20)
        await answer(0)
        assert await cluster.until(summed, within=10)
        for host in cluster.hosts:
            host.data.kill()
        # Nothing is asked of them while they are down.
        assert await cluster.until(lambda: all(host.data.up for host in cluster.hosts), within=10)
        await answer(1)
        assert await cluster.until(training.finished, within=20)
        assert all(training.round(node, 1).phase == Phase.CLOSED for node in cluster.running())  # type: ignore[union-attr]

    simulate(main)


def test_a_job_is_created_although_no_node_has_room_for_its_first_model() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=92)
        for host in cluster.hosts:
            host.data.limits = replace(LIMITS, blobs=BlobLimits(reserve_bytes=10**15))
        await cluster.start()
        inline, zeros = Training(cluster, name="inline"), Training(cluster, name="zeros", schema=LARGE)
        for number, (training, model) in enumerate([(inline, zero_model(inline.rules.schema)), (zeros, b"")]):
            data = cluster.sign("creator", CreateJob(training.rules, model))
            (answer,) = await cluster.submit(number, data, wait=Status.EXECUTED)
            assert answer.id is not None
            assert cluster.node(number).admission.standing(answer.id).receipt is not None
        await assert_alive(cluster, number=1)
        for host in cluster.hosts:
            host.data.limits = LIMITS
            host.data.kill()
        cid = zeros.rules.initial
        assert await cluster.until(lambda: all(host.data.is_durable(cid) for host in cluster.hosts), within=10)

    simulate(main)


def test_a_sender_whose_blobs_reach_no_other_node_leaves_room_for_other_senders() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=93)
        await cluster.start()
        entry, others = cluster.hosts[0], cluster.hosts[1:]
        for host in others:
            host.data.kept_down = True
            host.data.kill()

        async def register(name: str, number: int) -> Answer:
            data = f"{name}-{number}".encode()
            await entry.data.put(data, BlobKind.DATASET, cluster.actor(name).account)
            body = RegisterDataset(f"set-{number}", raw_cid(data), len(data), True, "", "", "")
            (answer,) = await cluster.submit(0, cluster.sign(name, body), wait=Status.ACCEPTED)
            return answer

        for number in range(WAITING_WITH_BLOBS):
            assert (await register("trainer-000", number)).busy is None
        assert isinstance((await register("trainer-000", WAITING_WITH_BLOBS)).busy, Busy)
        assert (await register("trainer-001", 0)).busy is None
        for host in others:
            host.data.kept_down = False
        assert await cluster.until(lambda: not cluster.node(0).admission.unsettled, within=20)
        assert (await register("trainer-000", WAITING_WITH_BLOBS)).busy is None
        await asyncio.sleep(0)

    simulate(main)
