"""Every voter owns what it voted for: a creator that dies takes nothing acknowledged with it."""

from __future__ import annotations

from chain.availability import AvailabilityCertificate
from chain.certificate import Vote
from consensus.availability import Checked, Verdict
from consensus.effects import ALL, Received, Tick
from consensus.messages import BatchOffer, BatchPull
from tests.consensus.availability.world import (
    World,
    ids,
    is_available_vote,
    sends,
    signed_batch,
    status,
    submit,
)


def test_when_the_creator_dies_right_after_its_acknowledgement_the_others_complete_the_certificate() -> None:
    world = World(4)
    world.lost = lambda source, target, message: isinstance(message, AvailabilityCertificate) and source == 0
    world.step(0, submit(1))
    world.settle()
    assert world.acknowledged(0) == set(ids(1))
    assert all(world.certificates(node) == [] for node in (1, 2, 3))
    world.crash(0)
    world.run(3_000)
    assert all(len(world.certificates(node)) == 1 for node in (1, 2, 3))
    assert len(world.order_from(2)) == 1
    assert world.all_faults() == []


def test_a_peer_that_never_saw_the_batch_pulls_it_and_its_vote_completes_the_quorum() -> None:
    world = World(4)
    world.lost = lambda source, target, message: (
        target == 3 or (isinstance(message, AvailabilityCertificate) and source == 0)
    )
    world.step(0, submit(1))
    world.settle()
    assert world.acknowledged(0) == set(ids(1))
    world.crash(0)
    world.lost = lambda source, target, message: False
    world.run(4_000)
    assert world.sent_by(3, BatchPull)
    assert all(len(world.certificates(node)) == 1 for node in (1, 2, 3))
    assert len(world.stored(3)) == 1
    assert world.all_faults() == []


def test_a_batch_that_a_dead_creator_had_offered_to_one_voter_spreads_from_there() -> None:
    world = World(4)
    world.lost = lambda source, target, message: source == 0 and target != 1
    world.step(0, submit(1))
    world.settle()
    world.crash(0)
    world.lost = lambda source, target, message: False
    world.run(4_000)
    assert all(len(world.certificates(node)) == 1 for node in (1, 2, 3))
    assert world.all_faults() == []


def test_a_voter_waits_a_second_before_it_lists_a_batch_and_votes_to_all() -> None:
    world = World(4)
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    world.step(0, Checked(signed.reference.batch, Verdict.OK))
    world.now_ms += 999
    out = world.step(0, Tick())
    assert world.core(0).uncertified() == () and sends(out, Vote) == []
    world.now_ms += 251
    out = world.step(0, Tick())
    assert world.core(0).uncertified() == (signed.reference.batch,)
    assert [send.to for send in sends(out, Vote)] == [ALL]


def test_what_is_certified_or_ordered_is_no_longer_listed() -> None:
    world = World(4)
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(0, submit(1))
    world.run(1_500)
    assert len(world.core(1).uncertified()) == 1
    world.grow(*world.core(1).uncertified())
    assert world.core(1).uncertified() == ()
    world.lost = lambda source, target, message: False
    world.step(0, submit(2))
    world.run(1_500)
    assert world.core(1).uncertified() == ()


def test_a_status_that_lists_a_certified_batch_is_answered_with_its_certificate() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(0)[0].signed.reference.batch
    out = world.step(2, Received(1, status(digest)))
    assert [(send.to, type(send.message)) for send in out.send] == [(1, AvailabilityCertificate)]


def test_a_status_that_lists_a_batch_i_voted_for_is_answered_with_my_vote() -> None:
    world = World(4)
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(0)[0].signed.reference.batch
    out = world.step(2, Received(1, status(digest)))
    assert [(send.to, type(send.message)) for send in out.send] == [(1, Vote)]


def test_a_late_vote_is_answered_with_the_certificate_that_its_signer_missed() -> None:
    world = World(4)
    world.lost = lambda source, target, message: isinstance(message, AvailabilityCertificate) and target == 1
    world.step(0, submit(1))
    world.run(900)
    assert world.certificates(1) == []
    world.lost = lambda source, target, message: not isinstance(message, AvailabilityCertificate) and source != 1
    world.run(1_000)
    assert len(world.certificates(1)) == 1


def test_a_lone_owner_completes_a_certificate_without_anyones_status() -> None:
    world = World(4)
    world.lost = lambda source, target, message: isinstance(message, AvailabilityCertificate) and source == 0
    world.exchange_status = lambda: None  # type: ignore[method-assign]
    world.step(0, submit(1))
    world.settle()
    world.crash(0)
    world.run(3_000)
    assert all(len(world.certificates(node)) == 1 for node in (1, 2, 3))
