from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.certificate import (
    MAX_SUBJECT_BYTES,
    MAX_VALIDATORS,
    Certificate,
    Executed,
    Finalize,
    Notarize,
    Nullify,
    Result,
    Vote,
    VoteKind,
    assemble,
    read_subject,
    sign_vote,
    signers_of,
    verify_certificate,
    verify_vote,
    votes_of,
)
from chain.codec import CodecError, decode, encode
from chain.keys import ED25519
from tests.chain.build import CHAIN, certificate, consensus_key, validator_set

SUBJECT = encode(Finalize(7, bytes(32)))


def vote(signer: int, kind: int = VoteKind.FINALIZE, epoch: int = 0, subject: bytes = SUBJECT) -> Vote:
    return sign_vote(consensus_key(signer), CHAIN, kind, epoch, subject, signer)


@pytest.mark.parametrize(("n", "f", "q"), [(1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 1, 3), (7, 2, 5), (10, 3, 7)])
def test_a_quorum_is_all_but_the_tolerated_third(n: int, f: int, q: int) -> None:
    validators = validator_set(n)
    assert (validators.n, validators.f, validators.quorum) == (n, f, q)


def test_a_vote_verifies_for_its_own_chain_kind_epoch_subject_and_signer_only() -> None:
    validators, good = validator_set(4), vote(2)
    assert verify_vote(CHAIN, validators, good)
    assert not verify_vote(bytes(32), validators, good)
    for changed in (
        replace(good, kind=VoteKind.EXECUTED),
        replace(good, kind=0),
        replace(good, kind=VoteKind.HELD),
        replace(good, kind=8),
        replace(good, epoch=1),
        replace(good, subject=SUBJECT + b"\x00"),
        replace(good, signer=1),
        replace(good, signer=4),
        replace(good, signature=bytes(64)),
    ):
        assert not verify_vote(CHAIN, validators, changed)
        assert not verify_vote(CHAIN, validator_set(4, epoch=1), changed)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9, 16, 17])
