from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from chain.block import Header, block_digest
from chain.certificate import Certificate, Executed, Finalize, VoteKind
from chain.codec import decode, encode
from chain.genesis import genesis_header
from chain.light import (
    BlockBundle,
    Checkpoint,
    Flaw,
    HandOver,
    ReceiptBundle,
    StateBundle,
    Unproven,
    follow,
    genesis_checkpoint,
    verify_block_bundle,
    verify_event_bundle,
    verify_executed,
    verify_receipt_bundle,
    verify_state_bundle,
)
from chain.log import EMPTY, append, leaf_digest, prove
from chain.tree import StateTree
from tests.chain.build import certificate, genesis, validator_set

GENESIS = genesis()
START = genesis_checkpoint(GENESIS)
CHAIN = START.chain_id
SETS = [START.validators, validator_set(7, 1, "b"), validator_set(4, 2, "c")]
PREFIXES = ["", "b", "c"]


def signed(epoch: int, kind: VoteKind, subject: object) -> Certificate:
    return certificate(SETS[epoch], kind, encode(subject), CHAIN, PREFIXES[epoch])


def last_block(epoch: int) -> Header:
    return replace(
        genesis_header(GENESIS),
        epoch=epoch,
        height=50 * (epoch + 1),
        view=60,
        next_set=SETS[epoch + 1].digest(),
    )


def hand_over(epoch: int, view: int = 60) -> HandOver:
    header = last_block(epoch)
    final = signed(epoch, VoteKind.FINALIZE, Finalize(view, block_digest(header)))
    return HandOver(header, final, SETS[epoch + 1])


RECEIPTS = [b"receipt %d" % index for index in range(13)]


