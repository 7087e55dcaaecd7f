"""Across a change of validators: what was certified stays so, what was not is voted for anew."""

from __future__ import annotations

from chain.availability import AvailabilityCertificate
from chain.certificate import ValidatorSet, Vote
from consensus.availability import Availability, NewEpoch, Referable, Replay
from consensus.effects import Received
from tests.chain.build import CHAIN, consensus_key, validator
from tests.consensus.availability.world import World, ids, is_available_vote, submit


def members(epoch: int, *indices: int) -> ValidatorSet:
    return ValidatorSet(epoch, tuple(validator(index) for index in indices))


def nothing(digest: bytes) -> bool:
    return False


def test_a_certificate_of_the_last_epoch_is_good_in_this() -> None:
    world = World(5)
    world.lost = lambda source, target, message: target == 4
    world.step(0, submit(1))
    world.settle()
    world.lost = lambda source, target, message: False
    world.turn_epoch(members(1, 0, 1, 2, 3, 4))
    (held,) = world.certificates(0)
    world.step(4, Received(0, held))
    assert world.core(4).candidates(nothing, 1) == world.core(0).candidates(nothing, 1) != ()
    assert world.all_faults() == []


def test_a_joiner_that_is_told_the_last_set_accepts_its_certificates() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.settle()
    (held,) = world.certificates(0)
    joined = members(1, 0, 1, 2, 3, 4)
    joiner = Availability(CHAIN, joined, 4, consensus_key(4), world.params, previous=world.validators)
    out = joiner.step(world.now, Received(0, held))
    assert [event for event in out.events if isinstance(event, Referable)]


def test_an_uncertified_batch_is_voted_for_anew_and_certified_by_the_new_set() -> None:
    world = World(5)
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(0, submit(1))
    world.settle()
    # All change places, so that no index means what it meant.
    world.turn_epoch(members(1, 4, 2, 0, 1, 3))
    world.lost = lambda source, target, message: isinstance(message, Vote) and message.epoch == 0
    world.run(3_000)
    assert all(len(world.certificates(node)) == 1 for node in range(5))
    assert {certificate.epoch for certificate in world.certificates(0)} == {1}
    assert world.acknowledged(0) == set(ids(1))
    assert world.all_faults() == []


def test_votes_of_the_last_epoch_still_make_a_certificate_of_it() -> None:
    world = World(4)
    world.lost = lambda source, target, message: is_available_vote(message)
    world.step(0, submit(1))
    world.settle()
    world.turn_epoch(members(1, 3, 2, 1, 0))
    world.lost = lambda source, target, message: isinstance(message, Vote) and message.epoch == 1
    world.run(3_000)
    assert {certificate.epoch for node in range(4) for certificate in world.certificates(node)} == {0}
    assert world.all_faults() == []


def test_records_of_an_epoch_that_replay_has_yet_to_reach_are_taken_up_there() -> None:
    world = World(4)
    first = world.validators
    world.turn_epoch(members(1, 0, 1, 2, 3))
    world.step(0, submit(1))
    world.settle()
    digest = digest_of(world)
    core = Availability(CHAIN, first, 1, consensus_key(1), world.params)
    core.step(world.now, Replay(tuple(world.machines[1].disk)))
    assert core.reference(digest) is None
    core.step(world.now, NewEpoch(world.validators, 1, consensus_key(1)))
    assert core.reference(digest) is not None
    assert len(core.candidates(nothing, 1)) == 1


def digest_of(world: World) -> bytes:
    (stored,) = world.stored(0)
    return stored.signed.reference.batch


def test_batches_of_the_epoch_before_the_last_are_closed_and_packed_again() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.settle()
    digest = digest_of(world)
    world.turn_epoch(members(1, 0, 1, 2, 3))
    assert world.core(0).reference(digest) is not None
    world.turn_epoch(members(2, 0, 1, 2, 3))
    world.run(1_000)
    assert world.core(0).reference(digest) is None
    assert [record.signed.batch.epoch for record in world.stored(0)] == [0, 2]
    assert world.acknowledged(0) == set(ids(1))


def test_messages_of_an_epoch_that_is_not_known_are_ignored_and_no_fault() -> None:
    ahead, behind = World(4), World(4)
    ahead.turn_epoch(members(1, 0, 1, 2, 3))
    ahead.turn_epoch(members(2, 0, 1, 2, 3))
    ahead.step(1, submit(1))
    ahead.settle()
    for source, target, message in list(ahead.sent):
        if target == 0:
            behind.step(0, Received(source, message))
    assert behind.all_faults() == []
    assert set(behind.core(0).counts().values()) == {0}
    behind.step(1, submit(1))
    behind.settle()
    for source, target, message in list(behind.sent):
        if target == 0:
            ahead.step(0, Received(source, message))
    assert ahead.all_faults() == []


def test_one_who_left_still_serves_and_no_longer_votes() -> None:
    world = World(5)
    world.step(4, submit(1))
    world.settle()
    world.turn_epoch(members(1, 0, 1, 2, 3))
    world.step(0, submit(2))
    world.flush(0)
    while world.wire:
        world.deliver()
    world.sent.clear()
    for node in range(4):
        world.answer_checks(node)
        world.flush(node)
    assert not [vote for _, vote in world.sent_by(4, Vote)]
    assert all(isinstance(cert, AvailabilityCertificate) for cert in world.certificates(4))
