from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fl.client import jobfile
from fl.client.apps import holdings, load_app
from fl.client.errors import BadFile, BadInput, QuorateError
from fl.client.jobdraft import draft_job
from fl.client.jobfile import JobFile, job_of, read_job_file
from fl.client.partition import Partition, divided
from fl.records import CohortRules, EvaluationRules, Goal, RuleSetting

ROOT = Path(__file__).parents[3]
LEAST = """
name = "toy"
rounds = 3
target = 4
privacy = "visible-to-validators"
"""
OWN = """
import numpy as np


class App:
    def model(self, size=2):
        return {"w": np.zeros(size)}

    def data(self):
        return (np.arange(12).reshape(6, 2), np.arange(6)), (np.zeros((4, 2)), np.zeros(4))

    def train(self, model, data, config, chance):
        return model, len(data), {}

    def evaluate(self, model, data):
        return len(data), {}


app = App()
"""


def job(text: str = "", least: str = LEAST) -> JobFile:
    return job_of(tomllib.loads(least + text), Path())


def written(place: Path, text: str) -> Path:
    (place / "job.toml").write_text(text)
    return place / "job.toml"


def test_every_rule_that_can_be_drafted_can_be_written_in_a_file() -> None:
    drafted = inspect.signature(draft_job).parameters.keys() - {"model", "settings", "app_digest", "rule"}
    assert jobfile._OF_THE_CHAIN.keys() == drafted


def test_all_of_a_job_is_said_in_its_file() -> None:
    found = job(
        """
        app = "digits"
        minimum = 0.75
        metrics = ["loss"]
        mode = "async"
        staleness = 3
        encoding = "topk"
        share = 0.05
        organisation_cap = 9
        cap = 10
        [rule]
        name = "clipped_mean"
        norm = 2
        [model]
        hidden = 0
        [config]
        lr = {1 = 0.5, 10 = 0.1}
        epochs = 2
        [cohort]
        size = 3
        over = 0.25
        check_in_s = 1.5
        [evaluation]
        every = 2
        cohort = 3
        minimum = 2
        deadline_s = 9
        statistic = "mean"
        metrics = ["accuracy"]
        [goal]
        metric = "accuracy"
        stop_at = 0.9
        [groups]
        head = ["output.weight"]
        rest = ["output.bias"]
        [data]
        partition = "dirichlet"
        alpha = 1
        seed = 7
        [simulation]
        dropout = 0.5
        """
    )
    rules = found.draft().rules
    assert rules.minimum == 3 and rules.mode == "async" and rules.discounts == (1024, 724, 591, 512)
    assert rules.rule == "clipped_mean" and rules.settings == (RuleSetting("norm", 0x4000000000000000),)
    assert (rules.encoding, rules.share_ppm, rules.organisation_cap, rules.cap) == ("topk", 50_000, 9, 10)
    assert [(each.name, each.from_round, each.value) for each in rules.config] == [
        ("epochs", 0, "2"),
        ("lr", 1, "0.5"),
        ("lr", 10, "0.1"),
    ]
    assert rules.cohort == CohortRules(3, 250_000, 1_500)
    assert rules.evaluation == EvaluationRules(2, 3, 2, 9_000, False, "mean", ("accuracy",))
    assert rules.goal == Goal("accuracy", True, True, 900_000)
    assert [(each.name, each.tensors) for each in rules.groups] == [
        ("head", ("output.weight",)),
        ("rest", ("output.bias",)),
    ]
    assert [each.name for each in rules.schema.tensors] == ["output.weight", "output.bias"]
    assert found.partition == Partition(1.0, 7) and found.conditions.dropout == 0.5
    assert rules.app == "digits" and rules.app_digest == b""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minimun = 3", "'minimum'"),
        ("targets = 3", "'target'"),
        ('deadline_s = "soon"', "a number"),
        ("frozen = true", "a list"),
        ("rounds_ = 2", "'rounds'"),
        ("metrics = [1]", "list of names"),
        ("[cohort]\nsiz = 3", "'size'"),
        ("[evaluation]\nmetrics = 3", "a list"),
        ("[goal]\nstop = 3", "'stop_at'"),
        ("[data]\nalpha = 0.5", "only the partition dirichlet"),
        ('[data]\npartition = "diriclet"', "iid, dirichlet"),
        ('[data]\npartition = "dirichlet"\nalpha = 0', "positive"),
        ("[simulation]\ndropouts = 0.1", "'dropout'"),
        ("[simulation]\ndropout = 1.1", "share"),
        ("[simulation]\nseconds = true", "a number"),
        ("[rule]\nnorm = 1.0", "no name"),
        ('[rule]\nname = "median"\nshare = "much"', "a number"),
        ('[rule]\nname = "medain"', "medain"),
        ('[rule]\nname = "median"\nshare = 1', "no setting 'share'"),
        ("[config]\nlr = {first = 0.1}", "by number"),
        ("[groups]\nhead = 3", "list of names"),
        ("minimum = 0.0", "no share"),
        ("model = 3", "a table"),
        ("[model]\nwidth = 3", "width"),
        ('[model]\nfile = "x.npz"\nhidden = 3', "no settings"),
        ('[model]\nfile = "missing.npz"', "missing.npz"),
        ("staleness = 3", "async"),
    ],
)
def test_nothing_in_a_file_is_ignored(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, LEAST + 'app = "digits"\n' + text)
    with pytest.raises(QuorateError) as refused:
        read_job_file(path).draft()
    assert isinstance(refused.value, BadFile | BadInput) and refused.value.exit_code == 2
    assert said.lower() in str(refused.value).lower()


