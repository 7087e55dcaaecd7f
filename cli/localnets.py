"""A chain of several validators on this machine, each a process of its own, in one directory.

    DIR/consortium.toml   for clients                 DIR/v0/node.toml, keys/, data/, log.jsonl
    DIR/genesis.bin       for validators              DIR/keys/trainer-0.key …, creator.key, registrar.key
    DIR/params.toml       what it was made from       DIR/localnet.json: names, addresses, running processes

Nothing in it is secret and no key is encrypted: it is for trying things out. A process is known by its number and by
the moment it was started, so that one that merely inherited the number is never taken for ours.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chain.codec import encode
from chain.genesis import GenesisMember, Params
from cli.founding import Founding, found, render_founding
from cli.http import Place, ask
from cli.templates import node_toml
from fl.client.errors import BadFile, BadInput, QuorateError, TimedOut, Unreachable
from fl.client.keyfile import new_key
from fl.client.networkfile import NETWORK_FILE, network_of, render_network
from node.config import HostPort, is_override, load_config
from node.keystore import NO_PASSPHRASE, describe, generate, save_claim, save_keys

FORMAT = "quorate-localnet-1"
STATE_FILE = "localnet.json"
MOST_VALIDATORS = 10
MOST_TRAINERS = 2048

LINKS_PORT, RPC_PORT = 7600, 7680
"""In containers, where each has an address of its own; the data process has the ports after these."""

_FIRST_PORT, _LAST_PORT = 20_000, 32_000
"""Below the range that systems give to outgoing connections, so that none takes a port before its node does."""

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Member:
    """A validator of the network and, while it runs, its process."""

    name: str
    address: str
    rpc: str
    bulk: str = ""
    door: str = ""
    """Where the data process listens, unless that is one port above the others."""
    pid: int | None = None
    started: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What network to make. In one that is `audited` the first validator keeps every update."""

    validators: int = 4
    trainers: int = 0
    name: str = "localnet"
    containers: bool = False
    open_admission: bool = False
    params: Params = field(default_factory=Params)
    evaluators: int = 0
    audited: bool = False
    update_rounds: int | None = None
    """For how many rounds after their own all validators keep updates; None: as validators do."""


def compile_kernels() -> None:
    """Once on this machine, before several validators do it at the same time, each for itself."""
    from fl.kernels.golden import check_golden

    check_golden()


