"""A validator's keys on disk, and the public file by which others know it.

What enters: a passphrase. What leaves: three signing keys (consensus, link, operator), each in a file of its
own so that the operator's can be kept elsewhere, and `validator.json`, which holds no secret and is what an
organisation sends to the others. The beacon's secrets need no file: they follow from the consensus key
(`consensus.beacon`).

A key file is JSON: scrypt makes the key, ChaCha20-Poly1305 the ciphertext, and everything else in the file is
authenticated with it. Files are created 0600 and refused when anyone else may read them. Nothing here
overwrites a key.
"""

from __future__ import annotations

import getpass
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from chain.certificate import Validator
from chain.genesis import Claim, sign_claim, verify_claim
from chain.keys import SEED_BYTES, SigningKey
from consensus.beacon import first_commitment

KEY_FORMAT = "quorate-key-1"
VALIDATOR_FORMAT = "quorate-validator-1"
VALIDATOR_FILE = "validator.json"
ROLES = ("consensus", "link", "operator")

_FILE_LIMIT_BYTES = 64 * 1024
_SCRYPT_N = 2**16
_SCRYPT_R = 8
_SCRYPT_P = 1
_SCRYPT_N_LIMIT = 2**20
"""A key file is read before it is authenticated: it must not make scrypt take all the memory there is."""

_SALT_BYTES = 16
_NONCE_BYTES = 12


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
    kind, _, place = source.partition(":")
    if source == "insecure-no-passphrase":
        return NO_PASSPHRASE
    if source == "prompt":
        text = getpass.getpass("Passphrase of the validator's keys: ")
        if confirm and getpass.getpass("The same again: ") != text:
            raise KeystoreError("PASSPHRASES_DIFFER", "The two passphrases differ; nothing was written.")
        secret = text.encode()
    elif kind == "file" and place:
        secret = _private_bytes(Path(place)).rstrip(b"\r\n")
    elif kind == "credential" and place and "/" not in place:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise KeystoreError(
                "NO_CREDENTIALS",
                f"CREDENTIALS_DIRECTORY is not set; start the node by a systemd unit with LoadCredential={place}:PATH.",
            )
        # systemd guards this directory itself, with access lists that show as permissions of the group.
        secret = _bytes(Path(directory) / place)[0].rstrip(b"\r\n")
    else:
        raise KeystoreError(
            "BAD_PASSPHRASE_SOURCE",
            f"'{source}' is no source of a passphrase; use prompt, file:PATH, credential:NAME "
            f"or insecure-no-passphrase.",
        )
    if not secret:
        raise KeystoreError("EMPTY_PASSPHRASE", "The passphrase is empty; choose one, or insecure-no-passphrase.")
    return Passphrase(secret)


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
    for role, key in zip(ROLES, keys, strict=True):
        _write_new(key_path(directory, role), _sealed(role, key, passphrase, entropy), 0o600)


def load_keys(directory: Path, passphrase: Passphrase) -> ValidatorKeys:
    return ValidatorKeys(*(load_key(directory, role, passphrase) for role in ROLES))


def load_key(directory: Path, role: str, passphrase: Passphrase) -> SigningKey:
    path = key_path(directory, role)
    fields = _json(path, _private_bytes(path))
    try:
        if fields["format"] != KEY_FORMAT or fields["role"] != role:
            raise KeystoreError("BAD_KEY_FILE", f"{path} is not a {role} key in the format {KEY_FORMAT}.")
        seed = _opened(path, fields, passphrase)
        key = SigningKey.from_seed(seed)
        if key.public.hex() != fields["public"]:
            raise KeystoreError("BAD_KEY_FILE", f"{path} holds another key than it names; restore it from a copy.")
    except (KeyError, TypeError, ValueError) as error:
        raise KeystoreError("BAD_KEY_FILE", f"{path} is damaged; restore it from a copy.") from error
    return key


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
    _write_new(temporary, _text(fields), 0o644)
    os.replace(temporary, path)
    _sync_directory(directory)
    return path


