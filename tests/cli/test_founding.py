"""Keys, genesis and network files: what organisations exchange before there is a chain."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from chain.codec import decode
from chain.genesis import MAX_GENESIS_BYTES, Genesis
from cli.founding import parse_founding, render_founding
from fl.client.networkfile import network_of, read_network
from tests.cli.run import done, quorate

NAMES = ("ash", "birch", "cedar", "dogwood")
PARAMS = """
name = "woods"
time = 2026-01-01T00:00:00.123Z
registrars = ["{registrar}"]

[params]
delta_ms = 300

[[member]]
name = "alice"
key = "{alice}"
roles = ["trainer"]
organisation = "grove"
"""


@pytest.fixture(scope="module")
def woods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("woods")
    for name in NAMES:
        done(
            "keys", "new", place / name, "--name", name, "--address", f"{name}.example:7600", "--insecure-no-passphrase"
        )
        (place / f"{name}.json").write_bytes((place / name / "validator.json").read_bytes())
    public = {}
    for account in ("registrar", "alice"):
        done("keys", "new-account", place / f"{account}.key", "--insecure-no-passphrase")
        public[account] = done("keys", "public", place / f"{account}.key").out.strip()
    (place / "params.toml").write_text(PARAMS.format(**public))
    return place


@pytest.fixture(scope="module")
def genesis(woods: Path) -> Path:
    claims = [woods / f"{name}.json" for name in NAMES]
    done("genesis", "build", *claims, woods / "params.toml", "-o", woods / "genesis.bin")
    return woods / "genesis.bin"


def edited(woods: Path, tmp_path: Path, edit: Callable[[str], str]) -> Path:
    path = tmp_path / "params.toml"
    path.write_text(edit((woods / "params.toml").read_text()))
    return path


def test_the_same_files_in_any_order_give_the_same_genesis(woods: Path, genesis: Path, tmp_path: Path) -> None:
    orders = list(permutations([*(woods / f"{name}.json" for name in NAMES), woods / "params.toml"]))
    for number, files in enumerate(orders[::17]):
        done("genesis", "build", *files, "-o", tmp_path / f"{number}.bin")
        assert (tmp_path / f"{number}.bin").read_bytes() == genesis.read_bytes()


def test_a_genesis_holds_what_its_params_say(genesis: Path) -> None:
    found = decode(Genesis, genesis.read_bytes(), MAX_GENESIS_BYTES)
    assert found.params.delta_ms == 300
    assert found.time_ms == 1767225600123
    assert [(member.name, member.organisation) for member in found.members] == [("alice", "grove")]
    assert [validator.name for validator in found.validators] == list(NAMES)


def test_a_genesis_verifies_against_its_claims_and_its_chain_id(woods: Path, genesis: Path) -> None:
    chain_id = done("genesis", "show", genesis, "--json").data["chain_id"]
    ran = done("genesis", "verify", genesis, woods / "ash.json", "--chain-id", chain_id, "--json")
    assert ran.data["claims"] == ["ash"]


def test_another_chain_id_is_exit_code_6(genesis: Path) -> None:
    ran = quorate("genesis", "verify", genesis, "--chain-id", "00" * 32, "--json")
    assert ran.code == 6
    assert ran.data["code"] == "OTHER_CHAIN"


def test_a_claim_that_is_not_in_the_genesis_is_exit_code_6(woods: Path, genesis: Path, tmp_path: Path) -> None:
    done("keys", "new", tmp_path / "k", "--name", "ash", "--address", "ash.example:1", "--insecure-no-passphrase")
    ran = quorate("genesis", "verify", genesis, tmp_path / "k" / "validator.json")
    assert ran.code == 6
    assert "not in this genesis" in ran.err


def test_a_claim_that_was_changed_on_its_way_is_refused(woods: Path, tmp_path: Path) -> None:
    claim = json.loads((woods / "ash.json").read_text())
    (tmp_path / "ash.json").write_text(json.dumps({**claim, "address": "evil.example:7600"}))
    ran = quorate("genesis", "build", tmp_path / "ash.json", woods / "params.toml", "-o", tmp_path / "g", "--json")
    assert (ran.code, ran.data["code"]) == (2, "UNPROVEN_KEYS")
    assert not (tmp_path / "g").exists()


def test_building_never_replaces_another_genesis(woods: Path, genesis: Path) -> None:
    before = genesis.read_bytes()
    ran = quorate("genesis", "build", woods / "ash.json", woods / "params.toml", "-o", genesis)
    assert ran.code == 2
    assert genesis.read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace("delta_ms", "delta_m"), "did you mean 'delta_ms'"),
        (lambda text: text.replace("123Z", "123"), "time zone"),
        (lambda text: text.replace("delta_ms = 300", "delta_ms = 0"), "delta_ms is 0"),
        (lambda text: text.replace("delta_ms = 300", "delta_ms = true"), "not a int"),
        (lambda text: text.replace('name = "woods"', ""), "lacks 'name'"),
        (lambda text: text.replace("registrars", "registrar"), "unknown"),
        (lambda text: text.replace('roles = ["trainer"]', "roles = [1]"), "list names"),
        (lambda text: 'validators = ["ash", "elm"]\n' + text, "no validator.json of elm"),
        (lambda text: 'validators = ["ash"]\n' + text, "Nothing is said of birch, cedar, dogwood"),
        (lambda text: "[[", "cannot be used"),
    ],
)
def test_bad_params_are_refused_with_what_is_wrong(
    woods: Path, tmp_path: Path, edit: Callable[[str], str], said: str
) -> None:
    claims = [woods / f"{name}.json" for name in NAMES]
    ran = quorate("genesis", "build", *claims, edited(woods, tmp_path, edit), "-o", tmp_path / "g")
    assert ran.code == 2
    assert said in ran.err


def test_a_change_of_validators_is_built_in(woods: Path, tmp_path: Path) -> None:
    change = '\n[[set_change]]\ndue_height = 50\nvalidators = ["birch", "cedar", "dogwood"]\n'
    params = edited(woods, tmp_path, lambda text: 'validators = ["ash", "birch", "cedar"]\n' + text + change)
    claims = [woods / f"{name}.json" for name in NAMES]
    done("genesis", "build", *claims, params, "-o", tmp_path / "g")
    shown = done("genesis", "show", tmp_path / "g", "--json").data
    assert shown["n"] == 3
    assert shown["set_changes"] == [{"due_height": 50, "validators": ["birch", "cedar", "dogwood"]}]


def test_the_template_is_a_file_that_can_be_used() -> None:
    text = done("genesis", "template", "--name", "north").out
    founding = parse_founding(text)
    assert founding.name == "north"
    assert render_founding(founding, every_param=True) == text.partition("\n# [[member]]")[0]


def test_a_name_of_any_characters_survives_its_way_through_toml() -> None:
    for name in ('quote"d', "back\\slash", "naïve 🌲", "tab\tbed", "del\x7f"):
        text = render_founding(parse_founding(f"name = {json.dumps('x')}\ntime = 2026-01-01T00:00:00Z"))
        assert tomllib.loads(text)["name"] == "x"
        from cli.founding import quoted

        assert tomllib.loads(f"name = {quoted(name)}")["name"] == name


def test_the_network_file_leads_to_the_same_checkpoint(genesis: Path, tmp_path: Path) -> None:
    done("network", "export", genesis, "-o", tmp_path / "consortium.toml")
    found = decode(Genesis, genesis.read_bytes(), MAX_GENESIS_BYTES)
    assert read_network(tmp_path / "consortium.toml") == network_of(found)


def test_keys_are_never_overwritten(woods: Path) -> None:
    before = (woods / "ash" / "consensus.key.json").read_bytes()
    ran = quorate("keys", "new", woods / "ash", "--name", "ash", "--address", "a:1", "--insecure-no-passphrase")
    assert ran.code == 2
    assert (woods / "ash" / "consensus.key.json").read_bytes() == before


def test_a_claim_is_made_again_with_another_address(woods: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct horse\n")
    (tmp_path / "secret").chmod(0o600)
    source = f"file:{tmp_path / 'secret'}"
    done("keys", "new", tmp_path / "k", "--name", "elm", "--address", "elm.example:1", "--passphrase", source)
    before = done("keys", "show", tmp_path / "k", "--json").data
    done("keys", "claim", tmp_path / "k", "--address", "elm.example:2", "--passphrase", source)
    after = done("keys", "show", tmp_path / "k", "--json").data
    assert after == {**before, "address": "elm.example:2"}
    assert quorate("keys", "claim", tmp_path / "k", "--passphrase", "credential:x").code == 2


def test_an_unencrypted_key_is_remarked_upon(tmp_path: Path) -> None:
    ran = done("keys", "new-account", tmp_path / "a.key", "--insecure-no-passphrase")
    assert "not encrypted" in ran.err


def test_showing_a_key_shows_nothing_secret(woods: Path) -> None:
    seed = json.loads((woods / "ash" / "consensus.key.json").read_text())["seed"]
    for place in (woods / "ash", woods / "ash" / "consensus.key.json", woods / "alice.key"):
        assert seed not in done("keys", "show", place, "--json").out
    assert len(done("keys", "show", woods / "alice.key", "--json").data["account"]) == 64


@pytest.mark.parametrize("address", ["nowhere", "a:0", "a:99999", ":1"])
def test_an_address_that_is_none_makes_no_keys(tmp_path: Path, address: str) -> None:
    ran = quorate("keys", "new", tmp_path / "k", "--name", "x", "--address", address, "--insecure-no-passphrase")
    assert ran.code == 2
    assert not (tmp_path / "k").exists()
