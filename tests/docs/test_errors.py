"""The table of errors in docs/tutorial.md: each one is provoked for real, and is printed as the table has it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate as sdk
from fl.client.errors import QuorateError, RefusedByChain
from fl.client.keyfile import save_key
from fl.client.networkfile import network_of, parse_network
from fl.errors import CODES, DecidedBy
from tests.cli.run import done
from tests.cli.run import quorate as command
from tests.fl.builders import make_genesis, signing_key
from tests.fl.client.chainlet import Running, running

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
ROW = re.compile(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", re.MULTILINE)
TABLE = {code: (what, todo) for code, what, todo in ROW.findall(PAGE.read_text())}
JOB: dict[str, Any] = {
    "rounds": 3,
    "target": 1,
    "privacy": "visible-to-validators",
    "config": {"lr": 0.3},
    "metrics": ["loss"],
}
UPDATE: dict[str, Any] = {"delta": {"w": np.ones(4)}, "examples": 1, "metrics": {"loss": 1}}
JOB_FILE = """
name = "wards"
app = "app:app"
rounds = 2
target = 2
privacy = "visible-to-validators"
metrics = ["loss"]
"""
APP = """
import numpy as np


class App:
    def model(self):
        return {"w": np.zeros(2, np.float32)}

    def data(self):
        return (np.zeros((8, 1)), np.zeros(8)), (np.zeros((8, 1)), np.zeros(8))

    def train(self, model, data, config, chance):
        return {}, 1, {"loss": 0.0}

    def evaluate(self, model, data):
        return 1, {"loss": 0.0}


app = App()
"""
RECEIPTS = "home/*/*/receipts/*"


@dataclass
class Place:
    """A chain with the tutorial's job, and a directory with the files that its reader has."""

    chain: Running
    patch: pytest.MonkeyPatch
    opened: list[sdk.Network] = field(default_factory=list)

    def network(self, key: str | None = "my.key", **changes: Any) -> sdk.Network:
        self.opened.append(sdk.connect("consortium.toml", key=key, **{"home": "home", "patience_s": 0.5, **changes}))
        return self.opened[-1]

    def key(self, name: str, file: str = "my.key") -> None:
        Path(file).unlink(missing_ok=True)
        save_key(Path(file), signing_key(name), None)

    def job(self, name: str = "doses") -> sdk.Job:
        return self.network().job(name)

    def task(self) -> sdk.Task:
        """Of a job whose rounds need one update."""
        job = self.job()
        job.join()
        return next(job.tasks())

    def waiting(self) -> sdk.Job:
        """A job whose round this member has answered, and that waits for another."""
        self.key("creator", "creator.key")
        self.network("creator.key").create_job("pair", {"w": np.zeros(4)}, **{**JOB, "target": 2})
        self.key("trainer-001", "other.key")
        self.network("other.key").job("pair").join()
        job = self.job("pair")
        job.join()
        return job

    def all_nodes(self, **wrong: Any) -> None:
        for face in self.chain.faces:
            for name, value in wrong.items():
                setattr(face, name, value)


Provocation = Callable[[Place], object]
PROVOKED: dict[str, Provocation] = {}


def provokes(code: str) -> Callable[[Provocation], Provocation]:
    def register(act: Provocation) -> Provocation:
        PROVOKED[code] = act
        return act

    return register


def failing(*arguments: object) -> None:
    """A command that fails: its error as it is printed."""
    ran = command(*arguments)
    found = re.search(r"^Error: (.*) \[([A-Z_]+)\]\n(.*)", ran.err, re.MULTILINE)
    assert found is not None, ran
    raise QuorateError(found[2], found[1], found[3])


CLIENT = ("--network", "consortium.toml", "--home", "home", "--patience", 0.5)
WITH_KEY = (*CLIENT, "--key", "my.key")

# Keys and members


@provokes("NO_KEY")
def _(place: Place) -> object:
    return failing("job", "join", "doses", *CLIENT)


@provokes("UNREADABLE")
def _(place: Place) -> object:
    return failing("job", "join", "doses", *CLIENT, "--key", "mine.key")


@provokes("EXPOSED")
def _(place: Place) -> object:
    Path("my.key").chmod(0o644)
    return failing("job", "join", "doses", *WITH_KEY)


@provokes("BAD_KEY_FILE")
def _(place: Place) -> object:
    Path("my.key").write_text("not a key")
    return failing("job", "join", "doses", *WITH_KEY)