class LocalNetwork:
    def __init__(self, directory: Path, chain_id: str, members: list[Member], trainers: list[str]) -> None:
        self.directory = directory
        self.chain_id = chain_id
        self.members = {member.name: member for member in members}
        self.trainers = trainers
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._held: list[socket.socket] = []
        """As long as this is here, nobody else makes a network with these ports: nodes take them later, and again."""

    # Making and opening

    @classmethod
    def create(cls, directory: Path, plan: Plan) -> LocalNetwork:
        """Raises BadInput if there is something in the directory."""
        _check_plan(plan)
        if (directory / STATE_FILE).exists():
            raise BadInput(
                "LOCALNET_EXISTS",
                f"There is a network in {directory}.",
                "Use it, remove it, or name another directory.",
            )
        held = [] if plan.containers else free_ports(4 * plan.validators)
        members = _loopback(held) if held else _containers(plan.validators)
        for place, member in enumerate(members):
            path = directory / member.name / "node.toml"
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_text(_node_toml(member, plan, archive=plan.audited and place == 0))
            # A directory that is too deep for a socket is refused before there are keys in it.
            load_config(path, {})
        people = [("registrar", ()), ("creator", ("creator",))]
        people += [(f"trainer-{number}", ("trainer",)) for number in range(plan.trainers)]
        people += [(f"evaluator-{number}", ("evaluator",)) for number in range(plan.evaluators)]
        accounts = {name: new_key(directory / "keys" / f"{name}.key", None).public for name, _ in people}
        founding = Founding(
            name=plan.name,
            time_ms=int(datetime.now(UTC).timestamp()) * 1000,
            admission="open" if plan.open_admission else "registrars",
            registrars=(accounts["registrar"],),
            params=plan.params,
            members=tuple(GenesisMember(name, accounts[name], roles) for name, roles in people if roles),
        )
        claims = []
        for member in members:
            home, keys = directory / member.name, generate(os.urandom)
            save_keys(home / "keys", keys, NO_PASSPHRASE, os.urandom)
            claims.append(describe(keys, member.name, member.address, member.rpc))
            save_claim(home / "keys", claims[-1])
        genesis = found(claims, founding)
        (directory / "params.toml").write_text(render_founding(founding))
        (directory / "genesis.bin").write_bytes(encode(genesis))
        (directory / NETWORK_FILE).write_text(render_network(network_of(genesis)))
        _initialise(directory, members)
        trainers = [name for name, roles in people if "trainer" in roles]
        made = cls(directory, genesis.chain_id.hex(), members, trainers)
        made._held = held
        made._save()
        return made

    @classmethod
    def open(cls, directory: Path) -> LocalNetwork:
        path = directory / STATE_FILE
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            members = [Member(**each) for each in content["validators"]]
            return cls(directory, content["chain_id"], members, content["trainers"])
        except FileNotFoundError:
            raise BadInput(
                "NO_LOCALNET", f"There is no network in {directory}.", f"Make one: quorate localnet init {directory}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadFile("BAD_LOCALNET", f"{path} cannot be used: {error}.", "Make another network.") from error

    def _save(self) -> None:
        content = {
            "format": FORMAT,
            "chain_id": self.chain_id,
            "validators": [asdict(member) for member in self.members.values()],
            "trainers": self.trainers,
        }
        temporary = self.directory / f".{STATE_FILE}.part"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, self.directory / STATE_FILE)

    # Where things are

    @property
    def network_file(self) -> Path:
        return self.directory / NETWORK_FILE

    def key_file(self, account: str) -> Path:
        return self.directory / "keys" / f"{account}.key"

    def home(self, name: str) -> Path:
        return self.directory / self.member(name).name

    def member(self, name: str) -> Member:
        if name not in self.members:
            raise BadInput("UNKNOWN_VALIDATOR", f"There is no {name}.", f"There are: {', '.join(self.members)}.")
        return self.members[name]

    # Processes

    def running(self, name: str) -> bool:
        member = self.member(name)
        if member.pid is None:
            return False
        child = self._children.get(member.pid)
        if child is not None and child.poll() is not None:
            return False
        return _started(member.pid) == member.started

    def start(self, name: str) -> int:
        """The process number; that of the process which runs already, if one does."""
        member = self.member(name)
        if self.running(name):
            assert member.pid is not None
            return member.pid
        if not member.rpc.startswith("http://127.0.0.1:"):
            raise BadInput(
                "FOR_CONTAINERS", "This network was made for containers.", "Start it with: docker compose up"
            )
        home = self.home(name)
        arguments = [sys.executable, "-m", "cli.main", "node", "start", "--config", str(home / "node.toml")]
        house = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (house, os.environ.get("PYTHONPATH"))))
        # Settings of the shell are for one validator; here they would be for all.
        environment = {name: value for name, value in os.environ.items() if not is_override(name)}
        with open(home / "log.jsonl", "ab") as log:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Of its own session, so that an interrupt on this terminal does not stop it.
                start_new_session=True,
                env={**environment, "PYTHONPATH": path},
            )
        self._children[child.pid] = child
        self.members[name] = replace(member, pid=child.pid, started=_started(child.pid))
        self._save()
        return child.pid

    def wait_ready(
        self, names: Iterable[str], timeout_s: float, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Raises QuorateError with the end of the log if one ends, TimedOut if one is not ready in time."""
        waiting, ends = list(names), time.monotonic() + timeout_s
        total = len(waiting)
        while True:
            waiting = [name for name in waiting if not self._ready(name)]
            say(f"{total - len(waiting)} of {total} ready")
            if not waiting:
                return
            if time.monotonic() > ends:
                raise TimedOut(
                    "NOT_READY",
                    f"{', '.join(waiting)} did not become ready within {timeout_s:g} s.",
                    f"Look at {self.home(waiting[0]) / 'log.jsonl'}",
                )
            time.sleep(_POLL_S)

    def _ready(self, name: str) -> bool:
        if not self.running(name):
            log = self.home(name) / "log.jsonl"
            raise QuorateError("VALIDATOR_ENDED", f"{name} ended: {_last_line(log)}", f"Look at {log}")
        try:
            return ask(Place(self.members[name].rpc), "GET", "/v1/ready", timeout_s=2.0).status == 200
        except Unreachable:
            return False

    def stop(self, names: Iterable[str], patience_s: float = 15.0) -> dict[str, str]:
        """SIGTERM, and SIGKILL for whoever is still there afterwards; how each ended."""
        ended = dict.fromkeys(names, "was not running")
        asked = [name for name in ended if self.running(name)]
        for name in asked:
            self._signal(name, signal.SIGTERM)
            ended[name] = "stopped"
        ends = time.monotonic() + patience_s
        while any(self.running(name) for name in asked) and time.monotonic() < ends:
            time.sleep(_POLL_S)
        for name in asked:
            if self.running(name):
                self.kill(name)
                ended[name] = "killed"
        self._forget(ended)
        return ended

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash does; returns once the process is gone."""
        if self.running(name):
            self._signal(name, signal.SIGKILL)
            while self.running(name):
                time.sleep(_POLL_S / 10)
        self._forget([name])

    def _signal(self, name: str, number: int) -> None:
        pid = self.members[name].pid
        if pid is None:
            return
        try:
            # Held by its descriptor first and recognised then, so that the number cannot change hands in between.
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self.running(name):
                signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.members[name] = replace(self.members[name], pid=None, started="")
        self._save()

    # Looking at it

    def status(self, name: str) -> dict[str, Any] | None:
        """What /v1/status says; None if it does not answer."""
        try:
            reply = ask(Place(self.member(name).rpc), "GET", "/v1/status", timeout_s=2.0)
        except Unreachable:
            return None
        return reply.data if reply.status == 200 else None


def make_room(directory: Path, mark: str) -> None:
    """An empty directory for a run that writes the file `mark`, where an earlier one may have been; nothing else is
    ever removed."""
    if directory.exists():
        if any(directory.iterdir()) and not (directory / mark).exists():
            raise BadInput("NOT_EMPTY", f"{directory} holds something else.", "Name another with --directory.")
        if (directory / STATE_FILE).exists():
            earlier = LocalNetwork.open(directory)
            for name in earlier.members:
                earlier.kill(name)
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / mark).write_text("{}\n")


