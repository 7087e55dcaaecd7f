"""The genesis: the document whose hash is the chain's name, and every parameter that nodes must share.

Each organisation hands in a `Claim`: its validator record, signed by each of the keys in it. From the same
claims, members and parameters everyone builds the same `Genesis`, and compares chain ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from chain.batch import MAX_BATCH_BYTES
from chain.block import (
    EMPTY_BODY,
    HEADER_VERSION,
    MAX_BLOCK_ITEMS,
    MAX_BLOCK_REFERENCES,
    MAX_ITEM_BYTES,
    Header,
    body_roots,
)
from chain.certificate import MAX_SUBJECT_BYTES, MAX_VALIDATORS, Validator, ValidatorSet
from chain.codec import U16, U32, U64, CodecError, Count, Length, PublicKey, Signature, encode
from chain.hashing import ZERO_DIGEST, Domain, digest, signing_bytes
from chain.keys import SigningKey, WeakKey, check_public_key, verify
from chain.log import EMPTY
from chain.transaction import MAX_TRANSACTION_BYTES

GENESIS_VERSION = 1
RULES_VERSION = 1
MAX_GENESIS_BYTES = 16 * 1024 * 1024
MAX_NONCE_WINDOW = 1024
FIRST_EPOCH = 0

Name = Annotated[str, Length(1, 64)]


class GenesisError(ValueError):
    """The genesis cannot start a chain; the sentence says why and what would be accepted."""


@dataclass(frozen=True, slots=True)
class Params:
    min_block_interval_ms: U32 = 50
    delta_ms: U32 = 250
    """The assumed bound on a message's delay; every timeout is made of it."""
    heartbeat_ms: U32 = 5_000
    drift_ms: U32 = 500
    """How far a header's time may be ahead of a voter's clock before the voter waits."""
    timeout_cap_ms: U32 = 8_000
    transaction_bytes: U32 = MAX_TRANSACTION_BYTES
    inline_bytes: U32 = 32 * 1024
    batch_bytes: U32 = MAX_BATCH_BYTES
    block_references: U16 = MAX_BLOCK_REFERENCES
    block_items: U16 = MAX_BLOCK_ITEMS
    item_bytes: U32 = MAX_ITEM_BYTES
    block_bytes: U32 = 64 * 1024 * 1024
    """Of all batches that one block references together."""
    horizon: U32 = 1_024
    """Blocks from a batch's creation to its expiry."""
    execution_window: U16 = 64
    creator_quota_bytes: U32 = 64 * 1024 * 1024
    creator_quota_batches: U16 = 64
    nonce_window: U16 = 256
    max_validity_ms: U64 = 24 * 60 * 60 * 1000
    kernel_version: U16 = 1
    rules_version: U16 = RULES_VERSION
    aggregation_base_ms: U64 = 30_000
    aggregation_ns_per_parameter_update: U32 = 20
    job_parameters: U64 = 2**27
    open_parameters: U64 = 2**30
    state_history: U16 = 64
    member_stored_bytes: U64 = 2**36
    """Of all data sets together that are kept for one member: nobody fills everyone's disks."""


@dataclass(frozen=True, slots=True)
class GenesisMember:
    name: Name
    key: PublicKey
    roles: Annotated[tuple[Annotated[str, Length(1, 32)], ...], Count(0, 8)]
    organisation: Annotated[str, Length(0, 64)] = ""
    """Empty: the member stands for itself."""


@dataclass(frozen=True, slots=True)
class SetChange:
    """A validator set decided beforehand, due at a state height."""

    due_height: U64
    validators: Annotated[tuple[Validator, ...], Count(1, MAX_VALIDATORS)]


@dataclass(frozen=True, slots=True)
class Genesis:
    version: U16
    name: Name
    time_ms: U64
    params: Params
    validators: Annotated[tuple[Validator, ...], Count(1, MAX_VALIDATORS)]
    """By rising name."""
    set_changes: Annotated[tuple[SetChange, ...], Count(0, 64)]
    registrars: Annotated[tuple[PublicKey, ...], Count(0, 256)]
    admission: Annotated[str, Length(1, 16)]
    """`registrars` (only they register members) or `open` (anyone registers)."""
    members: Annotated[tuple[GenesisMember, ...], Count(0, 65_536)]

    @property
    def chain_id(self) -> bytes:
        return digest(Domain.GENESIS, encode(self))

    @property
    def validator_set(self) -> ValidatorSet:
        return ValidatorSet(FIRST_EPOCH, self.validators)


@dataclass(frozen=True, slots=True)
class Claim:
    """A validator's record with proof that its owner holds all three private keys."""

    validator: Validator
    by_consensus_key: Signature
    by_link_key: Signature
    by_operator_key: Signature


def genesis_header(genesis: Genesis) -> Header:
    """Block 0. The root of the state that it starts with is not in it: validators certify that as height
    0."""
    batch_root, item_root = body_roots(EMPTY_BODY)
    return Header(
        version=HEADER_VERSION,
        chain=genesis.chain_id,
        epoch=FIRST_EPOCH,
        height=0,
        view=0,
        parent=ZERO_DIGEST,
        log_root=EMPTY.root(),
        batch_root=batch_root,
        item_root=item_root,
        executed_height=0,
        executed_root=ZERO_DIGEST,
        time_ms=genesis.time_ms,
        rules_version=genesis.params.rules_version,
        reveal=ZERO_DIGEST,
        commit=ZERO_DIGEST,
        next_set=b"",
    )


