"""What went wrong in other chains, one claim each, on bare ordering cores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from chain.block import EMPTY_BODY, Block, Body, block_digest
from chain.certificate import (
    Certificate,
    Finalize,
    Notarize,
    Nullify,
    Result,
    Subject,
    Vote,
    VoteKind,
    assemble,
    sign_vote,
)
from chain.codec import decode, encode
from chain.genesis import Params
from consensus.attestation import ROUNDS_KEPT, Attestation, ResultCertified, RoundComputed
from consensus.effects import Alarm, Misbehaviour, Received, Tick
from consensus.lineage import genesis_lineage
from consensus.messages import FetchBlock, FetchCertificate, FinalBlock, Proposal, RangeAnswer
from consensus.ordering.core import Ordering
from consensus.ordering.events import Convicted, EpochOver
from consensus.ordering.payload import Verdict
from consensus.ordering.records import SILENT_FOR_EVER, Held, Offence, OwnVote, SilentUntil
from consensus.ordering.view import Slot
from consensus.ordering.views import LOOKAHEAD, RETAINED
from tests.consensus.bare import Bare

FAST = Params(min_block_interval_ms=0)
KINDS: dict[type[Subject], VoteKind] = {
    Notarize: VoteKind.NOTARIZE,
    Nullify: VoteKind.NULLIFY,
    Finalize: VoteKind.FINALIZE,
    Result: VoteKind.RESULT,
}


def vote(net: Bare, signer: int, subject: Subject, epoch: int = 0) -> Vote:
    return sign_vote(net.keys[signer], net.genesis.chain_id, KINDS[type(subject)], epoch, encode(subject), signer)


def certificate(net: Bare, subject: Subject, signers: Iterable[int]) -> Certificate:
    return assemble(net.validators, [vote(net, signer, subject) for signer in signers])


def leaders(net: Bare, first: int = 1) -> list[int]:
    """Of the views from `first` on, one round."""
    return [net.cores[0].tree.leader(view) for view in range(first, first + len(net.cores))]


def kind_of(message: object) -> int | None:
    return message.kind if isinstance(message, Vote | Certificate) else None


def own_votes(net: Bare, index: int) -> list[Vote]:
    return [record.vote for record in net.journals[index].records if isinstance(record, OwnVote)]


def first_proposal(net: Bare) -> Proposal:
    """Of view 1, from a leader that nobody else hears."""
    net.drop = lambda source, target, message: True
    net.run(0)
    proposal = net.cores[leaders(net)[0]].views[1].proposal
    assert proposal is not None
    return proposal


# After a restart


@pytest.mark.parametrize("kind", [VoteKind.NOTARIZE, VoteKind.NULLIFY, VoteKind.FINALIZE])
def test_all_crash_with_their_votes_unheard_and_go_on(kind: VoteKind) -> None:
    net = Bare(4, FAST)
    absent = leaders(net)[0] if kind is VoteKind.NULLIFY else None
    if absent is not None:
        net.crashed.add(absent)
    alive = [index for index in range(4) if index != absent]
    net.drop = lambda source, target, message: kind_of(message) == kind
    net.run(510 if absent is not None else 45)
    assert all(any(vote.kind == kind for vote in own_votes(net, index)) for index in alive)
    net.heap.clear()
    net.crashed |= set(alive)
    net.drop = lambda source, target, message: False
    net.run(1_000)
    for index in alive:
        net.restart(index)
    net.run(4_000)
    net.assert_agreement()
    assert all(net.heights()[index] > 20 for index in alive)


def test_timers_run_again_after_a_replay() -> None:
    net = Bare(4, FAST)
    net.crashed |= {0, 1, 2}
    net.heap.clear()
    net.restart(3)
    deadline = net.cores[3].deadline()
    assert deadline is not None and deadline <= 1_000
    net.run(deadline)
    assert any(vote.kind == VoteKind.NULLIFY for vote in own_votes(net, 3)) or leaders(net)[0] == 3


@pytest.mark.parametrize("restarted", [False, True])
def test_no_finalize_is_made_for_a_view_that_was_given_up(restarted: bool) -> None:
    net = Bare(4, FAST)
    proposal = first_proposal(net)
    subject = decode(Notarize, proposal.vote.subject, 256)
    slow = leaders(net)[1]
    net.run(2_000)
    assert any(vote.kind == VoteKind.NULLIFY for vote in own_votes(net, slow))
    if restarted:
        net.restart(slow)
    net.step(slow, Received(proposal.vote.signer, proposal))
    net.step(slow, Received(0, certificate(net, subject, range(3))))
    assert net.cores[slow].view == 2
    assert not any(vote.kind == VoteKind.FINALIZE for vote in own_votes(net, slow))
    assert not any(isinstance(event, Alarm) for event in net.events[slow] if not _is_own(event))


def _is_own(event: object) -> bool:
    """The certificate above is made with every key, so the validator finds a vote of its own that it never cast."""
    return isinstance(event, Alarm) and event.code == "KEY_IN_USE"


def test_a_journal_of_another_epoch_says_nothing() -> None:
    net = Bare(4, FAST)
    net.run(500)
    records: list[object] = []
    for record in net.journals[0].records:
        match record:
            case OwnVote(known):
                records.append(OwnVote(replace(known, epoch=1)))
            case Held(held):
                records.append(Held(replace(held, epoch=1)))
    assert len(records) > 50
    core = net.build(0)
    out = core.replay(records, net.now(0))
    assert not out.acks and not out.send
    assert core.view == 1 and core.final_view == 0 and not core.views[1].own_votes()


def test_an_offence_that_was_seen_before_a_crash_is_still_told() -> None:
    net = Bare(4, FAST)
    liar = leaders(net)[2]
    net.step(0, Received(liar, vote(net, liar, Finalize(3, bytes(32)))))
    net.step(0, Received(liar, vote(net, liar, Nullify(3))))
    assert any(isinstance(record, Offence) for record in net.journals[0].records)
    out = net.build(0).replay(net.journals[0].records, net.now(0))
    assert [event.first.signer for event in out.events if isinstance(event, Convicted)] == [liar]


# Split certificates


@pytest.mark.parametrize("next_leader_saw", ["the notarization", "the nullification"])
def test_split_certificates_heal(next_leader_saw: str) -> None:
    net = Bare(4, FAST)
    one, two, three, four = leaders(net)
    # f+1 see view 1 notarized, the others see it nullified; of the first group one had nullified before.
    notarized = {one, two} if next_leader_saw == "the notarization" else {one, three}
    nullified = {0, 1, 2, 3} - notarized

    def drop(source: int, target: int, message: object) -> bool:
        if isinstance(message, Certificate | FetchCertificate):
            return True
        match kind_of(message):
            case VoteKind.NOTARIZE:
                return target != one
            case VoteKind.NULLIFY:
                return target in notarized
            case VoteKind.FINALIZE:
                return True
        return isinstance(message, Proposal) and message.block.header.view > 1

    net.drop = drop
    net.run(800)
    held = certificate(net, decode(Notarize, own_votes(net, one)[0].subject, 256), [one, two, three])
    for index in notarized:
        net.release(index, net.cores[index].step(net.now(index), Received(four, held)))
    for index in nullified:
        assert VoteKind.NULLIFY in net.cores[index].views[1].certificates
        assert VoteKind.NOTARIZE not in net.cores[index].views[1].certificates
    for index in notarized:
        assert VoteKind.NOTARIZE in net.cores[index].views[1].certificates
        assert VoteKind.NULLIFY not in net.cores[index].views[1].certificates
    assert {core.view for core in net.cores} == {2}
    net.drop = lambda source, target, message: False
    net.run(3_000)
    net.assert_agreement()
    assert min(net.heights()) > 20


# Numbers that nobody has verified


def hostile_messages(net: Bare, liar: int) -> list[object]:
    """What one validator can sign by itself, with numbers as large as they go, and forgeries for the rest."""
    huge = (net.cores[0].view + LOOKAHEAD + 1, 10_000, 2**32, 2**63, 2**64 - 1)
    subjects: list[Subject] = []
    for number in huge:
        subjects += [Notarize(number, 0, bytes(32)), Notarize(1, number, bytes(32))]
        subjects += [Nullify(number), Finalize(number, bytes(32))]
    messages: list[object] = [vote(net, liar, subject) for subject in subjects]
    messages += [replace(vote(net, liar, subject), signer=(liar + 1) % 4) for subject in subjects]
    messages += [replace(vote(net, liar, subject), signer=2**16 - 1) for subject in subjects]
    messages += [replace(vote(net, liar, subject), epoch=2**64 - 1) for subject in subjects]
    for subject in subjects:
        held = certificate(net, subject, range(3))
        messages.append(replace(held, signatures=tuple(bytes(64) for _ in held.signatures)))
        messages.append(replace(held, epoch=7))
    messages += [FetchCertificate(0, number, kind) for number in (0, *huge) for kind in (0, 1, 2, 3, 255)]
    messages += [FetchBlock(bytes([number]) * 32) for number in range(200)]
    return messages


def test_votes_for_far_views_are_dropped() -> None:
    net = Bare(4, FAST)
    net.run(500)
    core = net.cores[0]
    liar = 1
    for ahead in range(1, 2_000):
        net.step(0, Received(liar, vote(net, liar, Nullify(core.view + ahead))))
    assert max(core.views) <= core.view + LOOKAHEAD
    for number in range(1, core.final_view - RETAINED + 1):
        net.step(0, Received(liar, vote(net, liar, Nullify(number))))
    assert min(core.views) > core.final_view - RETAINED - 1


def test_no_state_is_allocated_under_numbers_that_nobody_verified() -> None:
    net = Bare(4, FAST)
    net.run(500)
    core = net.cores[0]
    liar = (leaders(net, core.view)[1]) if leaders(net, core.view)[1] else 1
    before = set(core.views)
    net.crashed |= {1, 2, 3}
    persisted = len(net.journals[0].records)
    for message in hostile_messages(net, liar):
        net.step(0, Received(liar, message))
    assert set(core.views) == before
    assert core.deadline() is not None
    assert len(net.journals[0].records) <= persisted + 2  # the vote by which it gives the view up, and its entry
    assert core._requests.deadline() is None


def test_an_equivocating_leader_fills_no_queue() -> None:
    net = Bare(4, FAST)
    net.run(500)
    net.crashed |= {0, 1, 2, 3}
    core = net.cores[0]
    liar = next(index for index in leaders(net, core.view) if index != 0)
    number = next(view for view in range(core.view, core.view + 5) if core.tree.leader(view) == liar)
    net.crashed.discard(0)
    block = core.tree.block(core.tree.root.digest)
    assert block is not None
    for salt in range(500):
        header = replace(block.header, view=number, reveal=salt.to_bytes(32, "big"))
        subject = Notarize(number, core.final_view, block_digest(header))
        proposal = Proposal(vote(net, liar, subject), Block(header, block.body), (), None, ())
        net.step(0, Received(liar, proposal))
    assert core.views[number].equivocated
    assert sum(isinstance(record, Offence) for record in net.journals[0].records) == 1
    assert len(core.tree._blocks) < 10 and len(core.timing._seen) < 80


def test_a_false_range_is_blamed_and_leaves_nothing() -> None:
    net = Bare(4, FAST)
    net.run(300)
    late = net.build(0)
    blocks = [block for _, block in net.final[1]][:5]
    forged = certificate(net, Finalize(2**60, block_digest(blocks[-1].header)), range(3))
    forged = replace(forged, signatures=tuple(bytes(64) for _ in forged.signatures))
    row = tuple(FinalBlock(block, forged if block is blocks[-1] else None) for block in blocks)
    out = late.step(net.now(0), Received(3, RangeAnswer(1, row)))
    assert any(isinstance(event, Misbehaviour) and event.peer == 3 for event in out.events)
    assert not out.persist and late.tree.root.height == 0


def test_a_body_spoilt_on_its_way_does_not_spoil_the_view() -> None:
    """A validator that is not the leader passes the leader's vote on, with another body."""
    net = Bare(4, FAST)
    proposal = first_proposal(net)
    voter, liar = leaders(net)[1], leaders(net)[2]
    spoilt = replace(proposal, block=Block(proposal.block.header, Body((bytes(32),), ())))
    net.step(voter, Received(liar, spoilt))
    assert any(isinstance(event, Misbehaviour) and event.peer == liar for event in net.events[voter])
    net.step(voter, Received(proposal.vote.signer, proposal))
    assert [vote.kind for vote in own_votes(net, voter)] == [VoteKind.NOTARIZE]


