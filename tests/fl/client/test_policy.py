"""The site's own policy: what it admits, who is held to it, and that nobody gets around it."""

from __future__ import annotations

import ast
import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain.codec import encode
from chain.transaction import tx_id
from cli.participation import Part, take_part
from fl.client.apps import Digits, Holdings
from fl.client.errors import BadFile, PolicyForbids
from fl.client.home import Pending
from fl.client.keyfile import save_key
from fl.client.network import connect_async
from fl.client.signing import sign_offline
from fl.client.site.hours import Hours, span_of, zone_of
from fl.client.site.policy import MOST_BYTES, TEMPLATE, Policy, parse_policy, policy_file, read_policy
from fl.client.sync import Job, Network, Task, connect
from fl.evaluation import SubmitEvaluation
from fl.jobrules import rules_hash
from fl.jobs import JoinJob
from fl.members import RegisterMember
from fl.records import ConfigEntry, JobRules, Role, TensorGroup
from fl.rounds import CheckIn
from tests.cli.run import quorate
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import Running
from tests.fl.evaluating import asked, registrar

HERE = Path(__file__).parents[3]
ACCOUNT = "ab" * 32


def policy(text: str) -> Policy:
    return parse_policy(text.encode(), Path("policy.toml"))


def refused(text: str) -> BadFile:
    with pytest.raises(BadFile) as wrong:
        policy(text)
    assert wrong.value.code == "BAD_POLICY" and wrong.value.todo
    return wrong.value


def entry(name: str, kind: str, value: str, since: int = 0) -> ConfigEntry:
    return ConfigEntry(name, since, kind, value)


# The file


def test_an_empty_file_and_the_template_admit_everything() -> None:
    everything = make_rules(app="mine:app", app_digest=bytes(32))
    for text in ("", TEMPLATE):
        policy(text).check(everything, creator=bytes(32))
        assert policy(text).wait_s(0.0) == 0


def test_the_template_without_its_marks_is_a_policy() -> None:
    lines = [line.removeprefix("# ") for line in TEMPLATE.splitlines()]
    said = "\n".join(line for line in lines if "=" in line or line.startswith("["))
    said = said.replace("64 hex digits", ACCOUNT)
    full = policy(said)
    assert full.bounds is not None and full.hours is not None and full.apps is not None and len(full.apps) == 2
    unsaid = [name for name in Policy.__dataclass_fields__ if getattr(full, name) is None]
    assert not unsaid, "the template speaks of all that a policy may speak of"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rolls = []", "'rolls'"),
        ("[cohort]\nminimun = 3", "'minimum'"),
        ("[cohort]\nminimum = 0", "'minimum' is 0"),
        ("[cohort]\nminimum = true", "'minimum' in [cohort] is True"),
        ("[model]\nbytes = 1.5", "'bytes' in [model] is 1.5"),
        ('roles = ["trayner"]', "'trainer'"),
        ("roles = []", "leave it out"),
        ('privacy = ["hidden"]', "'hidden'"),
        ('encodings = "q8"', "'encodings'"),
        ('encodings = ["q88"]', "'q8'"),
        ('rules = ["medium"]', "'median'"),
        ('creators = ["me"]', "64 hex digits"),
        ('[[app]]\nname = "mine:app"', "no digest"),
        ("[[app]]", "neither a name nor a digest"),
        ('[[app]]\nname = "digits"\ndigest = "' + ACCOUNT + '"', "has no digest"),
        ('[[app]]\ndigest = "ab"', "64 hex digits"),
        ('app = ["digits"]', "[[app]]"),
        ("[config.bounds]\nlr = 0.1", "'lr' in [config.bounds]"),
        ("[config.bounds.lr]", "bounds nothing"),
        ("[config.bounds]\nlr = {max = nan}", "bounds nothing"),
        ("[config.bounds]\nlr = {min = 2, max = 1}", "min above its max"),
        ("[config.bounds]\nlr = {most = 1}", "'most'"),
        ("[config.bounds]\nlr = {one_of = [true]}", "'one_of'"),
        ('[config]\nothers = "forbid"', "'others'"),
        ("[hours]\nopen = []", "lacks zone"),
        ('[hours]\nzone = "UTC"\nopen = []', "no list of spans"),
        ('[hours]\nzone = "UTC"\nopen = ["all day"]', "'all day'"),
        ('[hours]\nzone = "Mars"\nopen = ["00:00-24:00"]', "'Mars'"),
        ("[hours", "no TOML"),
        ("#" * MOST_BYTES + "#", "longer than"),
    ],
)
def test_a_file_that_says_anything_else_is_refused_by_name(text: str, says: str) -> None:
    assert says in str(refused(text))


