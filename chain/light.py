"""What an outsider checks who trusts no node: from a checkpoint to a state value, a receipt, or an old block.

The checkpoint is a chain id and the validator set of one epoch; the genesis gives the first. Each epoch's last
block names the next set by its digest and is finalised by the set in office: a `HandOver`. The set reached so
has signed what it executed: a block digest and a state root at a height. Everything else is Merkle proofs:

    checkpoint ─ hand-overs ─▶ validator set ─ certificate ─▶ (height, block, state root)
        state root ─ state proof ─▶ a key's value, or that it has none
        value of `receipts` or `events` ─ log proof ─▶ one receipt or event, however old
        block ─ its header's log root ─ log proof ─▶ the digest of any earlier block

A proof may come from anyone. A certificate of an old epoch proves nothing to a checkpoint that has moved on:
sets sign their predecessors' last states anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from chain.block import Header, block_digest
from chain.certificate import (
    Certificate,
    Executed,
    Finalize,
    Subject,
    ValidatorSet,
    VoteKind,
    read_subject,
    signers_of,
    verify_certificate,
    verify_vote,
    votes_of,
)
from chain.codec import U64, CodecError, Digest, Length, encode
from chain.genesis import Genesis
from chain.log import Frontier, LogProof, leaf_digest, verify_log
from chain.tree import StateProof, verify_state

MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 1024 * 1024
MAX_ENTRY_BYTES = 64 * 1024

RECEIPTS_KEY = b"receipts"
EVENTS_KEY = b"events"

StateValue = Annotated[bytes, Length(0, MAX_VALUE_BYTES)]


class Flaw(StrEnum):
    """Where a proof breaks, for programs."""

    OTHER_EPOCH = "OTHER_EPOCH"
    """The certificate is of another epoch than the checkpoint."""
    BELOW_QUORUM = "BELOW_QUORUM"
    WRONG_SIGNATURE = "WRONG_SIGNATURE"
    WRONG_CERTIFICATE = "WRONG_CERTIFICATE"
    """It is not a certificate of what it is handed in for."""
    WRONG_HAND_OVER = "WRONG_HAND_OVER"
    WRONG_PROOF = "WRONG_PROOF"
    """What is certified does not contain what was handed in."""


class Unproven(ValueError):
    """What was handed in does not follow from the checkpoint; the sentence says where it breaks."""

    def __init__(self, flaw: Flaw, sentence: str) -> None:
        super().__init__(sentence)
        self.flaw = flaw


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that is trusted: which chain, and who its validators are."""

    chain_id: Digest
    validators: ValidatorSet


@dataclass(frozen=True, slots=True)
class HandOver:
    header: Header
    """Of the last block of an epoch."""
    finalization: Certificate
    """By the set of that epoch, for the block or for its repeat in a later view."""
    validators: ValidatorSet
    """Of the next epoch."""


@dataclass(frozen=True, slots=True)
class StateBundle:
    height: U64
    certificate: Certificate
    key: Annotated[bytes, Length(0, MAX_KEY_BYTES)]
    value: StateValue | None
    proof: StateProof


@dataclass(frozen=True, slots=True)
class ReceiptBundle:
    """One entry of the log of receipts (or of events), under the log's frontier in the state."""

    receipt: Annotated[bytes, Length(0, MAX_ENTRY_BYTES)]
    index: U64
    log_proof: LogProof
    frontier: Frontier
    state: StateBundle


@dataclass(frozen=True, slots=True)
class BlockBundle:
    """The digest of the block at `height`, under the header of the block that the certificate names."""

    height: U64
    block: Digest
    log_proof: LogProof
    header: Header
    certificate: Certificate


def genesis_checkpoint(genesis: Genesis) -> Checkpoint:
    return Checkpoint(genesis.chain_id, genesis.validator_set)


def follow(checkpoint: Checkpoint, hand_overs: Iterable[HandOver]) -> Checkpoint:
    """The checkpoint of the epoch that the hand-overs lead to, one epoch each; raises Unproven."""
    for hand_over in hand_overs:
        _check_hand_over(checkpoint, hand_over)
        checkpoint = Checkpoint(checkpoint.chain_id, hand_over.validators)
    return checkpoint


def _check_hand_over(checkpoint: Checkpoint, hand_over: HandOver) -> None:
    header, following, epoch = hand_over.header, hand_over.validators, checkpoint.validators.epoch
    if header.chain != checkpoint.chain_id or header.epoch != epoch:
        raise _wrong_hand_over(epoch, f"its header is not of epoch {epoch} of this chain")
    if following.epoch != epoch + 1 or header.next_set != following.digest():
        raise _wrong_hand_over(epoch, "the epoch's last block does not name the validator set handed in")
    try:
        final = _certified(checkpoint, hand_over.finalization, VoteKind.FINALIZE)
    except Unproven as error:
        raise _wrong_hand_over(epoch, str(error)) from None
    if not isinstance(final, Finalize) or final.block != block_digest(header) or final.view < header.view:
        raise _wrong_hand_over(epoch, "the finalization is not of the epoch's last block")


