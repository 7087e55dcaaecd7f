"""A batch: transactions that one validator gathered, signed, and offers to the others to store and attest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from chain.certificate import Available, ValidatorSet
from chain.codec import U16, U64, Count, Digest, Length, Signature, decode, encode
from chain.hashing import Domain, digest, signing_bytes
from chain.keys import SIGNATURE_BYTES, SigningKey, verify
from chain.transaction import MAX_TRANSACTION_BYTES

MAX_BATCH_BYTES = 1024 * 1024
"""Of an encoded SignedBatch; the on-chain parameter may be lower, never higher."""
MAX_BATCH_TRANSACTIONS = 8192
"""More than fit: the shortest transaction takes about 180 bytes."""


@dataclass(frozen=True, slots=True)
class Batch:
    chain: Digest
    epoch: U64
    creator: U16
    sequence: U64
    created: U64
    """Height; the batch may be ordered from here to `expiry`."""
    expiry: U64
    transactions: Annotated[
        tuple[Annotated[bytes, Length(1, MAX_TRANSACTION_BYTES)], ...], Count(1, MAX_BATCH_TRANSACTIONS)
    ]


@dataclass(frozen=True)
class SignedBatch:
    """Keeps its bytes and its reference from the first time that either is asked for: a megabyte is neither encoded nor
    hashed again to be sent, stored or named."""

    batch: Batch
    signature: Signature

    @cached_property
    def encoded(self) -> bytes:
        return encode(self)

    @cached_property
    def reference(self) -> Available:
        """The subject of its availability votes; its size is that of the encoded batch without the signature."""
        return _reference(self.batch, memoryview(self.encoded)[len(_HEAD) : -_SIGNED_BYTES])


_HEAD = b"\x92"
"""Of an array of two fields, before the encoded batch."""
_SIGNATURE_HEAD = b"\xc4\x40"
_SIGNED_BYTES = len(_SIGNATURE_HEAD) + SIGNATURE_BYTES


def _reference(batch: Batch, encoded: bytes | memoryview) -> Available:
    return Available(
        batch=digest(Domain.BATCH, encoded),
        epoch=batch.epoch,
        creator=batch.creator,
        sequence=batch.sequence,
        created=batch.created,
        expiry=batch.expiry,
        size_bytes=len(encoded),
        transactions=len(batch.transactions),
    )


def read_signed_batch(data: bytes, limit: int) -> SignedBatch:
    """As `decode`, and it keeps these bytes. Raises CodecError."""
    signed = decode(SignedBatch, data, limit)
    vars(signed)["encoded"] = data
    return signed


def batch_digest(batch: Batch) -> bytes:
    return digest(Domain.BATCH, encode(batch))


def sign_batch(key: SigningKey, batch: Batch) -> SignedBatch:
    encoded = encode(batch)
    reference = _reference(batch, encoded)
    signature = key.sign(signing_bytes(Domain.BATCH, batch.chain, batch.epoch, reference.batch))
    signed = SignedBatch(batch, signature)
    vars(signed).update(encoded=b"".join((_HEAD, encoded, _SIGNATURE_HEAD, signature)), reference=reference)
    return signed


def verify_batch(chain_id: bytes, validators: ValidatorSet, signed: SignedBatch) -> bool:
    """Whether its creator, a validator of its epoch, signed it; the transactions are not looked at."""
    batch = signed.batch
    if batch.chain != chain_id or batch.epoch != validators.epoch or batch.creator >= validators.n:
        return False
    message = signing_bytes(Domain.BATCH, chain_id, batch.epoch, signed.reference.batch)
    return verify(validators.members[batch.creator].consensus_key, message, signed.signature)
