"""Who verifies a batch's signatures before it votes, who holds it meanwhile, and what happens if nobody looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from chain.availability import AvailabilityCertificate, assemble_availability
from chain.batch import SignedBatch
from chain.certificate import Vote, VoteKind, sign_vote
from chain.codec import encode
from consensus.availability import Advanced, BatchStored, CheckBatch, Checked, CheckSpared, Ordered, Verdict, guards
from consensus.availability.core import SWEEP_MS
from consensus.effects import ALL, Output, Received, Tick
from consensus.messages import BatchAnswer, BatchOffer, BatchPull
from tests.chain.build import CHAIN, availability, consensus_key, validator_set
from tests.consensus.availability.world import World, events, is_available_vote, sends, signed_batch, status, submit

NODE, CREATOR = 0, 1


def turn_of(sequence: int, node: int = NODE, n: int = 4) -> int:
    before = len(guards.seats_before(CREATOR, node, sequence, n))
    return guards.turn_to_look(before, validator_set(n).lookers)


FIRST, SECOND, THIRD = (next(sequence for sequence in range(3, 6) if turn_of(sequence) == turn) for turn in (0, 1, 2))
"""Of the creator's batches, those that the node looks at in its first, second and third turn; again three later."""


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


def shared(sequence: int, nonces: Iterable[int] = range(2)) -> SignedBatch:
    return signed_batch(CREATOR, sequence, nonces=nonces)


def offered(world: World, signed: SignedBatch) -> Output:
    return world.step(NODE, Received(CREATOR, BatchOffer(signed)))


def held(world: World, signed: SignedBatch) -> Output:
    """The node's output when it has read the batch."""
    assert events(offered(world, signed), CheckBatch) == [CheckBatch(signed.reference.batch, signed, False)]
    return world.step(NODE, Checked(signed.reference.batch, Verdict.OK))


def after(world: World, duration_ms: int) -> Output:
    """All that the node does once that time has passed, and what waits for time has been looked through."""
    world.now_ms += duration_ms
    out = world.step(NODE, Tick())
    world.now_ms += SWEEP_MS
    later = world.step(NODE, Tick())
    return Output(out.persist + later.persist, out.send + later.send, out.events + later.events, out.acks + later.acks)


def votes_in(out: Output) -> list[tuple[int, int]]:
    return [(send.to, send.message.kind) for send in out.send if isinstance(send.message, Vote)]


def certify(world: World, signed: SignedBatch) -> AvailabilityCertificate:
    return availability(world.validators, encode(signed.reference))


def vote(signer: int, kind: VoteKind, signed: SignedBatch) -> Vote:
    return sign_vote(consensus_key(signer), CHAIN, kind, 0, encode(signed.reference), signer)


