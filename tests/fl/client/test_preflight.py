"""What stands in the way is found, each by its real cause, and looking changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fl.client.home import Home, Pending
from fl.client.keyfile import save_key
from fl.client.networkfile import network_of, render_network
from fl.client.nodes import Nodes
from fl.client.reader import Reader
from fl.client.site.appsource import source_of
from fl.client.site.findings import ROOM_BYTES, Check, Findings, Given, State
from fl.client.site.joining import answer_to_joining
from fl.client.site.nodelook import Look
from fl.client.site.policy import policy_file
from fl.client.site.preflight import _versions, preflight
from fl.client.site.prejob import room_of
from fl.client.sync import connect
from fl.jobrules import rules_hash
from fl.jobs import JoinJob, PauseJob, StopJob
from fl.members import RegisterMember, RevokeMember
from fl.records import Account, JobRules, Registrars, Role
from fl.state import REGISTRARS, account_key, job_key
from fl.tensors.grid import MAX_UPDATES
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from tests.cli.run import quorate
from tests.fl.builders import make_genesis, make_rules, signing_key
from tests.fl.client.chainlet import Running
from tests.fl.client.watched import Watched
from tests.fl.evaluating import registrar

HOUR_S = 3600.0


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    started = Running(Watched(), tmp_path)
    try:
        yield started
    finally:
        started.stop()


def watched(chain: Running) -> Watched:
    assert isinstance(chain.chain, Watched)
    return chain.chain


def given(chain: Running, **changes: Any) -> Given:
    """What a trainer would take part with, and nothing is wrong with it."""
    key, home = chain.directory / "trainer.key", chain.directory / "home"
    if not key.exists():
        save_key(key, signing_key("trainer-000"), None)
        (chain.directory / "policy.toml").write_text('rules = ["fedavg"]\n')
    usual: dict[str, Any] = {
        "network": chain.network_file(),
        "key": key,
        "passphrase": None,
        "home": home,
        "policy": policy_file(chain.directory / "policy.toml", home),
        "beside": chain.directory,
        "kernel_version": 1,
        "patience_s": 0.2,
        "free_bytes": lambda path: 10**12,
    }
    return Given(**{**usual, **changes})


def look(chain: Running, **changes: Any) -> list[Check]:
    return asyncio.run(preflight(given(chain, **changes)))


def of(checks: list[Check], name: str) -> Check:
    found = [each for each in checks if each.name == name]
    assert len(found) == 1, (name, checks)
    assert found[0].state == State.OK or found[0].todo, "whoever complains says what to do"
    return found[0]


def failed(checks: list[Check]) -> set[str]:
    return {each.name for each in checks if each.state == State.FAIL}


def send(chain: Running, name: str, body: object) -> None:
    """A block with this transaction of somebody's."""
    ledger = chain.chain.ledger
    actor = registrar(ledger) if name == "registrar" else ledger.actor(name)
    actor.nonce = sum(each.sender == actor.account for each in ledger.receipts)
    chain.do(chain.chain.block, actor.sign(body, valid_until_ms=ledger.time_ms + 60_000))
    assert ledger.receipts[-1].status == "ok", ledger.receipts[-1].status


def test_nothing_stands_in_the_way_of_a_member_and_looking_changes_nothing(chain: Running) -> None:
    chain.create(make_rules())
    save_key(chain.directory / "sealed.key", signing_key("trainer-000"), b"secret")
    asked = given(chain, job="digits", key=chain.directory / "sealed.key", passphrase=b"secret")
    before = sorted(chain.directory.rglob("*"))
    checks = asyncio.run(preflight(asked))
    assert {each.state for each in checks} == {State.OK}, [each for each in checks if each.state != State.OK]
    names = [each.name for each in checks]
    assert {"network file", "key", "home", "disk", "policy", "heads", "clock", "versions", "kernels"} <= set(names)
    assert {"member", "job", "rules", "app", "disk of the job", "joining", "packages"} <= set(names)
    assert [each for each in names if each.startswith("node ")] == [f"node org-00{index}" for index in range(4)]
    assert sorted(chain.directory.rglob("*")) == before and not any(face.submitted for face in chain.faces)


# This machine


def test_a_network_file_that_is_missing_or_none_fails(chain: Running, tmp_path: Path) -> None:
    assert failed(look(chain, network=tmp_path / "missing.toml")) == {"network file"}
    (tmp_path / "none.toml").write_text("name = 1")
    assert failed(look(chain, network=tmp_path / "none.toml")) == {"network file"}


