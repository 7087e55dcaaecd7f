"""A restart restores what was promised: quotas, sequence numbers, ownership, certificates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from chain.availability import AvailabilityCertificate
from chain.certificate import Vote, VoteKind
from chain.genesis import Params
from consensus.availability import (
    BatchStored,
    CertificateHeld,
    CheckBatch,
    Checked,
    Ordered,
    Replay,
    SequenceReserved,
    ServeBatch,
    Verdict,
)
from consensus.effects import Received
from consensus.messages import BatchAnswer, BatchOffer, BatchPull
from tests.consensus.availability.world import (
    World,
    entry,
    events,
    ids,
    is_available_vote,
    sends,
    signed_batch,
    submit,
    transaction,
)


def voted_world(params: Params | None = None) -> tuple[World, bytes]:
    """Validator 0 voted for a batch of validator 1; nobody heard of the vote."""
    world = World(4, params)
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    world.step(0, Checked(signed.reference.batch, Verdict.OK))
    world.flush(0)
    world.wire.clear()
    world.crash(0)
    return world, signed.reference.batch


def kinds_of(votes: Iterable[object]) -> list[int]:
    return [vote.kind for vote in votes if isinstance(vote, Vote)]


def test_a_voter_still_owns_what_it_voted_for_and_looks_again() -> None:
    """The log says that it voted, not that it had looked."""
    world, digest = voted_world()
    world.restart(0)
    assert world.core(0).reference(digest) is None
    world.sent.clear()
    world.lost = lambda source, target, message: True
    world.run(1_500)
    assert digest in world.core(0).uncertified()
    assert kinds_of(message for _, message in world.sent_by(0, Vote))[-1] == VoteKind.AVAILABLE
    assert world.core(0).reference(digest) is not None


def test_a_voter_still_serves_what_it_voted_for() -> None:
    world, digest = voted_world()
    world.restart(0)
    (answer,) = sends(world.step(0, Received(2, BatchPull(digest))), BatchAnswer)
    assert answer.to == 2


def test_a_voter_says_that_it_holds_the_batch_and_gives_the_same_vote_again_once_it_has_looked() -> None:
    world, _ = voted_world()
    before = [message for _, message in world.sent_by(0, Vote)]
    world.restart(0)
    out = world.step(0, Received(1, BatchOffer(signed_batch(1))))
    assert kinds_of(send.message for send in sends(out, Vote)) == [VoteKind.HELD]
    assert out.persist == [] and events(out, CheckBatch) == []
    world.lost = lambda source, target, message: True
    world.run(500)
    out = world.step(0, Received(1, BatchOffer(signed_batch(1))))
    assert [send.message for send in sends(out, Vote)] == before[:1] and kinds_of(before) == [VoteKind.AVAILABLE]


def test_quotas_are_restored() -> None:
    world, digest = voted_world(replace(Params(), creator_quota_batches=1))
    world.restart(0)
    second = signed_batch(1, sequence=1)
    assert events(world.step(0, Received(1, BatchOffer(second))), CheckBatch) == []
    assert events(world.step(0, Ordered(1, (digest,))), CheckBatch) != []


def test_what_was_not_durable_is_forgotten_and_nothing_of_it_was_said() -> None:
    world = World(4)
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    world.step(0, Checked(signed.reference.batch, Verdict.OK))
    world.crash(0)
    world.restart(0)
    assert world.sent_by(0, Vote) == []
    assert world.core(0).reference(signed.reference.batch) is None


def test_an_own_uncertified_batch_is_offered_again_and_certified() -> None:
    world = World(4)
    world.lost = lambda source, target, message: source == 0
    world.step(0, submit(1, 2))
    world.flush(0)
    world.crash(0)
    world.lost = lambda source, target, message: False
    world.restart(0)
    world.run(2_000)
    assert world.acknowledged(0) == set(ids(1, 2))
    assert len(world.stored(0)) == 1


def test_a_creator_that_dies_between_certificate_and_flood_floods_it_when_links_are_up() -> None:
    world = World(4)
    world.lost = lambda source, target, message: isinstance(message, AvailabilityCertificate)
    world.exchange_status = lambda: None  # type: ignore[method-assign]
    world.step(0, submit(1))
    world.settle()
    assert len(world.certificates(0)) == 1
    world.crash(0)
    world.lost = lambda source, target, message: is_available_vote(message)
    world.restart(0)
    world.settle()
    assert all(len(world.certificates(node)) == 1 for node in range(4))


def test_a_transaction_in_a_replayed_own_batch_is_not_packed_again() -> None:
    world = World(4)
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(0, submit(1))
    world.flush(0)
    world.crash(0)
    world.restart(0)
    world.step(0, submit(1))
    world.run(3_000)
    assert len([record for record in world.stored(0) if record.signed.batch.creator == 0]) == 1


def test_what_a_replayed_own_batch_carried_is_packed_again_when_it_is_refused() -> None:
    world = World(4)
    world.lost = lambda source, target, message: True
    world.step(0, submit(1, 2))
    world.flush(0)
    world.crash(0)
    world.restart(0)
    world.advance(600)
    world.lost = lambda source, target, message: False
    world.run(1_500)
    assert world.acknowledged(0) == set(ids(1, 2))


def test_an_ordered_own_batch_is_not_packed_again_after_a_restart() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.settle()
    world.order_from(0)
    world.flush(0)
    world.advance(1_030)
    world.crash(0)
    world.restart(0)
    world.run(2_000)
    assert len(world.stored(0)) == 1


def test_the_order_of_records_and_the_pieces_they_come_in_do_not_matter() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.step(1, submit(2))
    world.settle()
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(2, submit(3))
    world.settle()
    records = world.machines[0].disk
    assert {type(record) for record in records} == {BatchStored, CertificateHeld, SequenceReserved}

    def summary() -> object:
        core = world.core(0)
        return (
            core.counts(),
            {ref.batch for ref in core.candidates(lambda _: False, 1)},
            sorted(
                record.signed.reference.batch
                for record in records
                if isinstance(record, BatchStored) and core.reference(record.signed.reference.batch)
            ),
        )

    world.crash(0)
    seen = []
    for order in itertools.islice(itertools.permutations(records), 0, 720, 31):
        world.machines[0].core = world._core(0)
        for record in order:
            world.step(0, Replay((record,)))
        seen.append(summary())
    assert all(one == seen[0] for one in seen)


def test_no_sequence_is_used_again_even_if_the_batches_have_been_deleted() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.flush(0)
    world.crash(0)
    world.machines[0].disk = [record for record in world.machines[0].disk if isinstance(record, SequenceReserved)]
    world.restart(0)
    world.step(0, submit(2))
    world.flush(0)
    assert world.stored(0)[0].signed.batch.sequence > 0


@pytest.mark.parametrize("kept", [True, False])
def test_bytes_fetched_for_a_certificate_are_no_vote_after_a_restart(kept: bool) -> None:
    world = World(4)
    world.lost = lambda source, target, message: target == 3 and isinstance(message, BatchOffer)
    world.step(0, submit(1))
    world.run(1_000)
    assert [record.voted for record in world.stored(3)] == [False]
    digest = world.stored(3)[0].signed.reference.batch
    world.crash(3)
    if not kept:
        world.machines[3].disk = list(world.stored(3))
    world.restart(3)
    assert (world.core(3).reference(digest) is not None) is kept


def test_certified_bytes_are_served_from_the_log() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(1)[0].signed.reference.batch
    out = world.step(1, Received(2, BatchPull(digest)))
    assert out.send == [] and out.events == [ServeBatch(2, digest)]


def test_a_crash_at_every_boundary_loses_nothing_acknowledged() -> None:
    """Each output of each core is a boundary: everybody but the crashed goes on, then it returns."""
    for boundary, victim in itertools.product(range(1, 9), range(4)):
        world = World(4)
        world.step(0, submit(1))
        steps = 0
        for _ in range(60):
            for node in world.alive:
                world.answer_checks(node)
                if world.machines[node].queue:
                    if node == victim:
                        steps += 1
                    if node == victim and steps == boundary:
                        world.crash(victim)
                    else:
                        world.flush(node)
            if world.wire:
                world.deliver()
        acknowledged = world.acknowledged(0)
        world.run(3_000)
        if victim not in world.alive:
            world.restart(victim)
        world.run(10_000)
        if acknowledged:
            assert ids(1)[0] in carried(world, world.order_from(victim))
        assert world.all_faults() == []


def carried(world: World, digests: tuple[bytes, ...]) -> set[bytes]:
    known = {entry(transaction(nonce))[1]: ids(nonce)[0] for nonce in range(8)}
    return {
        known[data]
        for node in range(world.n)
        for record in world.stored(node)
        if record.signed.reference.batch in digests
        for data in record.signed.batch.transactions
    }


def test_a_vote_is_not_sent_to_all_by_a_voter_whose_creator_lives() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.settle()
    assert all(to == 0 for node in (1, 2, 3) for to, message in world.sent_by(node, Vote) if is_available_vote(message))