class TestTurns:
    @pytest.mark.parametrize("n", range(2, 14))
    def test_the_creator_and_the_first_turn_are_as_many_as_must_look_and_all_take_part(self, n: int) -> None:
        lookers = validator_set(n).lookers
        for creator in range(n):
            others = [seat for seat in range(n) if seat != creator]
            looks = dict.fromkeys(others, 0)
            for sequence in range(7, 7 + len(others)):
                orders = {seat: guards.seats_before(creator, seat, sequence, n) for seat in others}
                turns = [seat for seat in others if guards.turn_to_look(len(orders[seat]), lookers) == 0]
                assert 1 + len(turns) == lookers
                for seat in turns:
                    looks[seat] += 1
                last = max(others, key=lambda seat: len(orders[seat]))
                assert {*orders[last], last} == set(others), "in the end everybody"
                assert all(orders[seat] == orders[last][: len(orders[seat])] for seat in others), "one order for all"
            assert set(looks.values()) == {lookers - 1}

    def test_who_has_the_first_turn_verifies_signatures_and_votes_so(self) -> None:
        world = present()
        signed = shared(FIRST)
        assert events(offered(world, signed), CheckBatch) == [CheckBatch(signed.reference.batch, signed, True)]
        out = world.step(NODE, Checked(signed.reference.batch, Verdict.OK))
        assert votes_in(out) == [(CREATOR, VoteKind.AVAILABLE)] and BatchStored(signed, True) in out.persist
        assert world.core(NODE).reference(signed.reference.batch) == signed.reference

    @pytest.mark.parametrize("sequence", [SECOND, THIRD])
    def test_the_others_store_it_and_vote_at_once_that_they_hold_it(self, sequence: int) -> None:
        world = present()
        signed = shared(sequence)
        out = held(world, signed)
        assert votes_in(out) == [(CREATOR, VoteKind.HELD)] and BatchStored(signed, True) in out.persist

    def test_what_is_held_may_not_be_named_before_others_have_certified_it(self) -> None:
        world = present()
        signed = shared(SECOND)
        held(world, signed)
        assert world.core(NODE).reference(signed.reference.batch) is None and world.referable(NODE) == []
        world.step(NODE, Received(CREATOR, certify(world, signed)))
        assert world.core(NODE).reference(signed.reference.batch) == signed.reference
        assert world.referable(NODE) == [signed.reference]

    @pytest.mark.parametrize("missing", [2, 3])
    def test_whoever_was_not_heard_of_has_no_turn(self, missing: int) -> None:
        world = World()
        hear_all(world, NODE, but=missing)
        for sequence in range(3):
            signed = shared(sequence)
            seats = guards.seats_before(CREATOR, NODE, sequence, 4)
            look = not [seat for seat in seats if seat != missing]
            assert events(offered(world, signed), CheckBatch) == [CheckBatch(signed.reference.batch, signed, look)]

    def test_when_all_have_fallen_silent_the_node_looks_at_once(self) -> None:
        world = present()
        world.now_ms += guards.PRESENT_MS
        signed = shared(THIRD)
        assert events(offered(world, signed), CheckBatch) == [CheckBatch(signed.reference.batch, signed, True)]

    def test_a_batch_of_one_transaction_may_name_a_blob_and_is_looked_at_by_all(self) -> None:
        world = present()
        signed = shared(THIRD, range(1))
        assert events(offered(world, signed), CheckBatch) == [CheckBatch(signed.reference.batch, signed, True)]

    def test_what_another_voter_gives_is_looked_at_at_once_for_its_creator_may_be_gone(self) -> None:
        world = present()
        signed = shared(THIRD)
        digest = signed.reference.batch
        world.now_ms += 1_000
        assert sends(world.step(NODE, Received(2, status(digest))), BatchPull) != []
        out = world.step(NODE, Received(2, BatchAnswer(signed)))
        assert events(out, CheckBatch) == [CheckBatch(digest, signed, True)]


