"""One signing key in one file, encrypted with a passphrase.

The file is JSON: scrypt makes a key of the passphrase, ChaCha20-Poly1305 seals the seed, and everything else in the
file is authenticated with it. Files are made for their owner alone, are refused when anyone else may read them, and
are never overwritten. A key without a passphrase must be asked for by name.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from chain.keys import SEED_BYTES, SigningKey
from fl.client.errors import BadFile

KEY_FORMAT = "quorate-key-1"
ACCOUNT = "account"
"""The role of a key that speaks for an account."""

_FILE_LIMIT_BYTES = 64 * 1024
_SCRYPT_N = 2**16
_SCRYPT_R = 8
_SCRYPT_P = 1
_SCRYPT_N_LIMIT = 2**20
"""A key file is read before it is authenticated: it must not make scrypt take all the memory there is."""

_SALT_BYTES = 16
_NONCE_BYTES = 12

Entropy = Callable[[int], bytes]


def new_key(
    path: Path, passphrase: bytes | None, *, role: str = ACCOUNT, entropy: Entropy = secrets.token_bytes
) -> SigningKey:
    """A new key in a new file. `passphrase=None` leaves it unencrypted."""
    key = SigningKey.from_seed(entropy(SEED_BYTES))
    save_key(path, key, passphrase, role=role, entropy=entropy)
    return key


def save_key(
    path: Path,
    key: SigningKey,
    passphrase: bytes | None,
    *,
    role: str = ACCOUNT,
    entropy: Entropy = secrets.token_bytes,
) -> None:
    """Durable when it returns; refuses if the file is there."""
    if passphrase is not None and not passphrase:
        raise BadFile("EMPTY_PASSPHRASE", "The passphrase is empty.", "Choose one, or ask for none by name.")
    write_new(path, seal(key, passphrase, role, entropy))


def load_key(path: Path, passphrase: bytes | None = None, *, role: str = ACCOUNT) -> SigningKey:
    """The key in this file. `passphrase=None` if it is not encrypted."""
    return unseal(path, read_private(path), passphrase, role)


def is_encrypted(path: Path) -> bool:
    """Of a file that is no key file: no. Loading it says what is wrong with it."""
    try:
        with open(path, "rb") as file:
            return bool(json.loads(file.read(_FILE_LIMIT_BYTES)).get("cipher", "none") != "none")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_passphrase(source: str, *, confirm: bool = False) -> bytes | None:
    """From `prompt`, `file:PATH` or `credential:NAME` (systemd's LoadCredential=); None for
    `insecure-no-passphrase`."""
    kind, _, place = source.partition(":")
    if source == "insecure-no-passphrase":
        return None
    if source == "prompt":
        text = _asked("Passphrase: ")
        if confirm and _asked("The same again: ") != text:
            raise BadFile("PASSPHRASES_DIFFER", "The two passphrases differ; nothing was written.", "Try again.")
        secret = text.encode()
    elif kind == "file" and place:
        secret = read_private(Path(place)).rstrip(b"\r\n")
    elif kind == "credential" and place and "/" not in place:
        secret = _credential(place).rstrip(b"\r\n")
    else:
        raise BadFile(
            "BAD_PASSPHRASE_SOURCE",
            f"'{source}' is no source of a passphrase.",
            "Use prompt, file:PATH, credential:NAME or insecure-no-passphrase.",
        )
    if not secret:
        raise BadFile("EMPTY_PASSPHRASE", "The passphrase is empty.", "Choose one, or insecure-no-passphrase.")
    return secret


def _asked(prompt: str) -> str:
    with warnings.catch_warnings():
        # Rather than a passphrase in the open, or waiting for what nobody can type.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except getpass.GetPassWarning:
            raise BadFile(
                "NO_TERMINAL", "There is no terminal to ask for a passphrase.", "Use file:PATH or credential:NAME."
            ) from None


def _credential(name: str) -> bytes:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise BadFile(
            "NO_CREDENTIALS",
            "CREDENTIALS_DIRECTORY is not set.",
            f"Start it by a systemd unit with LoadCredential={name}:PATH.",
        )
    # systemd guards this directory itself, with access lists that show as permissions of the group.
    path = Path(directory) / name
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the unit.") from error


def read_private(path: Path) -> bytes:
    """The content of a file that nobody but its owner may read."""
    try:
        with open(path, "rb") as file:
            data, mode = file.read(_FILE_LIMIT_BYTES + 1), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    if mode & 0o077:
        raise BadFile("EXPOSED", f"{path} can be read by others than its owner.", f"Run: chmod 600 {path}")
    return data


def seal(key: SigningKey, passphrase: bytes | None, role: str, entropy: Entropy) -> bytes:
    """The content of a key file."""
    fields: dict[str, Any] = {"format": KEY_FORMAT, "role": role, "public": key.public.hex()}
    if passphrase is None:
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
    sealed = _cipher(passphrase, fields).encrypt(bytes.fromhex(fields["nonce"]), key.seed, _bound(fields))
    return _text(fields | {"ciphertext": sealed.hex()})


def public_of(path: Path, data: bytes, role: str) -> bytes:
    """The public key in a file's content, which is not authenticated: whoever has the passphrase unseals it."""
    fields = _fields(path, data)
    try:
        if fields["format"] == KEY_FORMAT and fields["role"] == role:
            return bytes.fromhex(fields["public"])
    except (KeyError, TypeError, ValueError):
        raise BadFile("BAD_KEY_FILE", f"{path} is damaged.", "Restore it from a copy.") from None
    raise BadFile("BAD_KEY_FILE", f"{path} is no key of the role {role} in the format {KEY_FORMAT}.", "Name another.")


def unseal(path: Path, data: bytes, passphrase: bytes | None, role: str) -> SigningKey:
    """The key in a file's content; the path is for the sentences."""
    fields = _fields(path, data)
    try:
        if fields["format"] != KEY_FORMAT or fields["role"] != role:
            raise BadFile(
                "BAD_KEY_FILE", f"{path} is no key of the role {role} in the format {KEY_FORMAT}.", "Name another."
            )
        key = SigningKey.from_seed(_opened(path, fields, passphrase))
        if key.public.hex() != fields["public"]:
            raise BadFile("BAD_KEY_FILE", f"{path} holds another key than it names.", "Restore it from a copy.")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile("BAD_KEY_FILE", f"{path} is damaged.", "Restore it from a copy.") from error
    return key


def _opened(path: Path, fields: Mapping[str, Any], passphrase: bytes | None) -> bytes:
    if fields["cipher"] == "none":
        if passphrase is not None:
            raise BadFile("NOT_ENCRYPTED", f"{path} is not encrypted.", "Give no passphrase if that is what you want.")
        return bytes.fromhex(fields["seed"])
    if fields["cipher"] != "chacha20-poly1305" or fields["kdf"] != "scrypt":
        raise BadFile("BAD_KEY_FILE", f"{path} is encrypted in an unknown way.", "Use the program that made it.")
    if passphrase is None:
        raise BadFile("ENCRYPTED", f"{path} is encrypted.", "Give its passphrase.")
    if (fields["r"], fields["p"]) != (_SCRYPT_R, _SCRYPT_P) or not 2 <= int(fields["n"]) <= _SCRYPT_N_LIMIT:
        raise BadFile("BAD_KEY_FILE", f"{path} asks for another key derivation than is allowed.", "Make a new key.")
    try:
        return _cipher(passphrase, fields).decrypt(
            bytes.fromhex(fields["nonce"]), bytes.fromhex(fields["ciphertext"]), _bound(fields)
        )
    except InvalidTag:
        raise BadFile(
            "WRONG_PASSPHRASE", f"The passphrase does not open {path}, or the file was changed.", "Try again."
        ) from None


def _cipher(passphrase: bytes, fields: Mapping[str, Any]) -> ChaCha20Poly1305:
    kdf = Scrypt(bytes.fromhex(fields["salt"]), 32, n=int(fields["n"]), r=int(fields["r"]), p=int(fields["p"]))
    return ChaCha20Poly1305(kdf.derive(passphrase))


def _bound(fields: Mapping[str, Any]) -> bytes:
    """What is authenticated with the ciphertext: the rest of the file, whatever its layout."""
    return json.dumps({name: fields[name] for name in fields if name != "ciphertext"}, sort_keys=True).encode()


def _text(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(fields), indent=2, ensure_ascii=False).encode() + b"\n"


def _fields(path: Path, data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data) if len(data) <= _FILE_LIMIT_BYTES else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadFile("BAD_KEY_FILE", f"{path} is no key file.", "Name another file, or restore it from a copy.")
    return fields


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Durable when it returns. Under a temporary name until it is whole; never over an existing file."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        sync_directory(path.parent)
    except FileExistsError as error:
        raise BadFile("KEY_EXISTS", f"{path} exists; a key is never overwritten.", "Name another file.") from error
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another file.") from error


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
