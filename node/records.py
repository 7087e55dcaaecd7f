"""What the two logs of a validator hold: the journal of the protocol, and the batches with their bytes."""

from __future__ import annotations

from chain.batch import read_signed_batch
from chain.codec import decode, encode
from consensus.availability import BatchStored, CertificateHeld, SequenceReserved
from consensus.ordering.records import Body, Held, Offence, OwnVote, SilentUntil
from node.segments import CorruptLog

RECORD_LIMIT_BYTES = 2 * 1024 * 1024

JOURNAL_KINDS: dict[int, type] = {
    1: OwnVote,
    2: Held,
    3: Body,
    4: Offence,
    5: SilentUntil,
    6: CertificateHeld,
    7: SequenceReserved,
}
BATCH_KIND = 1

_KIND_OF = {cls: kind for kind, cls in JOURNAL_KINDS.items()}


def journal_entry(record: object) -> tuple[int, bytes]:
    return _KIND_OF[type(record)], encode(record)


def read_journal_entry(kind: int, payload: bytes) -> object:
    cls = JOURNAL_KINDS.get(kind)
    if cls is None:
        raise CorruptLog(f"the journal holds a record of kind {kind}, which this program does not know")
    record: object = decode(cls, payload, RECORD_LIMIT_BYTES)
    return record


_TWO_FIELDS = b"\x92"
_VOTED = {True: b"\xc3", False: b"\xc2"}
"""Before and after a batch in its entry, which is the encoding of the record: the batch's bytes are taken as they are,
both ways."""


def batch_entry(record: BatchStored) -> tuple[bytes, bytes, bytes]:
    """In pieces: a batch is not copied to be written."""
    return _TWO_FIELDS, record.signed.encoded, _VOTED[record.voted]


def read_batch_entry(payload: bytes) -> BatchStored:
    voted = payload[-1:] == _VOTED[True]
    if payload[:1] != _TWO_FIELDS or payload[-1:] != _VOTED[voted]:
        raise CorruptLog("the batches' log holds what is no batch")
    return BatchStored(read_signed_batch(payload[1:-1], RECORD_LIMIT_BYTES), voted)
