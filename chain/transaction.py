"""A signed transaction. What its kind and body mean is not known here."""

from __future__ import annotations

from dataclasses import fields, replace
from hashlib import sha256
from typing import Annotated

from chain.codec import U16, U64, Digest, Length, PublicKey, Signature, encode
from chain.forms import array_head
from chain.frozen import record
from chain.hashing import Domain, digest, signing_bytes
from chain.keys import SIGNATURE_BYTES, SigningKey, verify

MAX_TRANSACTION_BYTES = 40 * 1024
"""What any node decodes at all; the on-chain parameter may be lower, never higher."""


@record
class Transaction:
    chain: Digest
    sender: Digest
    """The account: the hash of its first public key, kept when the key is rotated."""
    key: PublicKey
    nonce: U64
    valid_until_ms: U64
    """Block time after which it may no longer be executed."""
    kind: U16
    body: Annotated[bytes, Length(0, MAX_TRANSACTION_BYTES)]
    signature: Signature


_ID_HEAD = Domain.TX.prefix + array_head(len(fields(Transaction)) - 1)
"""What is hashed before the encoded fields of a transaction, of which the last one, the signature, is left out."""

_SIGNATURE_FIELD_BYTES = 2 + SIGNATURE_BYTES


def account_id(public: bytes) -> bytes:
    return digest(Domain.ACCOUNT, public)


def tx_id(tx: Transaction) -> bytes:
    """Leaves the signature out: a signer can make many signatures for one transaction."""
    return id_of(encode(tx))


def id_of(data: bytes) -> bytes:
    """The id of the transaction of which these bytes are the encoding."""
    return sha256(_ID_HEAD + data[1:-_SIGNATURE_FIELD_BYTES]).digest()


def _message(chain: bytes, identifier: bytes) -> bytes:
    # Accounts outlive validator sets, so transactions belong to no epoch.
    return signing_bytes(Domain.TX, chain, 0, identifier)


def sign_transaction(
    key: SigningKey, chain: bytes, sender: bytes, nonce: int, valid_until_ms: int, kind: int, body: bytes
) -> Transaction:
    unsigned = Transaction(chain, sender, key.public, nonce, valid_until_ms, int(kind), body, bytes(SIGNATURE_BYTES))
    return replace(unsigned, signature=key.sign(_message(chain, tx_id(unsigned))))


def verify_transaction(tx: Transaction, identifier: bytes) -> bool:
    """Whether `tx.key` signed it, of which this is the id; whether that key speaks for `tx.sender` is for the state
    to say."""
    return verify(tx.key, _message(tx.chain, identifier), tx.signature)