def test_a_job_without_a_model_is_refused(tmp_path: Path) -> None:
    for text in ("", 'app = "digit"'):
        with pytest.raises(QuorateError):
            read_job_file(written(tmp_path, LEAST + text)).draft()


@pytest.mark.parametrize("text", ["", "name = 3", "name = ", "\0", "[name]\n", 'name = "a"\nname = "b"'])
def test_what_is_no_job_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadFile):
        read_job_file(written(tmp_path, text))
    with pytest.raises(BadFile):
        read_job_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "text",
    [
        *("grace_s = -5", "deadline_s = inf", "deadline_s = nan", "max_failed = -1", "cap = -1", "range_bits = 300"),
        *("[cohort]\nsize = -1", "[cohort]\nover = inf", '[goal]\nmetric = "loss"\nstop_at = inf'),
    ],
)
def test_numbers_that_no_rules_can_hold_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"cannot be written|finite"):
        job(f'app = "digits"\n{text}').draft()


def test_the_target_is_all_who_train_unless_it_is_given() -> None:
    least = LEAST.replace("target = 4", 'app = "digits"')
    assert job("", least).draft(9).rules.target == 9
    assert job("minimum = 0.5", least).draft(9).rules.minimum == 5
    assert job("[cohort]\nsize = 6", least).draft(9).rules.target == 6
    assert job("[cohort]\nsize = 6", least).draft(4).rules.target == 4
    assert job("target = 30", least).draft(9).rules.target == 30
    with pytest.raises(BadFile):
        job("", least).draft()


def test_own_code_is_found_beside_the_file_and_named_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "mine_of_this_test.py").write_text(OWN)
    path = written(tmp_path, LEAST + 'app = "mine_of_this_test:app"\n[model]\nsize = 5\n')
    rules = read_job_file(path).draft().rules
    assert rules.schema.tensors[0].shape == (5,)
    assert rules.app == "mine_of_this_test:app" and len(rules.app_digest) == 32
    held = holdings(load_app(rules.app, tmp_path).app, 3, Partition())
    assert sorted(int(label) for part in held.parts for label in part.y) == list(range(6))
    assert [len(share) for share in held.shares(3)] == [2, 1, 1]


@pytest.mark.parametrize("name", ["nowhere_to_be_found:app", "json:app", "json:decoder", "digit"])
def test_code_that_is_no_app_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        load_app(name, tmp_path)


@pytest.mark.parametrize("alpha", [None, 0.05, 10.0])
def test_a_partition_loses_no_row_and_leaves_nobody_empty_handed(alpha: float | None) -> None:
    labels = np.arange(500) % 10
    parts = divided(labels, 60, Partition(alpha, 3))
    again = divided(labels, 60, Partition(alpha, 3))
    assert sorted(int(row) for part in parts for row in part) == list(range(500))
    assert all(len(part) for part in parts)
    assert all(np.array_equal(one, same) for one, same in zip(parts, again, strict=True))


def test_a_small_alpha_leaves_most_with_a_few_labels() -> None:
    labels = np.arange(5000) % 10

    def kinds(alpha: float | None) -> float:
        return float(np.mean([len(np.unique(labels[part])) for part in divided(labels, 20, Partition(alpha, 3))]))

    assert kinds(0.05) < 5 < kinds(10.0) <= kinds(None) == 10


JOB_FILES = [path for path in sorted((ROOT / "examples").rglob("*.toml")) if path.name != "pyproject.toml"]


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_the_examples_can_be_drafted(path: Path) -> None:
    rules = read_job_file(path).draft(8).rules
    assert rules.app and rules.target <= 8


def test_a_model_that_the_app_cannot_make_is_told_in_a_line() -> None:
    with pytest.raises(BadFile, match="no such model"):
        job('app = "digits"\n[model]\nhidden = -1\n').draft(2)


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile):
        read_job_file(written(tmp_path, "a = " + "[" * 100_000))