def _claim_message(validator: Validator) -> bytes:
    # Claims are made before there is a chain to name.
    return signing_bytes(Domain.POSSESSION, ZERO_DIGEST, FIRST_EPOCH, encode(validator))


def sign_claim(validator: Validator, consensus: SigningKey, link: SigningKey, operator: SigningKey) -> Claim:
    message = _claim_message(validator)
    return Claim(validator, consensus.sign(message), link.sign(message), operator.sign(message))


def verify_claim(claim: Claim) -> bool:
    validator, message = claim.validator, _claim_message(claim.validator)
    return (
        verify(validator.consensus_key, message, claim.by_consensus_key)
        and verify(validator.link_key, message, claim.by_link_key)
        and verify(validator.operator_key, message, claim.by_operator_key)
    )


def check_genesis(genesis: Genesis) -> None:
    try:
        size_bytes = len(encode(genesis))
    except CodecError as error:
        raise GenesisError(f"The genesis holds a value that cannot be written: {error}.") from None
    if size_bytes > MAX_GENESIS_BYTES:
        raise GenesisError(f"The genesis takes {size_bytes} bytes; at most {MAX_GENESIS_BYTES} are allowed.")
    if genesis.version != GENESIS_VERSION:
        raise GenesisError(f"Genesis version {genesis.version} is unknown; this software knows {GENESIS_VERSION}.")
    if genesis.admission not in ("registrars", "open"):
        raise GenesisError(f"Admission is '{genesis.admission}'; it must be 'registrars' or 'open'.")
    _check_validators(genesis.validators, "The first validator set")
    check_params(genesis.params, len(genesis.validators))
    previous = 0
    for change in genesis.set_changes:
        if change.due_height <= previous:
            raise GenesisError("Changes of the validator set must be listed by rising height, from 1 on.")
        previous = change.due_height
        _check_validators(change.validators, f"The validator set due at height {change.due_height}")
        check_params(genesis.params, len(change.validators))
    _check_people(genesis)


def _check_validators(validators: tuple[Validator, ...], which: str) -> None:
    names = [validator.name for validator in validators]
    if any(later <= earlier for earlier, later in pairwise(names)):
        raise GenesisError(f"{which} must be listed by rising name, each name once.")
    keys: list[bytes] = []
    for validator in validators:
        for role, key in (
            ("consensus", validator.consensus_key),
            ("link", validator.link_key),
            ("operator", validator.operator_key),
        ):
            _check_key(key, f"The {role} key of validator '{validator.name}'")
            keys.append(key)
        _check_address(validator)
    _refuse_repeats(keys, f"{which} uses one key twice; every validator needs three keys of its own")
    _refuse_repeats([validator.address for validator in validators], f"{which} lists one address for two validators")


def _check_people(genesis: Genesis) -> None:
    for registrar in genesis.registrars:
        _check_key(registrar, "A registrar's key")
    _refuse_repeats(genesis.registrars, "A registrar is listed twice")
    validator_keys = {key for validator in genesis.validators for key in (validator.consensus_key, validator.link_key)}
    for member in genesis.members:
        _check_key(member.key, f"The key of member '{member.name}'")
        if member.key in validator_keys:
            raise GenesisError(
                f"Member '{member.name}' uses a validator's consensus or link key; an account needs its own."
            )
    _refuse_repeats([member.name for member in genesis.members], "Two members have one name")
    _refuse_repeats([member.key for member in genesis.members], "Two members have one key")


def _check_key(key: bytes, whose: str) -> None:
    try:
        check_public_key(key)
    except WeakKey as error:
        raise GenesisError(f"{whose} cannot be used: {error}.") from None


def _check_address(validator: Validator) -> None:
    host, colon, port = validator.address.rpartition(":")
    valid = host and colon and port.isascii() and port.isdigit() and port[0] != "0" and int(port) < 2**16
    if not valid:
        raise GenesisError(f"The address of validator '{validator.name}' is '{validator.address}', not host:port.")


