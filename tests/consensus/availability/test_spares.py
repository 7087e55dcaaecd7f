"""A vote that a quorum does without is put off; what a certificate covers is not looked at; nothing else is skipped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.batch import SignedBatch
from chain.certificate import Certificate, Vote, VoteKind, assemble, sign_vote
from chain.codec import encode
from consensus.availability import BatchStored, CheckBatch, Checked, CheckSpared, Ordered, Verdict, guards
from consensus.effects import Received, Tick
from consensus.messages import BatchAnswer, BatchOffer, BatchPull
from tests.chain.build import CHAIN, certificate, consensus_key, validator_set
from tests.consensus.availability.world import World, events, is_available_vote, sends, signed_batch, status, submit

NODE, CREATOR = 0, 1
SEQUENCE = next(sequence for sequence in range(3) if guards.is_spare(CREATOR, NODE, sequence, 4, 3))
"""Of the creator's batches that the node is a spare for."""


def present(n: int = 4) -> World:
    """Everyone has been heard of."""
    world = World(n)
    for node in range(n):
        hear_all(world, node)
    return world


def hear_all(world: World, node: int, but: int | None = None) -> None:
    for peer in range(world.n):
        if peer not in (node, but):
            world.step(node, Received(peer, status()))


def spare_batch(nonces: range = range(2), sequence: int = SEQUENCE) -> SignedBatch:
    return signed_batch(CREATOR, sequence, nonces=nonces)


def certify(world: World, signed: SignedBatch) -> Certificate:
    return certificate(world.validators, VoteKind.AVAILABLE, encode(signed.reference))


@pytest.mark.parametrize("n", range(1, 14))
def test_a_quorum_is_there_without_the_spares_and_all_take_turns(n: int) -> None:
    quorum = validator_set(n).quorum
    for creator in range(n):
        others = [peer for peer in range(n) if peer != creator]
        turns = dict.fromkeys(others, 0)
        for sequence in range(7, 7 + len(others)):
            spares = [peer for peer in others if guards.is_spare(creator, peer, sequence, n, quorum)]
            assert n - len(spares) == quorum
            for peer in spares:
                turns[peer] += 1
        assert set(turns.values()) <= {n - quorum}


def test_a_spare_looks_at_no_batch_that_is_certified_meanwhile() -> None:
    world = present()
    signed = spare_batch()
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(signed))), CheckBatch) == []
    world.now_ms += guards.HOLD_BACK_MS - 1
    assert events(world.step(NODE, Tick()), CheckBatch) == []
    out = world.step(NODE, Received(CREATOR, certify(world, signed)))
    assert BatchStored(signed, False) in out.persist
    world.now_ms += 10 * guards.HOLD_BACK_MS
    world.step(NODE, Tick())
    assert world.machines[NODE].checks == [] and not world.sent_by(NODE, Vote)
    assert world.core(NODE).deadline() is None


def test_a_spare_is_woken_when_its_time_comes_and_votes() -> None:
    world = present()
    signed = spare_batch()
    world.step(NODE, Received(CREATOR, BatchOffer(signed)))
    assert world.core(NODE).deadline() == world.now_ms + guards.HOLD_BACK_MS
    world.now_ms += guards.HOLD_BACK_MS
    assert events(world.step(NODE, Tick()), CheckBatch) == [CheckBatch(signed.reference.batch, signed)]
    assert sends(world.step(NODE, Checked(signed.reference.batch, Verdict.OK)), Vote) != []


def test_once_somebody_was_missing_nobody_is_spared_for_a_while() -> None:
    world = present()
    world.step(NODE, Received(CREATOR, BatchOffer(spare_batch())))
    world.now_ms += guards.HOLD_BACK_MS
    world.step(NODE, Tick())
    second = spare_batch(sequence=SEQUENCE + 3)
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(second))), CheckBatch) != []
    world.now_ms += guards.EAGER_MS
    hear_all(world, NODE)
    third = spare_batch(sequence=SEQUENCE + 6)
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(third))), CheckBatch) == []


@pytest.mark.parametrize("missing", [2, 3])
def test_nobody_is_a_spare_who_has_not_heard_of_those_who_are_to_vote(missing: int) -> None:
    world = World()
    hear_all(world, NODE, but=missing)
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(spare_batch()))), CheckBatch) != []


def test_nobody_is_a_spare_for_those_who_have_fallen_silent() -> None:
    world = present()
    world.now_ms += guards.PRESENT_MS
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(spare_batch()))), CheckBatch) != []


def test_a_batch_of_one_transaction_may_name_a_blob_and_is_looked_at_at_once() -> None:
    world = present()
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(spare_batch(range(1))))), CheckBatch) != []


def test_what_another_voter_gives_is_looked_at_at_once_for_its_creator_may_be_gone() -> None:
    world = present()
    signed = spare_batch()
    digest = signed.reference.batch
    world.now_ms += 1_000
    assert sends(world.step(NODE, Received(2, status(digest))), BatchPull) != []
    assert events(world.step(NODE, Received(2, BatchAnswer(signed))), CheckBatch) != []


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_with_one_of_four_gone_the_others_certify_all_the_same(gone: int) -> None:
    world = present()
    world.crash(gone)
    for number in range(6):
        world.step(NODE, submit(2 * number, 2 * number + 1))
        world.run(1_000)
    assert len(world.acknowledged(NODE)) == 12
    assert world.all_faults() == []


