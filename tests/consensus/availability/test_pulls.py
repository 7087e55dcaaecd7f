"""Fetching the bytes that a certificate or a final block names."""

from __future__ import annotations

import pytest

from chain.batch import SignedBatch
from chain.codec import encode
from consensus.availability import BatchHere, BatchStored, Need, Ordered, guards
from consensus.availability.pulls import (
    ASKS_IN_FLIGHT,
    LISTED_WANTS,
    UNASKED_TOLERATED,
    Pulls,
    Why,
)
from consensus.effects import PeerUp, Received, Tick
from consensus.messages import BatchAnswer, BatchOffer, BatchPull
from tests.chain.build import availability
from tests.consensus.availability.world import World, sends, signed_batch, status, submit


def needing(signed: SignedBatch) -> tuple[World, int]:
    """Validator 0 needs this batch, and whom it asked first."""
    world = World()
    (pull,) = sends(world.step(0, Need((signed.reference.batch,))), BatchPull)
    return world, pull.to


def test_a_batch_that_a_final_block_names_is_pulled_stored_and_announced() -> None:
    world = World(4)
    world.lost = lambda source, target, message: target == 3
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(0)[0].signed.reference.batch
    world.lost = lambda source, target, message: False
    world.grow(digest)
    world.step(3, Need((digest,)))
    world.settle()
    assert world.here(3) == [digest]
    assert [record.voted for record in world.stored(3)] == [False]


def test_sources_take_turns_until_one_answers() -> None:
    signed = signed_batch(1)
    world, first = needing(signed)
    asked = [first]
    while len(asked) < 6:
        world.now_ms += 250
        asked += [send.to for send in sends(world.step(0, Tick()), BatchPull)]
    assert set(asked[:3]) == {1, 2, 3} == set(asked[3:])
    world.step(0, Received(asked[-1], BatchAnswer(signed)))
    assert world.here(0) == [signed.reference.batch]
    world.now_ms += 60_000
    assert sends(world.step(0, Tick()), BatchPull) == []


def test_a_late_answer_of_an_earlier_source_is_welcome() -> None:
    signed = signed_batch(1)
    world, first = needing(signed)
    world.now_ms += 1_500
    world.step(0, Tick())
    world.step(0, Received(first, BatchAnswer(signed)))
    assert world.here(0) == [signed.reference.batch]


def test_signers_of_the_certificate_are_asked() -> None:
    world = World(4)
    signed = signed_batch(1)
    held = availability(world.validators, encode(signed.reference))
    out = world.step(3, Received(1, held))
    assert sends(out, BatchPull) == []
    world.now_ms += 250
    (pull,) = sends(world.step(3, Tick()), BatchPull)
    assert pull.to in (0, 1, 2)


def test_an_answer_that_nobody_asked_for_is_not_stored_and_in_the_end_a_fault() -> None:
    world = World()
    out = world.step(0, Received(2, BatchAnswer(signed_batch(1))))
    assert out.persist == [] and out.events == []
    for number in range(UNASKED_TOLERATED):
        world.step(0, Received(2, BatchAnswer(signed_batch(1, sequence=number))))
    assert [fault.peer for fault in world.faults(0)] == [2]
    assert world.core(0).counts()["offers"] == 0


def test_an_answer_of_another_than_was_asked_is_not_stored() -> None:
    signed = signed_batch(1)
    world, first = needing(signed)
    other = next(peer for peer in (1, 2, 3) if peer != first)
    assert world.step(0, Received(other, BatchAnswer(signed))).persist == []
    assert world.step(0, Received(first, BatchAnswer(signed_batch(1, sequence=5)))).persist == []
    assert world.here(0) == []


def test_without_that_rule_anything_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "may_take_answer", lambda asked: True)
    signed = signed_batch(1)
    world, first = needing(signed)
    other = next(peer for peer in (1, 2, 3) if peer != first)
    assert world.step(0, Received(other, BatchAnswer(signed))).persist != []


def test_an_answer_with_a_spoilt_signature_is_a_fault_and_the_next_source_is_asked() -> None:
    signed = signed_batch(1)
    world, first = needing(signed)
    out = world.step(0, Received(first, BatchAnswer(SignedBatch(signed.batch, bytes(64)))))
    assert [fault.peer for fault in world.faults(0)] == [first]
    assert out.persist == []
    (pull,) = sends(out, BatchPull)
    assert pull.to != first


def test_a_lost_link_does_not_hold_up_what_was_asked_over_it() -> None:
    signed = signed_batch(1)
    world, first = needing(signed)
    assert len(sends(world.step(0, PeerUp(first)), BatchPull)) == 1


def test_bytes_on_offer_are_taken_when_a_final_block_names_them() -> None:
    world = World()
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    out = world.step(0, Ordered(1, (signed.reference.batch,)))
    assert BatchStored(signed, False) in out.persist
    assert BatchHere(signed.reference.batch) in out.events


def test_what_is_stored_already_is_here_at_once() -> None:
    world = World()
    world.step(0, submit(1))
    world.settle()
    digest = world.stored(0)[0].signed.reference.batch
    out = world.step(0, Need((digest,)))
    assert out.events == [BatchHere(digest)] and out.send == []


def test_a_peer_that_never_answers_holds_up_only_its_own_questions() -> None:
    pulls = Pulls()
    for number in range(20):
        pulls.want(bytes([number]) * 32, Why.NEEDED, (1, 2), 0)
    asked = pulls.due(0)
    assert [peer for peer, _ in asked].count(1) == [peer for peer, _ in asked].count(2) == ASKS_IN_FLIGHT
    assert pulls.due(0) == []


def test_what_a_final_block_names_is_asked_for_first() -> None:
    pulls = Pulls()
    for why in (Why.LISTED, Why.CERTIFIED, Why.NEEDED):
        pulls.want(bytes([why]) * 32, why, (1,), 0)
    assert [digest[0] for _, digest in pulls.due(0)] == [Why.NEEDED, Why.CERTIFIED, Why.LISTED]


def test_a_listed_batch_that_its_lister_never_gives_is_given_up() -> None:
    world = World()
    world.step(0, Received(1, status(*(bytes([number]) * 32 for number in range(100)))))
    assert world.core(0).counts()["pulls"] == LISTED_WANTS
    for _ in range(400):
        world.now_ms += 250
        world.step(0, Tick())
    assert world.core(0).counts()["pulls"] == 0
    assert world.core(0).deadline() is None


def test_a_batch_is_served_so_often_a_second_and_no_more() -> None:
    world = World()
    answered = 0
    for _ in range(1_000):
        out = world.step(0, Received(1, BatchPull(bytes(32))))
        answered += len(out.events)
    assert 0 < answered <= 32
    world.now_ms += 1_000
    assert world.step(0, Received(1, BatchPull(bytes(32)))).events != []