def test_a_policy_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadFile) as missing:
        read_policy(tmp_path / "policy.toml")
    assert missing.value.code == "NO_POLICY"
    with pytest.raises(BadFile) as unreadable:
        read_policy(tmp_path)
    assert unreadable.value.code == "UNREADABLE"


# What it admits

GROUPED = (TensorGroup("one", ("bias",)), TensorGroup("two", ("weight",)))


@pytest.mark.parametrize(
    ("text", "code", "admitted", "forbidden", "says"),
    [
        ('encodings = ["q8", "f32"]', "POLICY_ENCODING", {}, {"encoding": "f16"}, "'f16'"),
        ('rules = ["fedavg"]', "POLICY_RULE", {}, {"rule": "median"}, "'median'"),
        ('privacy = ["visible-to-validators"]', "POLICY_PRIVACY", {}, {"privacy": "sealed"}, "'sealed'"),
        ('[[app]]\nname = "digits"', "POLICY_APP", {"app": "digits"}, {}, "(none)"),
        ('[[app]]\nname = "digits"', "POLICY_APP", {"app": "digits"}, {"app": "digits", "app_digest": bytes(32)}, "00"),
        (
            f'[[app]]\nname = "m:app"\ndigest = "{ACCOUNT}"',
            "POLICY_APP",
            {"app": "m:app", "app_digest": bytes.fromhex(ACCOUNT)},
            {"app": "n:app", "app_digest": bytes.fromhex(ACCOUNT)},
            "n:app",
        ),
        (
            f'[[app]]\ndigest = "{ACCOUNT}"',
            "POLICY_APP",
            {"app": "n:app", "app_digest": bytes.fromhex(ACCOUNT)},
            {"app": "n:app", "app_digest": bytes(32)},
            "n:app",
        ),
        (
            "[config.bounds]\nlr = {min = 0.01, max = 0.1}",
            "POLICY_CONFIG",
            {"config": (entry("lr", "decimal", "0.1"),)},
            {"config": (entry("lr", "decimal", "0.1"), entry("lr", "decimal", "0.11", 7))},
            "its lr is 0.11 from round 7 on, and wanted is at most 0.1",
        ),
        (
            "[config.bounds]\nlr = {min = 0.01, max = 0.1}",
            "POLICY_CONFIG",
            {"config": (entry("lr", "decimal", "0.01"),)},
            {"config": (entry("lr", "integer", "0"),)},
            "at least 0.01",
        ),
        (
            "[config.bounds]\nlr = {max = 0.1}",
            "POLICY_CONFIG",
            {"config": ()},
            {"config": (entry("lr", "string", "0.01"),)},
            "a number",
        ),
        (
            '[config.bounds]\nopt = {one_of = ["sgd", 3]}',
            "POLICY_CONFIG",
            {"config": (entry("opt", "integer", "3"),)},
            {"config": (entry("opt", "string", "3"),)},
            "one of sgd, 3",
        ),
        (
            "[config.bounds]\nlr = {max = 1}",
            "POLICY_CONFIG",
            {"config": (entry("lr", "integer", "1"),)},
            {"config": (entry("lr", "integer", "1"), entry("upload", "string", "all", 5))},
            "upload",
        ),
        ("[cohort]\nminimum = 3", "POLICY_COHORT", {"minimum": 3}, {"minimum": 2, "target": 9}, "close with 2"),
        ("[cohort]\ngroups = false", "POLICY_COHORT", {}, {"groups": GROUPED}, "group"),
        ("[cohort]\norganisation_cap = 9", "POLICY_COHORT", {"organisation_cap": 9}, {}, "no such cap"),
        ("[cohort]\norganisation_cap = 9", "POLICY_COHORT", {"organisation_cap": 9}, {"organisation_cap": 10}, "is 10"),
        ("[model]\nparameters = 9", "POLICY_MODEL", {}, None, ""),
        ("[model]\nparameters = 8", "POLICY_MODEL", None, {}, "has 9"),
        ("[model]\nbytes = 35", "POLICY_MODEL", None, {}, "bytes"),
    ],
)
def test_each_rule_admits_what_it_says_and_forbids_the_rest(
    text: str, code: str, admitted: dict[str, Any] | None, forbidden: dict[str, Any] | None, says: str
) -> None:
    if admitted is not None:
        policy(text).check(make_rules(**admitted))
    if forbidden is not None:
        with pytest.raises(PolicyForbids) as error:
            policy(text).check(make_rules(**forbidden))
        assert error.value.code == code and error.value.exit_code == 7
        assert says in error.value.what and "policy.toml says" in error.value.what and error.value.todo


