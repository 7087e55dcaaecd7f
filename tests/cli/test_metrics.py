"""What the command line says of how good a job's models are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl.client.sync import connect
from fl.records import Goal
from tests.cli.run import done, quorate
from tests.fl.builders import make_rules
from tests.fl.client.chainlet import running
from tests.fl.client.test_evaluations import register, train
from tests.fl.evaluating import asked

ACCURACY = {1: 0.5, 2: 0.75, 3: 0.625}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Options of a client, on whose chain a job of three rounds is over; the second model measured best."""
    with running(tmp_path_factory.mktemp("chain")) as chain:
        goal = Goal("accuracy", larger=True)
        chain.create(make_rules(target=1, minimum=1, maximum=1, evaluation=asked(minimum=1), goal=goal))
        register(chain, "evaluator")
        with connect(**chain.settings()) as trainer:
            trainer.job("digits").join()
            with connect(**chain.settings("evaluator", home="evaluator")) as evaluator:
                job = evaluator.job("digits")
                job.join(role="evaluator")
                asking = job.evaluations()
                for number, accuracy in ACCURACY.items():
                    train(trainer)
                    each = next(asking)
                    assert each.round == number
                    each.submit(metrics={"accuracy": accuracy}, examples=5)
        yield ["--network", chain.network_file(), "--home", chain.directory / "reader"]


def test_the_curves_of_a_job_are_told_by_rounds(evaluated: list[Any]) -> None:
    data = done("job", "metrics", "digits", "--json", *evaluated).data
    assert data["best_round"] == 2
    assert [each["round"] for each in data["rounds"]] == [1, 2, 3]
    assert [each["metrics"] for each in data["rounds"]] == [{"loss": 1.0}] * 3
    assert [each["evaluation"] for each in data["rounds"]] == [{"accuracy": each} for each in ACCURACY.values()]
    told = done("job", "metrics", "digits", *evaluated).out.splitlines()
    assert "EVALUATORS" in told[0]
    assert ["best" in line for line in told[1:4]] == [False, True, False]
    assert "loss=1" in told[1] and "accuracy=0.5" in told[1]


def test_the_curves_are_drawn_where_matplotlib_is_there(
    evaluated: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "curves.png"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = quorate("job", "metrics", "digits", "--plot", picture, *evaluated)
    assert refused.code != 0 and "pip install" in refused.err and not picture.exists()
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    done("job", "metrics", "digits", "--plot", picture, *evaluated)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_best_model_is_named_and_fetched(evaluated: list[Any], tmp_path: Path) -> None:
    shown = done("job", "show", "digits", "--json", *evaluated).data
    assert (shown["best_round"], shown["best_value"], shown["evaluators"]) == (2, 0.75, 1)
    assert shown["rules"]["goal"] == {"metric": "accuracy", "larger": True, "stop_at": None}
    assert shown["best"] != shown["model"]
    told = done("job", "show", "digits", *evaluated).out
    assert "median of accuracy after every round, beside the next round, by all evaluators" in told
    assert "accuracy, the larger the better" in told
    best = done("model", "get", "digits", "--best", "-o", tmp_path / "best.safetensors", "--json", *evaluated).data
    assert (best["round"], best["cid"]) == (2, shown["best"])
    both = quorate("model", "get", "digits", "--best", "--round", 1, *evaluated)
    assert both.code == 2 and "--best" in both.err


def test_without_a_measured_goal_there_is_no_best_model(tmp_path: Path) -> None:
    with running(tmp_path) as chain:
        chain.create(make_rules())
        options = ["--network", chain.network_file(), "--home", tmp_path / "reader"]
        refused = quorate("model", "get", "digits", "--best", *options)
        assert refused.code != 0 and "has been measured" in refused.err
        assert done("job", "show", "digits", "--json", *options).data["best"] is None


def test_curves_that_cannot_be_written_are_an_error_of_the_path(evaluated: list[Any], tmp_path: Path) -> None:
    ran = quorate("job", "metrics", "digits", "--plot", tmp_path / "none" / "curves.png", "--json", *evaluated)
    assert (ran.code, ran.data["code"]) == (2, "UNWRITABLE")
