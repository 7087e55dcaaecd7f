from __future__ import annotations

from collections import Counter

import pytest

from chain.batch import Batch, SignedBatch
from fl.members import RegisterMember
from fl.transactions import Reading, read
from node.aggregator import Aggregator
from node.data.bundles import Told
from node.executor import Contents, Executor, FinalBlock
from node.readings import COPIES, READING_BYTES, ReadBatches, Readings
from tests.fl.builders import actor, make_genesis, signing_key
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate

GENESIS = make_genesis()


def transactions(count: int, first: int = 0) -> tuple[bytes, ...]:
    registrar = actor("registrar", GENESIS.chain_id)
    bodies = [
        RegisterMember(f"member-{number}", signing_key(f"someone/{number}").public, ("trainer",))
        for number in range(first, first + count)
    ]
    return tuple(registrar.sign(body) for body in bodies)


def batch(*contents: bytes, sequence: int = 1) -> SignedBatch:
    return SignedBatch(Batch(GENESIS.chain_id, 0, 0, sequence, 0, 64, contents), bytes(64))


def readings(*contents: bytes) -> tuple[Reading, ...]:
    return tuple(read(data, GENESIS.params) for data in contents)


def size_bytes(*contents: bytes) -> int:
    return COPIES * sum(map(len, contents)) + READING_BYTES * len(contents)


def test_a_batch_that_was_judged_is_read_once() -> None:
    known, contents = ReadBatches(), transactions(3)
    signed = batch(*contents)
    known.judged(signed, readings(*contents))
    assert known.size_bytes == size_bytes(*contents)
    assert known.take(signed.reference.batch) == readings(*contents)
    assert known.take(signed.reference.batch) is None
    assert known.size_bytes == 0


def test_a_batch_of_what_was_taken_here_is_known_once_it_is_stored() -> None:
    known, contents = ReadBatches(), transactions(3)
    for data, reading in zip(contents, readings(*contents), strict=True):
        known.taken(data, reading)
        known.taken(data, reading)
    signed = batch(*contents)
    known.stored(signed)
    assert known.size_bytes == size_bytes(*contents)
    assert known.take(signed.reference.batch) == readings(*contents)
    assert known.size_bytes == 0


def test_a_batch_of_which_one_transaction_is_unknown_is_read_again() -> None:
    known, contents = ReadBatches(), transactions(3)
    for data, reading in zip(contents[:2], readings(*contents[:2]), strict=True):
        known.taken(data, reading)
    signed = batch(*contents)
    known.stored(signed)
    assert known.take(signed.reference.batch) is None
    assert known.size_bytes == 0


def test_another_creators_batch_takes_nothing_from_what_was_taken_here() -> None:
    known, contents = ReadBatches(), transactions(2)
    known.taken(contents[0], *readings(contents[0]))
    known.stored(batch(contents[1]))
    known.stored(batch(contents[0]))
    assert known.take(batch(contents[0]).reference.batch) == readings(contents[0])


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    contents = transactions(6)
    known = ReadBatches(limit_bytes=size_bytes(*contents[:3]))
    batches = [batch(data, sequence=number) for number, data in enumerate(contents)]
    for signed, data in zip(batches, contents, strict=True):
        known.judged(signed, readings(data))
    assert known.size_bytes <= size_bytes(*contents[:3])
    assert known.take(batches[0].reference.batch) is None
    assert known.take(batches[-1].reference.batch) == readings(contents[-1])


def test_what_is_in_no_batch_yet_goes_before_what_is() -> None:
    contents = transactions(3)
    known = ReadBatches(limit_bytes=size_bytes(*contents[:2]))
    known.taken(contents[0], *readings(contents[0]))
    for number in (1, 2):
        known.judged(batch(contents[number]), readings(contents[number]))
    known.stored(batch(contents[0]))
    assert known.take(batch(contents[0]).reference.batch) is None
    assert all(known.take(batch(contents[number]).reference.batch) for number in (1, 2))


def test_four_nodes_hardly_ever_read_a_batch_again_and_never_what_they_tell_the_data_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: Counter[str] = Counter()
    read_again, bodies, from_logs = Executor._read_again, Executor._bodies, Aggregator._from_logs

    async def counting_again(executor: Executor, digest: bytes) -> Readings:
        counted["again"] += 1
        return await read_again(executor, digest)

    async def counting_bodies(executor: Executor, final: FinalBlock) -> Contents:
        found = await bodies(executor, final)
        counted["batches"] += len(found)
        return found

    def counting_from_logs(owner: Aggregator, key: tuple[bytes, int], start: int, stop: int) -> Told:
        counted["told from the logs"] += 1
        return from_logs(owner, key, start, stop)

    monkeypatch.setattr(Executor, "_read_again", counting_again)
    monkeypatch.setattr(Executor, "_bodies", counting_bodies)
    monkeypatch.setattr(Aggregator, "_from_logs", counting_from_logs)

    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=2)
        await cluster.start()
        training = Training(cluster, trainers=4)
        await training.create()
        assert await cluster.until(lambda: training.finished(), within=60)

    simulate(main)
    assert counted["batches"] > 40 and 10 * counted["again"] < counted["batches"]
    assert not counted["told from the logs"]