@provokes("ENCRYPTED")
def _(place: Place) -> object:
    save_key(Path("secret.key"), signing_key("trainer-000"), b"open sesame")
    return place.network("secret.key")


@provokes("WRONG_PASSPHRASE")
def _(place: Place) -> object:
    save_key(Path("secret.key"), signing_key("trainer-000"), b"open sesame")
    return place.network("secret.key", passphrase="sesame")


@provokes("KEY_EXISTS")
def _(place: Place) -> object:
    return failing("keys", "new-account", "my.key", "--insecure-no-passphrase")


@provokes("NOT_MEMBER")
def _(place: Place) -> object:
    place.key("stranger")
    return failing("job", "join", "doses", *WITH_KEY)


@provokes("UNAUTHORISED")
def _(place: Place) -> object:
    return place.network().create_job("more", {"w": np.zeros(4)}, **JOB)


@provokes("NO_ROLE")
def _(place: Place) -> object:
    place.key("creator")
    return failing("train", "doses", *WITH_KEY)


@provokes("WRONG_KEY")
def _(place: Place) -> object:
    with place.network() as network:
        account = network.account
    place.key("trainer-001")
    return place.network(account=account, home="other").job("doses").join()


# The network


@provokes("NO_NETWORK")
def _(place: Place) -> object:
    Path("consortium.toml").unlink()
    return failing("job", "list", "--home", "home")


@provokes("UNKNOWN_NETWORK")
def _(place: Place) -> object:
    return failing("job", "show", "doses", "--home", "home", "--network", "nett")


@provokes("BAD_NETWORK_FILE")
def _(place: Place) -> object:
    Path("consortium.toml").write_text("name = 'net'\n")
    return failing("job", "show", "doses", *CLIENT)


@provokes("OTHER_CHAIN")
def _(place: Place) -> object:
    place.job().join()
    (receipt,) = Path().glob(RECEIPTS)
    write_network(replace(network_of(make_genesis(4, 3)), name="other"), Path("other.toml"))
    return failing("receipt", "verify", receipt, "--checkpoint", "other.toml", "--home", "home")


@provokes("WRONG_VALIDATORS")
def _(place: Place) -> object:
    text = Path("consortium.toml").read_text()
    honest = parse_network(text)
    first, *others = honest.validators.members
    forged = replace(honest.validators, members=(replace(first, operator_key=others[0].operator_key), *others))
    write_network(replace(honest, checkpoint=replace(honest.checkpoint, validators=forged)), Path("consortium.toml"))
    return place.network(home="other")


@provokes("NO_ANSWER")
def _(place: Place) -> object:
    place.all_nodes(down=True)
    return failing("job", "show", "doses", *CLIENT)


@provokes("NOT_PROVEN")
def _(place: Place) -> object:
    with place.network():
        place.all_nodes(forges=True)
    return failing("job", "show", "doses", *CLIENT)


# Jobs


@provokes("UNKNOWN_JOB")
def _(place: Place) -> object:
    return failing("job", "show", "dose", *CLIENT)


@provokes("WRONG_RULES")
def _(place: Place) -> object:
    return failing("job", "join", "doses", "--accept", "00" * 32, *WITH_KEY)


@provokes("NOT_JOINED")
def _(place: Place) -> object:
    return next(place.job().tasks())


@provokes("NAME_TAKEN")
def _(place: Place) -> object:
    place.key("creator")
    return place.network().create_job("doses", {"w": np.zeros(4)}, **JOB)


@provokes("BAD_RULES")
def _(place: Place) -> object:
    place.key("creator")
    return place.network().create_job("more", {"w": np.zeros(4)}, **{**JOB, "target": 0})


@provokes("PRIVACY_NOT_OFFERED")
def _(place: Place) -> object:
    place.key("creator")
    return place.network().create_job("more", {"w": np.zeros(4)}, **{**JOB, "privacy": "sealed"})


@provokes("JOB_CLOSED")
def _(place: Place) -> object:
    stop_job(place)
    return failing("job", "join", "doses", *WITH_KEY)


@provokes("NOT_CONFIRMED")
def _(place: Place) -> object:
    place.key("creator")
    return failing("job", "stop", "doses", *WITH_KEY)


