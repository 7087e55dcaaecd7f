from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chain.keys import SigningKey
from fl.client import keyfile
from fl.client.errors import BadFile
from fl.client.home import Home
from fl.client.keyfile import load_key, new_key, save_key
from fl.client.networkfile import NetworkFile, network_of, parse_network, read_network, render_network
from tests.fl.builders import make_genesis, signing_key


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "_SCRYPT_N", 2**4)


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_comes_back_from_its_file(tmp_path: Path, passphrase: bytes | None) -> None:
    path = tmp_path / "new" / "alice.key"
    key = new_key(path, passphrase)
    assert load_key(path, passphrase).seed == key.seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (key.seed.hex() in path.read_text()) == (passphrase is None)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = new_key(tmp_path / "key", None)
    with pytest.raises(BadFile) as caught:
        new_key(tmp_path / "key", None)
    assert caught.value.code == "KEY_EXISTS"
    assert load_key(tmp_path / "key").seed == key.seed
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    new_key(tmp_path / "key", None)
    os.chmod(tmp_path / "key", 0o640)
    with pytest.raises(BadFile) as caught:
        load_key(tmp_path / "key")
    assert caught.value.code == "EXPOSED" and "chmod 600" in caught.value.todo


@pytest.mark.parametrize(
    ("made", "given", "code"),
    [
        (b"right", b"wrong", "WRONG_PASSPHRASE"),
        (b"right", None, "ENCRYPTED"),
        (None, b"any", "NOT_ENCRYPTED"),
    ],
)
def test_the_wrong_passphrase_says_what_is_wrong(
    tmp_path: Path, made: bytes | None, given: bytes | None, code: str
) -> None:
    new_key(tmp_path / "key", made)
    with pytest.raises(BadFile) as caught:
        load_key(tmp_path / "key", given)
    assert caught.value.code == code


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile) as caught:
        save_key(tmp_path / "key", SigningKey.from_seed(bytes(32)), b"")
    assert caught.value.code == "EMPTY_PASSPHRASE"


def test_any_change_of_a_key_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = new_key(path, b"secret")
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            assert load_key(path, b"secret").seed == key.seed, "only the layout may change"
        except BadFile as error:
            assert error.code in ("BAD_KEY_FILE", "WRONG_PASSPHRASE")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"format": "quorate-key-1"}'])
def test_what_is_no_key_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    os.chmod(path, 0o600)
    with pytest.raises(BadFile) as caught:
        load_key(path)
    assert caught.value.code == "BAD_KEY_FILE"


def test_a_network_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    genesis = make_genesis()
    odd = 'a "b" \\ \x7f \n é'
    members = (replace(genesis.validators[0], name=odd, rpc=""), *genesis.validators[1:])
    network = network_of(replace(genesis, validators=members, name=odd))
    (tmp_path / "consortium.toml").write_text(render_network(network))
    assert read_network(tmp_path / "consortium.toml") == network


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('chain_id = "', 'chain_id = "00'),
        ("chain_id", "chain"),
        ("[[validator]]", "[[members]]"),
        ('consensus_key = "01', 'consensus_key = "02'),
        ('beacon_commit = "', 'beacon_commit = "zz'),
        ("epoch = 0", "epoch = -1"),
        ("epoch = 0", "epoch = inf"),
        pytest.param("epoch = 0", "epoch = " + "[" * 100_000, id="deep"),
        ("[[validator]]", "[validator"),
    ],
)
def test_a_damaged_network_file_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "consortium.toml"
    path.write_text(render_network(network_of(make_genesis())).replace(old, new))
    with pytest.raises(BadFile) as caught:
        read_network(path)
    assert caught.value.code == "BAD_NETWORK_FILE"


def test_the_weak_key_of_a_validator_is_refused() -> None:
    text = render_network(network_of(make_genesis()))
    with pytest.raises(ValueError, match="small order"):
        parse_network(text.replace(make_genesis().validators[0].consensus_key.hex(), "01" + "00" * 32))


def test_a_later_epoch_in_the_network_file_is_where_trust_begins() -> None:
    network = network_of(make_genesis())
    later = replace(network.checkpoint, validators=replace(network.validators, epoch=7))
    assert parse_network(render_network(NetworkFile("x", later))).checkpoint == later


def test_homes_of_different_accounts_and_chains_do_not_meet(tmp_path: Path) -> None:
    homes = {
        Home(tmp_path, bytes([chain]) * 32, bytes([account]) * 32).directory for chain in (1, 2) for account in (3, 4)
    }
    assert len(homes) == 4
    assert all(stat.S_IMODE((home / "outbox").stat().st_mode) == 0o700 for home in homes)


def test_a_home_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadFile) as caught:
        Home(tmp_path / "file", bytes(32), signing_key("x").public[1:])
    assert "QUORATE_HOME" in caught.value.todo


BLOCKED = "node consensus cli aiohttp.web numba llvmlite plyvel uvloop prometheus_client rich click"


def test_the_sdk_needs_nothing_of_a_nodes_dependencies() -> None:
    blocked = BLOCKED.split()
    program = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in {blocked!r}):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
import quorate, fl.client
for module in pkgutil.walk_packages(fl.client.__path__, "fl.client."):
    if not module.name.startswith("fl.client.flowergate."):  # a server, of a site
        importlib.import_module(module.name)
print(quorate.connect.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "connect\n", done.stderr