class TestEscalation:
    @pytest.mark.parametrize(("sequence", "turn"), [(SECOND, 1), (THIRD, 2)])
    def test_without_a_certificate_each_looks_in_its_turn_and_tells_all(self, sequence: int, turn: int) -> None:
        world = present()
        signed = shared(sequence)
        digest = signed.reference.batch
        held(world, signed)
        assert events(after(world, turn * guards.LOOK_AFTER_MS - 300), CheckBatch) == []
        assert world.core(NODE).deadline() is not None
        assert events(after(world, 300), CheckBatch) == [CheckBatch(digest, signed, True)]
        assert events(after(world, 1_000), CheckBatch) == [], "once"
        out = world.step(NODE, Checked(digest, Verdict.OK))
        assert votes_in(out) == [(ALL, VoteKind.AVAILABLE)] and out.persist == []
        assert world.core(NODE).reference(digest) == signed.reference

    def test_nobody_looks_at_what_is_certified_in_time(self) -> None:
        world = present()
        signed = shared(SECOND)
        held(world, signed)
        world.now_ms += guards.LOOK_AFTER_MS - 1
        world.step(NODE, Received(CREATOR, certify(world, signed)))
        assert events(after(world, 10 * guards.LOOK_AFTER_MS), CheckBatch) == []
        assert world.core(NODE).deadline() is None

    def test_nobody_looks_if_enough_have_and_holders_are_missing(self) -> None:
        world = present(7)
        signed = signed_batch(CREATOR, next(each for each in range(7) if turn_of(each, n=7) == 1), nonces=range(2))
        held(world, signed)
        for signer in (CREATOR, 2, 3):
            world.step(NODE, Received(signer, vote(signer, VoteKind.AVAILABLE, signed)))
        assert world.core(NODE).certificates_for([signed.reference.batch]) == ()
        assert events(after(world, 2 * guards.LOOK_AFTER_MS), CheckBatch) == []

    def test_whoever_did_not_look_in_time_is_passed_over_for_a_while(self) -> None:
        world = present()
        held(world, shared(SECOND))
        after(world, guards.LOOK_AFTER_MS)
        hear_all(world, NODE)
        again = shared(SECOND + 3)
        assert events(offered(world, again), CheckBatch) == [CheckBatch(again.reference.batch, again, True)]
        world.now_ms += guards.PASSED_OVER_MS
        hear_all(world, NODE)
        third = shared(SECOND + 6)
        assert events(offered(world, third), CheckBatch) == [CheckBatch(third.reference.batch, third, False)]

    def test_a_look_that_has_to_wait_is_asked_for_again(self) -> None:
        world = present()
        signed = shared(SECOND)
        digest = signed.reference.batch
        held(world, signed)
        after(world, guards.LOOK_AFTER_MS)
        world.step(NODE, Checked(digest, Verdict.PENDING))
        assert events(after(world, 500), CheckBatch) == []
        assert events(after(world, 1_000), CheckBatch) == [CheckBatch(digest, signed, True)]

    def test_a_few_of_each_creator_are_looked_at_at_a_time_however_many_are_late(self) -> None:
        world = present()
        for sequence in range(SECOND, SECOND + 90, 3):
            held(world, shared(sequence, range(2 * sequence, 2 * sequence + 2)))
        other = signed_batch(
            2, next(each for each in range(3) if guards.seats_before(2, NODE, each, 4) == [3]), nonces=(7, 8)
        )
        world.step(NODE, Received(2, BatchOffer(other)))
        world.step(NODE, Checked(other.reference.batch, Verdict.OK))
        asked = events(after(world, guards.LOOK_AFTER_MS), CheckBatch)
        assert len(asked) == guards.LOOKS_UNDER_WAY + 1
        first = asked[0]
        assert isinstance(first, CheckBatch)
        world.step(NODE, Checked(first.digest, Verdict.OK))
        assert len(events(after(world, 250), CheckBatch)) == 1

    def test_what_is_being_looked_at_is_spared_when_a_certificate_comes(self) -> None:
        world = present()
        first, second = shared(FIRST), shared(SECOND, range(2, 4))
        held(world, second)
        after(world, guards.LOOK_AFTER_MS)
        hear_all(world, NODE)
        assert events(offered(world, first), CheckBatch) != []
        for signed in (first, second):
            digest = signed.reference.batch
            out = world.step(NODE, Received(CREATOR, certify(world, signed)))
            assert events(out, CheckSpared) == [CheckSpared(digest)]
            late = world.step(NODE, Checked(digest, Verdict.OK))
            assert late.persist == [] and late.send == []

    def test_what_is_being_looked_at_is_spared_when_a_final_block_names_it(self) -> None:
        world = present()
        first, second = shared(FIRST), shared(SECOND, range(2, 4))
        held(world, second)
        after(world, guards.LOOK_AFTER_MS)
        hear_all(world, NODE)
        offered(world, first)
        for height, signed in enumerate((first, second), 1):
            digest = signed.reference.batch
            assert events(world.step(NODE, Ordered(height, (digest,))), CheckSpared) == [CheckSpared(digest)]

    @pytest.mark.parametrize("gone", [1, 2, 3])
    def test_with_one_of_four_gone_the_others_certify_all_the_same(self, gone: int) -> None:
        world = present()
        world.crash(gone)
        for number in range(6):
            world.step(NODE, submit(2 * number, 2 * number + 1))
            world.run(1_000)
        world.run(2 * guards.LOOK_AFTER_MS)
        assert len(world.acknowledged(NODE)) == 12
        assert world.all_faults() == []

    @pytest.mark.parametrize("n", [4, 7])
    def test_with_f_that_hold_and_never_look_the_others_certify_all_the_same(self, n: int) -> None:
        world = present(n)
        idle = range(n - world.validators.f, n)
        world.verdict = lambda node, digest: None if node in idle else Verdict.OK
        for number in range(6):
            world.step(NODE, submit(2 * number, 2 * number + 1))
            world.run(500)
        for _ in range(8):
            for node in idle:
                world.machines[node].checks.clear()
            world.run(500)
        assert len(world.acknowledged(NODE)) == 12
        assert world.all_faults() == []


