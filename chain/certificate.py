"""Validator sets, the votes that a validator signs, and what a quorum of equal ones makes.

A vote is a validator's signature on a *subject*: the encoding of one of the small records below. A
certificate is a subject with the signatures of a quorum. Two valid certificates for one fact may differ in
their bytes, so nothing that is executed may read them. Of batches, for which there are two kinds of votes,
`chain.availability` has the certificate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Annotated

from chain.codec import U8, U16, U32, U64, Count, Digest, Length, PublicKey, Signature, decode, encode
from chain.hashing import Domain, digest, signing_bytes
from chain.keys import SigningKey, verify

MAX_VALIDATORS = 256
"""Votes go all to all, so a set far larger than this could not agree in useful time anyway."""
MAX_SUBJECT_BYTES = 256
_SUBJECTS_KEPT = 1024
"""Decoded, of the newest: each comes in as many votes as there are validators."""


class VoteKind(IntEnum):
    NOTARIZE = 1
    NULLIFY = 2
    FINALIZE = 3
    AVAILABLE = 4
    EXECUTED = 5
    RESULT = 6
    HELD = 7


@dataclass(frozen=True, slots=True)
class Validator:
    name: Annotated[str, Length(1, 64)]
    consensus_key: PublicKey
    link_key: PublicKey
    operator_key: PublicKey
    beacon_commit: Digest
    address: Annotated[str, Length(1, 262)]
    """host:port of its consensus link; the longest DNS name, a colon and a port fit."""
    rpc: Annotated[str, Length(0, 512)]


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    epoch: U64
    members: Annotated[tuple[Validator, ...], Count(1, MAX_VALIDATORS)]

    @property
    def n(self) -> int:
        return len(self.members)

    @property
    def f(self) -> int:
        return (len(self.members) - 1) // 3

    @property
    def quorum(self) -> int:
        return self.n - self.f

    @property
    def lookers(self) -> int:
        """So many of a batch's voters verify its signatures: one of them is honest, and nobody does so alone."""
        return min(self.n, max(self.f + 1, 2))

    def digest(self) -> bytes:
        return digest(Domain.VALIDATORS, encode(self))

    def index_of(self, consensus_key: bytes) -> int | None:
        for index, member in enumerate(self.members):
            if member.consensus_key == consensus_key:
                return index
        return None


@dataclass(frozen=True, slots=True)
class Notarize:
    view: U64
    parent_view: U64
    block: Digest


@dataclass(frozen=True, slots=True)
class Nullify:
    view: U64


@dataclass(frozen=True, slots=True)
class Finalize:
    view: U64
    block: Digest


@dataclass(frozen=True, slots=True)
class Available:
    """What a batch's voters attest, and all that others need to know of it without its bytes."""

    batch: Digest
    epoch: U64
    creator: U16
    sequence: U64
    created: U64
    expiry: U64
    size_bytes: U32
    transactions: U32


@dataclass(frozen=True, slots=True)
class Executed:
    height: U64
    block: Digest
    state_root: Digest


@dataclass(frozen=True, slots=True)
class Result:
    """A closed round's aggregation: the three CIDs when `ok`, else a code and empty CIDs."""

    job: Digest
    round: U64
    log_root: Digest
    kernel_version: U16
    ok: bool
    code: Annotated[str, Length(0, 32)]
    model: Annotated[bytes, Length(0, 36)]
    optimizer: Annotated[bytes, Length(0, 36)]
    record: Annotated[bytes, Length(0, 36)]


Subject = Notarize | Nullify | Finalize | Available | Executed | Result

SUBJECTS: dict[VoteKind, type[Subject]] = {
    VoteKind.NOTARIZE: Notarize,
    VoteKind.NULLIFY: Nullify,
    VoteKind.FINALIZE: Finalize,
    VoteKind.AVAILABLE: Available,
    VoteKind.EXECUTED: Executed,
    VoteKind.RESULT: Result,
    VoteKind.HELD: Available,
}

_DOMAINS: dict[int, Domain] = {
    VoteKind.NOTARIZE: Domain.NOTARIZE,
    VoteKind.NULLIFY: Domain.NULLIFY,
    VoteKind.FINALIZE: Domain.FINALIZE,
    VoteKind.AVAILABLE: Domain.AVAILABLE,
    VoteKind.EXECUTED: Domain.EXECUTED,
    VoteKind.RESULT: Domain.RESULT,
    VoteKind.HELD: Domain.HELD,
}

_QUORUM_KINDS = frozenset(VoteKind) - {VoteKind.AVAILABLE, VoteKind.HELD}
"""Of a certificate here."""


