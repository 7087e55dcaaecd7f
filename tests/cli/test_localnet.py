"""A local network of real processes, and everything that the command can do with it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chain.block import block_digest
from chain.certificate import Notarize, Vote, VoteKind, sign_vote
from chain.codec import encode
from chain.genesis import genesis_header
from chain.keys import SigningKey
from cli.founding import read_genesis
from cli.localnets import LocalNetwork
from consensus.ordering.records import OwnVote
from node.keystore import NO_PASSPHRASE, load_key
from node.node import JOURNAL
from node.ports.disk import FileDisk
from node.records import journal_entry
from node.segments import SegmentedLog
from tests.cli.run import done, quorate
from tests.node.load import until

JOB = """
name = "toy"
rounds = 2
target = 2
deadline_s = 600
privacy = "visible-to-validators"
metrics = ["loss"]
[model]
file = "model.npz"
[config]
lr = {{ "0" = 0.1, "2" = 0.05 }}
{more}
"""


# Made, not started


@pytest.mark.parametrize(("n", "f", "q"), [(1, 0, 1), (3, 0, 3), (4, 1, 3), (10, 3, 7)])
def test_init_says_how_many_may_fail_and_how_many_must_agree(tmp_path: Path, n: int, f: int, q: int) -> None:
    data = done("localnet", "init", tmp_path / "net", "--validators", n, "--json").data
    assert (data["n"], data["f"], data["q"]) == (n, f, q)
    assert quorate("genesis", "verify", tmp_path / "net" / "genesis.bin").code == 0


def test_init_makes_members_who_evaluate(tmp_path: Path) -> None:
    done("localnet", "init", tmp_path / "net", "--validators", 1, "--trainers", 1, "--evaluators", 2)
    keys = {path.stem for path in (tmp_path / "net" / "keys").glob("*.key")}
    assert keys >= {"trainer-0", "evaluator-0", "evaluator-1"} and "trainer-1" not in keys


def test_init_says_that_nothing_is_encrypted(tmp_path: Path) -> None:
    ran = done("localnet", "init", tmp_path / "net", "--validators", 1)
    assert "insecure-no-passphrase" in ran.err
    assert 'passphrase = "insecure-no-passphrase"' in (tmp_path / "net" / "v0" / "node.toml").read_text()


def test_init_never_replaces_a_network(tmp_path: Path) -> None:
    first = done("localnet", "init", tmp_path / "net", "--validators", 1, "--json").data["chain_id"]
    ran = quorate("localnet", "init", tmp_path / "net", "--json")
    assert (ran.code, ran.data["code"]) == (2, "LOCALNET_EXISTS")
    assert done("localnet", "init", tmp_path / "net", "--if-missing", "--json").data["chain_id"] == first


def test_a_network_for_containers_names_validators_by_host(tmp_path: Path) -> None:
    done("localnet", "init", tmp_path / "net", "--containers")
    shown = done("genesis", "show", tmp_path / "net" / "genesis.bin", "--json").data
    assert [each["address"] for each in shown["validators"]] == [f"v{number}:7600" for number in range(4)]
    ran = quorate("localnet", "up", tmp_path / "net")
    assert ran.code == 2
    assert "docker compose" in ran.err


def test_a_directory_that_is_too_deep_is_refused_before_there_are_keys(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 80) / "net"
    ran = quorate("localnet", "init", deep)
    assert ran.code == 2
    assert "admin socket" in ran.err
    assert not list(deep.rglob("*.key*"))


def test_a_process_that_inherited_a_number_is_not_taken_for_ours(tmp_path: Path) -> None:
    done("localnet", "init", tmp_path / "net", "--validators", 1)
    state = tmp_path / "net" / "localnet.json"
    content = json.loads(state.read_text())
    content["validators"][0] |= {"pid": os.getpid(), "started": "12345"}
    state.write_text(json.dumps(content))
    assert done("localnet", "down", tmp_path / "net", "--json").data == {"v0": "was not running"}


def test_commands_for_a_network_that_is_not_there_say_how_to_make_one(tmp_path: Path) -> None:
    for command in ("up", "status", "down"):
        ran = quorate("localnet", command, tmp_path / "none")
        assert ran.code == 2
        assert "localnet init" in ran.err


# Running


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("cli") / "net"
    done("localnet", "init", place, "--trainers", 2)
    try:
        done("localnet", "up", place)
        until("all of them answer", lambda: all_answer(place))
        yield place
    finally:
        network = LocalNetwork.open(place)
        for name in network.members:
            network.kill(name)


def all_answer(net: Path) -> bool:
    """Each has two seconds, which it may need for something else, and all agree."""
    status = done("localnet", "status", net, "--json").data
    return len(status["validators"]) == 4 and all(each["answers"] for each in status["validators"]) and status["agree"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_HOME", str(tmp_path / "home"))


def as_account(net: Path, name: str) -> tuple[object, ...]:
    return ("--network", net / "consortium.toml", "--key", net / "keys" / f"{name}.key")


def describe_job(place: Path, more: str = "") -> Path:
    np.savez(place / "model.npz", w=np.zeros((3, 2), np.float32), b=np.ones(2, np.float32))
    (place / "job.toml").write_text(JOB.format(more=more))
    return place / "job.toml"


@pytest.mark.slow
def test_a_killed_validator_is_down_the_others_go_on_and_it_comes_back(net: Path) -> None:
    done("localnet", "down", net, "v2", "--now")
    status = done("localnet", "status", net, "--json").data
    assert [each["running"] for each in status["validators"]] == [True, True, False, True]
    until("v0 goes on", lambda: quorate("node", "ready", "--config", net / "v0" / "node.toml").out == "ready\n")
    up = done("localnet", "up", net, "v2", "--json").data
    assert [each["running"] for each in up] == [True] * 4
    until("all of them answer", lambda: all_answer(net))


@pytest.mark.slow
def test_a_node_shows_how_it_is_over_its_socket_and_its_url(net: Path) -> None:
    config = net / "v1" / "node.toml"
    over_socket = done("node", "status", "--config", config, "--json").data
    assert over_socket["validators"] == {"n": 4, "f": 1, "q": 3}
    url = LocalNetwork.open(net).members["v1"].rpc
    assert done("node", "status", "--url", url, "--json").data["key"] == over_socket["key"]

    def linked_and_level() -> bool:
        """It is ready once a quorum is linked."""
        plain = done("node", "status", "--config", config).out
        return "catching up\tno\n" in plain and "v0\tyes\n" in plain

    until("it is linked to v0, and level", linked_and_level)


@pytest.mark.slow
def test_a_drained_node_is_not_ready_and_a_stopped_one_does_not_answer(net: Path) -> None:
    config = net / "v3" / "node.toml"
    done("node", "drain", "--config", config)
    ran = quorate("node", "ready", "--config", config, "--json")
    assert (ran.code, ran.data["code"]) == (1, "NOT_READY")
    done("node", "stop", "--config", config)
    ran = quorate("node", "status", "--config", config, "--json")
    assert (ran.code, ran.data["code"]) == (3, "NOT_RUNNING")
    done("localnet", "up", net, "v3")


@pytest.mark.slow
def test_a_job_from_its_file_to_its_last_model(net: Path, tmp_path: Path) -> None:
    creator = as_account(net, "creator")
    made = done("job", "create", describe_job(tmp_path), *creator, "--json").data
    assert done("job", "create", tmp_path / "job.toml", "--if-missing", *creator, "--json").data == made
    assert made["id"] in [each["id"] for each in done("job", "list", *creator, "--json").data]
    assert done("job", "show", "toy", *creator, "--json").data["rules"]["config"][1]["from_round"] == 2

    ran = quorate("job", "join", "toy", "--accept", "00" * 32, *as_account(net, "trainer-0"), "--json")
    assert (ran.code, ran.data["code"]) == (4, "WRONG_RULES")
    for number in (0, 1):
        done("job", "join", "toy", "--accept", made["rules_hash"], *as_account(net, f"trainer-{number}"))

    np.savez(tmp_path / "update.npz", w=np.full((3, 2), 1, np.float32), b=np.ones(2, np.float32))
    update = ("submit", "toy", "--file", tmp_path / "update.npz", "--examples", 10)
    assert quorate(*update, *as_account(net, "trainer-0")).code == 2
    update = (*update, "--metric", "loss=0.5")
    for round_number in (1, 2):
        for number in (0, 1):
            receipt = done(*update, "--round", round_number, *as_account(net, f"trainer-{number}"), "--json").data
            assert (receipt["status"], receipt["round"]) == ("ok", round_number)

    watched = done("job", "watch", "toy", *creator).out.splitlines()
    assert [line.split("\t")[:4] for line in watched[1:]] == [
        ["1", "closed", "2 of 2", "loss=0.5"],
        ["2", "closed", "2 of 2", "loss=0.5"],
    ]
    assert quorate(*update, *as_account(net, "trainer-0")).code == 4
    models = done("model", "list", "toy", *creator, "--json").data
    got = done("model", "get", "toy", "-o", tmp_path / "m.npz", *creator, "--json").data
    assert got["cid"] == models[-1]["model"]
    with np.load(tmp_path / "m.npz") as arrays:
        assert np.allclose(arrays["w"], 1, atol=0.01)

    shown = done("tx", "status", receipt["tx"], *creator, "--json").data
    assert shown["status"] == "proven"
    done("receipt", "fetch", receipt["tx"], "-o", tmp_path / "r.bin", *creator)
    assert done("receipt", "verify", tmp_path / "r.bin", *creator, "--json").data["tx"] == receipt["tx"]
    damaged = bytearray((tmp_path / "r.bin").read_bytes())
    damaged[200] ^= 1
    (tmp_path / "r.bin").write_bytes(damaged)
    assert quorate("receipt", "verify", tmp_path / "r.bin", *creator).code in (2, 6)


@pytest.mark.slow
def test_a_member_that_comes_later_is_listed(net: Path, tmp_path: Path) -> None:
    done("keys", "new-account", tmp_path / "late.key", "--insecure-no-passphrase")
    registrar = as_account(net, "registrar")
    options = ("--role", "trainer", "--organisation", "st-mary")
    made = done("member", "register", "late", tmp_path / "late.key", *options, *registrar, "--json").data
    listed = {each["name"]: each for each in done("member", "list", *registrar, "--json").data}
    assert listed["late"]["account"] == made["account"] and listed["late"]["organisation"] == "st-mary"
    assert "creator" not in {
        each["name"] for each in done("member", "list", "--role", "trainer", *registrar, "--json").data
    }


@pytest.mark.slow
def test_stopping_a_job_wants_a_yes_in_a_pipe(net: Path, tmp_path: Path) -> None:
    path = describe_job(tmp_path)
    path.write_text(path.read_text().replace('"toy"', '"short"'))
    creator = as_account(net, "creator")
    done("job", "create", path, *creator)
    ran = quorate("job", "stop", "short", *creator)
    assert ran.code == 2
    assert "--yes" in ran.err
    done("job", "stop", "short", "--yes", *creator)
    assert done("job", "show", "short", *creator, "--json").data["status"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(("more", "said"), [("\ntargets = 3", "'targets'"), ('\nname = "other"', "Cannot overwrite")])
def test_a_job_file_with_a_mistake_creates_nothing(net: Path, tmp_path: Path, more: str, said: str) -> None:
    path = describe_job(tmp_path)
    path.write_text(more.strip() + "\n" + path.read_text())
    ran = quorate("job", "create", path, *as_account(net, "creator"))
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.slow
def test_an_unknown_job_is_refused_by_the_chain(net: Path) -> None:
    ran = quorate("job", "show", "nothing", *as_account(net, "creator"), "--json")
    assert (ran.code, ran.data["code"]) == (4, "UNKNOWN_JOB")


@pytest.mark.slow
def test_what_no_node_knows_is_said_so(net: Path) -> None:
    ran = quorate("tx", "status", "00" * 32, *as_account(net, "creator"), "--json")
    assert (ran.code, ran.data["code"]) == (1, "UNKNOWN_TRANSACTION")


def test_no_node_to_be_reached_is_exit_code_3(tmp_path: Path) -> None:
    done("localnet", "init", tmp_path / "net", "--validators", 1)
    network = ("--network", tmp_path / "net" / "consortium.toml", "--patience", "0.1")
    assert quorate("job", "show", "toy", *network).code == 3
    assert quorate("job", "list", *network).code == 3


# Evidence


def vote(chain_id: bytes, key: SigningKey, signer: int, block: bytes) -> Vote:
    return sign_vote(key, chain_id, VoteKind.NOTARIZE, 0, encode(Notarize(7, 6, block)), signer)


def add_to_journal(data: Path, *votes: Vote) -> None:
    async def add() -> None:
        disk = FileDisk(data)
        journal = await SegmentedLog.open(disk, JOURNAL)
        for each in votes:
            journal.append(*journal_entry(OwnVote(each)))
        await journal.durable(journal.last)
        disk.close()

    asyncio.run(add())


def files(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    done("localnet", "init", tmp_path / "net")
    return tmp_path / "net"


def scan(net: Path, *more: object) -> tuple[int, list[dict[str, object]]]:
    ran = quorate("evidence", "scan", *net.glob("v*/data"), "--genesis", net / "genesis.bin", "--json", *more)
    return ran.code, json.loads(ran.out.splitlines()[0])["data"]["convicted"]


def test_votes_that_contradict_each_other_in_two_journals_convict_their_signer(stopped: Path) -> None:
    genesis = read_genesis(stopped / "genesis.bin")
    key = load_key(stopped / "v1" / "keys", "consensus", NO_PASSPHRASE)
    signer = genesis.validator_set.index_of(key.public)
    assert signer is not None
    add_to_journal(stopped / "v0" / "data", vote(genesis.chain_id, key, signer, block_digest(genesis_header(genesis))))
    assert scan(stopped) == (0, [])
    add_to_journal(stopped / "v2" / "data", vote(genesis.chain_id, key, signer, bytes(32)))
    code, convicted = scan(stopped)
    assert code == 0
    assert [(each["validator"], each["view"], each["rule"]) for each in convicted] == [("v1", 7, "two notarizes")]
    assert scan(stopped, "--fail-if-found")[0] == 6


def test_a_journal_with_forged_votes_convicts_nobody_and_hides_nothing(stopped: Path) -> None:
    genesis = read_genesis(stopped / "genesis.bin")
    key = load_key(stopped / "v1" / "keys", "consensus", NO_PASSPHRASE)
    signer = genesis.validator_set.index_of(key.public)
    assert signer is not None
    forger = SigningKey.from_seed(bytes(32))
    forged = [vote(genesis.chain_id, forger, signer, bytes([number]) * 32) for number in (1, 2)]
    add_to_journal(stopped / "v0" / "data", *forged)
    assert scan(stopped) == (0, [])
    genuine = [vote(genesis.chain_id, key, signer, bytes([number]) * 32) for number in (3, 4)]
    add_to_journal(stopped / "v2" / "data", *genuine)
    assert [each["validator"] for each in scan(stopped)[1]] == ["v1"]


def test_scanning_changes_nothing_not_even_a_torn_tail(stopped: Path) -> None:
    segment = stopped / "v0" / "data" / JOURNAL / "0000000001"
    segment.write_bytes(segment.read_bytes() + b"torn")
    before = files(stopped)
    assert scan(stopped) == (0, [])
    assert files(stopped) == before


@pytest.mark.slow
def test_the_journal_of_a_running_node_is_not_read(net: Path) -> None:
    until("it runs", lambda: quorate("node", "ready", "--config", net / "v0" / "node.toml").code == 0)
    ran = quorate("evidence", "scan", net / "v0" / "data", "--genesis", net / "genesis.bin", "--json")
    assert (ran.code, ran.data["code"]) == (1, "ALREADY_LOCKED")
