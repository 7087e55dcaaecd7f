from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain import certificate as certificates
from chain.availability import (
    AvailabilityCertificate,
    assemble_availability,
    is_enough,
    verify_availability,
    votes_in,
)
from chain.certificate import (
    MAX_VALIDATORS,
    Available,
    Certificate,
    Vote,
    VoteKind,
    assemble,
    sign_vote,
    verify_certificate,
)
from chain.codec import CodecError, decode, encode
from tests.chain.build import CHAIN, availability, consensus_key, validator_set

SUBJECT = encode(Available(bytes(32), 0, 1, 2, 3, 4, 5, 6))
LOOKED, HELD = VoteKind.AVAILABLE, VoteKind.HELD


def vote(signer: int, kind: VoteKind = LOOKED, epoch: int = 0, subject: bytes = SUBJECT) -> Vote:
    return sign_vote(consensus_key(signer), CHAIN, kind, epoch, subject, signer)


@pytest.mark.parametrize(("n", "lookers"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 2), (7, 3), (10, 4), (100, 34)])
def test_one_of_those_who_look_is_honest_and_none_looks_alone(n: int, lookers: int) -> None:
    validators = validator_set(n)
    assert validators.lookers == lookers
    assert is_enough(validators.quorum, lookers, validators)
    assert not is_enough(validators.quorum, lookers - 1, validators)
    assert not is_enough(validators.quorum - 1, validators.quorum - 1, validators)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 17])
def test_votes_of_both_kinds_make_a_certificate_that_gives_them_back(n: int) -> None:
    validators = validator_set(n)
    looked = range(n - validators.lookers, n)
    votes = [vote(signer, LOOKED if signer in looked else HELD) for signer in range(n)]
    made = assemble_availability(validators, reversed(votes))
    chosen = [*range(validators.quorum - validators.lookers), *looked]
    assert votes_in(made) == tuple(votes[signer] for signer in chosen)
    assert verify_availability(CHAIN, validators, made)
    assert decode(AvailabilityCertificate, encode(made), 1 << 20) == made


def test_a_quorum_of_which_too_few_have_looked_makes_nothing() -> None:
    with pytest.raises(ValueError, match="make no certificate"):
        assemble_availability(validator_set(7), [vote(signer, LOOKED if signer < 2 else HELD) for signer in range(7)])


def test_less_than_a_quorum_makes_nothing_though_all_have_looked() -> None:
    with pytest.raises(ValueError, match="make no certificate"):
        assemble_availability(validator_set(7), [vote(signer) for signer in (0, 1, 2, 3, 3)])


@pytest.mark.parametrize(
    "stranger",
    [vote(2, kind=VoteKind.EXECUTED), vote(2, epoch=1), vote(2, subject=b"other"), vote(4)],
)
def test_votes_of_another_kind_epoch_subject_or_set_make_nothing(stranger: Vote) -> None:
    with pytest.raises(ValueError):
        assemble_availability(validator_set(4), [vote(0), vote(1), stranger])


def test_more_than_needed_is_accepted() -> None:
    validators = validator_set(4)
    votes = [vote(0), vote(1, HELD), vote(2), vote(3)]
    made = AvailabilityCertificate(0, SUBJECT, b"\x0f", b"\x0d", tuple(each.signature for each in votes))
    assert verify_availability(CHAIN, validators, made)


def test_a_certificate_has_exactly_one_form() -> None:
    validators = validator_set(4)
    good = assemble_availability(validators, [vote(0), vote(1, HELD), vote(2), vote(3, HELD)])
    assert (good.signers, good.looked) == (b"\x07", b"\x05")
    first, second, third = good.signatures
    fourth = vote(3, HELD).signature
    for changed in (
        replace(good, looked=b"\x01"),
        replace(good, looked=b"\x07"),
        replace(good, looked=b"\x06"),
        replace(good, looked=b"\x0d"),
        replace(good, looked=b"\x00"),
        replace(good, looked=b"\x05\x00"),
        replace(good, looked=b""),
        replace(good, signers=b"\x05", signatures=(first, third)),
        replace(good, signers=b"\x07\x00"),
        replace(good, signers=b""),
        replace(good, signers=b"\x00", looked=b"\x00", signatures=()),
        replace(good, signers=b"\x17", signatures=(first, second, third, first)),
        replace(good, signers=b"\x0f"),
        replace(good, signatures=(first, second, third, fourth)),
        replace(good, signatures=(first, third, second)),
        replace(good, signatures=(first, second, second)),
        replace(good, signers=b"\x0b"),
        replace(good, signers=b"\x0d", signatures=(first, third, fourth), looked=b"\x01"),
        replace(good, epoch=1),
        replace(good, subject=b""),
    ):
        assert not verify_availability(CHAIN, validators, changed), changed
    assert not verify_availability(bytes(32), validators, good)
    assert not verify_availability(CHAIN, validator_set(4, epoch=1), good)
    assert not verify_availability(CHAIN, validator_set(5), good)
    assert not verify_availability(CHAIN, validator_set(4, prefix="b"), good)


@given(st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_anywhere_makes_a_certificate_void(at: int, bit: int) -> None:
    validators = validator_set(4)
    data = bytearray(encode(availability(validators, SUBJECT)))
    data[at % len(data)] ^= 1 << bit
    try:
        damaged = decode(AvailabilityCertificate, bytes(data), 1 << 20)
    except CodecError:
        return
    assert not verify_availability(CHAIN, validators, damaged)


def test_votes_that_were_verified_are_not_verified_again_and_vouch_for_themselves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validators = validator_set(4)
    good = availability(validators, SUBJECT)
    seen: list[bytes] = []

    def verify(public: bytes, message: bytes, signature: bytes) -> bool:
        seen.append(signature)
        return True

    monkeypatch.setattr(certificates, "verify", verify)
    first, second, third = votes_in(good)
    assert verify_availability(CHAIN, validators, good, (first, third)) and seen == [second.signature]
    for other in (
        replace(first, kind=int(HELD)),
        replace(first, subject=b"other"),
        replace(first, epoch=1),
        replace(first, signer=3),
        replace(first, signature=bytes(64)),
    ):
        seen.clear()
        assert verify_availability(CHAIN, validators, good, (other, second, third)) and seen == [first.signature]


@pytest.mark.parametrize("kind", [LOOKED, HELD])
def test_equal_votes_of_either_kind_alone_are_no_certificate_of_the_other_form(kind: VoteKind) -> None:
    validators = validator_set(4)
    plain = assemble(validators, [vote(signer, kind) for signer in range(4)])
    assert isinstance(plain, Certificate) and not verify_certificate(CHAIN, validators, plain)


def test_the_largest_set_can_be_certified() -> None:
    validators = validator_set(MAX_VALIDATORS)
    made = availability(validators, SUBJECT)
    assert verify_availability(CHAIN, validators, decode(AvailabilityCertificate, encode(made), 1 << 20))
