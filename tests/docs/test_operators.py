"""docs/operators.md, done as it says: four organisations found a chain, start their nodes, and one loses its disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cli.localnets import free_ports

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
NAMES = ("north", "east", "south", "west")
QUORATE = Path(sys.executable).parent / "quorate"
HANG_S = 120


class Machine:
    """A directory for each organisation, and what runs in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held = free_ports(4 * len(NAMES))
        ports = iter([each.getsockname()[1] for each in self.held])
        self.ports = dict(zip(NAMES, zip(*[ports] * 4, strict=True), strict=True))
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def say(self, *arguments: object, at: str = "", code: int = 0, **environment: str) -> str:
        ran = subprocess.run(
            [QUORATE, *map(str, arguments)],
            cwd=self.root / at,
            env={**os.environ, "QUORATE_HOME": str(self.root / "home"), **environment},
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert ran.returncode == code, ran
        return ran.stdout + ran.stderr

    def start(self, name: str) -> None:
        with open(self.root / f"{name}.log", "ab") as log:
            command = [QUORATE, "node", "start"]
            self.running[name] = subprocess.Popen(command, cwd=self.root / name, stdout=log, stderr=log)

    def wait(self, name: str) -> None:
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            with suppress(AssertionError):
                self.say("node", "ready", at=name)
                return
            time.sleep(0.2)
        pytest.fail((self.root / f"{name}.log").read_text()[-2000:])

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(HANG_S)
        for each in self.held:
            each.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def configuration(ports: tuple[int, ...]) -> str:
    """The one of the page for practising, with other ports."""
    (text,) = re.findall(r"^(    \[node\]\n    data_dir = \"data\"\n(?:    .*\n)+)", PAGE, re.MULTILINE)
    for known, port in zip(("7610", "7690", "7611", "7691"), ports, strict=True):
        text = text.replace(f"127.0.0.1:{known}", f"127.0.0.1:{port}")
    return str(re.sub("^    ", "", text, flags=re.MULTILINE))


def found(machine: Machine) -> None:
    for name, (links, rpc, _, _) in machine.ports.items():
        home = machine.root / name
        home.mkdir()
        (home / "passphrase").write_text(f"secret of {name}\n")
        (home / "passphrase").chmod(0o600)
        addresses = ("--address", f"127.0.0.1:{links}", "--rpc", f"http://127.0.0.1:{rpc}")
        machine.say("keys", "new", "keys", "--name", name, *addresses, at=name, **from_file())
        shutil.copy(home / "keys" / "validator.json", machine.root / f"{name}.json")
        (home / "node.toml").write_text(configuration(machine.ports[name]))
    for account in ("clinic-1", "clinic-2", "registrar"):
        machine.say("keys", "new-account", f"{account}.key", "--insecure-no-passphrase")
    public = {each: machine.say("keys", "public", f"{each}.key").strip() for each in ("clinic-1", "registrar")}
    (text,) = re.findall(r"^(    name = \"hospitals\"\n(?:    .*\n|\n)+?)(?=\n\S)", PAGE, re.MULTILINE)
    registrars = text.replace('registrars = ["01…"]', f'registrars = ["{public["registrar"]}"]')
    founding = registrars.replace('key = "01…"', f'key = "{public["clinic-1"]}"')
    (machine.root / "params.toml").write_text(founding.replace("\n    ", "\n").lstrip())
    machine.say("genesis", "build", *(f"{name}.json" for name in NAMES), "params.toml")
    assert "1 claims are in it" in machine.say("genesis", "verify", "genesis.bin", "north.json")
    machine.say("network", "export", "genesis.bin", "-o", "consortium.toml")
    for name in NAMES:
        shutil.copy(machine.root / "genesis.bin", machine.root / name)


def from_file() -> dict[str, str]:
    return {"QUORATE_PASSPHRASE_FROM": "file:passphrase"}


@pytest.mark.slow
def test_the_operators_guide_founds_a_chain_and_brings_back_a_lost_disk(machine: Machine) -> None:
    found(machine)
    for name in NAMES:
        machine.say("node", "init", at=name)
        machine.start(name)
    for name in NAMES:
        machine.wait(name)

    network = ("--network", "consortium.toml", "--key", "registrar.key")
    public = machine.say("keys", "public", "clinic-2.key").strip()
    machine.say("member", "register", "clinic-2", public, "--role", "trainer", "--organisation", "clinic", *network)
    assert "clinic-2" in machine.say("member", "list", *network)

    machine.say("node", "drain", at="north")
    machine.say("node", "stop", at="north")
    machine.running.pop("north").wait(HANG_S)
    machine.start("north")
    machine.wait("north")

    lost, west = machine.running.pop("west"), machine.root / "west"
    lost.kill()
    lost.wait(HANG_S)
    west.rename(machine.root / "west.lost")
    west.mkdir()
    for kept in ("genesis.bin", "node.toml", "passphrase"):
        shutil.copy(machine.root / "west.lost" / kept, west / kept)
    shutil.copytree(machine.root / "west.lost" / "keys", west / "keys")
    assert "NOT_INITIALISED" in machine.say("node", "start", at="west", code=6)
    machine.say("node", "init", "--rejoin-with-same-key", at="west")
    machine.start("west")
    machine.wait("west")
    assert "clinic-2" in machine.say("member", "list", *network)
    journals = ("west.lost/data", "--genesis", "genesis.bin")
    assert "No validator contradicted itself" in machine.say("evidence", "scan", *journals)
