"""What a precise adversary, or a turn of the epoch at the wrong moment, must not bring about."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from chain.availability import AvailabilityCertificate
from chain.block import Block, Header, Item, ItemKind, Ready, block_digest, body_roots
from chain.certificate import (
    MAX_VALIDATORS,
    Available,
    Notarize,
    Result,
    ValidatorSet,
    Vote,
    VoteKind,
    sign_vote,
)
from chain.codec import encode
from chain.hashing import Domain, signing_bytes
from consensus.attestation import ROUNDS_KEPT, Attestation, RoundComputed
from consensus.availability import Advanced, Availability, Ordered
from consensus.availability.guards import VOTE_AHEAD
from consensus.effects import Now, Received, Tick
from consensus.evidence import evidence_item
from consensus.lineage import Lineage, genesis_lineage, rebase
from consensus.messages import Channel, Proposal, from_frame, to_frame
from consensus.ordering.events import Convicted
from consensus.ordering.payload import Verdict
from consensus.proposals import NextSet
from consensus.replica import Replica
from tests.consensus.bare import genesis_of, keys

NOW = Now(0, 1_800_000_000_000)


class NothingTaken:
    def batch(self, identity: bytes) -> bool:
        return False

    def item(self, identity: bytes) -> bool:
        return False


class Turning:
    """Four validators whose set begins a second epoch, with the same members."""

    def __init__(self) -> None:
        self.genesis = genesis_of(4)
        self.keys = keys(4)
        self.sets = [ValidatorSet(epoch, self.genesis.validators) for epoch in range(3)]
        root = genesis_lineage(self.genesis, self.sets[0])
        self.last = replace(root, height=1, digest=bytes([7]) * 32, next_set=self.sets[1].digest())
        self.root = root

    def replica(self, index: int, epoch: int = 0) -> Replica:
        root = self.root if epoch == 0 else rebase(self.last, self.sets[epoch])
        schedule = {0: NextSet(0, self.sets[1]), 1: NextSet(2**60, self.sets[2])}
        previous = self.sets[epoch - 1] if epoch else None
        key = self.keys[index]
        return Replica(
            self.genesis.chain_id,
            self.genesis.params,
            key,
            self.sets[epoch],
            root,
            schedule,
            nonce=bytes(32),
            previous=previous,
        )

    def vote(self, signer: int, view: int, block: int, epoch: int = 0) -> Vote:
        subject = encode(Notarize(view, 0, bytes([block]) * 32))
        return sign_vote(self.keys[signer], self.genesis.chain_id, VoteKind.NOTARIZE, epoch, subject, signer)

    def convict(self, replica: Replica, epoch: int = 0) -> None:
        replica._events.append(Convicted(self.vote(3, 5, 1, epoch), self.vote(3, 5, 2, epoch)))
        replica._drain()

    def proposal(self, leader: Replica, parent: Lineage) -> Proposal:
        draft = leader.proposals.draft(parent, NothingTaken())
        batch_root, item_root = body_roots(draft.body)
        header = Header(
            version=1,
            chain=self.genesis.chain_id,
            epoch=parent.epoch,
            height=parent.height + 1,
            view=1,
            parent=parent.digest,
            log_root=parent.log.root(),
            batch_root=batch_root,
            item_root=item_root,
            executed_height=draft.executed_height,
            executed_root=draft.executed_root,
            time_ms=parent.time_ms + 1_000,
            rules_version=1,
            reveal=bytes(32),
            commit=bytes(32),
            next_set=b"",
        )
        block = Block(header, draft.body)
        subject = encode(Notarize(1, 0, block_digest(header)))
        vote = sign_vote(leader.key, self.genesis.chain_id, VoteKind.NOTARIZE, parent.epoch, subject, leader.me or 0)
        return Proposal(vote, block, draft.witnesses, draft.executed, draft.available)

    def judged(self, voter: Replica, leader: Replica) -> tuple[int, Verdict]:
        """How many items the leader proposes on the root of its epoch, and what this voter says of it."""
        parent = leader.ordering.tree.root
        proposal = self.proposal(leader, parent)
        voter.proposals.learn(proposal)
        verdict = voter.proposals.judge(proposal.block, parent, NothingTaken())
        return len(proposal.block.body.items), verdict


def ready(world: Turning, epoch: int) -> tuple[Item, bytes]:
    data = encode(Ready(1, bytes(32), world.keys[2].public))
    message = signing_bytes(Domain.READY, world.genesis.chain_id, epoch, data)
    return Item(ItemKind.READY, data), world.keys[2].sign(message)


def test_evidence_of_the_last_epoch_enters_a_block_of_this_one() -> None:
    """Else every leader that saw a validator equivocate at the end of an epoch proposes for ever what nobody can
    judge."""
    world = Turning()
    leader, voter = world.replica(0), world.replica(1)
    world.convict(leader)
    for replica in (leader, voter):
        replica._next_epoch(world.last)
    assert world.judged(voter, leader) == (1, Verdict.VALID)
    assert world.judged(world.replica(2, epoch=1), leader) == (1, Verdict.VALID)


def test_evidence_that_comes_to_light_as_the_epoch_turns_is_judged_too() -> None:
    world = Turning()
    leader, voter = world.replica(0), world.replica(1)
    for replica in (leader, voter):
        replica._next_epoch(world.last)
    world.convict(leader)
    assert world.judged(voter, leader) == (1, Verdict.VALID)


def test_what_no_voter_of_this_epoch_can_verify_is_not_proposed() -> None:
    world = Turning()
    leader, voter = world.replica(0), world.replica(1)
    world.convict(leader)
    leader.proposals.offer(*ready(world, epoch=0))
    for replica in (leader, voter):
        replica._next_epoch(world.last)
        replica._next_epoch(replace(world.last, epoch=1, height=2, next_set=world.sets[2].digest()))
    assert world.judged(voter, leader) == (0, Verdict.VALID)


class Laden:
    """Availability with as many certificates as a block can name batches, each by a quorum of the largest set."""

    def __init__(self, validators: int) -> None:
        quorum = validators - (validators - 1) // 3
        signers = ((1 << quorum) - 1).to_bytes(validators // 8, "little")
        self.certificates = {
            digest: AvailabilityCertificate(0, digest * 3, signers, signers, (bytes(64),) * quorum)
            for digest in (bytes([number]) * 32 for number in range(64))
        }

    def candidates(self, taken: object, height: int) -> tuple[Available, ...]:
        return tuple(Available(batch, 0, 0, 0, 0, 0, 1, 1) for batch in self.certificates)

    def certificates_for(self, digests: tuple[bytes, ...]) -> tuple[AvailabilityCertificate, ...]:
        return tuple(self.certificates[digest] for digest in digests)


def test_a_full_proposal_of_the_largest_set_fits_its_frame() -> None:
    """Else the voters take an honest leader for a liar and drop its link."""
    world = Turning()
    leader = world.replica(0)
    leader.proposals._availability = cast(Availability, Laden(MAX_VALIDATORS))
    for view in range(16):
        leader.proposals._waiting[bytes([view])] = (Item(ItemKind.RESULT, bytes([view]) * 256), bytes(12 * 1024))
    proposal = world.proposal(leader, world.root)
    assert len(proposal.block.body.batches) == 64 and len(proposal.witnesses) == 16
    assert from_frame(Channel.CONSENSUS, to_frame(proposal)) == proposal


def test_an_ordered_batch_is_known_for_as_long_as_its_creator_could_make_it_live() -> None:
    """A creator may be ahead of its voters, and so its batch may be ordered before the height it names as its own."""
    tree = Turning().replica(0).ordering.tree
    horizon = genesis_of(4).params.horizon
    batch = bytes([9]) * 32
    tree.remember_final(1, [batch], ())
    last = 0 + VOTE_AHEAD + horizon
    tree.remember_final(last - 1, [bytes([8]) * 32], ())
    assert tree.is_final_batch(batch)
    core = Turning().replica(0).availability
    core.step(NOW, Ordered(1, (batch,)))
    core.step(NOW, Advanced(last - 1, 0))
    assert core._desk.lots.is_ordered(batch)


def test_what_an_equivocating_leader_says_next_teaches_nothing() -> None:
    """Its witnesses would displace those of honest leaders."""
    world = Turning()
    replica = world.replica(0)
    leader = replica.ordering.tree.leader(1)
    other = world.replica(leader)
    for signer in range(3):
        learned = len(replica.proposals._witnessed)
        other.proposals._waiting.clear()
        pair = [world.vote(signer, 5, 1), world.vote(signer, 5, 2)]
        other.proposals.offer(*evidence_item(*pair))
        replica.ordering.step(NOW, Received(leader, world.proposal(other, world.root)))
        assert len(replica.proposals._witnessed) == (1 if signer == 0 else learned)


def test_own_results_are_repeated_however_many_rounds_are_open() -> None:
    world = Turning()
    core = Attestation(world.genesis.chain_id, world.sets[0], 0, world.keys[0])
    for job in range(2 * ROUNDS_KEPT):
        result = Result(job.to_bytes(32, "big"), 1, bytes(32), 1, True, "", bytes(36), b"", bytes(36))
        core.step(NOW, RoundComputed(result))
    out = core.step(Now(NOW.mono_ms + 10_000, NOW.wall_ms), Tick())
    assert len(out.send) == 2 * ROUNDS_KEPT