def test_a_network_file_with_too_few_addresses_fails(chain: Running, tmp_path: Path) -> None:
    file = network_of(chain.chain.genesis)
    members = tuple(replace(each, rpc=each.rpc if at == 0 else "") for at, each in enumerate(file.validators.members))
    sets = replace(file.checkpoint, validators=replace(file.validators, members=members))
    (tmp_path / "few.toml").write_text(render_network(replace(file, checkpoint=sets)))
    assert {"network file", "heads"} <= failed(look(chain, network=tmp_path / "few.toml"))


def test_a_key_file_that_cannot_be_used_fails(chain: Running, tmp_path: Path) -> None:
    def key(**changes: Any) -> Check:
        return of(look(chain, **changes), "key")

    save_key(tmp_path / "sealed.key", signing_key("trainer-000"), b"secret")
    assert "WRONG_PASSPHRASE" in key(key=tmp_path / "sealed.key", passphrase=b"guessed").found
    assert "UNREADABLE" in key(key=tmp_path / "missing.key").found
    assert key(key=tmp_path / "sealed.key").state == State.WARN
    assert key(key=None).state == State.WARN and key(key=None, job="digits").state == State.FAIL
    save_key(tmp_path / "link.key", signing_key("link"), None, role="link")
    assert "no key of the role account" in key(key=tmp_path / "link.key").found
    save_key(tmp_path / "open.key", signing_key("trainer-000"), None)
    assert "not encrypted" in key(key=tmp_path / "open.key").found
    os.chmod(tmp_path / "open.key", 0o644)
    exposed = key(key=tmp_path / "open.key")
    assert exposed.state == State.FAIL and "chmod 600" in exposed.todo
    (tmp_path / "none.key").write_text("{")
    os.chmod(tmp_path / "none.key", 0o600)
    assert "BAD_KEY_FILE" in key(key=tmp_path / "none.key").found


