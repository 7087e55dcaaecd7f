"""What a voter accepts in a proposal, and what a leader names."""

from __future__ import annotations

from dataclasses import replace

from chain.batch import SignedBatch
from chain.codec import encode
from chain.genesis import Params
from consensus.availability import Advanced, Checked, Need, Ordered, Verdict
from consensus.effects import Received
from consensus.messages import BatchAnswer, BatchOffer, BatchPull
from tests.chain.build import availability
from tests.consensus.availability.world import World, signed_batch


def certify(world: World, signed: SignedBatch, node: int = 0) -> bytes:
    held = availability(world.validators, encode(signed.reference))
    world.step(node, Received(3, held))
    return signed.reference.batch


def nothing(digest: bytes) -> bool:
    return False


def named(world: World, height: int = 1) -> list[tuple[int, int]]:
    return [(ref.creator, ref.sequence) for ref in world.core(0).candidates(nothing, height)]


def test_a_batch_voted_for_may_be_referenced() -> None:
    world = World()
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    assert world.core(0).reference(signed.reference.batch) is None
    world.step(0, Checked(signed.reference.batch, Verdict.OK))
    assert world.core(0).reference(signed.reference.batch) == signed.reference
    assert world.referable(0) == [signed.reference]


def test_a_batch_with_a_certificate_may_be_referenced_without_its_bytes() -> None:
    world = World()
    signed = signed_batch(1)
    assert world.core(0).reference(certify(world, signed)) == signed.reference
    assert world.referable(0) == [signed.reference]


def test_holding_the_bytes_alone_is_no_licence_to_reference() -> None:
    world = World()
    signed = signed_batch(1)
    digest = signed.reference.batch
    world.step(0, Need((digest,)))
    world.settle()
    asked = [to for to, _ in world.sent_by(0, BatchPull)]
    world.step(0, Received(asked[0], BatchAnswer(signed)))
    assert world.here(0) == [digest]
    assert world.core(0).reference(digest) is None


def test_an_ordered_or_expired_batch_is_forgotten() -> None:
    world = World()
    first, second = signed_batch(1), signed_batch(2)
    for signed in (first, second):
        certify(world, signed)
    world.step(0, Ordered(1, (first.reference.batch,)))
    assert world.core(0).reference(first.reference.batch) is None
    assert named(world) == [(2, 0)]
    world.step(0, Advanced(1_024, 1_024))
    assert world.core(0).reference(second.reference.batch) is None
    assert world.core(0).counts()["open"] == 0


def test_a_certificate_of_an_ordered_or_expired_batch_is_ignored() -> None:
    world = World()
    first, second = signed_batch(1), signed_batch(2)
    world.step(0, Ordered(1, (first.reference.batch,)))
    world.step(0, Advanced(1_024, 1_024))
    for signed in (first, second):
        certify(world, signed)
    assert world.core(0).counts()["open"] == 0
    assert world.all_faults() == []


def test_a_batch_may_be_named_up_to_and_at_its_expiry() -> None:
    world = World()
    certify(world, signed_batch(1))
    assert named(world, height=1_024) == [(1, 0)]
    assert named(world, height=1_025) == []
    assert world.core(0).pending_batches(nothing, 1_024)
    assert not world.core(0).pending_batches(nothing, 1_025)


def test_what_the_ancestry_names_is_not_named_again() -> None:
    world = World()
    digest = certify(world, signed_batch(1))
    assert world.core(0).pending_batches(nothing, 1)
    assert not world.core(0).pending_batches(lambda other: other == digest, 1)
    assert world.core(0).candidates(lambda other: other == digest, 1) == ()


def test_a_leader_whose_execution_is_behind_names_nothing() -> None:
    world = World()
    certify(world, signed_batch(1))
    assert world.core(0).candidates(nothing, 1, blocked=True) == ()


def test_only_certified_batches_are_candidates() -> None:
    world = World()
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    world.step(0, Checked(signed.reference.batch, Verdict.OK))
    assert named(world) == []


def test_creators_take_turns_and_another_is_first_at_each_height() -> None:
    world = World()
    for creator in (1, 2, 3):
        for sequence in (0, 1):
            certify(world, signed_batch(creator, sequence))
    firsts = set()
    for height in (1, 2, 3):
        order = named(world, height)
        assert [sequence for _, sequence in order] == [0, 0, 0, 1, 1, 1]
        assert len({creator for creator, _ in order[:3]}) == 3
        firsts.add(order[0][0])
    assert firsts == {1, 2, 3}


def test_of_one_creator_the_oldest_comes_first() -> None:
    world = World()
    for created, sequence in ((5, 3), (2, 9), (5, 1)):
        certify(world, signed_batch(1, sequence, created))
    assert named(world, 6) == [(1, 9), (1, 1), (1, 3)]


def test_a_block_names_no_more_than_its_caps_allow() -> None:
    world = World(params=replace(Params(), block_references=3))
    for sequence in range(5):
        certify(world, signed_batch(1, sequence))
    assert len(named(world)) == 3

    size = signed_batch(1).reference.size_bytes
    world = World(params=replace(Params(), block_bytes=2 * size + size // 2))
    for sequence in range(5):
        certify(world, signed_batch(1, sequence))
    assert len(named(world)) == 2


def test_a_large_batch_is_not_overtaken_by_its_creators_younger_ones() -> None:
    small = signed_batch(1).reference.size_bytes
    world = World(params=replace(Params(), block_bytes=3 * small))
    certify(world, signed_batch(1, 0, size=4 * small))
    certify(world, signed_batch(1, 1))
    certify(world, signed_batch(2, 0))
    assert named(world) == [(2, 0)]


def test_certificates_travel_beside_what_is_named() -> None:
    world = World()
    digest = certify(world, signed_batch(1))
    (held,) = world.core(0).certificates_for([digest, bytes(32)])
    assert world.verifies(held)
