"""Transactions that name a blob go alone: they wait for it, and nothing waits for them."""

from __future__ import annotations

from dataclasses import replace

from chain.codec import encode
from chain.genesis import Params
from consensus.availability import BatchStored, PoolFull, TransactionsExpired, Verdict, guards
from consensus.availability.offers import ALONE_HELD
from consensus.availability.pool import POOL_BYTES
from consensus.effects import Output, Tick
from tests.consensus.availability.world import (
    WALL_MS,
    Machine,
    World,
    events,
    ids,
    is_available_vote,
    submit,
    transaction,
)


def alone(*nonces: int, **changes: int) -> object:
    return replace(submit(*nonces, **changes), alone=True)


def sealed(out: Output) -> list[tuple[bytes, ...]]:
    return [record.signed.batch.transactions for record in out.persist if isinstance(record, BatchStored)]


def bytes_of(*nonces: int) -> tuple[bytes, ...]:
    return tuple(encode(transaction(nonce)) for nonce in nonces)


def waits_for_blobs(*nonces: int, params: Params | None = None) -> World:
    """Nobody but the creator, node 0, has the blobs of these transactions yet."""
    world = World(params=params)
    lacking = {bytes_of(nonce) for nonce in nonces}

    def verdict(node: int, digest: bytes) -> Verdict | None:
        offers = [offer for offer in world.core(node)._desk.offers if offer.digest == digest]
        return None if offers and offers[0].signed.batch.transactions in lacking else Verdict.OK

    world.verdict = verdict
    return world


def test_each_is_sealed_at_once_in_a_batch_of_its_own() -> None:
    world = World()
    assert sealed(world.step(0, alone(1, 2, 3))) == [bytes_of(1), bytes_of(2), bytes_of(3)]


def test_batches_without_blobs_do_not_wait_for_those_with_them() -> None:
    world = waits_for_blobs(1, 2)
    world.step(0, alone(1, 2))
    world.settle()
    assert world.acknowledged(0) == set()
    world.now_ms += 10
    assert sealed(world.step(0, submit(3))) == [bytes_of(3)]
    world.settle()
    world.now_ms += 10
    assert sealed(world.step(0, submit(4))) == [bytes_of(4)]
    world.settle()
    assert world.acknowledged(0) == set(ids(3, 4))


def test_a_batch_that_waits_for_a_blob_does_not_put_off_the_next_of_the_others() -> None:
    world = waits_for_blobs(1)
    world.step(0, submit(2))
    world.settle()
    world.step(0, alone(1))
    world.settle()
    world.now_ms += 10
    assert sealed(world.step(0, submit(3))) == [bytes_of(3)]


def test_whole_batches_of_the_others_do_not_wait_for_blobs_either() -> None:
    many = range(100, 100 + guards.OFFERS_IN_FLIGHT)
    world = waits_for_blobs(*many)
    world.params = replace(world.params, batch_bytes=4_000)
    world.machines = [Machine(world._core(node)) for node in range(world.n)]
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(0, submit(1))
    world.step(0, alone(*many))
    world.step(0, submit(2, 3, 4, size=1_200))
    world.now_ms += 10
    assert len(sealed(world.step(0, Tick()))) == 1


def test_it_is_acknowledged_once_the_blob_has_come() -> None:
    world = waits_for_blobs(1)
    world.step(0, alone(1))
    world.run(3_000)
    assert world.acknowledged(0) == set()
    world.verdict = lambda node, digest: Verdict.OK
    world.run(1_000)
    assert world.acknowledged(0) == set(ids(1))


def test_peers_always_have_room_for_batches_without_blobs() -> None:
    many = range(100, 100 + 2 * ALONE_HELD)
    world = waits_for_blobs(*many)
    world.step(0, alone(*many))
    world.run(2_500)
    assert len(world.stored(0)) == guards.ALONE_IN_FLIGHT
    for nonce in range(1, 6):
        world.step(0, submit(nonce))
        world.run(20)
    assert world.acknowledged(0) == set(ids(*range(1, 6)))


def test_it_is_offered_again_alone_when_its_batch_is_past_voting() -> None:
    world = waits_for_blobs(1)
    world.step(0, alone(1))
    world.settle()
    world.advance(world.params.horizon // 2 + 1)
    world.step(0, submit(2))
    world.verdict = lambda node, digest: Verdict.OK
    world.run(1_000)
    assert [record.signed.batch.transactions for record in world.stored(0)].count(bytes_of(1)) == 2
    assert world.acknowledged(0) == set(ids(1, 2))


def test_after_a_restart_it_still_holds_up_nothing() -> None:
    world = waits_for_blobs(1)
    world.step(0, alone(1))
    world.settle()
    world.crash(0)
    world.restart(0)
    world.settle()
    world.now_ms += 10
    assert sealed(world.step(0, submit(2))) == [bytes_of(2)]


def test_its_time_passes_like_that_of_others() -> None:
    world = waits_for_blobs(*range(guards.ALONE_IN_FLIGHT))
    world.step(0, alone(*range(guards.ALONE_IN_FLIGHT)))
    world.step(0, alone(100, valid_until_ms=WALL_MS + world.now_ms + 5))
    world.now_ms += 1_000
    world.verdict = lambda node, digest: Verdict.OK
    world.settle()
    out = world.step(0, Tick())
    expired = [event for record in world.machines[0].events for event in [record] if type(event) is TransactionsExpired]
    assert expired or events(out, TransactionsExpired)
    assert not world.core(0).counts()["pool"]


def test_the_pool_is_one_for_both() -> None:
    world = waits_for_blobs(*range(guards.ALONE_IN_FLIGHT))
    world.step(0, alone(*range(guards.ALONE_IN_FLIGHT)))
    size = 30_000
    many = range(1_000, 1_000 + POOL_BYTES // size + 10)
    out = world.step(0, alone(*many, size=size))
    assert len(events(out, PoolFull)) == 1
    out = world.step(0, submit(5_000, size=size))
    assert len(events(out, PoolFull)) == 1


def test_what_waits_is_known_before_its_first_batch_and_after_its_last() -> None:
    """Its blob must stay meanwhile, whatever the node remembers of its clients."""
    busy = range(100, 100 + guards.ALONE_IN_FLIGHT)
    world = waits_for_blobs(1, *busy)
    world.step(0, alone(*busy, 1))
    assert world.core(0).waiting_alone() == bytes_of(1)
    world = waits_for_blobs(1, params=Params(creator_quota_batches=1))
    world.step(0, alone(1))
    world.settle()
    world.crash(0)
    world.restart(0)
    assert world.core(0).waiting_alone() == ()
    world.advance(world.params.horizon // 2 + 1)
    assert world.core(0).waiting_alone() == bytes_of(1)
