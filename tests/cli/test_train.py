"""`quorate train`: in a job that exists, with the code of this site, until it is over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fl.client.apps import load_app
from fl.client.jobfile import read_job_file
from fl.client.keyfile import save_key
from fl.client.sync import connect
from tests.cli.run import Ran, quorate
from tests.fl.builders import signing_key
from tests.fl.client.chainlet import Running, running

ROOT = Path(__file__).parents[2]
APP = """
import numpy as np


class Mean:
    def model(self):
        return {"w": np.zeros(2, np.float32)}

    def data(self):
        return None, 4.0

    def parts(self, count, chance):
        return [float(1 + number) for number in range(count)]

    def train(self, model, data, config, chance):
        return {"w": model["w"] + np.float32(data)}, 10, {"loss": 0.5}

    def evaluate(self, model, data):
        return 1, {"error": abs(data - float(model["w"][0]))}


app = Mean()
"""
JOB = """
name = "mean"
app = "app:app"
rounds = 2
target = 2
privacy = "visible-to-validators"
encoding = "f32"
metrics = ["loss"]
"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: Running) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "job.toml").write_text(JOB)
    for name in ("creator", "trainer-000", "trainer-001"):
        save_key(tmp_path / f"{name}.key", signing_key(name), None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def create(chain: Running, place: Path) -> None:
    with connect(**chain.settings("creator", home="creator")) as network:
        network.create_drafted(read_job_file(place / "job.toml").draft())


def options(chain: Running, number: int) -> list[object]:
    name = f"trainer-{number:03}"
    return ["--network", chain.network_file(), "--key", f"{name}.key", "--home", f"home{number}", "--json"]


def process(chain: Running, number: int, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "cli.main", "train", "mean", "--part", f"{number + 1}/2", *more]
    words += map(str, options(chain, number)[:-1])
    return subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=240)


def test_two_train_a_job_to_its_end_each_with_its_part(chain: Running, place: Path) -> None:
    create(chain, place)
    with ThreadPoolExecutor(2) as people:
        ran = list(people.map(lambda number: process(chain, number, "--tracker", "tensorboard:runs"), range(2)))
    with connect(**chain.settings("creator", home="creator")) as network:
        found = network.job("mean")
        assert list(found.model()["w"]) == [3.0, 3.0], "1.5 on average, twice"
        cid = found.model_cid()
    for each in ran:
        assert each.returncode == 0, each
        head, first, second, over, model = each.stdout.splitlines()
        assert head.split("\t") == ["ROUND", "KIND", "MODEL", "EXAMPLES", "METRICS", "STATUS", "HEIGHT", "TX"]
        assert [line.split("\t")[0] for line in (first, second)] == ["1", "2"]
        assert first.split("\t")[3:6] == ["10", "loss=0.5", "ok"]
        assert (over, model) == ("mean is finished: 2 answers given.", f"model {cid}")
    assert list((place / "runs").glob("events.out.tfevents.*"))
    again = quorate("train", "mean", "--part", "1/2", *options(chain, 0)).data
    assert (again["answers"], again["model"]) == ([], cid), "what was answered is not answered twice"


def refused(chain: Running, *more: object) -> Ran:
    return quorate("train", "mean", "--wait", 0, *more, *options(chain, 0))


def test_other_code_than_was_agreed_on_is_refused_unless_it_is_asked_for(chain: Running, place: Path) -> None:
    create(chain, place)
    (place / "app.py").write_text(APP + "# changed\n")
    ran = refused(chain, "--accept", "00" * 32)
    assert (ran.code, ran.data["code"]) == (2, "WRONG_APP")
    (place / "other.py").write_text(APP)
    ran = refused(chain, "--app", "other:app", "--accept", "00" * 32)
    assert (ran.code, ran.data["code"]) == (4, "WRONG_RULES"), "the same code under another name is the same code"
    ran = refused(chain, "--any-app", "--accept", "00" * 32)
    assert (ran.code, ran.data["code"]) == (4, "WRONG_RULES")


def test_code_that_fails_in_a_round_is_one_line(chain: Running, place: Path) -> None:
    (place / "app.py").write_text(APP.replace('{"loss": 0.5}', '{"loss": 1 / 0}'))
    (place / "job.toml").write_text(JOB.replace("target = 2", "target = 1"))
    create(chain, place)
    ran = refused(chain)
    assert (ran.code, ran.data["code"]) == (1, "APP_FAILED") and "app.py, line " in ran.data["message"]


def test_what_cannot_be_meant_is_refused_before_anything_is_done(chain: Running, place: Path) -> None:
    assert refused(chain).data["code"] == "UNKNOWN_JOB"
    create(chain, place)
    for more, code in (
        (("--part", "3/2"), "BAD_SHARE"),
        (("--tracker", "wandb:x"), "UNKNOWN_TRACKER"),
        (("--app", "a:b", "--flower", "c:d"), "USAGE"),
        (("--policy", "nothing.toml"), "NO_POLICY"),
    ):
        ran = refused(chain, *more)
        assert (ran.code, ran.data["code"]) == (2, code)
    ran = quorate("train", "mean", *options(chain, 0), "--key", "creator.key")
    assert (ran.code, ran.data["code"]) == (2, "NO_ROLE")


def test_a_creator_hears_that_the_file_lacks_a_target_before_data_is_read(chain: Running, place: Path) -> None:
    (place / "job.toml").write_text(JOB.replace("target = 2\n", ""))
    (place / "app.py").write_text(APP.replace("return None, 4.0", "raise OSError"))
    ran = quorate("run", "job.toml", *options(chain, 0), "--key", "creator.key")
    assert (ran.code, ran.data["code"]) == (2, "NO_TARGET") and "target = 8" in ran.data["advice"]


def test_the_policy_of_the_site_ends_it_with_an_exit_code_of_its_own(chain: Running, place: Path) -> None:
    create(chain, place)
    digest = "0" * 64
    assert load_app("app:app", place).digest.hex() != digest
    (place / "policy.toml").write_text(f'[[app]]\nname = "app:app"\ndigest = "{digest}"\n')
    ran = refused(chain, "--policy", "policy.toml")
    assert ran.code == 7, ran


def test_code_that_the_site_does_not_admit_is_not_even_loaded(chain: Running, place: Path) -> None:
    create(chain, place)
    (place / "app.py").write_text("import pathlib\npathlib.Path('loaded').touch()\n" + APP)
    (place / "policy.toml").write_text('[[app]]\nname = "digits"\n')
    ran = refused(chain, "--policy", "policy.toml")
    assert ran.code == 7 and not (place / "loaded").exists()