def test_results_of_rounds_without_end_displace_only_their_own_signers_votes() -> None:
    net = Bare(4, FAST)
    attestation = Attestation(net.genesis.chain_id, net.validators, 0, net.keys[0])
    liar, honest = 1, 2
    genuine = result(0)
    attestation.step(net.now(0), Received(honest, vote(net, honest, genuine)))
    for number in range(1, 1_000):
        attestation.step(net.now(0), Received(liar, vote(net, liar, result(number))))
    assert len(attestation._result_votes) <= ROUNDS_KEPT + 1
    attestation.step(net.now(0), Received(3, vote(net, 3, genuine)))
    out = attestation.step(net.now(0), RoundComputed(genuine))
    assert any(isinstance(event, ResultCertified) for event in out.events)


def result(number: int) -> Result:
    return Result(bytes(32), number, bytes(32), 1, False, "NO", b"", b"", b"")


# Those who may not vote


def test_a_silent_validator_neither_votes_nor_wakes_without_end() -> None:
    net = Bare(4, FAST)
    net.crashed |= {0, 1, 2, 3}
    core = net.build(0)
    core.replay([SilentUntil(0, SILENT_FOR_EVER)], net.now(0))
    ticks = 0
    while net.now_ms < 60_000:
        out = core.step(net.now(0), Tick())
        assert not out.persist
        deadline = core.deadline()
        assert deadline is None or deadline > net.now_ms
        net.now_ms = deadline if deadline is not None else 60_000
        ticks += 1
    assert ticks < 20


