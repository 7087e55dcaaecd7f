"""`quorate job new`: a job file that `job create` and `run` take, from a model of any kind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fl.client.jobfile import read_job_file
from fl.client.tensorfile import write_tensors
from fl.records import JobRules
from fl.tensors.layout import StoredTensor
from tests.cli.run import Ran, quorate
from tests.cli.test_new import FLOWER, ROOT

PRIVACY = ("--privacy", "visible-to-validators")
NET = """
import numpy as np
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 3), nn.BatchNorm1d(3))

half = nn.Linear(2, 2).to(torch.bfloat16)
"""
ESTIMATOR = """
from sklearn.linear_model import SGDClassifier
from quorate.sklearn import prepare

def estimator():
    return prepare(SGDClassifier(), 4, range(3))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new(*arguments: object) -> Ran:
    return quorate("job", "new", "wards", *arguments, *PRIVACY, "--json")


def rules() -> JobRules:
    return read_job_file(Path("job.toml")).draft().rules


def roles() -> dict[str, str]:
    return {each.name: each.role for each in rules().schema.tensors}


def test_a_file_of_tensors_of_all_kinds_becomes_a_job(tmp_path: Path) -> None:
    tensors = {
        "w": ("BF16", np.array([[1.5, -2.0]], np.float32)),
        "b": ("F16", np.array([0.25], np.float16)),
        "ids": ("I64", np.arange(5)),
        "seen": ("I64", np.array(9)),
        "mask": ("BOOL", np.array([True])),
    }
    stored = [StoredTensor(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    write_tensors(tmp_path / "base.safetensors", stored, {name: [each.ravel()] for name, (_, each) in tensors.items()})
    data = new("--from", "base.safetensors").data
    assert data["tensors"] == {"averaged": 2, "frozen": 2, "local": 1}
    assert roles() == {"w": "averaged", "b": "averaged", "ids": "frozen", "seen": "local", "mask": "frozen"}
    assert (rules().rounds, rules().target, rules().privacy) == (10, 3, "visible-to-validators")


def test_an_npz_file_does_as_well_and_runs_with_an_app(tmp_path: Path) -> None:
    np.savez(tmp_path / "base.npz", w=np.zeros(2))
    source = """
import numpy as np

class App:
    def model(self): raise NotImplementedError
    def data(self): return None, None
    def parts(self, count, chance): return [None] * count
    def train(self, model, data, config, chance): return {"w": model["w"] + 1}, 1, {}
    def evaluate(self, model, data): return 1, {"first": float(model["w"][0])}

app = App()
"""
    (tmp_path / "app.py").write_text(source)
    assert new("--from", "base.npz", "--app", "app:app", "--rounds", 2).code == 0
    data = quorate("run", "job.toml", "--simulate", 3, "--json").data
    assert [each["held_out"]["first"] for each in data["rounds"]] == [1.0, 2.0]


def test_a_module_of_pytorch_becomes_a_job(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="its modules are drafted")
    (tmp_path / "net.py").write_text(NET)
    assert new("--torch", "net:Net").code == 0
    found = roles()
    assert found["0.weight"] == "averaged" and found["1.num_batches_tracked"] == "local"
    assert new("--torch", "net:half", "--directory", "half").code == 0
    schema = read_job_file(Path("half/job.toml")).draft().rules.schema
    assert {each.dtype for each in schema.tensors} == {"F32"}


def test_an_estimator_of_scikit_learn_becomes_a_job(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="its estimators are drafted")
    (tmp_path / "mine.py").write_text(ESTIMATOR)
    assert new("--sklearn", "mine:estimator").code == 0
    assert set(roles().values()) == {"averaged"}


def test_an_app_of_flowers_becomes_a_job_with_its_own_training(tmp_path: Path) -> None:
    if not FLOWER.exists():
        pytest.skip("tests/flower/environments.sh has not made .venv-flower-1.41")
    assert quorate("new", "app", "--template", "flower").code == 0
    words = [FLOWER, "-m", "cli.main", "job", "new", "wards", "--flower", "app:app", *PRIVACY, "--json"]
    place = tmp_path / "app"
    (place / "job.toml").unlink()
    ran = subprocess.run(words, capture_output=True, text=True, cwd=place, env={"PYTHONPATH": str(ROOT)})
    assert ran.returncode == 0, ran
    assert json.loads(ran.stdout)["data"]["app"] == "flower:app:app"
    text = (place / "job.toml").read_text()
    assert 'app = "flower:app:app"' in text and "rounds = 3" in text


def test_every_choice_is_named_and_privacy_has_no_default(tmp_path: Path) -> None:
    np.savez(tmp_path / "base.npz", w=np.zeros(2))
    ran = quorate("job", "new", "wards", "--from", "base.npz", "--json")
    assert (ran.code, ran.data["code"]) == (2, "USAGE") and "--privacy" in ran.data["message"]
    assert new("--from", "base.npz").code == 0
    text = (tmp_path / "job.toml").read_text()
    from fl.client import jobfile

    beyond = {"mode", "staleness", "organisation_cap", "share", "groups"}
    for key in jobfile._OF_THE_CHAIN.keys() - beyond:
        assert f"{key} = " in text or f"[{key}]" in text, key


def test_what_cannot_become_a_job_leaves_nothing_behind(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", **{"a b": np.zeros(2)})
    np.savez(tmp_path / "whole.npz", n=np.arange(3))
    np.savez(tmp_path / "nan.npz", w=np.array([np.nan]))
    np.savez(tmp_path / "good.npz", w=np.zeros(2))
    for arguments, code in (
        (("--from", "odd.npz"), "BAD_SCHEMA"),
        (("--from", "whole.npz"), "BAD_SCHEMA"),
        (("--from", "nan.npz"), "BAD_MODEL"),
        (("--from", "missing.npz"), "UNREADABLE"),
        (("--torch", "nothing_at_all:Net"), "UNKNOWN_APP"),
        (("--from", "good.npz", "--torch", "a:b"), "USAGE"),
        (("--from", "good.npz", "--app", "nothing_at_all:app"), "UNKNOWN_APP"),
        ((), "USAGE"),
    ):
        ran = new(*arguments)
        assert (ran.code, ran.data["code"]) == (2, code), ran
        assert not (tmp_path / "job.toml").exists() and not (tmp_path / "model.safetensors").exists()


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "base.npz", w=np.zeros(2))
    (tmp_path / "job.toml").write_text("mine")
    assert new("--from", "base.npz").data["code"] == "FILE_EXISTS"
    assert (tmp_path / "job.toml").read_text() == "mine"
