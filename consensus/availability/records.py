"""What availability makes durable.

`BatchStored` goes to the batches' own log, which is synced before the journal; the others go to the journal.
A record may be dropped once the height at which its batch expires is final; of `SequenceReserved` the last is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from chain.availability import AvailabilityCertificate
from chain.batch import SignedBatch
from chain.codec import U64


@dataclass(frozen=True, slots=True)
class BatchStored:
    signed: SignedBatch
    voted: bool
    """Whether this validator votes for the batch: what it says after a restart, until it has looked again, is that it
    holds it. False for bytes fetched because a certificate or a final block names them."""


@dataclass(frozen=True, slots=True)
class CertificateHeld:
    certificate: AvailabilityCertificate


@dataclass(frozen=True, slots=True)
class SequenceReserved:
    """No sequence number from `below` on has been used; those under it may have been."""

    below: U64
