"""What availability makes durable.

`BatchStored` goes to the batches' own log, which is synced before the journal; the others go to the journal.
A record may be dropped once the height at which its batch expires is final; of `SequenceReserved` the last is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from chain.batch import SignedBatch
from chain.certificate import Certificate
from chain.codec import U64


@dataclass(frozen=True, slots=True)
class BatchStored:
    signed: SignedBatch
    voted: bool
    """Whether the application accepted every transaction and this validator votes for the batch. False for bytes
    fetched because a certificate or a final block names them: holding them is no licence to reference them."""


@dataclass(frozen=True, slots=True)
class CertificateHeld:
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class SequenceReserved:
    """No sequence number from `below` on has been used; those under it may have been."""

    below: U64