def load_claim(path: Path) -> Claim:
    """A validator's public file, with its proofs checked."""
    fields = _json(path, _bytes(path)[0])
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


def _sealed(role: str, key: SigningKey, passphrase: Passphrase, entropy: Callable[[int], bytes]) -> bytes:
    fields: dict[str, Any] = {"format": KEY_FORMAT, "role": role, "public": key.public.hex()}
    if passphrase.secret is None:
        return _text(fields | {"cipher": "none", "seed": key.seed.hex()})
    fields |= {
        "cipher": "chacha20-poly1305",
        "kdf": "scrypt",
        "n": _SCRYPT_N,
        "r": _SCRYPT_R,
        "p": _SCRYPT_P,
        "salt": entropy(_SALT_BYTES).hex(),
        "nonce": entropy(_NONCE_BYTES).hex(),
    }
    cipher = _cipher(passphrase.secret, fields)
    sealed = cipher.encrypt(bytes.fromhex(fields["nonce"]), key.seed, _bound(fields))
    return _text(fields | {"ciphertext": sealed.hex()})


def _opened(path: Path, fields: Mapping[str, Any], passphrase: Passphrase) -> bytes:
    if fields["cipher"] == "none":
        if passphrase.secret is not None:
            raise KeystoreError(
                "NOT_ENCRYPTED", f"{path} is not encrypted; say insecure-no-passphrase if that is what you want."
            )
        return bytes.fromhex(fields["seed"])
    if fields["cipher"] != "chacha20-poly1305" or fields["kdf"] != "scrypt":
        raise KeystoreError("BAD_KEY_FILE", f"{path} is encrypted in a way that this program does not know.")
    if passphrase.secret is None:
        raise KeystoreError("ENCRYPTED", f"{path} is encrypted; name the source of its passphrase.")
    if (fields["r"], fields["p"]) != (_SCRYPT_R, _SCRYPT_P) or not 2 <= int(fields["n"]) <= _SCRYPT_N_LIMIT:
        raise KeystoreError("BAD_KEY_FILE", f"{path} asks for another key derivation than this program allows.")
    try:
        return _cipher(passphrase.secret, fields).decrypt(
            bytes.fromhex(fields["nonce"]), bytes.fromhex(fields["ciphertext"]), _bound(fields)
        )
    except InvalidTag:
        raise KeystoreError(
            "WRONG_PASSPHRASE", f"The passphrase does not open {path}, or the file was changed."
        ) from None


def _cipher(secret: bytes, fields: Mapping[str, Any]) -> ChaCha20Poly1305:
    kdf = Scrypt(bytes.fromhex(fields["salt"]), 32, n=int(fields["n"]), r=int(fields["r"]), p=int(fields["p"]))
    return ChaCha20Poly1305(kdf.derive(secret))


def _bound(fields: Mapping[str, Any]) -> bytes:
    """What is authenticated with the ciphertext: the rest of the file, whatever its layout."""
    return json.dumps({name: fields[name] for name in fields if name != "ciphertext"}, sort_keys=True).encode()


def _text(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(fields), indent=2, ensure_ascii=False).encode() + b"\n"


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


def _private_bytes(path: Path) -> bytes:
    """The content of a file that nobody but its owner may read."""
    data, mode = _bytes(path)
    if mode & 0o077:
        raise KeystoreError("EXPOSED", f"{path} can be read by others than its owner; run: chmod 600 {path}")
    return data


def _bytes(path: Path) -> tuple[bytes, int]:
    """Content, at most a byte too long, and permissions."""
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_LIMIT_BYTES + 1), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise KeystoreError("UNREADABLE", f"{path} cannot be read: {error.strerror}.") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Durable when it returns. Under a temporary name until it is whole; never over an existing file."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # A link fails where a rename would replace.
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError as error:
        raise KeystoreError("KEY_EXISTS", f"{path} exists; a key is never overwritten.") from error
    except OSError as error:
        raise KeystoreError("UNWRITABLE", f"{path} cannot be written: {error.strerror}.") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