def _refuse_repeats(values: Iterable[str | bytes], sentence: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            shown = value.hex() if isinstance(value, bytes) else value
            raise GenesisError(f"{sentence}: {shown}.")


def check_params(params: Params, n: int) -> None:
    """Raises GenesisError unless `n` validators can run a chain with these parameters."""
    if not 1 <= n <= MAX_VALIDATORS:
        raise GenesisError(f"A chain has 1 to {MAX_VALIDATORS} validators, not {n}.")
    for failed, sentence in _complaints(params, n):
        if failed:
            raise GenesisError(sentence)


def _complaints(p: Params, n: int) -> Iterable[tuple[bool, str]]:
    yield from _size_complaints(p)
    yield from _time_complaints(p)
    needed_bytes = 4 * n * p.creator_quota_bytes
    needed_batches = 4 * n * p.creator_quota_batches
    yield (
        p.horizon * p.block_bytes < needed_bytes,
        f"With {n} validators, horizon times block_bytes must be at least {needed_bytes} (four times what "
        "all may have outstanding), or batches expire before their turn; it is "
        f"{p.horizon * p.block_bytes}.",
    )
    yield (
        p.horizon * p.block_references < needed_batches,
        f"With {n} validators, horizon times block_references must be at least {needed_batches} (four times "
        f"what all may have outstanding), or batches expire before their turn; it is "
        f"{p.horizon * p.block_references}.",
    )
    yield (
        not 32 <= p.horizon <= 2**20,
        f"horizon is {p.horizon} blocks; it must be 32 to {2**20}, so that a batch can be voted for in time.",
    )
    yield (
        not 1 <= p.execution_window <= p.horizon // 2,
        f"execution_window is {p.execution_window}; it must be 1 to half the horizon ({p.horizon // 2}).",
    )
    yield (
        p.state_history < p.execution_window,
        f"state_history is {p.state_history}; it must be at least execution_window ({p.execution_window}), "
        "or the newest certified state could no longer be proven.",
    )
    yield (
        not 1 <= p.nonce_window <= MAX_NONCE_WINDOW or p.nonce_window % 8 != 0,
        f"nonce_window is {p.nonce_window}; it must be a multiple of 8 up to {MAX_NONCE_WINDOW}.",
    )
    yield (
        p.rules_version != RULES_VERSION,
        f"rules_version is {p.rules_version}; this software knows {RULES_VERSION}.",
    )
    yield p.kernel_version == 0, "kernel_version is 0; versions count from 1."
    yield (
        not 1 <= p.job_parameters <= p.open_parameters,
        f"job_parameters is {p.job_parameters}; it must be 1 to open_parameters ({p.open_parameters}).",
    )


def _size_complaints(p: Params) -> Iterable[tuple[bool, str]]:
    yield (
        not 1_024 <= p.transaction_bytes <= MAX_TRANSACTION_BYTES,
        f"transaction_bytes is {p.transaction_bytes}; it must be 1024 to {MAX_TRANSACTION_BYTES}.",
    )
    yield (
        p.inline_bytes + 512 > p.transaction_bytes,
        f"inline_bytes is {p.inline_bytes}; a payload and its envelope (512 bytes) must fit into "
        f"transaction_bytes ({p.transaction_bytes}).",
    )
    yield (
        p.batch_bytes > MAX_BATCH_BYTES or p.batch_bytes < p.transaction_bytes + 512,
        f"batch_bytes is {p.batch_bytes}; it must be {p.transaction_bytes + 512} (one transaction and its "
        f"envelope) to {MAX_BATCH_BYTES}.",
    )
    yield (
        p.creator_quota_bytes < p.batch_bytes,
        f"creator_quota_bytes is {p.creator_quota_bytes}; at least one batch ({p.batch_bytes}) must fit.",
    )
    yield p.creator_quota_batches == 0, "creator_quota_batches is 0; nobody could offer a batch."
    yield (
        p.block_bytes < p.batch_bytes,
        f"block_bytes is {p.block_bytes}; at least one batch ({p.batch_bytes}) must fit.",
    )
    yield (
        not 1 <= p.block_references <= MAX_BLOCK_REFERENCES,
        f"block_references is {p.block_references}; it must be 1 to {MAX_BLOCK_REFERENCES}.",
    )
    yield (
        not 1 <= p.block_items <= MAX_BLOCK_ITEMS,
        f"block_items is {p.block_items}; it must be 1 to {MAX_BLOCK_ITEMS}.",
    )
    yield (
        not MAX_SUBJECT_BYTES <= p.item_bytes <= MAX_ITEM_BYTES,
        f"item_bytes is {p.item_bytes}; it must be {MAX_SUBJECT_BYTES} (a result) to {MAX_ITEM_BYTES}.",
    )


def _time_complaints(p: Params) -> Iterable[tuple[bool, str]]:
    yield p.delta_ms == 0, "delta_ms is 0; messages take time."
    least_cap = 3 * p.delta_ms + p.min_block_interval_ms
    yield (
        p.timeout_cap_ms < least_cap,
        f"timeout_cap_ms is {p.timeout_cap_ms}; the first timeout is already {least_cap} (three delta_ms and "
        "min_block_interval_ms).",
    )
    yield p.drift_ms == 0, "drift_ms is 0; no two clocks agree to the millisecond."
    yield (
        p.heartbeat_ms < max(1, p.min_block_interval_ms),
        f"heartbeat_ms is {p.heartbeat_ms}; it must be at least 1 and at least min_block_interval_ms "
        f"({p.min_block_interval_ms}).",
    )
    yield (
        p.max_validity_ms <= p.drift_ms + p.heartbeat_ms,
        f"max_validity_ms is {p.max_validity_ms}; transactions must be able to outlive a heartbeat and the "
        f"drift ({p.drift_ms + p.heartbeat_ms}).",
    )
    yield p.aggregation_base_ms == 0, "aggregation_base_ms is 0; no aggregation could finish in time."
