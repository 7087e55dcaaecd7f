"""When a batch gets a vote: the window, the quota, the application's verdict, the creator's signature."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.batch import SignedBatch
from chain.certificate import Available, Vote
from chain.codec import encode
from chain.genesis import Params
from consensus.availability import (
    Advanced,
    CheckBatch,
    Checked,
    Ordered,
    Verdict,
    guards,
)
from consensus.availability.guards import Judgement, Outstanding
from consensus.effects import Output, Received
from consensus.messages import BatchOffer
from tests.chain.build import availability
from tests.consensus.availability.world import World, events, sends, signed_batch

PARAMS = Params()


def about(created: int, size_bytes: int = 100) -> Available:
    return Available(bytes(32), 0, 0, 0, created, created + PARAMS.horizon, size_bytes, 1)


def judge(created: int, final: int, outstanding: Outstanding | None = None) -> Judgement:
    held = outstanding or Outstanding()
    return guards.may_vote_available(about(created), final, held, Verdict.OK, PARAMS)


def offer(world: World, signed: SignedBatch, peer: int = 1) -> Output:
    return world.step(0, Received(peer, BatchOffer(signed)))


def accept(world: World, signed: SignedBatch) -> Output:
    return world.step(0, Checked(signed.reference.batch, Verdict.OK))


@pytest.mark.parametrize(
    ("created", "judgement"),
    [
        (5_000 - 512 - 1, Judgement.REFUSE),
        (5_000 - 512, Judgement.VOTE),
        (5_000, Judgement.VOTE),
        (5_008, Judgement.VOTE),
        (5_009, Judgement.WAIT),
    ],
)
def test_the_window_is_half_a_horizon_back_and_eight_ahead(created: int, judgement: Judgement) -> None:
    assert judge(created, final=5_000) is judgement


def test_the_quota_is_in_bytes_and_in_batches() -> None:
    assert judge(0, 0, Outstanding(PARAMS.creator_quota_bytes - 100, 1)) is Judgement.VOTE
    assert judge(0, 0, Outstanding(PARAMS.creator_quota_bytes - 99, 1)) is Judgement.WAIT
    assert judge(0, 0, Outstanding(0, PARAMS.creator_quota_batches)) is Judgement.WAIT


def test_no_verdict_is_asked_for_what_could_not_be_voted_for_anyway() -> None:
    full = Outstanding(PARAMS.creator_quota_bytes, 1)
    assert guards.may_vote_available(about(0), 0, full, None, PARAMS) is Judgement.WAIT
    assert guards.may_vote_available(about(0), 0, Outstanding(), None, PARAMS) is Judgement.ASK


def test_a_batch_from_the_future_waits_until_finality_comes_near() -> None:
    world = World()
    signed = signed_batch(1, created=20)
    assert events(offer(world, signed), CheckBatch) == []
    assert events(world.step(0, Advanced(12, 12)), CheckBatch) != []
    assert sends(accept(world, signed), Vote) != []


def test_a_batch_from_too_long_ago_is_refused() -> None:
    world = World()
    world.step(0, Advanced(1_000, 1_000))
    assert events(offer(world, signed_batch(1, created=487)), CheckBatch) == []
    assert world.core(0).counts()["offers"] == 0


def test_a_batch_that_grew_old_while_it_was_checked_gets_no_vote() -> None:
    world = World()
    signed = signed_batch(1, created=0)
    offer(world, signed)
    world.step(0, Advanced(513, 513))
    out = accept(world, signed)
    assert out.send == [] and out.persist == []


def test_a_creator_over_its_quota_waits_until_one_of_its_batches_is_ordered() -> None:
    world = World(params=replace(Params(), creator_quota_batches=2))
    batches = [signed_batch(1, sequence=number, nonces=(number,)) for number in range(3)]
    for signed in batches:
        offer(world, signed)
        accept(world, signed)
    world.flush(0)
    assert [record.signed for record in world.stored(0)] == batches[:2]
    out = world.step(0, Ordered(1, (batches[0].reference.batch,)))
    assert events(out, CheckBatch) == [CheckBatch(batches[2].reference.batch, batches[2], True)]
    assert sends(accept(world, batches[2]), Vote) != []


def test_a_creator_over_its_quota_waits_until_one_of_its_batches_expires() -> None:
    world = World(params=replace(Params(), creator_quota_batches=1))
    first, second = signed_batch(1, created=0), signed_batch(1, sequence=1, created=800)
    offer(world, first)
    accept(world, first)
    world.step(0, Advanced(800, 800))
    assert events(offer(world, second), CheckBatch) == []
    assert events(world.step(0, Advanced(1_023, 1_023)), CheckBatch) == []
    assert events(world.step(0, Advanced(1_024, 1_024)), CheckBatch) != []


def test_two_batches_of_one_sequence_are_no_fault_and_both_count() -> None:
    world = World(params=replace(Params(), creator_quota_batches=2))
    twins = [signed_batch(1, sequence=7, nonces=(nonce,)) for nonce in (1, 2)]
    for signed in twins:
        offer(world, signed)
        assert sends(accept(world, signed), Vote) != []
    third = signed_batch(1, sequence=8, nonces=(3,))
    assert events(offer(world, third), CheckBatch) == []
    assert world.all_faults() == []


def test_a_bad_batch_gets_no_vote_costs_its_creator_the_link_and_is_not_asked_about_again() -> None:
    world = World()
    signed = signed_batch(1)
    offer(world, signed)
    out = world.step(0, Checked(signed.reference.batch, Verdict.BAD))
    assert out.send == [] and out.persist == []
    assert [fault.peer for fault in world.faults(0)] == [1]
    assert events(offer(world, signed), CheckBatch) == []


def test_a_pending_batch_is_asked_about_again_once_execution_moved_and_a_second_passed() -> None:
    world = World()
    signed = signed_batch(1)
    offer(world, signed)
    assert world.step(0, Checked(signed.reference.batch, Verdict.PENDING)).send == []
    world.now_ms += 2_000
    assert events(world.step(0, Advanced(3, 0)), CheckBatch) == []
    assert events(world.step(0, Advanced(4, 1)), CheckBatch) != []
    world.step(0, Checked(signed.reference.batch, Verdict.PENDING))
    assert events(world.step(0, Advanced(5, 2)), CheckBatch) == []
    world.machines[0].events.clear()
    world.verdict = lambda node, batch: Verdict.OK
    world.run(1_500)
    assert len(world.stored(0)) == 1


def test_an_offer_that_its_creator_did_not_sign_is_its_fault() -> None:
    world = World()
    signed = signed_batch(1)
    offer(world, SignedBatch(signed.batch, bytes(64)))
    assert [fault.peer for fault in world.faults(0)] == [1]
    assert events(offer(world, signed), CheckBatch) != []


def test_an_offer_of_anothers_batch_is_the_peers_fault() -> None:
    world = World()
    offer(world, signed_batch(1), peer=2)
    assert [fault.peer for fault in world.faults(0)] == [2]


@pytest.mark.parametrize("horizon", [0, 1_023, 1_025, 2**40])
def test_an_expiry_that_the_creator_chose_is_its_fault(horizon: int) -> None:
    world = World()
    offer(world, signed_batch(1, horizon=horizon))
    assert [fault.peer for fault in world.faults(0)] == [1]


def test_a_batch_whose_certificate_is_known_is_stored_and_not_voted_for() -> None:
    world = World()
    signed = signed_batch(1)
    held = availability(world.validators, encode(signed.reference))
    world.step(0, Received(2, held))
    out = offer(world, signed)
    assert events(out, CheckBatch) == [] and sends(out, Vote) == []
    assert [record.voted for record in out.persist] == [False]  # type: ignore[attr-defined]


def test_a_certificate_makes_the_verdict_on_a_held_offer_unnecessary() -> None:
    world = World()
    signed = signed_batch(1)
    offer(world, signed)
    held = availability(world.validators, encode(signed.reference))
    out = world.step(0, Received(2, held))
    assert signed.reference.batch in world.here(0)
    assert out.persist != []
    assert accept(world, signed).persist == []


def test_an_offer_made_again_is_answered_with_the_vote_that_was_lost() -> None:
    world = World()
    signed = signed_batch(1)
    offer(world, signed)
    (vote,) = sends(accept(world, signed), Vote)
    assert sends(offer(world, signed), Vote) == [vote]


class TestBrokenGuards:
    """Each rule is there for something: without it, this happens."""

    def test_without_the_window_an_old_batch_is_voted_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guards, "is_past_voting", lambda *_: False)
        world = World()
        world.step(0, Advanced(1_000, 1_000))
        signed = signed_batch(1, created=487)
        offer(world, signed)
        assert sends(accept(world, signed), Vote) != []

    def test_without_the_quota_a_creator_may_fill_every_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guards, "is_within_quota", lambda *_: True)
        world = World(params=replace(Params(), creator_quota_batches=2))
        for number in range(5):
            signed = signed_batch(1, sequence=number, nonces=(number,))
            offer(world, signed)
            accept(world, signed)
        world.flush(0)
        assert len(world.stored(0)) == 5
