"""Data directories and processes: what may start where, and what must not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chain.codec import decode, encode
from chain.genesis import MAX_GENESIS_BYTES, Genesis
from cli.http import Place, ask
from cli.localnets import LocalNetwork, Plan
from cli.main import main
from fl.kernels import KERNEL_VERSION
from fl.kernels.golden import check_golden
from node import datadir, process
from node.config import ConfigError, HostPort, load_config
from node.datadir import AlreadyInitialised, CannotRejoin, NotInitialised, WrongOwner
from node.node import JOURNAL
from node.ports import PortError
from node.ports.kv import LevelKv
from node.process import addresses_of, identify, initialise, tell_systemd
from node.store import FORMAT_VERSION, StateAhead
from tests.node.load import HANG_S, until


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LocalNetwork.create(tmp_path_factory.mktemp("made") / "net", Plan(validators=4)).directory


@pytest.fixture
def net(made: Path, tmp_path: Path) -> Path:
    """Four validators that have never run."""
    return Path(shutil.copytree(made, tmp_path / "net"))


def config_of(net: Path, name: str = "v0") -> Path:
    return net / name / "node.toml"


def start(net: Path, name: str = "v0") -> None:
    """Opens the node as its process does, in this one; every refusal comes out."""
    config = load_config(config_of(net, name), {})
    identity = identify(config)

    async def opened() -> None:
        async with process._ports(config, identity) as ports:
            datadir.check_owner(ports.disk, identity.genesis.chain_id, identity.consensus.public)
            await process.Node.open(identity.genesis, identity.consensus, ports)

    asyncio.run(opened())


def init(net: Path, name: str = "v0", *, rejoin: bool = False) -> None:
    initialise(load_config(config_of(net, name), {}), rejoin=rejoin)


def edit_owner(net: Path, **changes: object) -> None:
    path = net / "v0" / "data" / datadir.OWNER
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_initialised_directory_opens(net: Path) -> None:
    start(net)


def test_starting_never_makes_a_directory(net: Path) -> None:
    shutil.rmtree(net / "v0" / "data")
    with pytest.raises(NotInitialised, match="node init"):
        start(net)


def test_a_node_with_a_deleted_journal_refuses(net: Path) -> None:
    shutil.rmtree(net / "v0" / "data" / JOURNAL)
    with pytest.raises(PortError) as refused:
        start(net)
    assert refused.value.code == "LOG_MISSING"


def test_initialising_twice_is_refused_and_changes_nothing(net: Path) -> None:
    journal = net / "v0" / "data" / JOURNAL / "0000000001"
    before = journal.read_bytes()
    with pytest.raises(AlreadyInitialised, match="start the node"):
        init(net)
    assert journal.read_bytes() == before


def test_a_lost_journal_is_not_made_anew_by_initialising(net: Path) -> None:
    shutil.rmtree(net / "v0" / "data" / JOURNAL)
    with pytest.raises(AlreadyInitialised, match="rejoin-with-same-key"):
        init(net)


def test_a_lost_journal_can_be_rejoined_without(net: Path) -> None:
    shutil.rmtree(net / "v0" / "data" / JOURNAL)
    init(net, rejoin=True)
    start(net)
    assert json.loads((net / "v0" / "data" / datadir.OWNER).read_text())["rejoining"]


def test_rejoining_in_an_empty_directory_works_too(net: Path) -> None:
    shutil.rmtree(net / "v0" / "data")
    init(net, rejoin=True)
    start(net)


def test_rejoining_beside_a_journal_is_refused(net: Path) -> None:
    with pytest.raises(AlreadyInitialised, match="there is a journal"):
        init(net, rejoin=True)


@pytest.mark.parametrize("validators", [1, 2, 3])
def test_a_chain_of_three_or_fewer_takes_nobody_back(tmp_path: Path, validators: int) -> None:
    net = LocalNetwork.create(tmp_path / "net", Plan(validators=validators)).directory
    shutil.rmtree(net / "v0" / "data")
    with pytest.raises(CannotRejoin, match=f"a chain of {validators}"):
        init(net, rejoin=True)


def test_an_initialisation_that_was_cut_short_does_not_start_and_can_be_repeated(net: Path) -> None:
    edit_owner(net, complete=False)
    with pytest.raises(NotInitialised, match="cut short"):
        start(net)
    init(net)
    start(net)


def test_a_rejoining_that_was_cut_short_cannot_become_an_ordinary_start(net: Path) -> None:
    edit_owner(net, complete=False, rejoining=True)
    with pytest.raises(NotInitialised, match="rejoin-with-same-key"):
        start(net)
    with pytest.raises(CannotRejoin):
        init(net)
    init(net, rejoin=True)
    start(net)


def test_the_journal_of_another_validator_is_refused(net: Path) -> None:
    shutil.rmtree(net / "v0" / "data")
    shutil.copytree(net / "v1" / "data", net / "v0" / "data")
    with pytest.raises(WrongOwner, match="the votes of the validator"):
        start(net)


def test_a_directory_of_another_chain_is_refused(net: Path) -> None:
    edit_owner(net, chain_id="00" * 32)
    with pytest.raises(WrongOwner, match="belongs to chain"):
        start(net)


def test_a_newer_format_is_refused_and_left_as_it_is(net: Path) -> None:
    start(net)
    rows = LevelKv(net / "v0" / "data" / process.ROWS)
    rows.write({b"m/format": (FORMAT_VERSION + 1).to_bytes(2, "big")})
    rows.close()
    journal = net / "v0" / "data" / JOURNAL / "0000000001"
    journal.write_bytes(journal.read_bytes() + b"torn")
    with pytest.raises(PortError, match=f"format {FORMAT_VERSION + 1}") as refused:
        start(net)
    assert refused.value.code == "WRONG_STORE"
    assert journal.read_bytes().endswith(b"torn")


def test_keys_of_no_validator_are_refused(net: Path, tmp_path: Path) -> None:
    other = LocalNetwork.create(tmp_path / "other", Plan(validators=1)).directory
    shutil.copy(other / "genesis.bin", net / "genesis.bin")
    with pytest.raises(ConfigError, match="not those of a validator"):
        start(net)


def test_a_chain_of_other_kernels_is_refused_before_anything_is_opened(net: Path) -> None:
    path = net / "genesis.bin"
    genesis = decode(Genesis, path.read_bytes(), MAX_GENESIS_BYTES)
    path.write_bytes(encode(replace(genesis, params=replace(genesis.params, kernel_version=KERNEL_VERSION + 1))))
    with pytest.raises(ConfigError, match=f"kernels of version {KERNEL_VERSION + 1}.*Install the version"):
        start(net)


def test_an_address_for_nobody_is_refused(net: Path) -> None:
    config = load_config(config_of(net), {})
    genesis = identify(config).genesis
    wrong = replace(config, links=replace(config.links, addresses={"v9": HostPort("127.0.0.1", 1)}))
    with pytest.raises(ConfigError, match="v9"):
        addresses_of(wrong, genesis)


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        tell_systemd("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_the_kernels_of_this_machine_pass() -> None:
    check_golden()


# Processes


class Validator:
    """A network of one, as a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.network = LocalNetwork.create(directory, Plan(validators=1))
        self.place = Place(self.network.members["v0"].rpc)

    @property
    def config(self) -> Path:
        return config_of(self.network.directory)

    def run(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", "node", "start", "--config", str(self.config)],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def answers(self, path: str = "/v1/ready") -> bool:
        try:
            return ask(self.place, "GET", path, timeout_s=2.0).status == 200
        except Exception:
            return False


@pytest.fixture
def alone(tmp_path: Path) -> Validator:
    return Validator(tmp_path / "net")


@pytest.fixture
def running(alone: Validator) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(**environment: str) -> subprocess.Popen[str]:
        started.append(alone.run(**environment))
        until("it answers", alone.answers)
        return started[-1]

    yield run
    for each in started:
        if each.poll() is None:
            each.kill()
        each.communicate()


def messages(ended: subprocess.Popen[str]) -> list[str]:
    _, errors = ended.communicate(timeout=HANG_S)
    return [json.loads(line)["message"] for line in errors.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(
    running: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    node = running()
    node.send_signal(number)
    said = messages(node)
    assert node.returncode == 0
    assert [each for each in said if each in ("started", "stopping", "stopped")] == ["started", "stopping", "stopped"]


@pytest.mark.slow
def test_a_second_process_in_the_same_directory_is_refused(
    alone: Validator, running: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    running()
    with pytest.raises(SystemExit) as end:
        main(["node", "start", "--config", str(alone.config)])
    assert end.value.code == 1
    assert "another process" in capsys.readouterr().err.lower()
    assert alone.answers()


@pytest.mark.slow
def test_the_environment_reaches_the_process(running: Callable[..., subprocess.Popen[str]]) -> None:
    node = running(QUORATE_LOG__LEVEL="warning")
    node.send_signal(signal.SIGTERM)
    assert "started" not in messages(node)


@pytest.mark.slow
def test_a_port_that_is_taken_ends_the_process_with_a_sentence(
    alone: Validator, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    for taken in ("rpc", "links"):
        listen = getattr(load_config(alone.config, {}), taken).listen
        with socket.create_server((listen.host, listen.port)):
            node = alone.run()
            _, errors = node.communicate(timeout=HANG_S)
        assert node.returncode == 1
        assert f"Cannot listen on {listen}" in errors


@pytest.mark.slow
def test_an_older_copy_of_the_logs_is_refused(
    alone: Validator, running: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    data = alone.network.directory / "v0" / "data"
    shutil.copytree(data / JOURNAL, tmp_path / "old")
    node = running()
    until("a block", lambda: ask(alone.place, "GET", "/v1/status").data["certified_height"] > 0)
    node.send_signal(signal.SIGTERM)
    messages(node)
    shutil.rmtree(data / JOURNAL)
    shutil.copytree(tmp_path / "old", data / JOURNAL)
    with pytest.raises(StateAhead):
        start(alone.network.directory)
    again = alone.run()
    _, errors = again.communicate(timeout=HANG_S)
    assert again.returncode == 6, errors