@dataclass(frozen=True, slots=True)
class Vote:
    kind: U8
    epoch: U64
    subject: Annotated[bytes, Length(0, MAX_SUBJECT_BYTES)]
    signer: U16
    signature: Signature


@dataclass(frozen=True, slots=True)
class Certificate:
    kind: U8
    epoch: U64
    subject: Annotated[bytes, Length(0, MAX_SUBJECT_BYTES)]
    signers: Annotated[bytes, Length(1, MAX_VALIDATORS // 8)]
    """One bit a validator, the lowest bit of a byte first, in exactly ⌈n/8⌉ bytes."""
    signatures: Annotated[tuple[Signature, ...], Count(1, MAX_VALIDATORS)]
    """By rising index of the signer."""


def read_subject(kind: int, subject: bytes) -> Subject:
    """The record that was signed; raises CodecError for bytes that are not one, ValueError for an unknown
    kind."""
    return _read_subject(VoteKind(kind), subject)


@lru_cache(maxsize=_SUBJECTS_KEPT)
def _read_subject(kind: VoteKind, subject: bytes) -> Subject:
    return decode(SUBJECTS[kind], subject, MAX_SUBJECT_BYTES)


def sign_vote(key: SigningKey, chain_id: bytes, kind: int, epoch: int, subject: bytes, signer: int) -> Vote:
    signature = key.sign(signing_bytes(_DOMAINS[kind], chain_id, epoch, subject))
    return Vote(int(kind), epoch, subject, signer, signature)


def verify_vote(chain_id: bytes, validators: ValidatorSet, vote: Vote) -> bool:
    domain = _DOMAINS.get(vote.kind)
    if domain is None or vote.epoch != validators.epoch or not 0 <= vote.signer < validators.n:
        return False
    message = signing_bytes(domain, chain_id, vote.epoch, vote.subject)
    return verify(validators.members[vote.signer].consensus_key, message, vote.signature)


def seats_in(bits: bytes) -> tuple[int, ...]:
    """The lowest bit of a byte first."""
    number = int.from_bytes(bits, "little")
    return tuple(index for index in range(8 * len(bits)) if number >> index & 1)


def signers_of(certificate: Certificate) -> tuple[int, ...]:
    return seats_in(certificate.signers)


def verify_certificate(chain_id: bytes, validators: ValidatorSet, certificate: Certificate) -> bool:
    """Whether a quorum of this set, in this epoch, signed the subject, and the certificate has its one form."""
    if certificate.kind not in _QUORUM_KINDS or certificate.epoch != validators.epoch:
        return False
    if len(certificate.signers) != (validators.n + 7) // 8:
        return False
    signers = signers_of(certificate)
    if not validators.quorum <= len(signers) == len(certificate.signatures) or signers[-1] >= validators.n:
        return False
    message = signing_bytes(_DOMAINS[certificate.kind], chain_id, certificate.epoch, certificate.subject)
    return all(
        verify(validators.members[signer].consensus_key, message, signature)
        for signer, signature in zip(signers, certificate.signatures, strict=True)
    )


def assemble(validators: ValidatorSet, votes: Iterable[Vote]) -> Certificate:
    """A certificate from the verified votes of at least a quorum, of which the lowest signers are taken."""
    by_signer = {vote.signer: vote for vote in votes}
    chosen = [by_signer[signer] for signer in sorted(by_signer)[: validators.quorum]]
    if len(chosen) < validators.quorum:
        raise ValueError(f"{len(chosen)} votes do not make a quorum of {validators.quorum}")
    first = chosen[0]
    if any((vote.kind, vote.epoch, vote.subject) != (first.kind, first.epoch, first.subject) for vote in chosen):
        raise ValueError("votes for different subjects make no certificate")
    if first.epoch != validators.epoch or chosen[-1].signer >= validators.n:
        raise ValueError("votes of another validator set make no certificate")
    bits = sum(1 << vote.signer for vote in chosen)
    return Certificate(
        kind=first.kind,
        epoch=first.epoch,
        subject=first.subject,
        signers=bits.to_bytes((validators.n + 7) // 8, "little"),
        signatures=tuple(vote.signature for vote in chosen),
    )


def votes_of(certificate: Certificate) -> tuple[Vote, ...]:
    """The votes again, for evidence and for certificates assembled from the votes of others."""
    return tuple(
        Vote(certificate.kind, certificate.epoch, certificate.subject, signer, signature)
        for signer, signature in zip(signers_of(certificate), certificate.signatures, strict=True)
    )
