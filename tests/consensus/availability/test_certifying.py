"""From a submitted transaction to its certificate and acknowledgement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain import certificate as certificates
from chain import keys
from chain.availability import AvailabilityCertificate, assemble_availability
from chain.certificate import Vote, VoteKind, sign_vote
from chain.codec import encode
from consensus.availability import Acknowledged, CertificateHeld, CheckBatch, Checked, Verdict
from consensus.effects import ALL, Received, Send
from consensus.messages import BatchOffer
from tests.chain.build import CHAIN, availability, consensus_key
from tests.consensus.availability.world import (
    World,
    events,
    ids,
    is_available_vote,
    sends,
    signed_batch,
    submit,
)


def vote_for(world: World, signer: int, signed_of: int = 0) -> Vote:
    subject = encode(signed_batch(signed_of).reference)
    return sign_vote(consensus_key(signer), CHAIN, VoteKind.AVAILABLE, 0, subject, signer)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_a_submitted_transaction_is_acknowledged_and_known_available_everywhere(n: int) -> None:
    world = World(n)
    world.step(0, submit(1, 2))
    world.settle()
    assert world.acknowledged(0) == set(ids(1, 2))
    for node in range(n):
        (held,) = world.certificates(node)
        assert world.verifies(held)
        assert len(world.core(node).candidates(lambda _: False, 1)) == 1
        assert len(world.stored(node)) == 1
    assert world.all_faults() == []


def test_a_certificate_takes_a_quorum_of_votes_and_not_one_less() -> None:
    world = World(4)
    world.lost = lambda source, target, message: is_available_vote(message) and source in (2, 3)
    world.step(0, submit(1))
    world.settle()
    assert world.certificates(0) == []
    assert world.machines[0].acks == []
    world.lost = lambda source, target, message: is_available_vote(message) and source == 3
    world.run(1_500)
    assert len(world.certificates(0)) == 1


def test_a_vote_leaves_only_in_or_after_the_output_that_stores_the_batch() -> None:
    world = World(4)
    signed = signed_batch(1)
    digest = signed.reference.batch
    offered = world.step(0, Received(1, BatchOffer(signed)))
    assert events(offered, CheckBatch) == [CheckBatch(digest, signed, True)]
    assert offered.send == [] and offered.persist == []
    checked = world.step(0, Checked(digest, Verdict.OK))
    assert [record.signed for record in checked.persist] == [signed]  # type: ignore[attr-defined]
    assert [send.to for send in sends(checked, Vote)] == [1]


def test_an_offer_of_mine_leaves_only_with_its_batch_stored() -> None:
    world = World(4)
    out = world.step(0, submit(1))
    (offer,) = sends(out, BatchOffer)
    assert offer.to == ALL
    assert offer.message.signed in [getattr(record, "signed", None) for record in out.persist]  # type: ignore[attr-defined]


def test_what_is_acknowledged_was_made_durable_and_sent_to_all_before() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.flush(0)
    for _ in range(3):
        world.deliver()
    for node in (1, 2, 3):
        world.answer_checks(node)
        world.flush(node)
    (stored,) = world.stored(0)
    while not world.machines[0].queue or not world.machines[0].queue[-1].acks:
        assert world.certificates(0) == [] and not world.sent_by(0, AvailabilityCertificate)
        world.deliver()
    out = world.machines[0].queue[-1]
    (held,) = (record for record in out.persist if isinstance(record, CertificateHeld))
    assert out.send == [Send(ALL, held.certificate)]
    assert out.acks == [Acknowledged(ids(1), stored.signed.reference.batch)]


def test_a_vote_with_a_bad_signature_is_the_peers_fault_and_does_not_count() -> None:
    world = World(4)
    world.step(0, submit(1))
    world.flush(0)
    subject = encode(world.stored(0)[0].signed.reference)
    forged = sign_vote(consensus_key(2), CHAIN, VoteKind.AVAILABLE, 0, subject, 1)
    world.step(0, Received(1, forged))
    world.step(0, Received(2, sign_vote(consensus_key(2), CHAIN, VoteKind.AVAILABLE, 0, subject, 2)))
    world.flush(0)
    assert [fault.peer for fault in world.faults(0)] == [1]
    assert world.certificates(0) == []


def test_a_vote_passed_on_for_another_is_the_peers_fault() -> None:
    world = World(4)
    world.step(0, Received(1, vote_for(world, signer=2)))
    assert [fault.peer for fault in world.faults(0)] == [1]


def test_a_vote_for_a_false_description_of_a_batch_is_the_peers_fault() -> None:
    world = World(4)
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    world.settle()
    true = signed.reference
    false = type(true)(
        true.batch,
        true.epoch,
        2,
        true.sequence,
        true.created,
        true.expiry,
        true.size_bytes,
        true.transactions,
    )
    world.step(0, Received(3, sign_vote(consensus_key(3), CHAIN, VoteKind.AVAILABLE, 0, encode(false), 3)))
    assert [fault.peer for fault in world.faults(0)] == [3]


def test_a_certificate_that_does_not_verify_is_the_peers_fault() -> None:
    world = World(4)
    subject = encode(signed_batch(1).reference)
    good = availability(world.validators, subject)
    bad = replace(good, signatures=good.signatures[::-1])
    world.step(0, Received(1, bad))
    assert [fault.peer for fault in world.faults(0)] == [1]
    assert world.core(0).reference(signed_batch(1).reference.batch) is None


def test_a_received_certificate_is_kept_once_and_not_passed_on() -> None:
    world = World(4)
    subject = encode(signed_batch(1).reference)
    held = availability(world.validators, subject)
    first = world.step(0, Received(1, held))
    second = world.step(0, Received(2, held))
    assert first.persist == [CertificateHeld(held)] and sends(first, AvailabilityCertificate) == []
    assert second.persist == [] and sends(second, AvailabilityCertificate) == []


def test_a_certificate_that_its_creator_sent_to_one_alone_is_everywhere_in_seconds() -> None:
    world = World(4)
    world.lost = lambda source, target, message: (
        source == 0 and isinstance(message, AvailabilityCertificate) and target != 1
    )
    world.step(0, submit(1, 2))
    world.settle()
    assert [len(world.certificates(node)) for node in range(4)] == [1, 1, 0, 0]
    world.crash(0)
    world.run(3_000)
    assert [len(world.certificates(node)) for node in (1, 2, 3)] == [1, 1, 1]
    assert world.all_faults() == []


def test_a_certificate_is_verified_but_for_votes_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(4)
    signed = signed_batch(1)
    world.step(0, Received(1, BatchOffer(signed)))
    (vote,) = sends(world.step(0, Checked(signed.reference.batch, Verdict.OK)), Vote)
    held = availability(world.validators, encode(signed.reference))
    assert isinstance(vote.message, Vote) and held.signatures[0] == vote.message.signature
    looked_at: list[bytes] = []

    def verify(public: bytes, message: bytes, signature: bytes) -> bool:
        looked_at.append(signature)
        return real(public, message, signature)

    real = keys.verify
    monkeypatch.setattr(certificates, "verify", verify)
    spoilt = replace(held, signatures=(bytes(64), *held.signatures[1:]))
    world.step(0, Received(2, spoilt))
    assert [fault.peer for fault in world.faults(0)] == [2] and looked_at == [bytes(64)]
    looked_at.clear()
    world.step(0, Received(1, held))
    assert world.core(0).certificates_for([signed.reference.batch]) == (held,)
    assert looked_at == list(held.signatures[1:])


def test_two_certificates_of_one_batch_are_as_good_as_each_other() -> None:
    world = World(4)
    signed = signed_batch(1)
    subject = encode(signed.reference)
    votes = [sign_vote(consensus_key(s), CHAIN, VoteKind.AVAILABLE, 0, subject, s) for s in range(4)]
    one, other = (assemble_availability(world.validators, some) for some in (votes[:3], votes[1:]))
    world.step(0, Received(1, one))
    world.step(0, Received(2, other))
    assert world.core(0).certificates_for([signed.reference.batch]) == (one,)
    assert world.faults(0) == []


def test_lost_votes_and_offers_are_made_up_for_each_second() -> None:
    world = World(4)
    seen: set[tuple[int, int]] = set()

    def first_between_two(source: int, target: int, message: object) -> bool:
        new = (source, target) not in seen
        seen.add((source, target))
        return new

    world.lost = first_between_two
    world.step(0, submit(1))
    world.run(4_000)
    assert world.acknowledged(0) == set(ids(1))
    assert all(len(world.certificates(node)) == 1 for node in range(4))
    assert world.all_faults() == []


def test_doubled_messages_change_nothing() -> None:
    world = World(4)
    world.step(0, submit(1, 2))
    for _ in range(6):
        for node in range(4):
            world.answer_checks(node)
            world.flush(node)
        for position in range(len(world.wire)):
            world.deliver(position, keep=True)
        while world.wire:
            world.deliver()
    assert world.acknowledged(0) == set(ids(1, 2))
    assert all(len(world.stored(node)) == 1 and len(world.certificates(node)) == 1 for node in range(4))
    assert world.all_faults() == []