# The end of an epoch


def ending(at: int, finalizes_until_ms: int) -> Bare:
    """The block at this height names another set; until that time no finalize vote for it arrives."""
    net = Bare(4, FAST)
    for payload in net.payloads:
        payload.ends_at = at

    def drop(source: int, target: int, message: object) -> bool:
        if net.now_ms >= finalizes_until_ms or kind_of(message) != VoteKind.FINALIZE:
            return False
        return net.cores[source].tree.root.height >= at - 3

    net.drop = drop
    return net


def test_above_the_last_block_only_its_repeat_is_proposed_until_it_is_final() -> None:
    net = ending(at=10, finalizes_until_ms=1_500)
    net.run(1_400)
    assert all(core.view > 30 for core in net.cores)
    (last,) = {
        core.views[number].notarized.block  # type: ignore[union-attr]
        for core in net.cores
        for number in range(20, 30)
    }
    net.run(3_000)
    net.assert_agreement()
    assert net.heights() == [10] * 4
    assert all(core.over and core.tree.root.digest == last for core in net.cores)
    assert all(any(isinstance(event, EpochOver) for event in events) for events in net.events)


def test_a_new_block_above_the_last_of_an_epoch_is_invalid() -> None:
    net = ending(at=4, finalizes_until_ms=100_000)
    net.run(200)
    core = net.cores[0]
    net.drop = lambda source, target, message: isinstance(message, Proposal) or kind_of(message) == VoteKind.FINALIZE
    net.run(250)
    number, liar = core.view, core.tree.leader(core.view)
    parent_view, parent = core._book.tip()
    lineage = core.tree.lineage(parent)
    assert lineage is not None and lineage.next_set and lineage.height == 4
    block = core.tree.block(parent)
    assert block is not None
    header = replace(block.header, height=5, view=number, parent=parent, next_set=b"")
    subject = Notarize(number, parent_view, block_digest(header))
    victim = next(index for index in range(4) if index != liar)
    net.step(victim, Received(liar, Proposal(vote(net, liar, subject), Block(header, EMPTY_BODY), (), None, ())))
    view = net.cores[victim].views[number]
    assert view.slot is Slot.INVALID and view.my_nullify is not None


