"""On whole nodes: a batch is looked at by as many as its certificate needs, held by the others, and looked at by these
if somebody is gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from chain.batch import Batch, SignedBatch, sign_batch
from chain.certificate import VoteKind, sign_vote
from chain.codec import decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from consensus.availability.guards import LOOK_AFTER_MS, PASSED_OVER_MS, PRESENT_MS
from consensus.messages import BatchOffer, channel_of, to_frame
from node.checking import BatchChecks, Judged
from tests.simulation.claims import Promises, assert_one_history, membership
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate

TOGETHER = 8
ROUNDS = 12


class Watched(Cluster):
    """Counts the nodes that verify the signatures of each batch, and those that only read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int = 4, seed: int = 1) -> None:
        super().__init__(genesis_of(n), seed=seed)
        self.promises = Promises(self)
        self.looked_at: Counter[bytes] = Counter()
        self.read: Counter[bytes] = Counter()
        inner = BatchChecks.judge

        def judge(checks: BatchChecks, signed: SignedBatch, look: bool, wanted: Callable[[], bool]) -> Judged:
            (self.looked_at if look else self.read)[signed.reference.batch] += 1
            return inner(checks, signed, look, wanted)

        monkeypatch.setattr(BatchChecks, "judge", judge)

    async def load(self, *places: int) -> None:
        for number in range(ROUNDS):
            first = 1_000 + number * 100
            wanted = [self.sign("registrar", membership(first + each)) for each in range(TOGETHER)]
            answers = await self.submit(places[number % len(places)], *wanted)
            assert all(answer.refused is None for answer in answers)

    async def end(self) -> None:
        assert await self.until(self.promises.kept, within=30)
        assert len(self.promises.given) == ROUNDS * TOGETHER
        assert_one_history(self)


@pytest.mark.parametrize("n", [4, 7])
def test_a_batch_is_looked_at_by_f_beside_its_creator_and_held_by_all_others(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    async def main() -> None:
        cluster = Watched(monkeypatch, n)
        await cluster.start()
        # Until each has heard of all.
        await asyncio.sleep(2)
        await cluster.load(*range(n))
        await cluster.end()
        f = cluster.genesis.validator_set.f
        assert len(cluster.looked_at) >= ROUNDS and set(cluster.looked_at.values()) == {f}
        assert cluster.looked_at + cluster.read == Counter(dict.fromkeys(cluster.looked_at, n - 1))
        for node in cluster.running():
            assert all(node.batches.holds(digest) for digest in cluster.looked_at)

    simulate(main)


@pytest.mark.parametrize("gone", range(1, 4))
def test_with_one_gone_its_turns_are_taken_by_the_next(monkeypatch: pytest.MonkeyPatch, gone: int) -> None:
    async def main() -> None:
        cluster = Watched(monkeypatch)
        await cluster.start()
        await asyncio.sleep(2)
        cluster.hosts[gone].machine.crash()
        began = asyncio.get_running_loop().time()
        await cluster.load(*(place for place in range(4) if place != gone))
        took = asyncio.get_running_loop().time() - began
        await cluster.end()
        assert set(cluster.looked_at.values()) <= {1, 2}
        # Nobody waits for the one that is gone but in the seconds in which it was heard of.
        assert took < (PRESENT_MS + LOOK_AFTER_MS) / 1000 + ROUNDS * 0.5

    simulate(main)


def test_one_that_holds_and_never_looks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        cluster = Watched(monkeypatch)
        await cluster.start()
        await asyncio.sleep(2)
        idle = cluster.node(3).checks
        ask = idle.ask
        monkeypatch.setattr(idle, "ask", lambda digest, signed, look: None if look else ask(digest, signed, look))
        began = asyncio.get_running_loop().time()
        await cluster.load(0, 1, 2)
        took = asyncio.get_running_loop().time() - began
        await cluster.end()
        # Each of the others waits for it once in `PASSED_OVER_MS`.
        assert took < 3 * (LOOK_AFTER_MS + 500) / 1000 + ROUNDS * 0.5 + took // (PASSED_OVER_MS / 1000) * 8

    simulate(main)


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_forged_signature_within_a_batch_is_never_certified(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Its creator says that it has looked; the others hold it, whoever of them has the first turn to look."""

    async def main() -> None:
        cluster = Watched(monkeypatch, seed=seed)
        await cluster.start()
        await cluster.load(0, 1)
        liar = cluster.hosts[3]
        good, bad = (cluster.sign("registrar", membership(number)) for number in (5_000, 5_001))
        forged = encode(replace(decode(Transaction, bad, MAX_TRANSACTION_BYTES), signature=bytes(64)))
        height, horizon = cluster.heights()[0], cluster.genesis.params.horizon
        batch = Batch(cluster.genesis.chain_id, 0, 3, 10_000 + seed, height, height + horizon, (good, forged))
        signed = sign_batch(liar.key, batch)
        chain, subject = cluster.genesis.chain_id, encode(signed.reference)
        vote = sign_vote(liar.key, chain, VoteKind.AVAILABLE, 0, subject, 3)
        for message in (BatchOffer(signed), vote):
            for host in cluster.hosts[:3]:
                cluster.network.inject("n3", host.key.public, channel_of(message), to_frame(message))
        await asyncio.sleep(30)
        digest = signed.reference.batch
        assert cluster.looked_at[digest] >= 1
        for host in cluster.hosts[:3]:
            node = cluster.node(host.index)
            assert node.replica.availability.reference(digest) is None
            blocks = node.store.blocks(1, node.executor.executed.lineage.height)
            assert digest not in {named for block in blocks for named in block.body.batches}
        await cluster.end()

    simulate(main)