def test_a_home_that_nothing_can_be_written_to_fails(chain: Running, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = of(look(chain, home=tmp_path / "file" / "home"), "home")
    assert check.state == State.FAIL and "is no directory" in check.found


def test_what_is_in_flight_is_told(chain: Running) -> None:
    actor = chain.chain.ledger.actor("trainer-000")
    home = Home(chain.directory / "home", chain.chain.genesis.chain_id, actor.account)
    tx = actor.transaction(StopJob(bytes(32)))
    home.keep(Pending(tx, b"", b"signed"))
    check = of(look(chain), "home")
    assert check.state == State.WARN and "1 transactions" in check.found


def test_a_disk_without_room_for_the_job_fails(chain: Running) -> None:
    schema = Schema((TensorSpec("weight", "F32", (4000, 1000), AVERAGED),))
    rules = make_rules(schema=schema, encoding="q8")
    chain.create(rules)
    wanted = room_of(rules)
    assert wanted > ROOM_BYTES + 4 * 16_000_000
    checks = look(chain, job="digits", free_bytes=lambda path: wanted - 1)
    assert of(checks, "disk of the job").state == State.FAIL
    assert of(look(chain, free_bytes=lambda path: ROOM_BYTES - 1), "disk").state == State.FAIL
    assert of(look(chain, free_bytes=lambda path: ROOM_BYTES + 1), "disk").state == State.WARN


def test_a_policy_is_read_and_held_against_the_job(chain: Running, tmp_path: Path) -> None:
    chain.create(make_rules(rule="fedavg"))
    path = tmp_path / "site.toml"

    def states(text: str) -> dict[str, State]:
        path.write_text(text)
        checks = look(chain, job="digits", policy=policy_file(path, tmp_path))
        return {each.found: each.state for each in checks if each.name in ("policy", "policy rule", "hours")}

    assert set(states('rules = ["fedavg"]\n[cohort]\nminimum = 1').values()) == {State.OK}
    found = states("[cohort]\nminimum = 9")
    assert [each for each, state in found.items() if state == State.FAIL] == [
        "[cohort] minimum = 9: its rounds may close with 2 [POLICY_COHORT]"
    ]
    assert [*states("rolls = 1").values()] == [State.FAIL]
    path.write_text('[hours]\nzone = "UTC"\nopen = ["18:00-06:00"]')
    closed = policy_file(path, tmp_path)
    closed.now = lambda: 12 * HOUR_S
    check = of(look(chain, policy=closed, now_s=lambda: 12 * HOUR_S), "hours")
    assert check.state == State.WARN and "18:00 UTC" in check.found
    os.chmod(path, 0o666)
    assert of(look(chain, policy=closed), "policy").state == State.WARN
    assert of(look(chain, policy=policy_file(None, tmp_path / "empty")), "policy").state == State.WARN


# The nodes


def test_a_node_that_is_down_is_named_and_too_few_fail(chain: Running) -> None:
    chain.faces[2].down = True
    checks = look(chain)
    assert of(checks, "node org-002").state == State.WARN and not failed(checks)
    chain.faces[1].down = chain.faces[0].down = True
    assert failed(look(chain)) == {"heads"}


def test_a_node_that_forges_its_head_is_named(chain: Running) -> None:
    chain.faces[1].forges_heads = True
    assert failed(look(chain)) == {"node org-001"}


def test_a_network_file_of_another_chain_fails_at_every_node(chain: Running) -> None:
    other = make_genesis(4, 1)
    members = tuple(replace(each, rpc=face.url) for each, face in zip(other.validators, chain.faces, strict=True))
    (chain.directory / "other.toml").write_text(render_network(network_of(replace(other, validators=members))))
    checks = look(chain, network=chain.directory / "other.toml")
    assert {"node org-000", "heads"} <= failed(checks)
    assert "another chain" in of(checks, "node org-000").todo


def test_a_node_that_is_behind_is_named_and_a_head_of_one_node_alone_fails(chain: Running) -> None:
    for _ in range(30):
        chain.do(chain.chain.block)
    chain.faces[3].frozen_at = 2
    checks = look(chain)
    assert "blocks behind" in of(checks, "node org-003").found and of(checks, "heads").state == State.WARN
    for index in (1, 2):
        chain.faces[index].frozen_at = 2
    assert of(look(chain), "heads").state == State.FAIL


def test_a_door_for_blobs_that_does_not_answer_is_told(chain: Running) -> None:
    chain.faces[0].door.url = "http://127.0.0.1:1"
    checks = look(chain)
    assert "door for blobs" in of(checks, "node org-000").found and not failed(checks)
    for face in chain.faces:
        face.door.url = "http://127.0.0.1:1"
    assert failed(look(chain)) == {"blobs"}


def test_a_node_that_is_not_ready_or_is_spoken_to_in_the_clear_is_told(chain: Running) -> None:
    watched(chain).status["reasons"] = ["disk_full"]
    assert "disk_full" in of(look(chain), "node org-000").found
    assert Look("", "https://node.example").is_private and Look("", "http://[::1]:1").is_private
    assert not Look("", "http://node.example").is_private and not Look("", "http://10.0.0.1").is_private


@pytest.mark.parametrize(
    ("ahead_s", "state", "says"),
    [
        (0.0, State.OK, ""),
        (-60.0, State.WARN, "behind"),
        (60.0, State.WARN, "ahead"),
        (-1.1 * HOUR_S, State.FAIL, "expired"),
        (24 * HOUR_S, State.FAIL, "longer than the chain admits"),
    ],
)
def test_a_clock_that_is_off_by_more_than_transactions_bear_fails(
    chain: Running, ahead_s: float, state: State, says: str
) -> None:
    real = given(chain).now_s
    check = of(look(chain, now_s=lambda: real() + ahead_s), "clock")
    assert check.state == state and says in check.found


def test_a_clock_that_the_nodes_clocks_are_ahead_of_fails(chain: Running) -> None:
    watched(chain).ahead_s = 1.1 * HOUR_S
    assert failed(look(chain)) == {"clock"}


def test_a_clock_behind_a_proven_block_is_behind_whatever_dates_nodes_tell(chain: Running) -> None:
    real = given(chain).now_s
    watched(chain).dates = False
    assert of(look(chain), "clock").state == State.OK
    check = of(look(chain, now_s=lambda: real() - 2 * HOUR_S), "clock")
    assert check.state == State.FAIL and "expired" in check.found


def test_a_chain_that_stands_still_is_told(chain: Running) -> None:
    real = given(chain).now_s
    watched(chain).ahead_s = HOUR_S
    check = of(look(chain, now_s=lambda: real() + HOUR_S), "clock")
    assert check.state == State.WARN and "no blocks" in check.todo


def test_versions_that_differ_are_told(chain: Running) -> None:
    assert of(look(chain, kernel_version=2), "kernels").state == State.WARN
    assert of(look(chain, kernel_version=None), "kernels").state == State.OK
    watched(chain).status.update(version="9.9", kernel_version=2)
    checks = look(chain)
    assert "9.9" in of(checks, "versions").found and of(checks, "versions").state == State.WARN
    assert "org-001 has 2" in of(checks, "kernels").found
    genesis, found = chain.chain.genesis, Findings()
    _versions(found, given(chain), [], replace(genesis, params=replace(genesis.params, rules_version=7)))
    assert of(found.checks, "versions").state == State.FAIL
    watched(chain).status = {"version": 7, "kernel_version": "x", "reasons": [3]}
    assert not failed(look(chain)), "what a node says of itself may be anything"


# The account


def key_file(chain: Running, name: str) -> dict[str, Any]:
    path = chain.directory / f"{name}.key"
    save_key(path, signing_key(name), None)
    return {"key": path}


def test_an_account_that_is_no_member_fails_with_whom_to_ask(chain: Running) -> None:
    chain.create(make_rules())
    stranger = key_file(chain, "stranger")
    checks = look(chain, job="digits", **stranger)
    assert failed(checks) == {"member", "joining"}
    assert "registrar" in of(checks, "member").todo and "NOT_MEMBER" in of(checks, "joining").found
    chain.do(chain.chain.certify, {REGISTRARS: Registrars((), True)})
    assert "open" in of(look(chain, **stranger), "member").todo


def test_a_revoked_member_and_one_in_another_role_fail(chain: Running) -> None:
    chain.create(make_rules())
    checks = look(chain, job="digits", role="evaluator")
    assert failed(checks) == {"member", "joining"} and "role evaluator" in of(checks, "member").todo
    send(chain, "registrar", RevokeMember(chain.chain.ledger.actor("trainer-000").account))
    checks = look(chain, job="digits")
    assert failed(checks) == {"member", "joining"} and "REVOKED" in of(checks, "joining").found


def test_a_key_that_another_one_has_replaced_fails(chain: Running) -> None:
    account = chain.chain.ledger.actor("trainer-000").account
    chain.do(chain.chain.certify, {account_key(account): Account(signing_key("newer").public, 1, b"")})
    assert failed(look(chain)) == {"account"}
    newer = key_file(chain, "newer")
    assert failed(look(chain, account=account, **newer)) == set()


# The job


def test_a_job_that_is_unknown_over_or_paused_is_told(chain: Running) -> None:
    assert failed(look(chain, job="digits")) == {"job"}
    job = chain.create(make_rules())
    send(chain, "creator", PauseJob(job))
    checks = look(chain, job=job.hex())
    assert of(checks, "job").state in (State.OK, State.WARN) and not failed(checks)
    send(chain, "creator", StopJob(job))
    assert failed(look(chain, job="digits")) == {"job", "joining"}


def test_other_rules_than_were_agreed_on_fail(chain: Running) -> None:
    job = chain.create(make_rules())
    agreed = rules_hash(chain.chain.ledger.rules(job)).hex()
    assert not failed(look(chain, job="digits", accept=agreed.upper()))
    assert failed(look(chain, job="digits", accept="00" * 32)) == {"rules"}


def test_a_member_of_the_job_is_told_so(chain: Running) -> None:
    chain.create(make_rules())
    with connect(**chain.settings()) as network:
        network.job("digits").join()
    assert "already" in of(look(chain, job="digits"), "joining").found


def test_a_job_that_wants_a_data_set_fails_without_and_passes_with_one(chain: Running) -> None:
    chain.create(make_rules(weights="dataset", cap=100))
    assert "UNKNOWN_DATASET" in of(look(chain, job="digits"), "joining").found
    assert failed(look(chain, job="digits", dataset="trials")) == {"job"}
    with connect(**chain.settings()) as network:
        network.datasets.register("trials", examples=7)
    assert not failed(look(chain, job="digits", dataset="trials"))


def test_a_job_that_is_full_fails(chain: Running) -> None:
    job = chain.create(make_rules())
    record = replace(chain.chain.ledger.job(job), members=MAX_UPDATES)
    chain.do(chain.chain.certify, {job_key(job): record})
    assert "JOB_FULL" in of(look(chain, job="digits"), "joining").found


@pytest.mark.parametrize("who", ["trainer-000", "creator", "stranger", "joined"])
@pytest.mark.parametrize("role", [Role.TRAINER, Role.EVALUATOR])
def test_the_answer_to_joining_is_what_the_chain_says_then(chain: Running, who: str, role: Role) -> None:
    job = chain.create(make_rules())
    ledger = chain.chain.ledger
    send(chain, "registrar", RegisterMember("joined", signing_key("joined").public, ("evaluator", "trainer")))
    body = JoinJob(job, rules_hash(ledger.rules(job)), role.value)
    send(chain, "joined", JoinJob(job, body.rules_hash))
    actor = ledger.actor(who)
    actor.nonce = sum(each.sender == actor.account for each in ledger.receipts)

    async def answered() -> str:
        nodes = Nodes([(face.name, face.url) for face in chain.faces], patience_s=1.0)
        try:
            reader = Reader(nodes, network_of(ledger.genesis).checkpoint)
            refused = await answer_to_joining(reader, ledger.genesis, actor.account, body)
            return "ok" if refused is None else refused.code
        finally:
            await nodes.close()

    said = asyncio.run(answered())
    chain.do(chain.chain.block, actor.sign(body, valid_until_ms=ledger.time_ms + 60_000))
    told = [each.status for each in ledger.receipts if each.sender == actor.account][-1:]
    assert told in ([said], []), "a stranger's transaction leaves no receipt"
    assert told or said == "NOT_MEMBER"


# Its code


def app_rules(chain: Running, source: str, **changes: Any) -> JobRules:
    (chain.directory / "pkg").mkdir(exist_ok=True)
    (chain.directory / "pkg" / "__init__.py").write_text("raise SystemExit('it was run')")
    (chain.directory / "pkg" / "app.py").write_text(source)
    return make_rules(app="pkg.app:app", app_digest=sha256(source.encode()).digest(), **changes)


def test_the_code_of_the_job_is_found_and_compared_without_being_run(chain: Running) -> None:
    source = "import numpy\nraise SystemExit('it was run')\n"
    chain.create(app_rules(chain, source))
    checks = look(chain, job="digits")
    assert not failed(checks) and "is the code" in of(checks, "app").found
    (chain.directory / "pkg" / "app.py").write_text(source + "#")
    assert failed(look(chain, job="digits")) == {"app"}
    (chain.directory / "pkg" / "app.py").write_text("def (")
    assert "no Python" in of(look(chain, job="digits"), "app").found
    (chain.directory / "pkg" / "app.py").unlink()
    assert "not here" in of(look(chain, job="digits"), "app").found


def test_packages_that_the_code_imports_and_that_are_not_here_fail(chain: Running) -> None:
    source = (
        "import numpy, nowhere_at_all.deep\n"
        "from . import beside\n"
        "def train():\n    from neither_here import x\n"
        "try:\n    import perhaps_not\nexcept ImportError:\n    pass\n"
    )
    chain.create(replace(app_rules(chain, source), app_digest=b""))
    checks = look(chain, job="digits")
    assert failed(checks) == {"frameworks"} and of(checks, "app").state == State.WARN
    assert of(checks, "frameworks").todo == "Install what is missing: pip install neither_here nowhere_at_all"


def test_an_app_of_flower_s_wants_flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, "flwr", raising=False)
    found = source_of("flower:mine:app", tmp_path)
    assert found is not None and found.lacking == ("flwr",)
    assert source_of("nowhere:app", tmp_path) is None


