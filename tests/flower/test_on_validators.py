"""Three apps of Flower, unchanged, on four validators: a trainer of each version in every one of their jobs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cli.localnets import Plan
from fl.client.sync import connect
from fl.records import JobStatus
from tests.flower.taking_part import ROUNDS, TRAINERS
from tests.flower.versions import VERSIONS, ended, python_of, started
from tests.node.networks import local_network

PROGRAM = ("-m", "tests.flower.taking_part")


def accuracy(weights: np.ndarray, bias: np.ndarray) -> float:
    pixels, labels = load_digits(return_X_y=True)
    return float(((pixels / 16 @ weights.T + bias).argmax(axis=1) == labels).mean())


@pytest.mark.slow
def test_unmodified_apps_of_three_versions_train_together_on_four_validators(tmp_path: Path) -> None:
    for version in VERSIONS:
        python_of(version)
    with local_network(Plan(4, TRAINERS, evaluators=1)) as net:

        def member(version: str, act: str, name: str, *rest: str) -> subprocess.Popen[str]:
            home = tmp_path / name
            return started(version, *PROGRAM, act, net.network_file, net.key_file(name), home, *rest)

        ended(member("1.41", "create", "creator", "lists", "modded", "digits"))
        processes = [
            member(version, "train", f"trainer-{number}", f"{number + 1}/{TRAINERS}", "lists", "modded", "digits")
            for number, version in enumerate(VERSIONS)
        ]
        processes.append(member("1.39", "evaluate", "evaluator-0", "1/3", "digits"))
        try:
            for process in processes:
                ended(process)
        finally:
            for process in processes:
                process.kill()
        with connect(net.network_file, home=tmp_path / "reader") as network:
            lists, modded, digits = (network.job(name) for name in ("lists", "modded", "digits"))
            for job in (lists, modded, digits):
                assert job.status().status == JobStatus.FINISHED
                assert [report.updates for report in job.reports()] == [TRAINERS] * ROUNDS
            before, after = (accuracy(model["coef"], model["intercept"]) for model in (digits.model(0), digits.model()))
            assert before < 0.2 and after > 0.85
            measured = [report.evaluation["eval_acc"] for report in digits.reports()]
            assert measured[0] > 0.8 and measured[-1] >= measured[0]
            before, after = (accuracy(model["0"], model["1"]) for model in (lists.model(0), lists.model()))
            assert before < 0.2 and after > 0.85
            assert np.array_equal(lists.model()["3"], np.arange(10)) and "2" not in lists.model()
            counted = [report.metrics["batches"] for report in lists.reports()]
            assert counted == [0.0, 1.0, 2.0], "each client has kept its own counter"
            assert [report.metrics["calls"] for report in modded.reports()] == [1.0, 2.0, 3.0]
            # Half of the way from 100 to each client's own number, three times: 1, their mean, is what they agree on.
            assert modded.model()["layer.weight"] == pytest.approx([1 + 99 / 8] * 4, abs=0.5)
