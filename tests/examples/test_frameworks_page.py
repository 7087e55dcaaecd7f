"""The code of docs/frameworks.md, taken from the page, does what the page says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl.client.digits import load_digits
from fl.client.eventfile import read_events
from fl.client.jobfile import read_job_file
from fl.client.report import RoundReport
from fl.client.sync import Network, connect
from fl.simulation.simulate import simulate
from tests.fl.client.chainlet import Running, running

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
SHORT = 2
"""Rounds, with one trainer."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def section(title: str) -> str:
    """Up to the next heading."""
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    # Comments of code are no headings.
    start = found.start(1)
    ends = [each.start() for each in re.finditer(r"^##+ ", PAGE[start:], re.MULTILINE)]
    return PAGE[start : start + ends[0]] if ends else PAGE[start:]


def blocks(title: str, kind: str = "python") -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def shortened(code: str) -> str:
    for usual, short in (("rounds=20", f"rounds={SHORT}"), ("target=3", "target=1")):
        assert usual in code
        code = code.replace(usual, short)
    return code


def run(chain: Running, title: str, more: str = "") -> dict[str, Any]:
    """A section's two pieces of code, one as the creator, one as a trainer."""
    training, _ = load_digits()
    creating, joining = blocks(title)
    names: dict[str, Any] = {"x": training.x, "y": training.y}
    exec(more, names)
    for key, code in (("creator", shortened(creating)), ("trainer-001", joining)):
        with connect(**chain.settings(key, home=key)) as names["network"]:
            exec(code, names)
    return names


def ended(chain: Running, name: str, then: Any) -> Any:
    with connect(**chain.settings(None)) as network:
        job = network.job(name)
        assert [(each.state, each.updates) for each in job.reports()] == [("closed", 1)] * SHORT
        return then(network, job)


def right(scores: Any) -> float:
    return float(np.mean(np.asarray(scores).argmax(axis=1) == load_digits()[1].y))


def test_numpy(chain: Running) -> None:
    run(chain, "NumPy")
    model = ended(chain, "softmax", lambda network, job: job.model())
    assert right(load_digits()[1].x @ model["weight"] + model["bias"]) > 0.6


def test_pytorch_and_a_part_of_a_model(chain: Running) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(1)
    names = run(chain, "PyTorch")
    quorate_torch = sys.modules["quorate.torch"]
    quorate_torch.load(names["net"], ended(chain, "layers", lambda network, job: job.model()))
    with torch.no_grad():
        assert right(names["net"].eval()(torch.from_numpy(load_digits()[1].x))) > 0.85

    run(chain, "A part of a model", "import torch, quorate.torch\n" + blocks("PyTorch")[0].partition("net =")[0])
    first, last = ended(chain, "last-layer", lambda network, job: (job.model(0), job.model()))
    assert {name for name in last if not np.array_equal(first[name], last[name])} == {"3.weight", "3.bias"}


def test_an_app_of_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    for kind, name in (("python", "layers.py"), ("toml", "layers.toml")):
        (code,) = blocks("As an app", f"{kind} {name}")
        (tmp_path / name).write_text(code.replace("rounds = 10", "rounds = 3"))
    reports: list[RoundReport] = []
    assert simulate(read_job_file(tmp_path / "layers.toml"), 4, tell=reports.append).status == "finished"
    measured = [(each.held_out["accuracy"], each.evaluation["accuracy"]) for each in reports]
    assert measured[0] < measured[-1] and min(measured[-1]) > 0.8


def test_scikit_learn_and_trackers(chain: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(chain, "scikit-learn")

    def follow(network: Network, job: Any) -> None:
        (code,) = blocks("Trackers")
        exec(code, {"network": network})
        names["classifier"]()
        sys.modules["quorate.sklearn"].load(names["model"], job.model())

    ended(chain, "sgd", follow)
    held_out = load_digits()[1]
    assert names["model"].score(held_out.x, held_out.y) > 0.85
    assert capsys.readouterr().out.split() == ["1", "1", "2", "1"]
    (path,) = (tmp_path / "runs" / "sgd").iterdir()
    with open(path, "rb") as file:
        assert [each.step for each in read_events(file) if each.scalars] == [1, 2]


def test_every_piece_of_code_of_the_page_is_run() -> None:
    run_here = sum(
        len(blocks(title)) for title in ("NumPy", "PyTorch", "A part of a model", "scikit-learn", "Trackers")
    )
    assert len(re.findall(r"^```python", PAGE, re.MULTILINE)) == run_here + 1
