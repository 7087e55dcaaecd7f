"""Own batches: when they are sealed, what is in them, what becomes of those that nobody certifies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import encode
from chain.genesis import Params
from consensus.availability import (
    BatchStored,
    Ordered,
    PoolFull,
    SequenceReserved,
    TransactionsExpired,
    guards,
)
from consensus.availability.pool import POOL_BYTES
from consensus.effects import Output, Tick
from consensus.messages import BatchOffer
from tests.consensus.availability.world import (
    WALL_MS,
    World,
    entry,
    events,
    ids,
    is_available_vote,
    submit,
    transaction,
)


def sealed(out: Output) -> list[tuple[bytes, ...]]:
    return [record.signed.batch.transactions for record in out.persist if isinstance(record, BatchStored)]


def bytes_of(*nonces: int, size: int = 10) -> tuple[bytes, ...]:
    return tuple(encode(transaction(nonce, size)) for nonce in nonces)


def deaf(world: World) -> World:
    """Nobody's vote arrives."""
    world.lost = lambda source, target, message: is_available_vote(message)
    return world


def test_the_first_batch_is_sealed_at_once() -> None:
    world = World()
    assert sealed(world.step(0, submit(1, 2))) == [bytes_of(1, 2)]


def test_the_next_batch_waits_until_the_last_is_certified() -> None:
    world = World()
    world.step(0, submit(1))
    assert sealed(world.step(0, submit(2))) == []
    world.settle()
    world.now_ms += 10
    assert sealed(world.step(0, Tick())) == [bytes_of(2)]


def test_the_next_batch_waits_for_no_certificate_longer_than_a_second() -> None:
    world = deaf(World())
    world.step(0, submit(1))
    world.now_ms += 999
    assert sealed(world.step(0, submit(2))) == []
    world.now_ms += 1
    assert sealed(world.step(0, Tick())) == [bytes_of(2)]


def test_a_whole_batch_of_bytes_waits_only_ten_milliseconds() -> None:
    world = deaf(World(params=replace(Params(), batch_bytes=4_000)))
    world.step(0, submit(1))
    world.step(0, submit(2, 3, 4, size=1_200))
    assert world.core(0).deadline() == world.now_ms + 10
    world.now_ms += 9
    assert sealed(world.step(0, Tick())) == []
    world.now_ms += 1
    assert sealed(world.step(0, Tick())) == [bytes_of(2, 3, size=1_200)]


def test_whole_batches_do_not_outrun_what_peers_hold() -> None:
    world = deaf(World(params=replace(Params(), batch_bytes=2_000)))
    world.step(0, submit(*range(20), size=1_200))
    for _ in range(20):
        world.now_ms += 10
        world.step(0, Tick())
    world.flush(0)
    assert len(world.stored(0)) == guards.OFFERS_IN_FLIGHT


def test_batches_are_never_less_than_ten_milliseconds_apart() -> None:
    world = World(1)
    assert sealed(world.step(0, submit(1))) != []
    world.now_ms += 9
    assert sealed(world.step(0, submit(2))) == []
    world.now_ms += 1
    assert sealed(world.step(0, Tick())) != []


def test_a_stream_is_sealed_once_an_interval_of_blocks() -> None:
    world = World(1)
    assert sealed(world.step(0, submit(1, 2, 3))) != []
    world.now_ms += Params().min_block_interval_ms - 1
    assert sealed(world.step(0, submit(4))) == []
    assert world.core(0).deadline() == world.now_ms + 1
    world.now_ms += 1
    assert sealed(world.step(0, Tick())) == [bytes_of(4)]
    # One alone is no stream any more.
    world.now_ms += guards.SEAL_GAP_MS
    assert sealed(world.step(0, submit(5))) == [bytes_of(5)]


def ordered(out: Output) -> Ordered:
    return Ordered(1, tuple(record.signed.reference.batch for record in out.persist if isinstance(record, BatchStored)))