def test_other_keys_of_a_config_are_admitted_where_the_file_says_so() -> None:
    rules = make_rules(config=(entry("upload", "string", "all"),))
    policy('[config]\nothers = "allow"').check(rules)
    with pytest.raises(PolicyForbids):
        policy("[config]").check(rules)


def test_creators_roles_and_data_sets_are_admitted_by_name() -> None:
    rules = make_rules()
    with pytest.raises(PolicyForbids) as error:
        policy(f'creators = ["{ACCOUNT.upper()}"]').check(rules, creator=bytes(32))
    assert error.value.code == "POLICY_CREATOR"
    policy(f'creators = ["{ACCOUNT.upper()}"]').check(rules, creator=bytes.fromhex(ACCOUNT))
    policy('roles = ["evaluator"]').check(rules, role="evaluator")
    with pytest.raises(PolicyForbids) as error:
        policy('roles = ["evaluator"]').check(rules)
    assert error.value.code == "POLICY_ROLE"
    site = policy('datasets = ["trials"]')
    site.check_dataset("trials", ACCOUNT)
    with pytest.raises(PolicyForbids) as error:
        site.check_dataset("others", ACCOUNT)
    assert error.value.code == "POLICY_DATASET"


def test_code_is_held_to_the_policy_whatever_a_job_calls_it() -> None:
    site = policy('[[app]]\nname = "digits"')
    site.check_app("digits", b"")
    with pytest.raises(PolicyForbids):
        site.check_app("digits", bytes(32))


# Who is held to it

FORBIDS = "[cohort]\nminimum = 5\n"


def write(chain: Running, text: str) -> Path:
    path = chain.directory / "policy.toml"
    path.write_text(text)
    return path


def delta(task: Any) -> dict[str, Any]:
    return {name: np.ones_like(array) for name, array in task.model.items()}


def answer(task: Task) -> None:
    assert task.submit(delta=delta(task), examples=1, metrics={"loss": 1}).accepted


