"""The commands of examples/flower, in environments with Flower and without the node, on a chain of four nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fl.client.keyfile import save_key
from fl.client.sync import connect
from fl.records import JobStatus
from tests.fl.builders import signing_key
from tests.fl.client.chainlet import Running, running
from tests.flower.versions import ROOT, VERSIONS, ended, python_of, started

EXAMPLE = ROOT / "examples" / "flower"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, 3) as made:
        yield made


def command(chain: Running, version: str, who: str, *words: object) -> subprocess.Popen[str]:
    """`quorate` beside the app, in somebody's name."""
    key = chain.directory / f"{who}.key"
    if not key.exists():
        save_key(key, signing_key(who), None)
    place = ("--network", chain.network_file(), "--key", key, "--home", chain.directory / f"home-{who}")
    return started(version, "-m", "cli.main", *words, *place, cwd=chain.directory / "site")


@pytest.mark.slow
def test_a_job_is_made_from_an_app_and_trained_with_it_from_a_shell(chain: Running) -> None:
    for version in VERSIONS:
        python_of(version)
    reference, site = "digits_app.client_app:app", chain.directory / "site"
    shutil.copytree(EXAMPLE, site)
    made = ("job", "new", "digits", "--flower", reference, "--privacy", "visible-to-validators")
    ended(started("1.30", "-m", "cli.main", *made, "--run-config", "learning-rate=0.05", cwd=site))
    ended(command(chain, "1.30", "creator", "job", "create", "job.toml"))
    words = ("train", "digits", "--flower", reference, "--part")
    processes = [
        command(chain, version, f"trainer-{number:03}", *words, f"{number + 1}/3", "--json")
        for number, version in enumerate(VERSIONS)
    ]
    try:
        for process in processes:
            told = json.loads(ended(process))["data"]
            assert told["status"] == "finished"
            assert [each["round"] for each in told["answers"]] == [1, 2, 3]
            assert {each["receipt"]["status"] for each in told["answers"]} == {"ok"}
    finally:
        for process in processes:
            process.kill()
    with connect(**chain.settings(None)) as network:
        job = network.job("digits")
        assert job.status().status == JobStatus.FINISHED and job.rules.app == f"flower:{reference}"
        assert [(each.name, each.value) for each in job.rules.config] == [("lr", "0.05")]
        pixels, labels = load_digits(return_X_y=True)
        model = job.model()
        found = (pixels / 16 @ model["coef"].T + model["intercept"]).argmax(axis=1)
        assert np.mean(found == labels) > 0.85
