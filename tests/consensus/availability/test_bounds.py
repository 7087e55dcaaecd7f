"""However much one peer sends, every container keeps its bound, and the others are served."""

from __future__ import annotations

from dataclasses import replace

from chain.certificate import VoteKind, sign_vote
from chain.codec import encode
from chain.genesis import Params
from consensus.availability import Advanced, Checked, Verdict
from consensus.availability.offers import ALONE_HELD, OFFERS_HELD
from consensus.availability.tally import LOOSE_VOTES
from consensus.effects import Received
from consensus.messages import BatchOffer
from tests.chain.build import CHAIN, consensus_key
from tests.consensus.availability.world import World, ids, signed_batch, status, submit


def test_a_creator_that_offers_without_end_holds_a_few_offers() -> None:
    world = World()
    for sequence in range(100):
        world.step(0, Received(1, BatchOffer(signed_batch(1, sequence, created=500, nonces=(0, 1)))))
    assert world.core(0).counts()["offers"] == OFFERS_HELD
    for sequence in range(100, 200):
        world.step(0, Received(1, BatchOffer(signed_batch(1, sequence, created=500))))
    assert world.core(0).counts()["offers"] == OFFERS_HELD + ALONE_HELD
    world.step(0, Received(2, BatchOffer(signed_batch(2))))
    assert len(world.machines[0].checks) == 1


def test_a_creator_that_offers_without_end_is_voted_for_within_its_quota() -> None:
    world = World(params=replace(Params(), creator_quota_batches=16))
    for sequence in range(100):
        world.step(0, Received(1, BatchOffer(signed_batch(1, sequence, nonces=(0, 1)))))
        world.answer_checks(0)
    counts = world.core(0).counts()
    assert counts["open"] == 16 and counts["offers"] == OFFERS_HELD
    world.step(0, submit(1))
    world.settle()
    assert world.acknowledged(0) == set(ids(1))


def test_everything_of_a_creator_is_gone_when_it_has_expired() -> None:
    world = World()
    for sequence in range(20):
        signed = signed_batch(1, sequence)
        world.step(0, Received(1, BatchOffer(signed)))
        world.step(0, Checked(signed.reference.batch, Verdict.OK))
    world.step(0, Advanced(1_024, 1_024))
    assert set(world.core(0).counts().values()) == {0}


def test_votes_for_batches_that_nobody_knows_push_out_only_their_signers_own() -> None:
    world = World()

    def vote(signer: int, sequence: int) -> None:
        subject = encode(signed_batch(3, sequence).reference)
        world.step(
            0,
            Received(signer, sign_vote(consensus_key(signer), CHAIN, VoteKind.AVAILABLE, 0, subject, signer)),
        )

    vote(2, 0)
    for sequence in range(1, LOOSE_VOTES + 50):
        vote(1, sequence)
    assert world.core(0).counts()["loose_votes"] == LOOSE_VOTES + 1
    vote(1, 0)
    vote(3, 0)
    assert world.core(0).reference(signed_batch(3).reference.batch) is not None


def test_status_frames_without_end_are_answered_as_if_they_came_each_half_second() -> None:
    world = World()
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(0)[0].signed.reference.batch
    answers = sum(len(world.step(0, Received(1, status(*[digest] * 256))).send) for _ in range(100))
    assert answers == 64


def test_garbage_from_one_peer_does_not_stop_the_others() -> None:
    world = World()
    for number in range(300):
        world.step(1, Received(3, status(*(bytes([number % 256, other]) * 16 for other in range(64)))))
        world.step(2, Received(3, BatchOffer(signed_batch(3, number, created=900))))
        world.now_ms += 7
    world.lost = lambda source, target, message: source == 3
    world.step(0, submit(1))
    world.run(1_000)
    assert world.acknowledged(0) == set(ids(1))
