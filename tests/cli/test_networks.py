"""Networks by name: on the command line, and in `quorate.connect`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import quorate
from cli.localnets import LocalNetwork, Plan
from fl.client.errors import BadFile, BadInput
from fl.client.keyfile import save_key
from fl.client.networks import Networks
from tests.cli.run import done
from tests.cli.run import quorate as command
from tests.fl.client.chainlet import running


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalNetwork]:
    place = tmp_path_factory.mktemp("nets")
    return {name: LocalNetwork.create(place / name, Plan(1, name=name)) for name in ("wards", "banks")}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUORATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QUORATE_NETWORK", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_network_is_added_listed_used_shown_and_forgotten(nets: dict[str, LocalNetwork]) -> None:
    wards, key = nets["wards"], nets["wards"].key_file("creator")
    done("network", "add", "w", wards.network_file, "--key", key, "--use")
    done("network", "add", "b", nets["banks"].network_file)
    listed = {each["name"]: each for each in done("network", "list", "--json").data}
    assert listed["w"]["default"] and not listed["b"]["default"]
    assert (listed["w"]["chain_id"], listed["w"]["key"]) == (wards.chain_id, str(key.resolve()))
    shown = done("network", "show", "b", "--json").data
    assert shown["chain_id"] == nets["banks"].chain_id and len(shown["members"]) == 1
    done("network", "use", "b")
    assert Networks().choose().name == "b"
    done("network", "remove", "b")
    assert Networks().names() == ["w"] and Networks().config().network == ""


def test_an_unknown_name_is_told_those_there_are(nets: dict[str, LocalNetwork]) -> None:
    done("network", "add", "wards", nets["wards"].network_file)
    for arguments in (("job", "list", "--network", "ward"), ("network", "use", "ward"), ("network", "show", "ward")):
        ran = command(*arguments, "--json")
        assert (ran.code, ran.data["code"]) == (2, "UNKNOWN_NETWORK")
        assert ran.data["advice"] == "There are: wards."


def test_without_any_network_it_says_how_to_choose_one() -> None:
    ran = command("job", "list", "--json")
    assert (ran.code, ran.data["code"]) == (2, "NO_NETWORK") and "quorate network use NAME" in ran.data["advice"]


def test_a_name_never_leads_to_another_chain_than_before(nets: dict[str, LocalNetwork]) -> None:
    done("network", "add", "wards", nets["wards"].network_file)
    ran = command("network", "add", "wards", nets["banks"].network_file, "--json")
    assert (ran.code, ran.data["code"]) == (2, "NETWORK_EXISTS")
    done("network", "add", "wards", nets["wards"].network_file)
    assert command("network", "show", "wards", "--json").data["chain_id"] == nets["wards"].chain_id


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "x.toml", "n" * 65])
def test_what_could_be_a_path_is_no_name(nets: dict[str, LocalNetwork], name: str, home: Path) -> None:
    with pytest.raises(BadInput):
        Networks().add(name, nets["wards"].network_file)
    assert not home.exists()


def test_a_path_stays_a_path(nets: dict[str, LocalNetwork], tmp_path: Path) -> None:
    networks = Networks()
    networks.add("wards", nets["wards"].network_file)
    assert networks.choose(nets["banks"].network_file).file == nets["banks"].network_file
    assert networks.choose("./wards").file == Path("wards")
    assert networks.choose("wards.toml").file == Path("wards.toml")
    assert networks.choose("wards").name == "wards"


@pytest.mark.parametrize(
    "text", ["network = 3", "nets = 1", "keys = 1", "[keys]\na = 1", "network = '../x'", "=", "#" * 70_000]
)
def test_a_config_that_cannot_be_meant_is_refused(home: Path, text: str) -> None:
    home.mkdir()
    (home / "config.toml").write_text(text)
    with pytest.raises(BadFile) as refused:
        Networks().config()
    assert refused.value.code == "BAD_CONFIG"


def test_the_sdk_takes_a_name_and_its_key(tmp_path: Path, home: Path) -> None:
    with running(tmp_path) as chain:
        settings = chain.settings("creator", home="x")
        file, key = settings["network"], tmp_path / "creator.key"
        save_key(key, settings["key"], None)
        Networks().add("wards", file, key, usual=True)
        with quorate.connect("wards") as named, quorate.connect() as usual, quorate.connect(file) as reader:
            assert named.account == usual.account
            assert named.home.is_relative_to(home)
            with pytest.raises(BadInput):
                print(reader.account)


def test_a_shell_completes_the_names(nets: dict[str, LocalNetwork], home: Path) -> None:
    Networks().add("wards", nets["wards"].network_file)
    ran = subprocess.run(
        [sys.executable, "-m", "cli.main"],
        env={
            "QUORATE_HOME": str(home),
            "_QUORATE_COMPLETE": "bash_complete",
            "COMP_WORDS": "quorate job list --network wa",
            "COMP_CWORD": "4",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
    )
    assert ran.stdout.splitlines() == ["plain,wards"], ran