@pytest.mark.parametrize(("transactions", "interval_ms"), [(guards.STREAM - 1, 50), (guards.STREAM, 250)])
def test_after_a_block_of_many_transactions_batches_and_blocks_are_fewer(transactions: int, interval_ms: int) -> None:
    world = World(1)
    world.step(0, ordered(world.step(0, submit(*range(transactions)))))
    assert world.core(0).interval_ms(world.now_ms) == interval_ms
    world.now_ms += 300
    assert sealed(world.step(0, submit(100, 101, 102))) != []
    world.now_ms += interval_ms - 1
    assert sealed(world.step(0, submit(103))) == []
    world.now_ms += 1
    assert sealed(world.step(0, Tick())) == [bytes_of(103)]
    world.now_ms += guards.BUSY_MS
    assert world.core(0).interval_ms(world.now_ms) == Params().min_block_interval_ms


@pytest.mark.parametrize(("least_ms", "delta_ms", "interval_ms"), [(50, 40, 50), (50, 100, 100), (300, 250, 300)])
def test_a_busy_interval_is_never_less_than_the_chain_allows_nor_longer_than_a_message_may_take(
    least_ms: int, delta_ms: int, interval_ms: int
) -> None:
    params = replace(Params(), min_block_interval_ms=least_ms, delta_ms=delta_ms)
    assert guards.interval_ms(999, 1_000, params) == interval_ms
    assert guards.interval_ms(1_000, 1_000, params) == least_ms


def test_a_stream_that_fills_a_whole_batch_does_not_wait_for_the_interval() -> None:
    world = World(1, replace(Params(), batch_bytes=4_000))
    world.step(0, submit(1, 2, 3, 4, 5, 6, 7, 8, size=1_200))
    world.now_ms += guards.SEAL_GAP_MS
    assert sealed(world.step(0, Tick())) == [bytes_of(3, 4, size=1_200)]


def test_no_batch_is_longer_than_the_chain_allows() -> None:
    params = replace(Params(), batch_bytes=10_000)
    world = World(1, params)
    world.step(0, submit(*range(60), size=700))
    world.run(1_000)
    assert len(world.stored(0)) > 4
    assert all(len(encode(record.signed)) <= 10_000 for record in world.stored(0))
    assert sum(record.signed.batch.transactions.__len__() for record in world.stored(0)) == 60


def test_a_transaction_is_packed_once_however_often_it_is_submitted() -> None:
    world = deaf(World())
    world.step(0, submit(1, 1))
    world.step(0, submit(1))
    world.run(3_000)
    world.step(0, submit(1))
    world.run(3_000)
    assert [record.signed.batch.transactions for record in world.stored(0)] == [bytes_of(1)]


def test_without_the_packing_rule_it_is_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "may_pack", lambda pooled, outstanding: True)
    world = deaf(World())
    world.step(0, submit(1))
    world.step(0, submit(1))
    world.run(3_000)
    assert len(world.stored(0)) == 2


def test_a_transaction_already_available_is_acknowledged_again_at_once() -> None:
    world = World()
    world.step(0, submit(1))
    world.settle()
    out = world.step(0, submit(1))
    assert [ack.ids for ack in out.acks] == [ids(1)]  # type: ignore[attr-defined]
    assert out.persist == []


def test_a_transaction_past_its_time_is_not_packed() -> None:
    world = World()
    late = transaction(1, valid_until_ms=WALL_MS + world.now_ms - 1)
    out = world.step(0, submit(2))
    world.settle()
    world.step(0, submit(3, valid_until_ms=WALL_MS + world.now_ms + 5))
    world.now_ms += 10
    out = world.step(0, submit(4))
    assert sealed(out) == [bytes_of(4)]
    assert len(events(out, TransactionsExpired)) == 1
    assert late.valid_until_ms < WALL_MS + world.now_ms


