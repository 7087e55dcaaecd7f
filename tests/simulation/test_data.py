"""Validators with their data processes: updates by name, deaths of one process alone, what is kept and what goes."""

from __future__ import annotations

import asyncio

import pytest

from chain.unixfs import cid_of
from fl.blobs import BlobKind
from fl.jobrules import rules_hash, zero_model
from fl.jobs import CreateJob, JoinJob
from fl.kernels.golden import GoldenMismatch
from fl.records import Phase
from fl.retention import Policy
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import ENCODINGS
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from node.admission import Answer, DataDown, Status
from node.node import Limits, NodeFailure
from node.retention import Keeping
from tests.fl.builders import make_rules
from tests.simulation.claims import Promises, assert_alive, level, membership
from tests.simulation.cluster import Cluster, Host, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import Crash, simulate

LARGE = Schema((TensorSpec("weight", "F32", (700, 1000), AVERAGED),))
"""Updates and models of three leaves."""
QUICK = Limits(disk_reserve_bytes=0, keeping=Keeping(Policy(models=1, update_rounds=1), every_ms=500))


async def finished(cluster: Cluster, training: Training, within: float = 90) -> None:
    """To its end on every node, with the models that it must have, on every node."""
    assert await cluster.until(training.finished, within)
    for number in range(1, training.rules.rounds + 1):
        for node in cluster.running():
            current = training.round(node, number)
            assert current is not None and current.phase == Phase.CLOSED, current
            assert current.model == training.expected_model(node, number)
    last = training.job(cluster.running()[0]).model
    assert await cluster.until(lambda: all(host.data.read(last) is not None for host in cluster.hosts if host.up), 10)


@pytest.mark.parametrize("schema", [None, LARGE])
def test_updates_that_are_blobs_train_a_job_to_its_end(schema: Schema | None) -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=31)
        await cluster.start()
        rules = {} if schema is None else {"schema": schema, "rounds": 2}
        training = Training(cluster, trainers=3, blobs=10, **rules)
        await training.create()
        await finished(cluster, training)
        assert await cluster.until(
            lambda: all(host.data.is_durable(cid) for host in cluster.hosts for cid in training.payloads), within=10
        )

    simulate(main)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS.keys() - {"f32", "ring32"}))
def test_updates_of_every_encoding_make_the_model_that_they_must(encoding: str) -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=35)
        await cluster.start()
        training = Training(cluster, trainers=3, blobs=10, schema=LARGE, rounds=2, encoding=encoding)
        await training.create()
        await finished(cluster, training)

    simulate(main)


async def joined(cluster: Cluster, **rules: object) -> Training:
    """A job of one trainer with its first round open, whose update nobody has sent."""
    training = Training(cluster, trainers=1, blobs=10, **{"target": 1, "minimum": 1, "rounds": 1, **rules})
    training.id = await training._certainly("creator", CreateJob(training.rules, b""))
    name = training.names[0]
    await training._certainly(name, JoinJob(training.id, rules_hash(training.rules)))

    def opened() -> bool:
        rounds = [training.round(node, 1) for node in cluster.running()]
        return all(current is not None and current.phase == Phase.COLLECTING for current in rounds)

    assert await cluster.until(opened, within=20)
    return training


def first_update(cluster: Cluster, training: Training) -> tuple[bytes, SubmitUpdate]:
    body = training.update(training.names[0], 1, training.rules.initial, 0)
    return cluster.sign(training.names[0], body), body


async def submitted(cluster: Cluster, index: int, data: bytes) -> Answer:
    (answer,) = await cluster.submit(index, data)
    return answer


def test_an_update_whose_blob_is_not_at_the_node_is_refused_and_taken_once_it_is() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=32)
        await cluster.start()
        training = await joined(cluster)
        data, body = first_update(cluster, training)
        answer = await submitted(cluster, 0, data)
        assert answer.refused is not None and answer.refused.code == "BLOB_MISSING"
        host, account = cluster.hosts[0], cluster.actor(training.names[0]).account
        await host.data.put(training.payloads[body.cid], BlobKind.UPDATE, account)
        answer = await submitted(cluster, 0, data)
        assert answer.id is not None
        assert cluster.node(0).admission.standing(answer.id).reached(Status.AVAILABLE)
        await finished(cluster, training)

    simulate(main)