@provokes("NO_OPEN_ROUND")
def _(place: Place) -> object:
    next(place.waiting().tasks()).submit(**UPDATE)
    np.savez("w.npz", w=np.ones(4))
    options = ("--file", "w.npz", "--examples", 1, "--metric", "loss=1", "--timeout", 0.2)
    return failing("submit", "pair", *options, *WITH_KEY)


@provokes("NO_MODEL")
def _(place: Place) -> object:
    return failing("model", "get", "doses", "--round", 7, *CLIENT)


@provokes("BAD_JOB_FILE")
def _(place: Place) -> object:
    Path("job.toml").write_text("rouds = 3\n" + JOB_FILE)
    return failing("run", "job.toml", "--simulate", 2)


@provokes("ONE_OF_THREE")
def _(place: Place) -> object:
    return failing("run", "job.toml")


# Updates


@provokes("WRONG_SHAPE")
def _(place: Place) -> object:
    return place.task().submit(weights={"w": np.ones(3)}, examples=1, metrics={"loss": 1})


@provokes("UNKNOWN_TENSOR")
def _(place: Place) -> object:
    return place.task().submit(weights={"v": np.ones(4)}, examples=1, metrics={"loss": 1})


@provokes("MISSING_TENSOR")
def _(place: Place) -> object:
    return place.task().submit(weights={}, examples=1, metrics={"loss": 1})


@provokes("NON_FINITE")
def _(place: Place) -> object:
    return place.task().submit(weights={"w": np.full(4, np.nan)}, examples=1, metrics={"loss": 1})


@provokes("OUT_OF_RANGE")
def _(place: Place) -> object:
    return place.task().submit(weights={"w": np.full(4, 1e6)}, examples=1, metrics={"loss": 1})


@provokes("BAD_METRICS")
def _(place: Place) -> object:
    return place.task().submit(weights={"w": np.ones(4)}, examples=1)


@provokes("BAD_EXAMPLES")
def _(place: Place) -> object:
    return place.task().submit(weights={"w": np.ones(4)}, examples=0, metrics={"loss": 1})


@provokes("ONE_OF_TWO")
def _(place: Place) -> object:
    return place.task().submit(examples=1, metrics={"loss": 1})


@provokes("LATE")
def _(place: Place) -> object:
    late = place.task()
    for _ in range(2):
        place.task().submit(**UPDATE)
    return raised(late.submit(**UPDATE))


@provokes("DUPLICATE")
def _(place: Place) -> object:
    job = place.waiting()
    first, again = next(job.tasks()), next(job.tasks())
    first.submit(**UPDATE)
    return raised(again.submit(**UPDATE))


# Code, sites and receipts


@provokes("UNKNOWN_APP")
def _(place: Place) -> object:
    Path("job.toml").write_text(JOB_FILE)
    return failing("run", "job.toml", "--simulate", 2)


@provokes("NO_APP")
def _(place: Place) -> object:
    return failing("train", "doses", *WITH_KEY)


@provokes("WRONG_APP")
def _(place: Place) -> object:
    wards(place)
    Path("app.py").write_text(APP + "# changed\n")
    return failing("train", "wards", *WITH_KEY)


@provokes("APP_FAILED")
def _(place: Place) -> object:
    Path("app.py").write_text(APP.replace("return {}, 1", "return {}[0], 1"))
    Path("job.toml").write_text(JOB_FILE)
    return failing("run", "job.toml", "--simulate", 2)


@provokes("MISSING_PACKAGE")
def _(place: Place) -> object:
    place.patch.setitem(sys.modules, "flwr", None)
    Path("job.toml").write_text(JOB_FILE.replace('"app:app"', '"flower:app:app"'))
    return failing("run", "job.toml", "--simulate", 2)


@provokes("NOT_EMPTY")
def _(place: Place) -> object:
    done("new", "wards")
    return failing("new", "wards")


@provokes("POLICY_COHORT")
def _(place: Place) -> object:
    Path("home").mkdir(exist_ok=True)
    Path("home/policy.toml").write_text("[cohort]\nminimum = 5\n")
    return failing("job", "join", "doses", *WITH_KEY)


@provokes("POLICY_APP")
def _(place: Place) -> object:
    wards(place)
    Path("home/policy.toml").write_text('[[app]]\nname = "digits"\n')
    return failing("train", "wards", *WITH_KEY)