def test_the_votes_of_a_quorum_make_a_certificate_that_gives_them_back(n: int) -> None:
    validators = validator_set(n)
    votes = [vote(signer) for signer in reversed(range(n))]
    made = assemble(validators, votes)
    assert verify_certificate(CHAIN, validators, made)
    assert len(made.signers) == -(-n // 8)
    assert signers_of(made) == tuple(range(validators.quorum))
    assert votes_of(made) == tuple(vote(signer) for signer in range(validators.quorum))
    assert decode(Certificate, encode(made), 1 << 20) == made


def test_the_bitmap_has_the_lowest_index_in_the_lowest_bit() -> None:
    made = assemble(validator_set(10), [vote(signer) for signer in (0, 1, 3, 5, 7, 8, 9)])
    assert made.signers == bytes([0b10101011, 0b00000011])


def test_one_vote_less_than_a_quorum_makes_nothing() -> None:
    with pytest.raises(ValueError, match="quorum"):
        assemble(validator_set(4), [vote(0), vote(1), vote(1), vote(0)])


@pytest.mark.parametrize("stranger", [vote(2, kind=VoteKind.EXECUTED), vote(2, epoch=1), vote(2, subject=b"other")])
def test_votes_for_different_subjects_make_nothing(stranger: Vote) -> None:
    with pytest.raises(ValueError, match="different subjects"):
        assemble(validator_set(4), [vote(0), vote(1), stranger])


def test_votes_of_another_epoch_or_of_nobody_make_nothing() -> None:
    with pytest.raises(ValueError, match="another validator set"):
        assemble(validator_set(4, epoch=1), [vote(0), vote(1), vote(2)])
    with pytest.raises(ValueError, match="another validator set"):
        assemble(validator_set(4), [vote(0), vote(1), vote(4)])


def test_more_than_a_quorum_is_accepted() -> None:
    votes = [vote(signer) for signer in range(4)]
    made = Certificate(3, 0, SUBJECT, b"\x0f", tuple(each.signature for each in votes))
    assert verify_certificate(CHAIN, validator_set(4), made)


def test_a_certificate_has_exactly_one_form() -> None:
    validators = validator_set(4)
    good = certificate(validators, VoteKind.FINALIZE, SUBJECT)
    first, second, third = good.signatures
    fourth = vote(3).signature
    for changed in (
        replace(good, signers=b"\x03", signatures=(first, second)),
        replace(good, signers=b"\x07\x00"),
        replace(good, signers=b""),
        replace(good, signers=b"\x00", signatures=()),
        replace(good, signers=b"\x17", signatures=(first, second, third, first)),
        replace(good, signers=b"\x87"),
        replace(good, signers=b"\x0f"),
        replace(good, signatures=(first, second, third, fourth)),
        replace(good, signatures=(first, third, second)),
        replace(good, signatures=(first, first, first)),
        replace(good, signers=b"\x0b"),
        replace(good, kind=VoteKind.NOTARIZE),
        replace(good, kind=9),
        replace(good, epoch=1),
        replace(good, subject=b""),
    ):
        assert not verify_certificate(CHAIN, validators, changed)
    assert not verify_certificate(bytes(32), validators, good)
    assert not verify_certificate(CHAIN, validator_set(4, epoch=1), good)
    assert not verify_certificate(CHAIN, validator_set(5), good)
    assert not verify_certificate(CHAIN, validator_set(4, prefix="b"), good)


@given(st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_anywhere_makes_a_certificate_void(at: int, bit: int) -> None:
    validators = validator_set(4)
    data = bytearray(encode(certificate(validators, VoteKind.FINALIZE, SUBJECT)))
    data[at % len(data)] ^= 1 << bit
    try:
        damaged = decode(Certificate, bytes(data), 1 << 20)
    except CodecError:
        return
    assert not verify_certificate(CHAIN, validators, damaged)


def test_a_validator_with_a_weak_key_cannot_be_voted_for_by_anyone() -> None:
    members = validator_set(4).members
    weak = replace(members[0], consensus_key=ED25519 + (1).to_bytes(32, "little"))
    validators = replace(validator_set(4), members=(weak, *members[1:]))
    forged = Vote(VoteKind.FINALIZE, 0, SUBJECT, 0, (1).to_bytes(32, "little") + bytes(32))
    assert not verify_vote(CHAIN, validators, forged)


def test_the_digest_of_a_set_covers_epoch_and_order() -> None:
    one = validator_set(4)
    assert one.digest() == validator_set(4).digest()
    assert one.digest() != validator_set(4, epoch=1).digest()
    assert one.digest() != replace(one, members=one.members[::-1]).digest()


def test_validators_are_found_by_their_consensus_key() -> None:
    validators = validator_set(4)
    assert validators.index_of(consensus_key(2).public) == 2
    assert validators.index_of(validators.members[2].link_key) is None


def test_every_subject_fits_and_is_read_back() -> None:
    largest = 2**64 - 1
    subjects: list[tuple[int, object]] = [
        (VoteKind.NOTARIZE, Notarize(largest, largest, bytes(32))),
        (VoteKind.NULLIFY, Nullify(largest)),
        (VoteKind.FINALIZE, Finalize(largest, bytes(32))),
        (VoteKind.EXECUTED, Executed(largest, bytes(32), bytes(32))),
        (
            VoteKind.RESULT,
            Result(bytes(32), largest, bytes(32), 2**16 - 1, False, "x" * 32, bytes(36), bytes(36), bytes(36)),
        ),
    ]
    for kind, subject in subjects:
        data = encode(subject)
        assert len(data) <= MAX_SUBJECT_BYTES
        assert read_subject(kind, data) == subject
    with pytest.raises(CodecError):
        read_subject(VoteKind.NULLIFY, SUBJECT)
    with pytest.raises(ValueError):
        read_subject(0, SUBJECT)


def test_the_largest_set_can_be_certified() -> None:
    validators = validator_set(MAX_VALIDATORS)
    made = certificate(validators, VoteKind.NULLIFY, encode(Nullify(1)))
    assert verify_certificate(CHAIN, validators, decode(Certificate, encode(made), 1 << 20))