def test_a_blob_that_breaks_the_rules_is_refused_with_the_code_that_it_would_have_inline() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=33)
        await cluster.start()
        training = await joined(cluster)
        _, body = first_update(cluster, training)
        spoilt = training.payloads[body.cid][:-4] + b"\x00\x00\xc0\x7f"
        cid = cid_of(spoilt)
        host, account = cluster.hosts[1], cluster.actor(training.names[0]).account
        await host.data.put(spoilt, BlobKind.UPDATE, account)
        bad = SubmitUpdate(body.job, body.round, body.base, body.examples, body.metrics, 0, cid, b"")
        answer = await submitted(cluster, 1, cluster.sign(training.names[0], bad))
        assert answer.refused is not None and answer.refused.code == "NON_FINITE"

    simulate(main)


def test_without_its_data_process_a_node_orders_and_takes_small_transactions_and_no_blobs() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=34)
        await cluster.start()
        training = await joined(cluster)
        data, _ = first_update(cluster, training)
        host = cluster.hosts[2]
        host.data.kept_down = True
        host.data.kill()
        await asyncio.sleep(0.1)
        answer = await submitted(cluster, 2, data)
        assert isinstance(answer.busy, DataDown) and answer.refused is None
        await assert_alive(cluster, number=1)
        host.data.kept_down = False
        assert await cluster.until(lambda: host.data.up, within=5)
        answer = await submitted(cluster, 2, data)
        assert answer.refused is not None and answer.refused.code == "BLOB_MISSING"

    simulate(main)


def test_an_initial_model_that_came_as_a_blob_is_what_the_job_starts_from() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=35)
        await cluster.start()
        model = bytearray(zero_model(make_rules().schema))
        model[-4:] = b"\x00\x00\x80\x3f"
        cid = cid_of(bytes(model))
        training = Training(cluster, trainers=2, initial=cid)
        training._blobs[cid] = bytes(model)
        creation = cluster.sign("creator", CreateJob(training.rules, b""))
        answer = await submitted(cluster, 3, creation)
        assert answer.refused is not None and answer.refused.code == "BLOB_MISSING"
        await cluster.hosts[3].data.put(bytes(model), BlobKind.MODEL, cluster.actor("creator").account)
        (answer,) = await cluster.submit(3, creation, wait=Status.EXECUTED)
        assert answer.id is not None
        receipt = cluster.node(3).admission.standing(answer.id).receipt
        assert receipt is not None and receipt.status == "ok"
        training.id = receipt.job
        assert await cluster.until(lambda: all(host.data.read(cid) is not None for host in cluster.hosts), within=5)
        await training.begin()
        await finished(cluster, training)

    simulate(main)


def test_data_processes_that_die_all_the_time_delay_a_job_and_change_nothing() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=36)
        await cluster.start()

        async def killing() -> None:
            while True:
                await asyncio.sleep(cluster.chance.uniform(0.3, 1.5))
                cluster.chance.choice(cluster.hosts).data.kill()

        killer = asyncio.ensure_future(killing())
        training = Training(cluster, trainers=3, blobs=5)
        await training.create()
        await finished(cluster, training, within=200)
        killer.cancel()

    simulate(main)


def test_an_entry_node_that_dies_after_the_certificate_is_not_needed_any_more() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=37)

        def on_promise(host: object, identity: bytes) -> None:
            if doomed and host is doomed[0]:
                doomed.pop().machine.crash()
                raise Crash

        doomed: list[Host] = []
        promises = Promises(cluster, on_promise=on_promise)
        await cluster.start()
        training = await joined(cluster, schema=LARGE)
        data, body = first_update(cluster, training)
        entry = cluster.hosts[0]
        doomed.append(entry)
        account = cluster.actor(training.names[0]).account
        await entry.data.put(training.payloads[body.cid], BlobKind.UPDATE, account)
        await cluster.submit(0, data, within=20)
        assert not entry.up and promises.given
        others = cluster.running()
        assert await cluster.until(lambda: len(others) == 3 and promises.kept(others), within=30)
        await finished(cluster, training)

    simulate(main)