def test_a_full_pool_says_so_and_can_be_asked_first() -> None:
    world = deaf(World())
    world.step(0, submit(0))
    size = 40_000
    room = world.core(0).room()
    assert room == POOL_BYTES
    template = transaction(0, size)
    many = tuple(
        (nonce.to_bytes(32, "big"), encode(template), template.valid_until_ms) for nonce in range(room // size + 10)
    )
    world.step(0, type(submit(1))(many))
    (full,) = [event for event in world.machines[0].events if isinstance(event, PoolFull)]
    assert 0 < len(full.ids) < 20
    assert world.core(0).room() < size + 300


def test_a_node_outside_the_set_takes_nothing() -> None:
    world = World()
    world.turn_epoch(type(world.validators)(1, world.validators.members[1:]))
    assert world.core(0).room() == 0
    assert events(world.step(0, submit(1)), PoolFull) == [PoolFull(ids(1))]


def test_a_creator_keeps_within_its_own_quota() -> None:
    world = World(params=replace(Params(), creator_quota_batches=2))
    for nonce in range(4):
        world.step(0, submit(nonce))
        world.run(1_100)
    assert len(world.stored(0)) == 2
    world.order_from(0)
    world.run(1_100)
    assert len(world.stored(0)) == 3


def test_an_uncertified_batch_is_offered_each_second_to_those_who_have_not_voted() -> None:
    world = World()
    world.lost = lambda source, target, message: target in (2, 3)
    world.step(0, submit(1))
    world.run(3_400)
    targets = [to for to, _ in world.sent_by(0, BatchOffer)]
    assert targets.count(1) == 1
    assert targets.count(2) == targets.count(3) == 4


def test_a_batch_that_peers_refuse_by_its_age_is_packed_again() -> None:
    world = deaf(World())
    world.step(0, submit(1, 2, 3))
    world.run(1_500)
    world.lost = lambda source, target, message: False
    world.advance(513)
    world.run(1_500)
    first, second = [record for record in world.stored(0) if record.signed.batch.creator == 0]
    assert first.signed.batch.transactions == second.signed.batch.transactions
    assert second.signed.batch.created == 513
    assert world.acknowledged(0) == set(ids(1, 2, 3))


def test_only_what_is_still_valid_is_packed_again() -> None:
    world = deaf(World())
    soon = transaction(1, valid_until_ms=WALL_MS + world.now_ms + 500)
    world.step(0, type(submit(1))((entry(soon), entry(transaction(2)))))
    world.run(1_000)
    world.advance(513)
    world.run(1_000)
    assert world.stored(0)[-1].signed.batch.transactions == bytes_of(2)


def test_a_certified_batch_that_expired_unordered_is_packed_again() -> None:
    world = World()
    world.step(0, submit(1))
    world.run(100)
    world.advance(1_024)
    world.run(1_000)
    assert [record.signed.batch.created for record in world.stored(0)] == [0, 1_024]


def test_what_was_withdrawn_and_ordered_after_all_is_not_packed_again() -> None:
    world = deaf(World())
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(0)[0].signed.reference.batch
    # No time passes between the two, so nothing is sealed in between.
    world.advance(513)
    world.grow(digest)
    world.run(3_000)
    assert len(world.stored(0)) <= 2
    assert world.core(0).counts()["pool"] == 0


def test_no_sequence_is_used_twice_and_each_is_reserved_before() -> None:
    world = World(1)
    for nonce in range(4):
        world.step(0, submit(nonce))
        world.run(20)
    assert [record.signed.batch.sequence for record in world.stored(0)] == [0, 1, 2, 3]
    assert isinstance(world.machines[0].disk[0], SequenceReserved)
    for nonce in range(4, 8):
        world.crash(0)
        world.restart(0)
        world.step(0, submit(nonce))
        world.run(20)
    sequences = [record.signed.batch.sequence for record in world.stored(0)]
    assert len(set(sequences)) == len(sequences) == 8


def test_a_core_with_nothing_to_do_names_no_deadline() -> None:
    world = World()
    assert world.core(0).deadline() is None
    world.step(0, submit(1))
    world.settle()
    assert all(world.core(node).deadline() is None for node in range(4))
