"""Key files: what opens them, what is refused, and that nothing secret is left readable."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from chain.genesis import verify_claim
from consensus.beacon import first_commitment
from fl.client import keyfile
from node.keystore import (
    NO_PASSPHRASE,
    KeystoreError,
    Passphrase,
    ValidatorKeys,
    describe,
    generate,
    key_path,
    load_claim,
    load_key,
    load_keys,
    read_passphrase,
    save_claim,
    save_keys,
)

SECRET = Passphrase(b"correct horse battery staple")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "_SCRYPT_N", 2**4)


@pytest.fixture
def keys() -> ValidatorKeys:
    return generate(os.urandom)


def refused(code: str) -> AbstractContextManager[Any]:
    return pytest.raises(KeystoreError, check=lambda error: error.code == code)


@pytest.mark.parametrize("passphrase", [SECRET, NO_PASSPHRASE])
def test_keys_are_read_back_as_they_were_saved(tmp_path: Path, keys: ValidatorKeys, passphrase: Passphrase) -> None:
    save_keys(tmp_path / "keys", keys, passphrase, os.urandom)
    loaded = load_keys(tmp_path / "keys", passphrase)
    assert [key.seed for key in loaded] == [key.seed for key in keys]


def test_the_three_keys_differ(keys: ValidatorKeys) -> None:
    assert len({key.public for key in keys}) == 3


def test_files_are_private_and_hold_no_seed(tmp_path: Path, keys: ValidatorKeys) -> None:
    directory = tmp_path / "keys"
    save_keys(directory, keys, SECRET, os.urandom)
    assert sorted(os.listdir(directory)) == ["consensus.key.json", "link.key.json", "operator.key.json"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for key in keys:
            assert key.seed.hex() not in path.read_text()


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path, keys: ValidatorKeys) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    with refused("WRONG_PASSPHRASE"):
        load_keys(tmp_path, Passphrase(b"wrong"))
    with refused("ENCRYPTED"):
        load_keys(tmp_path, NO_PASSPHRASE)


def test_an_unencrypted_key_is_used_only_by_those_who_say_so(tmp_path: Path, keys: ValidatorKeys) -> None:
    save_keys(tmp_path, keys, NO_PASSPHRASE, os.urandom)
    with refused("NOT_ENCRYPTED"):
        load_keys(tmp_path, SECRET)


def test_a_key_is_never_overwritten(tmp_path: Path, keys: ValidatorKeys) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    key_path(tmp_path, "consensus").unlink()
    with refused("KEY_EXISTS"):
        save_keys(tmp_path, generate(os.urandom), SECRET, os.urandom)
    assert not key_path(tmp_path, "consensus").exists()
    assert all(path.read_bytes() == before[path] for path in tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, keys: ValidatorKeys, mode: int) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    key_path(tmp_path, "link").chmod(mode)
    with refused("EXPOSED"):
        load_key(tmp_path, "link", SECRET)


@pytest.mark.parametrize("field", ["public", "salt", "nonce", "ciphertext", "n"])
def test_no_field_of_a_key_file_can_be_changed(tmp_path: Path, keys: ValidatorKeys, field: str) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    path = key_path(tmp_path, "link")
    fields = json.loads(path.read_text())
    value = fields[field]
    fields[field] = value * 2 if isinstance(value, int) else ("0" if value[0] != "0" else "1") + value[1:]
    path.write_text(json.dumps(fields))
    with pytest.raises(KeystoreError):
        load_key(tmp_path, "link", SECRET)


def test_a_key_file_may_be_laid_out_anew(tmp_path: Path, keys: ValidatorKeys) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    path = key_path(tmp_path, "link")
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert load_key(tmp_path, "link", SECRET).seed == keys.link.seed


def test_one_role_does_not_pass_for_another(tmp_path: Path, keys: ValidatorKeys) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    key_path(tmp_path, "link").write_bytes(key_path(tmp_path, "consensus").read_bytes())
    with refused("BAD_KEY_FILE"):
        load_key(tmp_path, "link", SECRET)


def test_a_key_file_cannot_ask_for_all_the_memory(tmp_path: Path, keys: ValidatorKeys) -> None:
    save_keys(tmp_path, keys, SECRET, os.urandom)
    path = key_path(tmp_path, "link")
    for change in ({"n": 2**40}, {"r": 10**6}, {"p": 10**6}, {"n": -1}):
        fields = json.loads(path.read_text()) | change
        path.write_text(json.dumps(fields))
        with refused("BAD_KEY_FILE"):
            load_key(tmp_path, "link", SECRET)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": 7}', b"\xff", b"[" * 60_000, b" " * 70_000])
def test_whatever_else_lies_there_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = key_path(tmp_path, "link")
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeystoreError, match=str(path)):
        load_key(tmp_path, "link", SECRET)
    with pytest.raises(KeystoreError, match=str(path)):
        load_claim(path)


def test_the_public_file_proves_its_keys_and_holds_no_secret(tmp_path: Path, keys: ValidatorKeys) -> None:
    claim = describe(keys, "north-hospital", "north.example:26600", "https://north.example")
    assert verify_claim(claim)
    assert claim.validator.beacon_commit == first_commitment(keys.consensus)
    path = save_claim(tmp_path, claim)
    assert path == save_claim(tmp_path, claim)
    assert load_claim(path) == claim
    assert os.listdir(tmp_path) == ["validator.json"]
    assert not any(key.seed.hex() in path.read_text() for key in keys)


@pytest.mark.parametrize("field", ["name", "address", "rpc", "beacon_commit", "link_key"])
def test_a_public_file_that_was_changed_is_refused(tmp_path: Path, keys: ValidatorKeys, field: str) -> None:
    path = save_claim(tmp_path, describe(keys, "north", "north.example:26600", "https://north.example"))
    fields = json.loads(path.read_text())
    changed = generate(os.urandom).link.public.hex() if field == "link_key" else "00" * 32
    path.write_text(json.dumps(fields | {field: changed}))
    with refused("UNPROVEN_KEYS"):
        load_claim(path)


def test_a_passphrase_comes_from_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("open sesame\n")
    path.chmod(0o600)
    assert read_passphrase(f"file:{path}") == Passphrase(b"open sesame")
    path.chmod(0o644)
    with refused("EXPOSED"):
        read_passphrase(f"file:{path}")


def test_a_passphrase_comes_from_a_credential_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with refused("NO_CREDENTIALS"):
        read_passphrase("credential:quorate")
    (tmp_path / "quorate").write_text("open sesame")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_passphrase("credential:quorate") == Passphrase(b"open sesame")
    with refused("BAD_PASSPHRASE_SOURCE"):
        read_passphrase("credential:../quorate")


def test_a_prompted_passphrase_is_asked_for_twice_when_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["one", "one", "one", "two", ""])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert read_passphrase("prompt", confirm=True) == Passphrase(b"one")
    with refused("PASSPHRASES_DIFFER"):
        read_passphrase("prompt", confirm=True)
    with refused("EMPTY_PASSPHRASE"):
        read_passphrase("prompt")


def test_without_a_terminal_nobody_is_asked() -> None:
    program = "from cli.main import main; main(['keys', 'new-account', 'account.key'])"
    ran = subprocess.run(
        [sys.executable, "-c", program], input="secret\n", text=True, capture_output=True, start_new_session=True
    )
    assert "file:PATH" in ran.stderr and "Passphrase:" not in ran.stderr


def test_no_passphrase_has_to_be_said_in_full() -> None:
    assert read_passphrase("insecure-no-passphrase") == NO_PASSPHRASE
    with refused("BAD_PASSPHRASE_SOURCE"):
        read_passphrase("none")