# The command


def test_the_command_ends_with_one_if_anything_fails(
    chain: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chain.create(make_rules())
    asked = given(chain)
    client = ("--network", asked.network, "--key", asked.key, "--home", asked.home)
    ran = quorate("preflight", "digits", *client, "--policy", chain.directory / "policy.toml", "--json")
    assert ran.code == 0 and ran.data["failed"] == 0 and len(ran.data["checks"]) > 15
    ran = quorate("preflight", "digit", *client, "--json")
    assert ran.code == 1 and ran.data["code"] == "NOT_READY" and ran.data["failed"] == 1
    assert {each["name"]: each["state"] for each in ran.data["checks"]}["job"] == "FAIL"
    plain = quorate("preflight", "digit", *client)
    assert plain.code == 1 and "FAIL\tjob\t" in plain.out


def test_a_policy_is_shown_and_held_against_a_job_by_command(chain: Running, tmp_path: Path) -> None:
    chain.create(make_rules())
    template = quorate("policy", "template").out
    (tmp_path / "site.toml").write_text(template)
    client = ("--network", chain.network_file(), "--home", tmp_path / "home", "--policy", tmp_path / "site.toml")
    assert quorate("policy", "check", "digits", *client, "--json").data["admitted"] is True
    (tmp_path / "site.toml").write_text('rules = ["median"]')
    ran = quorate("policy", "check", "digits", *client, "--json")
    assert ran.code == 7 and ran.data["code"] == "POLICY_RULE" and ran.data["rulings"][0]["complaint"]


def test_a_head_without_a_block_still_has_a_clock_check(chain: Running) -> None:
    real = watched(chain).header
    watched(chain).header = lambda height: replace(real(height), view=7)  # type: ignore[method-assign]
    assert of(look(chain), "clock").state == State.OK