@pytest.fixture
def joined(chain: Running) -> Iterator[tuple[Network, Job]]:
    """A job that this site alone trains in and measures, under a policy that admits it."""
    rules = make_rules(
        target=1, minimum=1, maximum=1, evaluation=asked(minimum=1, metrics=("accuracy",)), rounds=4, weights="equal"
    )
    chain.create(rules)
    signing = registrar(chain.chain.ledger)
    body = RegisterMember("site", signing_key("site").public, ("evaluator", "trainer"))
    chain.do(chain.chain.block, signing.sign(body, valid_until_ms=time.time_ns() // 1_000_000 + 60_000))
    path = write(chain, "")
    with connect(**chain.settings("site"), policy=path) as network:
        job = network.job("digits")
        job.join()
        job.join(role="evaluator")
        yield network, job


def sends(chain: Running) -> int:
    return sum(len(face.submitted) for face in chain.faces)


def test_a_job_that_is_not_admitted_is_not_joined_by_either_face(chain: Running) -> None:
    chain.create(make_rules())
    path = write(chain, FORBIDS)
    with connect(**chain.settings(), policy=path) as network, pytest.raises(PolicyForbids) as error:
        network.job("digits").join()
    assert error.value.code == "POLICY_COHORT"

    async def join() -> None:
        async with await connect_async(**chain.settings(), policy=path) as network:
            await (await network.job("digits")).join()

    with pytest.raises(PolicyForbids):
        asyncio.run(join())
    assert sends(chain) == 0


def test_a_stricter_policy_closes_every_way_to_a_job_that_was_joined(
    chain: Running, joined: tuple[Network, Job]
) -> None:
    network, job = joined
    task = next(job.tasks())
    answer(next(job.tasks()))
    measured = next(job.evaluations())
    second = next(job.tasks())
    before = sends(chain)
    write(chain, FORBIDS)
    identity, accepted = bytes.fromhex(job.id), rules_hash(job.rules)
    held = Holdings([None], None)
    ways: dict[str, Callable[[], Any]] = {
        "tasks": lambda: next(job.tasks()),
        "evaluations": lambda: next(job.evaluations()),
        "join": job.join,
        "join as an evaluator": lambda: job.join(role="evaluator"),
        "a task that was offered before": lambda: second.submit(delta=delta(task), examples=1, metrics={"loss": 1}),
        "an evaluation that was offered before": lambda: measured.submit(metrics={"accuracy": 1}, examples=1),
        "a transaction that joins": lambda: network.send(JoinJob(identity, accepted)),
        "a transaction that checks in": lambda: network.send(CheckIn(identity, 2)),
        "a transaction that answers": lambda: network.send(SubmitEvaluation(identity, 1, bytes(36), 1, (1,))),
        "quorate run": lambda: take_part(job, Digits(), held, Part(1, 1), {Role.TRAINER}, None, 0, tell=print),
    }
    for name, way in ways.items():
        with pytest.raises(PolicyForbids) as error:
            way()
        assert error.value.code == "POLICY_COHORT", name
    assert sends(chain) == before
    job.leave()
    write(chain, "")
    with pytest.raises(Exception, match="not in the job"):
        next(job.tasks())


def test_a_transaction_that_was_signed_elsewhere_is_held_to_the_policy_of_whoever_sends_it(
    chain: Running, joined: tuple[Network, Job]
) -> None:
    network, job = joined
    trainer = chain.chain.ledger.actor("trainer-000")
    body = JoinJob(bytes.fromhex(job.id), rules_hash(job.rules))
    tx = trainer.transaction(body, valid_until_ms=time.time_ns() // 1_000_000 + 60_000)
    signed = Pending(tx, tx_id(tx), encode(tx))
    write(chain, FORBIDS)
    before = sends(chain)
    with pytest.raises(PolicyForbids):
        network.send_signed(signed)
    assert sends(chain) == before
    write(chain, "")
    assert network.send_signed(signed).accepted


def test_what_is_in_the_outbox_is_held_to_the_policy_as_well(chain: Running, joined: tuple[Network, Job]) -> None:
    network, job = joined
    identity, accepted = bytes.fromhex(job.id), rules_hash(job.rules)
    file, key = chain.settings("site")["network"], chain.settings("site")["key"]
    pending = sign_offline(file, key, JoinJob(identity, accepted), home=chain.settings("site")["home"])
    write(chain, FORBIDS)
    before = sends(chain)
    assert network.resume() == [] and sends(chain) == before
    outbox = network.home / "outbox"
    assert [each.read_bytes() for each in outbox.glob("*.tx")] == [pending.data]
    write(chain, "")
    assert [each.status for each in network.resume()] == ["ALREADY_JOINED"]
    assert not list(outbox.glob("*.tx"))


def test_a_link_to_a_policy_that_is_not_there_admits_nothing(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").symlink_to(tmp_path / "share" / "site.toml")
    with pytest.raises(BadFile):
        policy_file(None, tmp_path).read()
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "site.toml").write_text(FORBIDS)
    assert policy_file(None, tmp_path).read().minimum


def test_code_that_a_job_does_not_name_is_admitted_by_its_own_digest(
    chain: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.create(make_rules(app="digits", target=1, minimum=1))
    (tmp_path / "other.py").write_text("from fl.client.apps import Digits\napp = Digits()\n")
    save_key(tmp_path / "site.key", signing_key("trainer-001"), None)
    monkeypatch.chdir(tmp_path)
    client = ("--network", chain.network_file(), "--key", tmp_path / "site.key", "--home", tmp_path / "home")
    policed = ("--policy", write(chain, '[[app]]\nname = "digits"'))
    ran = quorate("train", "digits", "--app", "other:app", "--any-app", *client, *policed, "--json")
    assert ran.code == 7 and ran.data["code"] == "POLICY_APP" and sends(chain) == 0


def test_nothing_but_the_network_gives_transactions_to_the_sender() -> None:
    """What is sent elsewhere would pass the policy by."""
    gates = []
    for room in ("fl/client", "cli", "quorate"):
        for path in sorted((HERE / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr == "send" and "sender" in ast.unparse(node.value):
                    gates.append(str(path.relative_to(HERE)))
    assert gates == ["fl/client/network.py"]


@pytest.mark.parametrize(
    "command", [("job", "join", "digits"), ("submit", "digits", "--file", "x.npz", "--examples", 1)]
)
def test_commands_end_with_the_code_of_the_policy(
    chain: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    chain.create(make_rules(target=1, minimum=1))
    with connect(**chain.settings("trainer-001", home="other")) as network:
        network.job("digits").join()
    save_key(tmp_path / "site.key", signing_key("trainer-001"), None)
    np.savez(tmp_path / "x.npz", weight=np.zeros((3, 2), np.float32), bias=np.zeros(3, np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUORATE_POLICY", str(write(chain, FORBIDS)))
    client = ("--network", chain.network_file(), "--key", tmp_path / "site.key", "--home", tmp_path / "home")
    ran = quorate(*command, *client, "--json")
    assert ran.code == 7 and ran.data["code"] == "POLICY_COHORT"


def test_the_policy_of_the_home_holds_and_one_that_comes_later_as_well(
    chain: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUORATE_POLICY", raising=False)
    chain.create(make_rules(target=1, minimum=1))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join()
        next(job.tasks())
        placed = tmp_path / "home" / "policy.toml"
        placed.write_text(FORBIDS)
        with pytest.raises(PolicyForbids):
            next(job.tasks())
        placed.unlink()
        with pytest.raises(BadFile) as gone:
            next(job.tasks())
        assert gone.value.code == "NO_POLICY", "one that was seen does not vanish by accident"
        placed.write_text("[cohort")
        with pytest.raises(BadFile) as broken:
            next(job.tasks())
        assert broken.value.code == "BAD_POLICY"
        placed.write_text("")
        next(job.tasks())


def test_a_policy_that_cannot_be_read_lets_nobody_connect_with_it(chain: Running) -> None:
    with pytest.raises(BadFile):
        connect(**chain.settings(), policy=write(chain, "rolls = []"))


def test_a_data_set_that_is_not_admitted_is_not_named(chain: Running) -> None:
    chain.create(make_rules(weights="dataset", cap=100))
    with connect(**chain.settings(), policy=write(chain, 'datasets = ["trials"]')) as network:
        network.datasets.register("trials", examples=7)
        network.datasets.register("private", examples=7)
        job = network.job("digits")
        with pytest.raises(PolicyForbids) as error:
            job.join(dataset="private")
        assert error.value.code == "POLICY_DATASET"
        assert job.join(dataset="trials") is not None


# Hours

NIGHT = Hours("UTC", zone_of("UTC"), (span_of("18:00-06:00"),))
NOON_S, EVENING_S = 12 * 3600.0, 18 * 3600.0


def test_outside_the_hours_nothing_is_offered_and_the_loop_says_until_when(
    chain: Running, joined: tuple[Network, Job], caplog: pytest.LogCaptureFixture
) -> None:
    network, job = joined
    write(chain, '[hours]\nzone = "UTC"\nopen = ["18:00-06:00"]')
    network.policy.now = lambda: NOON_S
    offered: list[Task] = []
    loop = threading.Thread(target=lambda: offered.append(next(job.tasks())))
    with caplog.at_level(logging.WARNING, "quorate.client"):
        before = sends(chain)
        loop.start()
        loop.join(0.5)
        while not caplog.messages:
            loop.join(0.05)
        assert loop.is_alive() and not offered and sends(chain) == before
        assert "Thu 1970-01-01 18:00 UTC" in caplog.messages[-1]
        network.policy.now = lambda: EVENING_S
        loop.join(20)
    assert [each.round for each in offered] == [1]


def test_nothing_is_offered_once_the_hours_end_while_the_model_is_fetched(
    chain: Running, joined: tuple[Network, Job]
) -> None:
    network, job = joined
    write(chain, '[hours]\nzone = "UTC"\nopen = ["18:00-06:00"]')
    times, looked = iter([EVENING_S, EVENING_S]), threading.Event()

    def now() -> float:
        at_s = next(times, None)
        if at_s is None:
            looked.set()
        return NOON_S if at_s is None else at_s

    network.policy.now = now
    offered: list[Task] = []
    loop = threading.Thread(target=lambda: offered.append(next(job.tasks())))
    loop.start()
    assert looked.wait(20)
    loop.join(0.3)
    assert loop.is_alive() and not offered
    network.policy.now = lambda: EVENING_S
    loop.join(20)
    assert [each.round for each in offered] == [1]


def test_a_loop_that_waits_for_a_round_ends_with_a_policy_that_forbids_the_job(chain: Running) -> None:
    chain.create(make_rules(target=2, minimum=2))
    path = write(chain, "")

    async def wait() -> None:
        async with await connect_async(**chain.settings(), policy=path) as network:
            job = await network.job("digits")
            await job.join()
            write(chain, FORBIDS)
            assert (await job.status()).round == 0, "there is nothing to offer yet"
            async with asyncio.timeout(10):
                await anext(job.tasks())

    with pytest.raises(PolicyForbids):
        asyncio.run(wait())


def test_a_training_that_the_end_of_the_hours_met_is_sent_or_kept_as_the_file_says(
    chain: Running, joined: tuple[Network, Job]
) -> None:
    network, job = joined
    text = '[hours]\nzone = "UTC"\nopen = ["18:00-06:00"]\n'
    write(chain, text)
    network.policy.now = lambda: EVENING_S
    task = next(job.tasks())
    network.policy.now = lambda: NOON_S
    answer(task)
    network.policy.now = lambda: EVENING_S
    task = next(job.tasks())
    network.policy.now = lambda: NOON_S
    write(chain, text + "finish = false")
    before, kept = sends(chain), threading.Thread(target=answer, args=(task,))
    kept.start()
    kept.join(0.5)
    assert kept.is_alive() and sends(chain) == before
    network.policy.now = lambda: EVENING_S
    kept.join(20)
    assert not kept.is_alive() and sends(chain) == before + 1


def test_hours_bound_offers_and_with_finish_false_also_what_is_sent() -> None:
    site = Policy(hours=NIGHT)
    assert site.wait_s(NOON_S) == 6 * 3600 and site.wait_s(EVENING_S) == 0
    assert site.holds_back_s(NOON_S) == 0
    assert replace(site, hours=replace(NIGHT, finish=False)).holds_back_s(NOON_S) == 6 * 3600


def test_a_job_that_ends_outside_the_hours_is_not_waited_for(chain: Running, joined: tuple[Network, Job]) -> None:
    network, job = joined
    with connect(**chain.settings("creator", home="creator")) as creator:
        creator.job("digits").stop()
    write(chain, '[hours]\nzone = "UTC"\nopen = ["18:00-06:00"]')
    network.policy.now = lambda: NOON_S
    assert list(job.tasks()) == []


def test_rules_hold_for_rounds_that_are_far_ahead() -> None:
    steps = tuple(entry("lr", "decimal", f"0.{tenth}", 100 * tenth) for tenth in range(1, 6))
    rules: JobRules = make_rules(config=steps)
    policy("[config.bounds]\nlr = {max = 0.5}").check(rules)
    with pytest.raises(PolicyForbids, match="from round 500 on"):
        policy("[config.bounds]\nlr = {max = 0.4}").check(rules)