class TestVotes:
    def test_of_a_voter_that_holds_and_then_looks_the_second_vote_counts(self) -> None:
        world = present()
        signed = shared(FIRST)
        digest = signed.reference.batch
        offered(world, signed)
        out = world.step(NODE, Checked(digest, Verdict.OK))
        for signer in (2, 3):
            world.step(NODE, Received(signer, vote(signer, VoteKind.HELD, signed)))
        assert world.core(NODE).certificates_for([digest]) == (), "a quorum holds it, and one alone has looked"
        out = world.step(NODE, Received(3, vote(3, VoteKind.AVAILABLE, signed)))
        (made,) = world.core(NODE).certificates_for([digest])
        assert (
            world.verifies(made) and made.looked == bytes([1 | 1 << 3]) and made.signers == bytes([1 | 1 << 2 | 1 << 3])
        )
        assert sends(out, AvailabilityCertificate) != [] and world.all_faults() == []

    def test_after_a_look_the_vote_that_it_is_held_says_nothing(self) -> None:
        world = present()
        signed = shared(SECOND)
        held(world, signed)
        world.step(NODE, Received(3, vote(3, VoteKind.AVAILABLE, signed)))
        world.step(NODE, Received(3, vote(3, VoteKind.HELD, signed)))
        world.step(NODE, Received(2, vote(2, VoteKind.AVAILABLE, signed)))
        (made,) = world.core(NODE).certificates_for([signed.reference.batch])
        assert made.looked == bytes([1 << 2 | 1 << 3])

    @pytest.mark.parametrize("kind", [VoteKind.AVAILABLE, VoteKind.HELD])
    def test_each_kind_has_a_signature_of_its_own(self, kind: VoteKind) -> None:
        world = present()
        signed = shared(SECOND)
        held(world, signed)
        other = VoteKind.HELD if kind is VoteKind.AVAILABLE else VoteKind.AVAILABLE
        world.step(NODE, Received(2, replace(vote(2, other, signed), kind=int(kind))))
        assert [fault.peer for fault in world.faults(NODE)] == [2]

    def test_votes_for_a_batch_that_is_not_here_count_by_what_they_say(self) -> None:
        world = present()
        signed = signed_batch(3, 5, nonces=range(2))
        digest = signed.reference.batch
        for signer, kind in ((1, VoteKind.HELD), (2, VoteKind.HELD), (3, VoteKind.AVAILABLE)):
            world.step(NODE, Received(signer, vote(signer, kind, signed)))
        assert world.core(NODE).certificates_for([digest]) == () and world.core(NODE).counts()["loose_votes"] == 3
        world.step(NODE, Received(2, vote(2, VoteKind.AVAILABLE, signed)))
        (made,) = world.core(NODE).certificates_for([digest])
        assert world.verifies(made) and world.core(NODE).counts()["loose_votes"] == 0