class History:
    """A log of receipts and of earlier blocks, the state over them, and a header that commits to the blocks."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.frontier = EMPTY
        for receipt in RECEIPTS:
            self.frontier, new = append(self.frontier, leaf_digest(receipt))
            self.nodes.update({(level, index): node for level, index, node in new})
        self.rows = {b"receipts": encode(self.frontier), b"acct/alice": b"7"}
        self.tree = StateTree(self.rows.items(), height=self.frontier.size)
        self.header = replace(genesis_header(GENESIS), height=self.frontier.size, log_root=self.frontier.root())
        self.executed = Executed(self.frontier.size, block_digest(self.header), self.tree.root)

    def node(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]

    def state_bundle(self, key: bytes, epoch: int = 0) -> StateBundle:
        value, proof = self.tree.prove(self.tree.height, key, self.rows.get)
        certified = signed(epoch, VoteKind.EXECUTED, self.executed)
        return StateBundle(self.executed.height, certified, key, value, proof)

    def receipt_bundle(self, index: int) -> ReceiptBundle:
        proof = prove(self.frontier.size, index, self.node)
        return ReceiptBundle(RECEIPTS[index], index, proof, self.frontier, self.state_bundle(b"receipts"))


HISTORY = History()


def refused(check: Callable[..., object], checkpoint: Checkpoint, handed: Any) -> None:
    with pytest.raises(Unproven):
        check(checkpoint, handed)


def test_hand_overs_lead_from_the_genesis_to_the_newest_set() -> None:
    assert follow(START, []) == START
    assert follow(START, [hand_over(0), hand_over(1)]) == Checkpoint(CHAIN, SETS[2])


def test_a_repeat_of_the_last_block_may_carry_the_finalization() -> None:
    assert follow(START, [hand_over(0, view=75)]).validators == SETS[1]


def test_hand_overs_survive_encoding() -> None:
    assert decode(HandOver, encode(hand_over(0)), 1 << 20) == hand_over(0)


def test_a_hand_over_that_the_set_in_office_did_not_finalise_is_refused() -> None:
    good = hand_over(0)
    other = replace(good.header, time_ms=1)
    for bad in (
        replace(good, finalization=signed(1, VoteKind.FINALIZE, Finalize(60, block_digest(good.header)))),
        replace(good, finalization=signed(0, VoteKind.NOTARIZE, Finalize(60, block_digest(good.header)))),
        replace(good, finalization=signed(0, VoteKind.FINALIZE, Finalize(60, block_digest(other)))),
        replace(good, finalization=signed(0, VoteKind.FINALIZE, Finalize(59, block_digest(good.header)))),
        replace(good, finalization=signed(0, VoteKind.FINALIZE, HISTORY.executed)),
        replace(good, validators=SETS[2]),
        replace(good, validators=replace(SETS[1], epoch=2)),
        replace(good, header=replace(good.header, next_set=b"")),
        hand_over(1),
    ):
        refused(follow, START, [bad])
    refused(follow, Checkpoint(bytes(32), SETS[0]), [good])
    refused(follow, START, [good, good])


def test_a_set_named_by_a_finalised_block_of_another_epoch_is_refused() -> None:
    header = replace(last_block(0), epoch=1)
    final = signed(0, VoteKind.FINALIZE, Finalize(60, block_digest(header)))
    refused(follow, START, [HandOver(header, final, SETS[1])])


def test_a_state_value_and_an_absence_are_proven() -> None:
    for key, value in ((b"acct/alice", b"7"), (b"acct/bob", None)):
        bundle = HISTORY.state_bundle(key)
        assert bundle.value == value
        assert verify_state_bundle(START, bundle) == HISTORY.executed
        assert decode(StateBundle, encode(bundle), 1 << 20) == bundle


def test_the_next_epoch_certifies_the_same_state_anew() -> None:
    later = follow(START, [hand_over(0)])
    assert verify_state_bundle(later, HISTORY.state_bundle(b"acct/alice", epoch=1)) == HISTORY.executed
    refused(verify_state_bundle, later, HISTORY.state_bundle(b"acct/alice", epoch=0))


def test_a_changed_state_bundle_is_refused() -> None:
    good = HISTORY.state_bundle(b"acct/alice")
    forged = replace(HISTORY.executed, state_root=bytes(32))
    for bad in (
        replace(good, value=b"8"),
        replace(good, value=None),
        replace(good, key=b"acct/bob"),
        replace(good, height=12),
        replace(good, certificate=signed(0, VoteKind.EXECUTED, forged)),
        replace(good, certificate=signed(1, VoteKind.EXECUTED, HISTORY.executed)),
        replace(good, certificate=signed(0, VoteKind.RESULT, HISTORY.executed)),
        replace(good, certificate=signed(0, VoteKind.EXECUTED, Finalize(1, bytes(32)))),
        replace(good, certificate=replace(good.certificate, signatures=good.certificate.signatures[::-1])),
    ):
        refused(verify_state_bundle, START, bad)
    refused(verify_state_bundle, Checkpoint(bytes(32), SETS[0]), good)
    with pytest.raises(Unproven):
        verify_executed(START, signed(0, VoteKind.FINALIZE, Finalize(1, bytes(32))))


def test_whatever_is_wrong_with_a_certificate_is_named() -> None:
    good = signed(0, VoteKind.EXECUTED, HISTORY.executed)
    one_wrong = (good.signatures[0][::-1], *good.signatures[1:])
    for bad, flaw, said in (
        (signed(1, VoteKind.EXECUTED, HISTORY.executed), Flaw.OTHER_EPOCH, "of epoch 1, not 0"),
        (replace(good, signers=b"\x01", signatures=good.signatures[:1]), Flaw.BELOW_QUORUM, "a quorum is 3"),
        (replace(good, signers=b"\x00"), Flaw.BELOW_QUORUM, "0 validators"),
        (replace(good, signers=good.signers + b"\x00"), Flaw.WRONG_CERTIFICATE, "signers it lists"),
        (replace(good, signatures=good.signatures[:2]), Flaw.WRONG_CERTIFICATE, "signers it lists"),
        (replace(good, signers=b"\x83"), Flaw.WRONG_CERTIFICATE, "signers it lists"),
        (replace(good, signatures=one_wrong), Flaw.WRONG_SIGNATURE, SETS[0].members[0].name),
        (replace(good, subject=encode(replace(HISTORY.executed, height=1))), Flaw.WRONG_SIGNATURE, "forged"),
        (signed(0, VoteKind.FINALIZE, Finalize(1, bytes(32))), Flaw.WRONG_CERTIFICATE, "of the kind executed"),
    ):
        with pytest.raises(Unproven, match=said) as caught:
            verify_executed(START, bad)
        assert caught.value.flaw is flaw


@pytest.mark.parametrize("index", range(len(RECEIPTS)))
def test_every_earlier_receipt_is_proven_by_one_certificate(index: int) -> None:
    bundle = HISTORY.receipt_bundle(index)
    assert verify_receipt_bundle(START, bundle) == HISTORY.executed
    assert decode(ReceiptBundle, encode(bundle), 1 << 20) == bundle


def test_a_changed_receipt_bundle_is_refused() -> None:
    good = HISTORY.receipt_bundle(4)
    for bad in (
        replace(good, receipt=b"receipt 5"),
        replace(good, index=5),
        replace(good, frontier=EMPTY),
        replace(good, frontier=replace(good.frontier, size=14)),
        replace(good, state=HISTORY.state_bundle(b"acct/alice")),
        replace(good, state=replace(good.state, value=None)),
    ):
        refused(verify_receipt_bundle, START, bad)
    refused(verify_event_bundle, START, good)


def test_an_earlier_block_is_proven_by_the_header_of_a_certified_one() -> None:
    blocks = [sha256(b"block %d" % height).digest() for height in range(5)]
    frontier, nodes = EMPTY, {}
    for block in blocks:
        frontier, new = append(frontier, leaf_digest(block))
        nodes.update({(level, index): node for level, index, node in new})
    header = replace(genesis_header(GENESIS), height=5, log_root=frontier.root())
    executed = Executed(5, block_digest(header), bytes(32))
    certified = signed(0, VoteKind.EXECUTED, executed)
    good = BlockBundle(3, blocks[3], prove(5, 3, lambda level, index: nodes[level, index]), header, certified)
    assert verify_block_bundle(START, good) == executed
    for bad in (
        replace(good, height=2),
        replace(good, block=blocks[2]),
        replace(good, header=replace(header, height=6)),
        replace(good, certificate=signed(0, VoteKind.EXECUTED, HISTORY.executed)),
    ):
        refused(verify_block_bundle, START, bad)