def _check_plan(plan: Plan) -> None:
    if not 1 <= plan.validators <= MOST_VALIDATORS:
        raise BadInput("BAD_SIZE", f"{plan.validators} validators?", f"A local network has 1 to {MOST_VALIDATORS}.")
    for what, count in (("trainers", plan.trainers), ("evaluators", plan.evaluators)):
        if not 0 <= count <= MOST_TRAINERS:
            raise BadInput("BAD_SIZE", f"{count} {what}?", f"A local network has up to {MOST_TRAINERS}.")


def _containers(count: int) -> list[Member]:
    return [Member(f"v{number}", f"v{number}:{LINKS_PORT}", f"http://v{number}:{RPC_PORT}") for number in range(count)]


def _loopback(held: Sequence[socket.socket]) -> list[Member]:
    ports = iter([each.getsockname()[1] for each in held])
    return [
        Member(
            f"v{number}",
            f"127.0.0.1:{next(ports)}",
            f"http://127.0.0.1:{next(ports)}",
            f"127.0.0.1:{next(ports)}",
            f"127.0.0.1:{next(ports)}",
        )
        for number in range(len(held) // 4)
    ]


def free_ports(count: int) -> list[socket.socket]:
    """Bound to ports that nobody uses, which stay free of others until these are closed. A server can listen there all
    the same: it may share an address on which nobody listens, as servers ask for."""
    start = random.randrange(_FIRST_PORT, _LAST_PORT - 10 * count)
    found: list[socket.socket] = []
    for port in range(start, _LAST_PORT):
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.close()
            continue
        # Not before it is bound: it shares with servers that come, and with nobody who was there.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.append(probe)
        if len(found) == count:
            return found
    for each in found:
        each.close()
    raise QuorateError("NO_PORTS", f"Fewer than {count} ports are free on this machine.", "Stop some programs.")


def free_port() -> int:
    (held,) = free_ports(1)
    with held:
        port: int = held.getsockname()[1]
        return port


def _node_toml(member: Member, plan: Plan, archive: bool) -> str:
    links = HostPort("0.0.0.0", LINKS_PORT) if plan.containers else member.address
    rpc = HostPort("0.0.0.0", RPC_PORT) if plan.containers else member.rpc.removeprefix("http://")
    data: dict[tuple[str, str], object] = {("data", "listen"): member.bulk, ("data", "door"): member.door}
    if plan.update_rounds is not None:
        data["data", "keep_update_rounds"] = plan.update_rounds
    return node_toml(
        {
            ("node", "data_dir"): "data",
            ("node", "genesis"): "../genesis.bin",
            ("node", "keys"): "keys",
            ("node", "passphrase"): "insecure-no-passphrase",
            ("node", "drain_ms"): 2_000,
            ("links", "listen"): links,
            ("rpc", "listen"): rpc,
            ("data", "archive"): archive,
        }
        | {setting: value for setting, value in data.items() if value not in ("", None)}
    )


def _initialise(directory: Path, members: Iterable[Member]) -> None:
    from node.process import initialise

    for member in members:
        initialise(load_config(directory / member.name / "node.toml", {}), rejoin=False)


def _started(pid: int) -> str:
    """The moment at which the process was started; empty if there is none or it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]


def _last_line(log: Path) -> str:
    try:
        lines = log.read_bytes()[-8192:].decode(errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    for line in reversed(lines):
        try:
            return str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):
            return line
    return "it left no log"