class TestByzantineCreators:
    """A batch that no honest validator has looked at is never certified."""

    @pytest.mark.parametrize("n", [4, 7])
    @pytest.mark.parametrize("sequence", range(3))
    def test_a_batch_with_a_forged_signature_is_held_and_never_certified(self, n: int, sequence: int) -> None:
        """The f Byzantine ones say that they looked; to every honest one the batch is bad whenever it looks."""
        world = present(n)
        f = world.validators.f
        liars = range(n - f, n)
        honest = range(n - f)
        signed = signed_batch(n - 1, sequence, nonces=(0, 1))
        world.verdict = lambda node, digest: Verdict.BAD
        lies = [vote(liar, VoteKind.AVAILABLE, signed) for liar in liars]
        forged = [replace(vote(node, VoteKind.HELD, signed), kind=int(VoteKind.AVAILABLE)) for node in honest]
        for node in honest:
            world.step(node, Received(n - 1, BatchOffer(signed)))
            for liar, lie in zip(liars, lies, strict=True):
                world.step(node, Received(liar, lie))
            world.step(node, Received(n - 1, assemble_availability(world.validators, lies + forged)))
        for _ in range(3):
            world.run(2 * guards.LOOK_AFTER_MS)
            for node in honest:
                world.step(node, Received(n - 1, BatchOffer(signed)))
        for node in honest:
            votes = [message for _, message in world.sent_by(node, Vote) if is_available_vote(message)]
            assert {each.kind for each in votes if isinstance(each, Vote)} <= {VoteKind.HELD}
            assert world.certificates(node) == []
            assert world.core(node).reference(signed.reference.batch) is None
            assert n - 1 in [fault.peer for fault in world.faults(node)]
        assert any(world.stored(node) for node in honest), "some held it"

    def test_what_was_held_and_found_bad_is_told_of_no_more_and_still_counts_against_its_creator(self) -> None:
        world = present()
        bad = shared(SECOND)
        digest = bad.reference.batch
        held(world, bad)
        after(world, guards.LOOK_AFTER_MS)
        world.step(NODE, Checked(digest, Verdict.BAD))
        assert [fault.peer for fault in world.faults(NODE)] == [CREATOR]
        world.sent.clear()
        world.flush(NODE)
        world.sent.clear()
        for _ in range(20):
            assert events(after(world, 1_000), CheckBatch) == []
            assert world.core(NODE).uncertified() == ()
            world.flush(NODE)
        assert world.sent_by(NODE, Vote) == []
        assert events(offered(world, bad), CheckBatch) == []
        assert world.core(NODE).counts()["open"] == 1
        world.step(NODE, Advanced(2_000, 2_000))
        assert set(world.core(NODE).counts().values()) == {0}

    def test_a_certificate_for_other_bytes_spares_nothing(self) -> None:
        world = present()
        good, bad = shared(SECOND), shared(SECOND, range(2, 4))
        assert good.reference.sequence == bad.reference.sequence
        held(world, bad)
        out = world.step(NODE, Received(CREATOR, certify(world, good)))
        assert events(out, CheckSpared) == []
        assert events(after(world, guards.LOOK_AFTER_MS), CheckBatch) == [CheckBatch(bad.reference.batch, bad, True)]
        world.step(NODE, Checked(bad.reference.batch, Verdict.BAD))
        assert world.core(NODE).reference(bad.reference.batch) is None
        assert [fault.peer for fault in world.faults(NODE)] == [CREATOR]

    def test_a_certificate_under_another_name_is_none(self) -> None:
        world = present()
        good, bad = shared(SECOND), shared(SECOND, range(2, 4))
        renamed = replace(certify(world, good), subject=encode(bad.reference))
        held(world, bad)
        out = world.step(NODE, Received(CREATOR, renamed))
        assert [fault.peer for fault in world.faults(NODE)] == [CREATOR]
        assert out.persist == [] and world.core(NODE).reference(bad.reference.batch) is None

    def test_own_and_known_votes_vouch_for_their_own_subject_alone(self) -> None:
        """Signatures that were verified for one batch say nothing of another."""
        world = present()
        good, bad = shared(FIRST), shared(FIRST, range(2, 4))
        for signed in (good, bad):
            offered(world, signed)
            world.step(NODE, Checked(signed.reference.batch, Verdict.OK))
        certificate = certify(world, good)
        world.step(NODE, Received(CREATOR, certificate))
        out = world.step(NODE, Received(2, replace(certificate, subject=encode(bad.reference))))
        assert [fault.peer for fault in world.faults(NODE)] == [2] and out.persist == []

    def test_votes_that_a_batch_is_held_certify_nothing_when_they_are_called_looks(self) -> None:
        world = present()
        signed = shared(SECOND)
        held(world, signed)
        certificate = certify(world, signed)
        holders = [vote(signer, VoteKind.HELD, signed).signature for signer in range(3)]
        for forged in (
            replace(certificate, signatures=tuple(holders)),
            replace(certificate, looked=certificate.signers),
            replace(certificate, looked=b"\x01"),
        ):
            world.step(NODE, Received(2, forged))
        assert [fault.peer for fault in world.faults(NODE)] == [2, 2, 2]
        assert world.core(NODE).certificates_for([signed.reference.batch]) == ()