def _wrong_hand_over(epoch: int, why: str) -> Unproven:
    return Unproven(
        Flaw.WRONG_HAND_OVER, f"The hand-over from epoch {epoch} to {epoch + 1} is wrong: {why.rstrip('.')}."
    )


def _certified(checkpoint: Checkpoint, certificate: Certificate, kind: VoteKind) -> Subject:
    if certificate.kind != kind:
        raise Unproven(Flaw.WRONG_CERTIFICATE, f"The certificate is not one of the kind {kind.name.lower()}.")
    if not verify_certificate(checkpoint.chain_id, checkpoint.validators, certificate):
        raise _why_uncertified(checkpoint, certificate)
    try:
        return read_subject(certificate.kind, certificate.subject)
    except CodecError as error:
        raise Unproven(Flaw.WRONG_CERTIFICATE, f"The certificate's subject cannot be read: {error}.") from None


def _why_uncertified(checkpoint: Checkpoint, certificate: Certificate) -> Unproven:
    validators, signers = checkpoint.validators, signers_of(certificate)
    epoch, quorum = validators.epoch, validators.quorum
    if certificate.epoch != epoch:
        return Unproven(Flaw.OTHER_EPOCH, f"The certificate is of epoch {certificate.epoch}, not {epoch}.")
    if len(signers) < quorum:
        return Unproven(
            Flaw.BELOW_QUORUM,
            f"{len(signers)} validators of epoch {epoch} signed the certificate; a quorum is {quorum}.",
        )
    in_form = len(certificate.signers) == (validators.n + 7) // 8 and signers[-1] < validators.n
    if not in_form or len(signers) != len(certificate.signatures):
        return Unproven(Flaw.WRONG_CERTIFICATE, "The certificate's signatures are not those of the signers it lists.")
    votes = votes_of(certificate)
    wrong = [each.signer for each in votes if not verify_vote(checkpoint.chain_id, validators, each)]
    if len(wrong) == len(votes):
        return Unproven(
            Flaw.WRONG_SIGNATURE,
            f"The certificate is of another chain, or forged: no validator of epoch {epoch} made its signatures.",
        )
    names = ", ".join(validators.members[each].name for each in wrong)
    return Unproven(Flaw.WRONG_SIGNATURE, f"The certificate has signatures that {names} did not make.")


def verify_executed(checkpoint: Checkpoint, certificate: Certificate) -> Executed:
    """What the certificate says was executed; raises Unproven."""
    executed = _certified(checkpoint, certificate, VoteKind.EXECUTED)
    if not isinstance(executed, Executed):
        raise Unproven(Flaw.WRONG_CERTIFICATE, "The certificate is not one of execution.")
    return executed


def verify_state_bundle(checkpoint: Checkpoint, bundle: StateBundle) -> Executed:
    """Returns normally iff `bundle.key` has `bundle.value` (None: has none) in the state that is returned."""
    executed = verify_executed(checkpoint, bundle.certificate)
    if executed.height != bundle.height:
        raise Unproven(Flaw.WRONG_CERTIFICATE, f"The certificate is of height {executed.height}, not {bundle.height}.")
    if not verify_state(executed.state_root, bundle.key, bundle.value, bundle.proof):
        raise Unproven(Flaw.WRONG_PROOF, "The state proof does not lead to the certified root.")
    return executed


def verify_receipt_bundle(checkpoint: Checkpoint, bundle: ReceiptBundle) -> Executed:
    """Returns normally iff the receipt is entry `index` of the log of receipts."""
    return _verify_entry(checkpoint, bundle, RECEIPTS_KEY)


def verify_event_bundle(checkpoint: Checkpoint, bundle: ReceiptBundle) -> Executed:
    """Returns normally iff the entry is entry `index` of the log of events."""
    return _verify_entry(checkpoint, bundle, EVENTS_KEY)


def _verify_entry(checkpoint: Checkpoint, bundle: ReceiptBundle, key: bytes) -> Executed:
    frontier = bundle.frontier
    executed = verify_state_bundle(checkpoint, bundle.state)
    if bundle.state.key != key or bundle.state.value != encode(frontier):
        raise Unproven(Flaw.WRONG_PROOF, f"The frontier is not the state's value of '{key.decode()}'.")
    leaf = leaf_digest(bundle.receipt)
    if not verify_log(frontier.root(), frontier.size, bundle.index, leaf, bundle.log_proof):
        raise Unproven(Flaw.WRONG_PROOF, "The log proof does not lead to the certified log.")
    return executed


def verify_block_bundle(checkpoint: Checkpoint, bundle: BlockBundle) -> Executed:
    """Returns normally iff the block at `height` of this chain has this digest."""
    executed, header = verify_executed(checkpoint, bundle.certificate), bundle.header
    if executed.block != block_digest(header) or header.chain != checkpoint.chain_id:
        raise Unproven(Flaw.WRONG_PROOF, "The header is not that of the certified block.")
    leaf = leaf_digest(bundle.block)
    if not verify_log(header.log_root, header.height, bundle.height, leaf, bundle.log_proof):
        raise Unproven(Flaw.WRONG_PROOF, "The log proof does not lead to the certified header.")
    return executed
