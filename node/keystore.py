"""A validator's keys on disk, and the public file by which others know it.

What enters: a passphrase. What leaves: three signing keys (consensus, link, operator), each in a file of its
own so that the operator's can be kept elsewhere, and `validator.json`, which holds no secret and is what an
organisation sends to the others. The beacon's secrets need no file: they follow from the consensus key
(`consensus.beacon`).

Key files are those of `fl.client.keyfile`: encrypted, for their owner alone, never overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chain.certificate import Validator
from chain.genesis import Claim, sign_claim, verify_claim
from chain.keys import SEED_BYTES, SigningKey
from consensus.beacon import first_commitment
from fl.client import keyfile
from fl.client.errors import BadFile
from fl.client.keyfile import save_key, sync_directory, write_new

VALIDATOR_FORMAT = "quorate-validator-1"
VALIDATOR_FILE = "validator.json"
ROLES = ("consensus", "link", "operator")

_FILE_LIMIT_BYTES = 64 * 1024


class KeystoreError(Exception):
    """Why a key cannot be used, and what to do: a code for programs, a sentence for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class ValidatorKeys(NamedTuple):
    consensus: SigningKey
    link: SigningKey
    operator: SigningKey


@dataclass(frozen=True, slots=True)
class Passphrase:
    """None: the key files are not encrypted, which somebody asked for by name."""

    secret: bytes | None


NO_PASSPHRASE = Passphrase(None)


def generate(entropy: Callable[[int], bytes]) -> ValidatorKeys:
    return ValidatorKeys(*(SigningKey.from_seed(entropy(SEED_BYTES)) for _ in ROLES))


def read_passphrase(source: str, *, confirm: bool = False) -> Passphrase:
    """From `prompt`, `file:PATH`, `credential:NAME` (systemd's LoadCredential=), or
    `insecure-no-passphrase`."""
    with _as_ours():
        return Passphrase(keyfile.read_passphrase(source, confirm=confirm))


def key_path(directory: Path, role: str) -> Path:
    return directory / f"{role}.key.json"


def save_keys(directory: Path, keys: ValidatorKeys, passphrase: Passphrase, entropy: Callable[[int], bytes]) -> None:
    """Refuses, before it writes anything, if one of the files is there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for role in ROLES:
        if key_path(directory, role).exists():
            raise KeystoreError(
                "KEY_EXISTS", f"{key_path(directory, role)} exists; a key is never overwritten. Use another directory."
            )
    with _as_ours():
        for role, key in zip(ROLES, keys, strict=True):
            save_key(key_path(directory, role), key, passphrase.secret, role=role, entropy=entropy)


def load_keys(directory: Path, passphrase: Passphrase) -> ValidatorKeys:
    return ValidatorKeys(*(load_key(directory, role, passphrase) for role in ROLES))


def load_key(directory: Path, role: str, passphrase: Passphrase) -> SigningKey:
    with _as_ours():
        return keyfile.load_key(key_path(directory, role), passphrase.secret, role=role)


@contextmanager
def _as_ours() -> Iterator[None]:
    try:
        yield
    except BadFile as error:
        raise KeystoreError(error.code, str(error)) from error


def describe(keys: ValidatorKeys, name: str, address: str, rpc: str) -> Claim:
    """What others must know of this validator, with the proof that it holds the keys."""
    validator = Validator(
        name=name,
        consensus_key=keys.consensus.public,
        link_key=keys.link.public,
        operator_key=keys.operator.public,
        beacon_commit=first_commitment(keys.consensus),
        address=address,
        rpc=rpc,
    )
    return sign_claim(validator, *keys)


def save_claim(directory: Path, claim: Claim) -> Path:
    """Replaces the public file at once; it may be sent to anyone."""
    validator = claim.validator
    path = directory / VALIDATOR_FILE
    fields = {
        "format": VALIDATOR_FORMAT,
        "name": validator.name,
        "address": validator.address,
        "rpc": validator.rpc,
        "consensus_key": validator.consensus_key.hex(),
        "link_key": validator.link_key.hex(),
        "operator_key": validator.operator_key.hex(),
        "beacon_commit": validator.beacon_commit.hex(),
        "proof_by_consensus_key": claim.by_consensus_key.hex(),
        "proof_by_link_key": claim.by_link_key.hex(),
        "proof_by_operator_key": claim.by_operator_key.hex(),
    }
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with _as_ours():
        write_new(temporary, json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n", 0o644)
    os.replace(temporary, path)
    sync_directory(directory)
    return path


def load_claim(path: Path) -> Claim:
    """A validator's public file, with its proofs checked."""
    fields = _json(path, _bytes(path))
    try:
        if fields["format"] != VALIDATOR_FORMAT:
            raise KeystoreError("BAD_VALIDATOR_FILE", f"{path} is not in the format {VALIDATOR_FORMAT}.")
        claim = Claim(
            Validator(
                name=str(fields["name"]),
                consensus_key=bytes.fromhex(fields["consensus_key"]),
                link_key=bytes.fromhex(fields["link_key"]),
                operator_key=bytes.fromhex(fields["operator_key"]),
                beacon_commit=bytes.fromhex(fields["beacon_commit"]),
                address=str(fields["address"]),
                rpc=str(fields["rpc"]),
            ),
            bytes.fromhex(fields["proof_by_consensus_key"]),
            bytes.fromhex(fields["proof_by_link_key"]),
            bytes.fromhex(fields["proof_by_operator_key"]),
        )
        proven = verify_claim(claim)
    except (KeyError, TypeError, ValueError) as error:
        raise KeystoreError("BAD_VALIDATOR_FILE", f"{path} is damaged; ask its owner for another copy.") from error
    if not proven:
        raise KeystoreError(
            "UNPROVEN_KEYS",
            f"{path} does not prove that its owner holds the keys: it was changed after it was made. "
            f"Ask for the original.",
        )
    return claim


def _json(path: Path, data: bytes) -> dict[str, Any]:
    if len(data) > _FILE_LIMIT_BYTES:
        raise KeystoreError("TOO_LONG", f"{path} is far longer than such a file can be.")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise KeystoreError("NOT_JSON", f"{path} is not JSON; restore it from a copy.") from error
    if not isinstance(fields, dict):
        raise KeystoreError("NOT_JSON", f"{path} does not hold a JSON object; restore it from a copy.")
    return fields


def _bytes(path: Path) -> bytes:
    """At most a byte more than such a file may have."""
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise KeystoreError("UNREADABLE", f"{path} cannot be read: {error.strerror}.") from error