# Clocks


def test_a_header_ahead_of_the_clock_waits_and_is_never_invalid() -> None:
    net = Bare(4, FAST)
    ahead = leaders(net)[0]
    net.skew_ms[ahead] = 700
    net.drop = lambda source, target, message: not isinstance(message, Proposal)
    net.run(150)
    voter = leaders(net)[1]
    assert net.cores[voter].views[1].slot is Slot.OPEN and not own_votes(net, voter)
    net.run(250)
    assert [vote.kind for vote in own_votes(net, voter)] == [VoteKind.NOTARIZE]


def test_a_verdict_that_waits_is_asked_for_again() -> None:
    net = Bare(4, FAST)
    voter = leaders(net)[1]
    net.payloads[voter].verdict = Verdict.PENDING
    net.drop = lambda source, target, message: not isinstance(message, Proposal)
    net.run(100)
    assert net.cores[voter].views[1].slot is Slot.OPEN
    net.payloads[voter].verdict = Verdict.VALID
    net.nudge()
    assert [vote.kind for vote in own_votes(net, voter)] == [VoteKind.NOTARIZE]


def test_a_leader_with_a_fast_clock_loses_its_turns_and_no_more() -> None:
    net = Bare(4, Params())
    net.skew_ms[2] = 60_000
    net.run(15_000)
    net.assert_agreement()
    assert min(net.heights()) > 30
    times = [block.header.time_ms - net.genesis.time_ms for _, block in net.final[0]]
    assert max(times) <= 15_000 + net.genesis.params.drift_ms


def test_skew_within_the_drift_costs_nothing() -> None:
    net = Bare(4, Params())
    net.skew_ms = [240, -240, 200, -200]
    net.run(3_000)
    net.assert_agreement()
    assert not any(core.timing.reasons for core in net.cores)
    assert min(net.heights()) > 45


def test_a_node_outside_the_set_follows_and_casts_no_vote() -> None:
    net = Bare(4, FAST)
    net.run(100)
    root = genesis_lineage(net.genesis, net.validators)
    watcher = Ordering(net.genesis.chain_id, net.validators, None, None, net.genesis.params, root, net.payloads[0])
    proposals = [view.proposal for core in net.cores for view in core.views.values() if view.proposal is not None]
    votes = [each.vote for index in range(4) for each in net.journals[index].records if isinstance(each, OwnVote)]
    held = [each.certificate for index in range(4) for each in net.journals[index].records if isinstance(each, Held)]
    for message in (*proposals, *votes, *held):
        out = watcher.step(net.now(0), Received(0, message))
        assert not any(isinstance(record, OwnVote) for record in out.persist)
    assert watcher.view > 1