@provokes("BAD_POLICY")
def _(place: Place) -> object:
    Path("home").mkdir(exist_ok=True)
    Path("home/policy.toml").write_text("[cohort]\nmimimum = 5\n")
    return failing("job", "join", "doses", *WITH_KEY)


@provokes("BAD_RECEIPT")
def _(place: Place) -> object:
    Path("receipt.bin").write_bytes(b"no receipt")
    return failing("receipt", "verify", "receipt.bin", "--checkpoint", "consortium.toml")


@provokes("NETWORK_EXISTS")
def _(place: Place) -> object:
    write_network(network_of(make_genesis(4, 3)), Path("other.toml"))
    done("network", "add", "net", "consortium.toml")
    return failing("network", "add", "net", "other.toml")


@provokes("NO_LOCALNET")
def _(place: Place) -> object:
    return failing("localnet", "up", "nett")


@provokes("LOCALNET_EXISTS")
def _(place: Place) -> object:
    done("localnet", "init", "net")
    return failing("localnet", "init", "net")


# Helpers of these


def raised(receipt: sdk.Receipt) -> object:
    """The SDK tells by a status what a loop over tasks lives with; `quorate explain CODE` says what it is."""
    assert not receipt.accepted
    said = done("explain", receipt.status, "--json").data
    assert said["code"] == receipt.status
    raise RefusedByChain.of(receipt.status)


def write_network(network: Any, path: Path) -> None:
    from fl.client.networkfile import render_network

    path.write_text(render_network(network))


def wards(place: Place) -> None:
    """The job of a project whose code is here."""
    Path("app.py").write_text(APP)
    Path("job.toml").write_text(JOB_FILE)
    place.key("creator", "creator.key")
    done("job", "create", "job.toml", *CLIENT, "--key", "creator.key")


def stop_job(place: Place) -> None:
    place.key("creator", "creator.key")
    place.network("creator.key").job("doses").stop()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    for variable in ("QUORATE_NETWORK", "QUORATE_KEY", "QUORATE_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("QUORATE_HOME", str(tmp_path / "home"))
    with running(tmp_path) as chain:
        chain.network_file()
        with sdk.connect("consortium.toml", key=signing_key("creator"), home="founder") as founder:
            founder.create_job("doses", {"w": np.zeros(4)}, **JOB)
        made = Place(chain, monkeypatch)
        made.key("trainer-000")
        yield made
        for network in made.opened:
            network.close()
        sys.modules.pop("app", None)


def pattern(cell: str) -> str:
    return ".*".join(map(re.escape, cell.replace("\\|", "|").split("…")))


@pytest.mark.parametrize("code", sorted(PROVOKED))
def test_an_error_is_printed_as_the_tutorial_has_it(place: Place, code: str) -> None:
    with pytest.raises(QuorateError) as error:
        PROVOKED[code](place)
    is_as_the_table_has_it(error.value, code)


def is_as_the_table_has_it(error: QuorateError, code: str) -> None:
    assert error.code == code, error
    assert error.todo, "every error has a next step"
    what, todo = TABLE[code]
    assert re.fullmatch(pattern(what), error.what), error.what
    assert re.fullmatch(pattern(todo), error.todo), error.todo


def test_every_error_of_the_table_is_provoked() -> None:
    assert set(TABLE) == {*PROVOKED, "QUOTA_EXCEEDED"}


@pytest.mark.slow
def test_a_full_quota_is_printed_as_the_tutorial_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("localnet", "init", "net", "--validators", 1, "--trainers", 1)
    config = Path("net/v0/node.toml")
    config.write_text(config.read_text().replace("[data]", f"[data]\nmember_bytes = {1024 * 1024}"))
    Path("large.bin").write_bytes(bytes(2 * 1024 * 1024))
    try:
        done("localnet", "up", "net")
        where = ("--network", "net/consortium.toml", "--key", "net/keys/trainer-0.key", "--home", "home")
        with pytest.raises(QuorateError) as error:
            failing("blob", "put", "large.bin", *where)
        is_as_the_table_has_it(error.value, "QUOTA_EXCEEDED")
    finally:
        done("localnet", "down", "net")


def test_every_refusal_of_a_transaction_has_a_next_step() -> None:
    refusals = [each for each in CODES.values() if each.decided_by not in (DecidedBy.ROUND, DecidedBy.ITEM)]
    assert [each.name for each in refusals if not RefusedByChain.of(each.name).todo] == []
