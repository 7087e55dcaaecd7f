"""Who breaks a voting rule is recorded by all; more than f can fork the chain, and enough of them are convicted."""

from __future__ import annotations

import asyncio

import pytest

from chain.block import block_digest
from chain.certificate import Finalize, Nullify, Vote, VoteKind, sign_vote
from chain.codec import encode
from consensus.evidence import scan
from consensus.messages import Channel, to_frame
from consensus.ordering.records import Offence
from fl.records import Convicted
from fl.state import convicted_key, read_record
from node.node import Node
from node.records import read_journal_entry
from tests.consensus.bare import Bare
from tests.simulation.claims import assert_alive, level
from tests.simulation.cluster import Cluster, consensus_key, genesis_of
from tests.simulation.loop import simulate

LIAR = 3


def conviction(node: Node, signer: int = LIAR) -> Convicted | None:
    return read_record(node.store.state, Convicted, convicted_key(0, signer))


def nullify_and_finalize(cluster: Cluster, view: int) -> tuple[Vote, Vote]:
    def vote(kind: VoteKind, subject: object) -> Vote:
        return sign_vote(consensus_key(LIAR), cluster.genesis.chain_id, kind, 0, encode(subject), LIAR)

    return vote(VoteKind.NULLIFY, Nullify(view)), vote(VoteKind.FINALIZE, Finalize(view, bytes(32)))


def say_to(cluster: Cluster, listener: int, votes: tuple[Vote, ...]) -> None:
    for vote in votes:
        assert cluster.network.inject(f"n{LIAR}", consensus_key(listener).public, Channel.CONSENSUS, to_frame(vote))


def journal(cluster: Cluster, index: int) -> list[object]:
    node = cluster.node(index)
    return [read_journal_entry(kind, payload) for _, kind, payload, _ in node.journal.replay(node.journal.first)]


def test_two_votes_that_one_validator_hears_are_recorded_by_all() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=11)
        await cluster.start()
        await asyncio.sleep(1)
        view = cluster.node(0).replica.ordering.view + 1
        say_to(cluster, 0, nullify_and_finalize(cluster, view))
        assert await cluster.until(lambda: all(conviction(node) for node in cluster.running()), within=10)
        convicted = conviction(cluster.node(1))
        assert convicted is not None and convicted.view == view
        assert [offence.first.signer for offence in scan(journal(cluster, 0))] == [LIAR]
        await assert_alive(cluster, number=0)

    simulate(main)


def test_an_offence_is_told_after_a_crash_of_whoever_saw_it() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=12)
        await cluster.start()
        await asyncio.sleep(1)
        witness = cluster.node(0)
        say_to(cluster, 0, nullify_and_finalize(cluster, witness.replica.ordering.view + 1))

        def seen() -> bool:
            return any(isinstance(record, Offence) for record in journal(cluster, 0))

        assert await cluster.until(lambda: witness.journal.synced == witness.journal.last and seen(), 5, step=0.0005)
        for host in cluster.hosts:
            host.machine.crash()
        for host in cluster.hosts:
            await host.live(cluster.genesis)
        assert await cluster.until(lambda: len(cluster.running()) == 4, within=5)
        assert await cluster.until(lambda: all(conviction(node) for node in cluster.running()), within=20)

        # And once it is on the chain it is not told again.
        await asyncio.sleep(1)
        height = max(cluster.heights())
        cluster.hosts[0].machine.crash()
        await cluster.hosts[0].live(cluster.genesis)
        assert await cluster.until(lambda: cluster.hosts[0].up and level(cluster), within=10)
        blocks = list(cluster.node(0).store.blocks(height + 1, max(cluster.heights())))
        assert not any(block.body.items for block in blocks)

    simulate(main)


# More than f


def forked(n: int, liars: set[int]) -> tuple[Bare, Bare]:
    """The liars live in two worlds, in each with one half of the honest, who are more than f short without them."""
    honest = [index for index in range(n) if index not in liars]
    halves = set(honest[: len(honest) // 2]), set(honest[len(honest) // 2 :])
    worlds = Bare(n, genesis_of(n).params), Bare(n, genesis_of(n).params)
    for world, absent in zip(worlds, reversed(halves), strict=True):
        world.crashed |= absent
        world.run(4_000)
    return worlds


@pytest.mark.parametrize(("n", "liars"), [(4, {1, 2}), (4, {0, 3}), (7, {0, 2, 5}), (7, {4, 5, 6})])
def test_a_fork_convicts_enough_validators(n: int, liars: set[int]) -> None:
    worlds = forked(n, liars)
    chains = []
    records: list[object] = []
    for world in worlds:
        honest = next(index for index in range(n) if index not in liars | world.crashed)
        chains.append({block.header.height: block_digest(block.header) for _, block in world.final[honest]})
        for index in range(n):
            if index not in liars:
                records += world.journals[index].records
    common = chains[0].keys() & chains[1].keys()
    assert any(chains[0][height] != chains[1][height] for height in common), "no fork was made"
    convicted = {offence.first.signer for offence in scan(records)}
    f = (n - 1) // 3
    assert len(convicted) >= n - 2 * f
    assert convicted <= liars
    assert not any(scan(world.journals[index].records) for world in worlds for index in range(n) if index not in liars)
