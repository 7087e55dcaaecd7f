"""Small worlds for the tests of the chain room: keys from names, validators, certificates, a genesis."""

from __future__ import annotations

from hashlib import sha256

from chain.availability import AvailabilityCertificate, assemble_availability
from chain.certificate import Certificate, Validator, ValidatorSet, VoteKind, assemble, sign_vote
from chain.genesis import Genesis, GenesisMember, Params
from chain.keys import SigningKey

CHAIN = sha256(b"a chain").digest()


def key(name: str) -> SigningKey:
    return SigningKey.from_seed(sha256(name.encode()).digest())


def name_of(index: int) -> str:
    return f"org-{index:03}"


def consensus_key(index: int, prefix: str = "") -> SigningKey:
    return key(f"{prefix}consensus/{index}")


def validator(index: int, prefix: str = "") -> Validator:
    return Validator(
        name=name_of(index),
        consensus_key=consensus_key(index, prefix).public,
        link_key=key(f"{prefix}link/{index}").public,
        operator_key=key(f"{prefix}operator/{index}").public,
        beacon_commit=sha256(b"s0/%d" % index).digest(),
        address=f"{name_of(index)}.example:7000",
        rpc=f"https://{name_of(index)}.example",
    )


def validator_set(n: int, epoch: int = 0, prefix: str = "") -> ValidatorSet:
    return ValidatorSet(epoch, tuple(validator(index, prefix) for index in range(n)))


def certificate(
    validators: ValidatorSet, kind: int, subject: bytes, chain_id: bytes = CHAIN, prefix: str = ""
) -> Certificate:
    return assemble(
        validators,
        [
            sign_vote(consensus_key(signer, prefix), chain_id, kind, validators.epoch, subject, signer)
            for signer in range(validators.quorum)
        ],
    )


def availability(validators: ValidatorSet, subject: bytes, holders: int | None = None) -> AvailabilityCertificate:
    """Of the first seats: `holders` of them, or as many as may be, have not looked."""
    looked = validators.lookers if holders is None else validators.quorum - holders
    kinds = [VoteKind.AVAILABLE if signer < looked else VoteKind.HELD for signer in range(validators.quorum)]
    return assemble_availability(
        validators,
        [
            sign_vote(consensus_key(signer), CHAIN, kind, validators.epoch, subject, signer)
            for signer, kind in enumerate(kinds)
        ],
    )


def genesis(n: int = 4, params: Params | None = None) -> Genesis:
    return Genesis(
        version=1,
        name="test",
        time_ms=1_700_000_000_000,
        params=params or Params(),
        validators=validator_set(n).members,
        set_changes=(),
        registrars=(key("registrar").public,),
        admission="registrars",
        members=(GenesisMember("hospital", key("member").public, ("trainer",)),),
    )