def test_what_is_being_looked_at_is_spared_when_a_certificate_comes() -> None:
    world = present()
    signed = spare_batch(sequence=SEQUENCE + 1)
    digest = signed.reference.batch
    assert events(world.step(NODE, Received(CREATOR, BatchOffer(signed))), CheckBatch) != []
    assert events(world.step(NODE, Received(CREATOR, certify(world, signed))), CheckSpared) == [CheckSpared(digest)]
    late = world.step(NODE, Checked(digest, Verdict.OK))
    assert late.persist == [] and late.send == []


def test_what_is_being_looked_at_is_spared_when_a_final_block_names_it() -> None:
    world = present()
    signed = spare_batch(sequence=SEQUENCE + 1)
    world.step(NODE, Received(CREATOR, BatchOffer(signed)))
    digest = signed.reference.batch
    assert events(world.step(NODE, Ordered(1, (digest,))), CheckSpared) == [CheckSpared(digest)]


class TestByzantineCreators:
    """What is not looked at was looked at by a quorum, or it is not taken."""

    @pytest.mark.parametrize("n", [4, 7])
    @pytest.mark.parametrize("sequence", range(3))
    def test_a_batch_with_a_forged_signature_gets_no_vote_of_the_honest(self, n: int, sequence: int) -> None:
        """The f Byzantine ones sign whatever there is; to every honest one the batch is bad whenever it looks."""
        world = present(n)
        f = world.validators.f
        liars = range(n - f, n)
        honest = range(n - f)
        signed = signed_batch(n - 1, sequence, nonces=(0, 1))
        subject = encode(signed.reference)
        world.verdict = lambda node, digest: Verdict.BAD
        lies = [sign_vote(consensus_key(liar), CHAIN, VoteKind.AVAILABLE, 0, subject, liar) for liar in liars]
        forged = [Vote(VoteKind.AVAILABLE, 0, subject, node, bytes(64)) for node in honest]
        for node in honest:
            world.step(node, Received(n - 1, BatchOffer(signed)))
            for liar, lie in zip(liars, lies, strict=True):
                world.step(node, Received(liar, lie))
            world.step(node, Received(n - 1, assemble(world.validators, lies + forged)))
        for _ in range(3):
            world.run(guards.HOLD_BACK_MS + guards.EAGER_MS)
            for node in honest:
                world.step(node, Received(n - 1, BatchOffer(signed)))
        for node in honest:
            assert not [message for _, message in world.sent_by(node, Vote) if is_available_vote(message)]
            assert world.stored(node) == [] and world.certificates(node) == []
            assert world.core(node).reference(signed.reference.batch) is None
            assert n - 1 in [fault.peer for fault in world.faults(node)]

    def test_a_certificate_for_other_bytes_spares_nothing(self) -> None:
        world = present()
        good, bad = spare_batch(range(2)), spare_batch(range(2, 4))
        assert good.reference.sequence == bad.reference.sequence
        world.step(NODE, Received(CREATOR, BatchOffer(bad)))
        out = world.step(NODE, Received(CREATOR, certify(world, good)))
        assert events(out, CheckSpared) == [] and world.here(NODE) == []
        world.now_ms += guards.HOLD_BACK_MS
        out = world.step(NODE, Tick())
        assert events(out, CheckBatch) == [CheckBatch(bad.reference.batch, bad)]
        world.step(NODE, Checked(bad.reference.batch, Verdict.BAD))
        assert world.core(NODE).reference(bad.reference.batch) is None
        assert [fault.peer for fault in world.faults(NODE)] == [CREATOR]

    def test_a_certificate_under_another_name_is_none(self) -> None:
        world = present()
        good, bad = spare_batch(range(2)), spare_batch(range(2, 4))
        renamed = replace(certify(world, good), subject=encode(bad.reference))
        world.step(NODE, Received(CREATOR, BatchOffer(bad)))
        out = world.step(NODE, Received(CREATOR, renamed))
        assert [fault.peer for fault in world.faults(NODE)] == [CREATOR]
        assert out.persist == [] and events(out, CheckSpared) == []

    def test_own_and_known_votes_vouch_for_their_own_subject_alone(self) -> None:
        """Signatures that were verified for one batch say nothing of another."""
        world = present()
        good, bad = spare_batch(range(2), SEQUENCE + 1), spare_batch(range(2, 4), SEQUENCE + 1)
        for signed in (good, bad):
            world.step(NODE, Received(CREATOR, BatchOffer(signed)))
            world.step(NODE, Checked(signed.reference.batch, Verdict.OK))
        held = certify(world, good)
        world.step(NODE, Received(CREATOR, held))
        out = world.step(NODE, Received(2, replace(held, subject=encode(bad.reference))))
        assert [fault.peer for fault in world.faults(NODE)] == [2] and out.persist == []
