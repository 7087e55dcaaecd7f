from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.batch import (
    MAX_BATCH_BYTES,
    MAX_BATCH_TRANSACTIONS,
    Batch,
    SignedBatch,
    batch_digest,
    read_signed_batch,
    sign_batch,
    verify_batch,
)
from chain.block import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_ITEMS,
    MAX_BLOCK_REFERENCES,
    MAX_ITEM_BYTES,
    Block,
    Body,
    Item,
    block_digest,
    body_roots,
)
from chain.certificate import Available
from chain.codec import CodecError, decode, encode
from chain.genesis import genesis_header
from chain.hashing import Domain, digest
from chain.transaction import sign_transaction
from tests.chain.build import CHAIN, consensus_key, genesis, key, validator_set

BATCH = Batch(CHAIN, 0, 1, 9, 100, 1124, (b"first", b"second"))


def test_a_batch_verifies_under_its_creator_alone() -> None:
    validators, signed = validator_set(4), sign_batch(consensus_key(1), BATCH)
    assert verify_batch(CHAIN, validators, signed)
    assert not verify_batch(bytes(32), validators, signed)
    assert not verify_batch(CHAIN, validator_set(4, epoch=1), signed)
    for changed in (
        replace(BATCH, creator=2),
        replace(BATCH, creator=4),
        replace(BATCH, epoch=1),
        replace(BATCH, sequence=8),
        replace(BATCH, expiry=1125),
        replace(BATCH, transactions=(b"second", b"first")),
    ):
        assert not verify_batch(CHAIN, validators, SignedBatch(changed, signed.signature))


def test_a_reference_says_what_voters_attest() -> None:
    signed = sign_batch(consensus_key(1), BATCH)
    size_bytes = len(encode(BATCH))
    assert signed.reference == Available(batch_digest(BATCH), 0, 1, 9, 100, 1124, size_bytes, 2)


def test_the_bytes_that_a_batch_keeps_are_those_that_encoding_gives() -> None:
    signed = sign_batch(consensus_key(1), BATCH)
    plain = SignedBatch(BATCH, signed.signature)
    assert signed.encoded == plain.encoded == encode(plain)
    read = read_signed_batch(encode(plain), MAX_BATCH_BYTES)
    assert read == plain and read.encoded == encode(plain)
    assert signed.reference == plain.reference == read.reference
    assert read.reference.batch == batch_digest(BATCH)


def test_bytes_that_encoding_would_not_give_are_not_kept() -> None:
    encoded = sign_batch(consensus_key(1), BATCH).encoded
    for spoilt in (encoded[:-1], encoded + b"\x00", b"\xdc\x00\x02" + encoded[1:]):
        with pytest.raises(CodecError):
            read_signed_batch(spoilt, MAX_BATCH_BYTES)
    with pytest.raises(CodecError):
        read_signed_batch(encoded, len(encoded) - 1)


def test_an_empty_batch_and_an_empty_transaction_are_not_written() -> None:
    for transactions in ((), (b"",), (b"x",) * (MAX_BATCH_TRANSACTIONS + 1)):
        with pytest.raises(CodecError):
            encode(replace(BATCH, transactions=transactions))


def test_the_limit_of_transactions_is_above_what_fits_into_a_batch() -> None:
    alice = key("alice")
    shortest = len(encode(sign_transaction(alice, CHAIN, bytes(32), 0, 0, 0, b"")))
    assert MAX_BATCH_TRANSACTIONS * shortest > MAX_BATCH_BYTES


def test_the_roots_cover_each_list_and_its_order() -> None:
    one, two = Item(1, b"a"), Item(1, b"b")
    empty = body_roots(Body((), ()))
    assert empty == (digest(Domain.BODY_BATCHES), digest(Domain.BODY_ITEMS))
    assert body_roots(Body((bytes(32),), ()))[0] != empty[0]
    assert body_roots(Body((), (one, two)))[1] != body_roots(Body((), (two, one)))[1]
    assert body_roots(Body((), (one,)))[1] != body_roots(Body((), (replace(one, kind=2),)))[1]


def test_the_largest_block_fits_its_limit() -> None:
    body = Body((bytes(32),) * MAX_BLOCK_REFERENCES, (Item(1, bytes(MAX_ITEM_BYTES)),) * MAX_BLOCK_ITEMS)
    block = Block(genesis_header(genesis()), body)
    assert decode(Block, encode(block), MAX_BLOCK_BYTES) == block


@given(st.sampled_from(["height", "view", "epoch", "executed_height", "time_ms", "rules_version", "version"]))
def test_the_block_digest_covers_every_number(name: str) -> None:
    header = genesis_header(genesis())
    changed = replace(header, **{name: getattr(header, name) + 1})
    assert block_digest(changed) != block_digest(header)
