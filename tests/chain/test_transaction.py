from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import CodecError, decode, encode
from chain.hashing import Domain, digest
from chain.keys import ED25519
from chain.transaction import (
    MAX_TRANSACTION_BYTES,
    Transaction,
    account_id,
    id_of,
    sign_transaction,
    tx_id,
    verify_transaction,
)
from tests.chain.build import CHAIN, key

ALICE = key("alice")


def signed(body: bytes = b"body") -> Transaction:
    return sign_transaction(ALICE, CHAIN, account_id(ALICE.public), 5, 1_700_000_000_000, 3, body)


def test_a_signed_transaction_verifies_and_survives_encoding() -> None:
    tx = signed()
    assert verify_transaction(tx, tx_id(tx))
    assert decode(Transaction, encode(tx), MAX_TRANSACTION_BYTES) == tx


def test_a_change_of_any_field_voids_the_signature() -> None:
    tx = signed()
    for changed in (
        replace(tx, chain=bytes(32)),
        replace(tx, sender=bytes(32)),
        replace(tx, key=key("bob").public),
        replace(tx, nonce=6),
        replace(tx, valid_until_ms=1),
        replace(tx, kind=4),
        replace(tx, body=b"bodz"),
        replace(tx, signature=bytes(64)),
    ):
        assert not verify_transaction(changed, tx_id(changed))


def test_the_identity_key_signs_nothing() -> None:
    forged = replace(
        signed(), key=ED25519 + (1).to_bytes(32, "little"), signature=(1).to_bytes(32, "little") + bytes(32)
    )
    assert not verify_transaction(forged, tx_id(forged))


def test_the_id_is_the_hash_of_the_encoding_without_the_signature() -> None:
    tx = signed()
    without = b"\x97" + encode(tx)[1:-66]
    assert tx_id(tx) == digest(Domain.TX, without)
    assert tx_id(replace(tx, signature=bytes(64))) == tx_id(tx)
    assert id_of(encode(tx)) == tx_id(tx)


def test_a_transaction_over_the_limit_is_not_decoded() -> None:
    tx = signed(bytes(MAX_TRANSACTION_BYTES))
    with pytest.raises(CodecError, match="at most"):
        decode(Transaction, encode(tx), MAX_TRANSACTION_BYTES)
