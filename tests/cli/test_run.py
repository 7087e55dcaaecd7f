from __future__ import annotations

import json
from pathlib import Path

import pytest

from chain.cid import cid_text, raw_cid
from cli.localnets import LocalNetwork
from tests.cli.run import done, quorate

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits.toml"
OWN = '''
"""Everybody has a number, and the model learns their mean: the offset by all, the gain by nobody."""

import numpy as np


class Means:
    def model(self):
        return {"gain": np.ones(2, np.float32), "offset": np.zeros(2, np.float32)}

    def data(self):
        return None, 2.0

    def parts(self, count, chance):
        return [float(number) for number in range(count)]

    def train(self, model, data, config, chance):
        offset = model["offset"] + config["step"] * (data - model["offset"])
        return {"offset": offset}, 1, {"distance": abs(data - float(model["offset"][0]))}

    def evaluate(self, model, data):
        return 1, {"error": abs(data - float(model["offset"][0]))}


app = Means()
'''
OWN_JOB = """
name = "means"
app = "means_of_this_test:app"
rounds = 12
privacy = "visible-to-validators"
encoding = "f32"
metrics = ["distance"]
[config]
step = 0.5
[groups]
body = ["gain"]
head = ["offset"]
[evaluation]
metrics = ["error"]
"""


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """The example with fewer rounds and the smallest model."""
    text = EXAMPLE.read_text().replace("rounds = 20", "rounds = 3").replace("hidden = 32", "hidden = 0")
    (tmp_path / "short.toml").write_text(text)
    return tmp_path / "short.toml"


def test_a_simulation_tells_each_round_and_writes_its_model(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = done("run", short, "--simulate", 12, "--out", out, "--json").data
    assert (data["status"], len(data["rounds"])) == ("finished", 3)
    assert cid_text(raw_cid((out / "model.safetensors").read_bytes())) == data["model"]
    assert json.loads((out / "metrics.json").read_text())["rounds"] == data["rounds"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    last = data["rounds"][-1]
    assert last["updates"] + last["failed"] + last["late"] == last["cohort"] == 12
    assert last["held_out"].keys() == {"accuracy", "loss"} and last["evaluation"].keys() == {"accuracy"}


def test_the_same_seed_simulates_the_same_model(short: Path) -> None:
    once, again, other = (done("run", short, "--simulate", 6, "--seed", seed, "--json").data for seed in (1, 1, 2))
    assert once["rounds"] == again["rounds"] and once["model"] == again["model"] != other["model"]


def test_in_a_pipe_a_round_is_a_line_and_the_model_the_last(short: Path) -> None:
    lines = done("run", short, "--simulate", 6).out.splitlines()
    assert lines[0].split("\t")[:4] == ["ROUND", "STATE", "UPDATES", "WEIGHT"]
    assert [line.split("\t")[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[-1].startswith("model bafkrei")


def test_a_job_that_comes_to_no_end_is_a_failure(short: Path) -> None:
    short.write_text(short.read_text().replace("dropout = 0.05", "dropout = 1.0"))
    ran = quorate("run", short, "--simulate", 4, "--json")
    assert (ran.code, ran.data["code"]) == (1, "NOT_FINISHED")
    assert "quorate explain BELOW_MINIMUM" in ran.data["advice"]


@pytest.mark.parametrize("options", [(), ("--simulate", 3, "--localnet"), ("--localnet", "--network", "x.toml")])
def test_it_runs_in_one_place(short: Path, options: tuple[object, ...]) -> None:
    ran = quorate("run", short, *options, "--json")
    assert (ran.code, ran.data["code"]) == (2, "ONE_OF_THREE")


@pytest.mark.parametrize("more", ["maximum = 1", 'rule = "krum"'])
def test_what_the_chain_would_refuse_is_refused_with_its_code(short: Path, more: str) -> None:
    short.write_text(f"{more}\n{short.read_text()}")
    ran = quorate("run", short, "--simulate", 4, "--json")
    assert (ran.code, ran.data["code"]) == (4, "BAD_RULES")


def test_ones_own_code_trains_on_data_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "means_of_this_test.py").write_text(OWN)
    (tmp_path / "means.toml").write_text(OWN_JOB)
    data = done("run", tmp_path / "means.toml", "--simulate", 5, "--json").data
    errors = [each["held_out"]["error"] for each in data["rounds"]]
    assert errors == pytest.approx([2.0 * 0.5 ** (round + 1) for round in range(12)])
    assert [each["evaluation"]["error"] for each in data["rounds"]] == pytest.approx(errors, abs=1e-6)


def test_a_misspelt_setting_of_the_digits_is_refused(short: Path) -> None:
    short.write_text(short.read_text().replace("epochs = 5", "epoch = 5"))
    ran = quorate("run", short, "--simulate", 2, "--json")
    assert (ran.code, ran.data["code"], ran.data["advice"]) == (2, "UNKNOWN_KEY", "Did you mean 'epochs'?")


def test_a_pipe_gets_no_head_line_of_a_job_that_cannot_be(short: Path) -> None:
    short.write_text(f'rule = "krum"\n{short.read_text()}')
    assert quorate("run", short, "--simulate", 4).out == ""


@pytest.mark.parametrize(
    ("given", "code"),
    [("{'offset': np.zeros(3)}", "WRONG_SHAPE"), ("{'gain': np.zeros(2)}", "UNKNOWN_TENSOR")],
)
def test_code_that_returns_other_tensors_is_told_so(tmp_path: Path, given: str, code: str) -> None:
    module = f"means_that_{code.lower()}"
    (tmp_path / f"{module}.py").write_text(OWN.replace('return {"offset": offset}', f"return {given}"))
    ungrouped = OWN_JOB.replace('[groups]\nbody = ["gain"]\nhead = ["offset"]\n', "")
    (tmp_path / "means.toml").write_text(ungrouped.replace("means_of_this_test", module))
    ran = quorate("run", tmp_path / "means.toml", "--simulate", 2, "--json")
    assert (ran.code, ran.data["code"]) == (2, code)


@pytest.mark.slow
def test_the_same_file_runs_on_a_chain_of_its_own(short: Path, tmp_path: Path) -> None:
    directory, out = tmp_path / "run", tmp_path / "out"
    options = ("--trainers", 2, "--directory", directory, "--out", out, "--json")
    data = done("run", short, "--localnet", *options).data
    assert data["status"] == "finished"
    closed = [each for each in data["rounds"] if each["state"] == "closed"]
    assert len(closed) == 3 and all(each["updates"] >= 1 for each in closed)
    assert cid_text(raw_cid((out / "model.safetensors").read_bytes())) == data["model"]
    network = LocalNetwork.open(directory)
    assert not any(network.running(name) for name in network.members)
