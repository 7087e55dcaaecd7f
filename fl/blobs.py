"""Blobs as the domain sees them: which kinds there are, who may read them, and what a transaction promises of one.

A transaction may name a blob instead of carrying it. Availability votes for such a transaction only once every byte
of the blob is here, verified and checked, so execution relies on a claim as it relies on inline bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from chain.codec import U8, U64, Digest
from fl.records import Cid, JobRules, MaybeDigest


class BlobKind(IntEnum):
    MODEL = 1
    DATASET = 2
    UPDATE = 3
    OPTIMIZER = 4
    RECORD = 5
    """What was computed in a round, and from what."""


PUBLIC_KINDS = frozenset({BlobKind.MODEL, BlobKind.DATASET, BlobKind.RECORD})
"""Given to anyone; the others only to validators, auditors and the member whose they are."""


@dataclass(frozen=True, slots=True)
class BlobClaim:
    """What a transaction says of the blob that it names: all that decides whether the blob's bytes are good."""

    cid: Cid
    size_bytes: U64
    kind: U8
    account: Digest
    """Whose it is: it counts against this account's quota, and an update's header names it."""
    job: MaybeDigest
    round: U64


@dataclass(frozen=True, slots=True)
class Demand:
    """A claim with the immutable rules by which its bytes are judged; none for a data set, of which any bytes are
    good."""

    claim: BlobClaim
    rules: JobRules | None
