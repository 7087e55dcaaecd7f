"""The certificate of a batch: a quorum has it on disk, and enough of them have verified every signature in it.

There are two votes for a batch. Both say that its voter has read every transaction, found nothing wrong with its bytes,
has the blobs that it names, and has stored it durably. One of kind AVAILABLE says besides that each transaction's
signature was verified, one of kind HELD does not. Verifying is the dearest thing that is done with an update; that the
batch is good takes one honest validator who looked, so f + 1 of them, and that it stays takes a quorum who hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from chain.certificate import (
    MAX_SUBJECT_BYTES,
    MAX_VALIDATORS,
    ValidatorSet,
    Vote,
    VoteKind,
    seats_in,
    verify_vote,
)
from chain.codec import U64, Count, Length, Signature

AVAILABILITY_KINDS = frozenset({VoteKind.AVAILABLE, VoteKind.HELD})


@dataclass(frozen=True, slots=True)
class AvailabilityCertificate:
    epoch: U64
    """Of its voters; the batch may be of the epoch before."""
    subject: Annotated[bytes, Length(0, MAX_SUBJECT_BYTES)]
    signers: Annotated[bytes, Length(1, MAX_VALIDATORS // 8)]
    """One bit a validator, as in a `Certificate`."""
    looked: Annotated[bytes, Length(1, MAX_VALIDATORS // 8)]
    """Those of the signers whose votes are of kind AVAILABLE; the others' are of kind HELD."""
    signatures: Annotated[tuple[Signature, ...], Count(1, MAX_VALIDATORS)]
    """By rising index of the signer."""


def is_enough(voters: int, lookers: int, validators: ValidatorSet) -> bool:
    """Whether so many votes make a certificate, of which so many are by validators who looked."""
    return voters >= validators.quorum and lookers >= validators.lookers


def votes_in(certificate: AvailabilityCertificate) -> tuple[Vote, ...]:
    looked = frozenset(seats_in(certificate.looked))
    return tuple(
        Vote(
            VoteKind.AVAILABLE if signer in looked else VoteKind.HELD,
            certificate.epoch,
            certificate.subject,
            signer,
            signature,
        )
        for signer, signature in zip(seats_in(certificate.signers), certificate.signatures, strict=True)
    )


def verify_availability(
    chain_id: bytes, validators: ValidatorSet, certificate: AvailabilityCertificate, verified: Iterable[Vote] = ()
) -> bool:
    """Whether enough of this set, in this epoch, voted for the subject, and the certificate has its one form. Votes
    that were `verified` before, or made here, are not verified again."""
    width = (validators.n + 7) // 8
    if certificate.epoch != validators.epoch or len(certificate.signers) != width or len(certificate.looked) != width:
        return False
    signers, lookers = seats_in(certificate.signers), seats_in(certificate.looked)
    if not is_enough(len(signers), len(lookers), validators) or not set(lookers) <= set(signers):
        return False
    if len(signers) != len(certificate.signatures) or signers[-1] >= validators.n:
        return False
    known = frozenset(verified)
    return all(vote in known or verify_vote(chain_id, validators, vote) for vote in votes_in(certificate))


def assemble_availability(validators: ValidatorSet, votes: Iterable[Vote]) -> AvailabilityCertificate:
    """From verified votes, one a signer: as many as a quorum needs, first of those who looked, the lowest signers of
    each kind."""
    by_signer = {vote.signer: vote for vote in votes}
    ranked = sorted(by_signer.values(), key=lambda vote: (vote.kind != VoteKind.AVAILABLE, vote.signer))
    chosen = sorted(ranked[: validators.quorum], key=lambda vote: vote.signer)
    looked = [vote.signer for vote in chosen if vote.kind == VoteKind.AVAILABLE]
    if not is_enough(len(chosen), len(looked), validators):
        raise ValueError(f"{len(chosen)} votes, {len(looked)} of them of validators who looked, make no certificate")
    first = chosen[0]
    if any((vote.epoch, vote.subject) != (first.epoch, first.subject) for vote in chosen):
        raise ValueError("votes for different subjects make no certificate")
    if any(vote.kind not in AVAILABILITY_KINDS for vote in chosen):
        raise ValueError("votes of another kind make no certificate of a batch")
    if first.epoch != validators.epoch or chosen[-1].signer >= validators.n:
        raise ValueError("votes of another validator set make no certificate")
    width = (validators.n + 7) // 8
    return AvailabilityCertificate(
        epoch=first.epoch,
        subject=first.subject,
        signers=_bits(width, (vote.signer for vote in chosen)),
        looked=_bits(width, looked),
        signatures=tuple(vote.signature for vote in chosen),
    )


def _bits(width: int, seats: Iterable[int]) -> bytes:
    return sum(1 << seat for seat in seats).to_bytes(width, "little")