def test_a_node_that_was_away_trains_on_with_models_that_it_fetched() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=38)
        for host in cluster.hosts:
            host.limits = QUICK
        await cluster.start()
        training = Training(cluster, trainers=3, blobs=10, rounds=6)
        await training.create()
        away = cluster.hosts[3]
        assert await cluster.until(lambda: level(cluster), within=10)
        assert await cluster.until(lambda: training.job(cluster.node(0)).completed == 1, within=60)
        away.machine.crash()
        assert await cluster.until(lambda: training.job(cluster.node(0)).completed == 4, within=100)
        await away.live(cluster.genesis)
        assert await cluster.until(lambda: away.up and level(cluster), within=30)
        await finished(cluster, training)

    simulate(main)


def test_updates_go_with_their_rounds_and_models_with_the_policy() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=39)
        for host in cluster.hosts:
            host.limits = QUICK
        await cluster.start()
        training = Training(cluster, trainers=3, blobs=10, rounds=4)
        await training.create()
        await finished(cluster, training)
        node = cluster.node(0)
        models = [training.rules.initial] + [training.round(node, number).model for number in range(1, 5)]  # type: ignore[union-attr]
        kept = [True, False, False, False, True]
        here = [[host.data.read(model) is not None for model in models] for host in cluster.hosts]

        def settled() -> bool:
            nonlocal here
            here = [[host.data.read(model) is not None for model in models] for host in cluster.hosts]
            return all(each == kept for each in here)

        assert await cluster.until(settled, within=20), here
        of_last = {cid for cid, _ in training.payloads.items() if cluster.hosts[0].data.read(cid) is not None}
        assert 0 < len(of_last) <= 3 < len(training.payloads)
        assert node.retention.swept_blobs > 0

    simulate(main)


def test_with_kernels_that_differ_a_node_signs_no_results_and_goes_on_with_the_chain() -> None:
    async def main() -> None:
        def differ() -> None:
            raise GoldenMismatch("sum_f32 gives 1 where 2 is right.")

        cluster = Cluster(genesis_of(4), seed=40)
        cluster.hosts[1].data.check_kernels = differ
        await cluster.start()
        training = Training(cluster, trainers=3)
        await training.create()
        await finished(cluster, training)
        assert "sum_f32" in cluster.node(1).aggregator.trouble
        assert not cluster.node(0).aggregator.trouble
        await assert_alive(cluster, number=1)

    simulate(main)


def test_a_node_that_computes_another_model_than_the_one_certified_stops() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=41)
        await cluster.start()
        broken = cluster.hosts[2]
        failures: list[NodeFailure] = broken.failures
        inner = cluster.node(2).data.close

        async def close(*asked: object) -> object:
            closed = await inner(*asked)  # type: ignore[arg-type]
            return type(closed)(closed.id, closed.ok, closed.code, training.rules.initial, b"", closed.record)

        cluster.node(2).data.close = close  # type: ignore[method-assign,assignment]
        training = Training(cluster, trainers=3)
        await training.create()
        assert await cluster.until(lambda: bool(failures), within=60)
        assert failures[0].code == "RESULT_DIVERGED"

    simulate(main)


def test_a_full_disk_takes_no_blobs_and_orders_on_and_recovers_when_there_is_room() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=42)
        await cluster.start()
        training = await joined(cluster, schema=LARGE)
        data, body = first_update(cluster, training)
        full = cluster.hosts[3]
        used = full.machine.disk.used_bytes() + full.data.disk.used_bytes()
        full.machine.traits.capacity_bytes = used + 1_000_000
        entry, account = cluster.hosts[0], cluster.actor(training.names[0]).account
        await entry.data.put(training.payloads[body.cid], BlobKind.UPDATE, account)
        await submitted(cluster, 0, data)
        others = [host for host in cluster.hosts if host is not full]
        assert await cluster.until(lambda: all(host.data.is_durable(body.cid) for host in others), within=20)
        answers = await cluster.submit(3, cluster.sign("registrar", membership(1)), wait=Status.EXECUTED)
        assert answers and answers[0].id is not None
        assert not full.data.is_durable(body.cid) and full.data.up
        full.machine.traits.capacity_bytes = None
        await finished(cluster, training)

    simulate(main)
