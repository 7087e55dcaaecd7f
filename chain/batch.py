"""A batch: transactions that one validator gathered, signed, and offers to the others to store and attest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.certificate import Available, ValidatorSet
from chain.codec import U16, U64, Count, Digest, Length, Signature, encode
from chain.hashing import Domain, digest, signing_bytes
from chain.keys import SigningKey, verify
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


@dataclass(frozen=True, slots=True)
class SignedBatch:
    batch: Batch
    signature: Signature


def batch_digest(batch: Batch) -> bytes:
    return digest(Domain.BATCH, encode(batch))


def sign_batch(key: SigningKey, batch: Batch) -> SignedBatch:
    message = signing_bytes(Domain.BATCH, batch.chain, batch.epoch, batch_digest(batch))
    return SignedBatch(batch, key.sign(message))


def verify_batch(chain_id: bytes, validators: ValidatorSet, signed: SignedBatch) -> bool:
    """Whether its creator, a validator of its epoch, signed it; the transactions are not looked at."""
    batch = signed.batch
    if batch.chain != chain_id or batch.epoch != validators.epoch or batch.creator >= validators.n:
        return False
    message = signing_bytes(Domain.BATCH, chain_id, batch.epoch, batch_digest(batch))
    return verify(validators.members[batch.creator].consensus_key, message, signed.signature)


def reference(signed: SignedBatch) -> Available:
    """The subject of its availability votes; its size is that of the encoded batch without the signature."""
    batch = signed.batch
    encoded = encode(batch)
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
