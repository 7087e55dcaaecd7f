"""What the container files and the systemd unit say of the program is true of it."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.localnets import RPC_PORT, LocalNetwork
from cli.main import GROUPS
from cli.output import Exit
from fl.client import trainer
from fl.client.jobfile import read_job_file
from node.config import SETTINGS, load_config
from tests.cli.run import done, quorate

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VALIDATORS = ["v0", "v1", "v2", "v3"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LocalNetwork:
    """What the service `init` makes."""
    place = tmp_path_factory.mktemp("compose") / "network"
    command = [str(place) if word == "/network" else word for word in SERVICES["init"]["command"]]
    done(*command)
    return LocalNetwork.open(place)


def mounts(service: str) -> dict[str, str]:
    """Places in the container, by volume."""
    return {volume.split(":")[0]: volume.split(":")[1] for volume in SERVICES[service]["volumes"]}


def test_the_network_that_is_made_is_the_one_that_is_started(network: LocalNetwork) -> None:
    assert list(network.members) == VALIDATORS
    for name, member in network.members.items():
        assert member.rpc == f"http://{name}:{RPC_PORT}"


def test_each_validator_sees_its_own_keys_and_no_others() -> None:
    for name in VALIDATORS:
        assert mounts(name) == {"public": "/network", name: "/validator"}
        assert SERVICES[name]["volumes"][0].endswith(":ro")
    assert mounts("init") == {
        "public": "/network",
        "accounts": "/network/keys",
        **{name: f"/network/{name}" for name in VALIDATORS},
    }


def test_the_environment_of_a_validator_is_one_that_its_configuration_takes(network: LocalNetwork) -> None:
    environment = SERVICES["v0"]["environment"]
    config = load_config(network.home("v0") / "node.toml", environment)
    assert config.node.genesis == Path("/network/genesis.bin")
    listening = [config.rpc.listen.port, config.door_listen.port]
    assert listening[0] == RPC_PORT
    assert SERVICES["v0"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in listening]
    grace_s = int(SERVICES["v0"]["stop_grace_period"].removesuffix("s"))
    assert grace_s * 1000 > 2 * config.node.drain_ms


def test_trainers_are_started_as_their_program_wants_and_find_their_keys(network: LocalNetwork) -> None:
    for name in network.trainers:
        service = SERVICES[name]
        assert service["entrypoint"] == ["python", "-m", trainer.__name__]
        given = trainer._parser().parse_args(service["command"])
        assert given.key == Path(mounts(name)["accounts"]) / network.key_file(name).name
        assert given.network == Path("/network") / network.network_file.name
        assert service["environment"]["QUORATE_HOME"] in mounts(name).values()


def test_the_job_of_the_containers_can_be_drafted() -> None:
    draft = read_job_file(ROOT / "deploy" / "digits.toml").draft()
    assert draft.rules.name == "digits"
    assert draft.rules.target == sum(service.startswith("trainer-") for service in SERVICES)
    given = SERVICES["job"]["command"]
    assert given[:3] == ["job", "create", "/opt/quorate/share/digits.toml"]
    assert quorate(*given[:2], ROOT / "deploy" / "none.toml", *given[3:]).code == 2


def test_every_volume_is_declared_and_no_container_can_write_elsewhere() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == COMPOSE["volumes"].keys()
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def dockerfile() -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line and not line.startswith("#")]


def test_every_file_that_the_image_copies_is_there_and_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        source
        for words in dockerfile()
        if words[0] == "COPY" and not words[1].startswith("--from")
        for source in words[1:-1]
    ]
    assert set(copied) == set(sent)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert not [
        source for source in copied for line in ignored if line.startswith("**") and fnmatch.fnmatch(source, line)
    ]


def test_the_image_has_every_directory_that_a_volume_takes_its_owner_from() -> None:
    (install,) = [words for words in dockerfile() if "install" in words and "-d" in words]
    places = {place for service in SERVICES for place in mounts(service).values()}
    assert places <= set(install)


def test_the_image_runs_as_nobody_else_may_and_looks_after_itself() -> None:
    words = dockerfile()
    assert ["USER", "10001:10001"] in words
    (health,) = [line for line in words if line[0] == "HEALTHCHECK"]
    assert "".join(health[-3:]) == "[quorate,node,ready]"
    environment = next(line for line in words if line[0] == "ENV" and line[1].startswith("PATH"))
    assert "NUMBA_CACHE_DIR=/var/cache/quorate/numba" in environment
    assert all("/var/cache/quorate" in service["tmpfs"][1] for name, service in SERVICES.items() if name in VALIDATORS)


def test_systemd_does_not_restart_what_a_restart_cannot_mend() -> None:
    unit = (ROOT / "deploy" / "quorate.service").read_text()
    (codes,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert [int(code) for code in codes.split()] == [Exit.USAGE, Exit.UNVERIFIED]
    (start,) = re.findall(r"^ExecStart=/opt/quorate/bin/quorate (.*)$", unit, re.MULTILINE)
    assert start.startswith("node start --config ")
    assert "MemoryDenyWriteExecute=" not in unit


def test_the_pages_name_every_command_exit_code_and_setting() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in GROUPS if not re.search(rf"^    {name}\b", page, re.MULTILINE)] == []
    assert [code for code in Exit if f"| {int(code)} |" not in page] == []
    operators = (ROOT / "docs" / "operators.md").read_text()
    settings = [name for values in SETTINGS.values() for name in values]
    assert [name for name in settings if f"`{name}`" not in operators] == []


HELP = """
import sys
from cli.main import main
try:
    main(["--help"])
except SystemExit:
    heavy = {"numba", "numpy", "aiohttp", "rich", "cryptography", "asyncio"}
    print(sorted(heavy & sys.modules.keys()))
"""


def test_help_comes_without_importing_a_group() -> None:
    ran = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("group", list(GROUPS))
def test_every_group_has_its_help(group: str) -> None:
    assert done(group, "--help").out.startswith(f"Usage: quorate {group}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_completion(shell: str) -> None:
    assert "_QUORATE_COMPLETE" in done("completion", shell).out
