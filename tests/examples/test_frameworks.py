"""The examples of frameworks learn: in short against a chain in this process, and one as its page tells to run it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cli.localnets import LocalNetwork
from fl.client.sync import connect
from tests.cli.run import done
from tests.fl.client.chainlet import Running, running

PLACE = Path(__file__).parents[2] / "examples"
TRAINERS = 2
ROUNDS = 3
HANG_S = 240


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


def example(name: str) -> ModuleType:
    if name != "digits":
        pytest.importorskip("torch", reason="torch is not installed")
    spec = importlib.util.spec_from_file_location(f"example_{name}", PLACE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def learns(module: ModuleType, chain: Running) -> None:
    """A job of a few rounds, with its trainers in threads."""
    with connect(**chain.settings("creator", home="creator")) as network:
        module.create(network, TRAINERS)
    failures: list[BaseException] = []

    def train(settings: dict[str, object], number: int) -> None:
        try:
            with connect(**settings) as network:
                module.train(network, number, TRAINERS)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=train, args=(chain.settings(f"trainer-{number:03}", home=f"home{number}"), number))
        for number in range(1, TRAINERS + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert not failures


def percentages(out: str, pattern: str) -> list[float]:
    return [float(each) for each in re.findall(pattern.replace("N", r"([0-9.]+)"), out)]


def test_digits_learns(chain: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("digits")
    monkeypatch.setattr(module, "ROUNDS", ROUNDS)
    learns(module, chain)
    told = percentages(capsys.readouterr().out, "round 3: the model came with N%")
    assert len(told) == TRAINERS and min(told) > 90


def test_torch_cnn_learns(chain: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("torch_cnn")
    monkeypatch.setattr(module, "ROUNDS", ROUNDS)
    learns(module, chain)
    out = capsys.readouterr().out
    assert max(percentages(out, "round 1: the model came with N%")) < 30
    told = percentages(out, "the final model has N%")
    assert len(told) == TRAINERS and min(told) > 85


def test_lora_learns_with_a_tenth_of_the_bytes(
    chain: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("lora")
    monkeypatch.setitem(module.RULES, "rounds", ROUNDS)
    learns(module, chain)
    out = capsys.readouterr().out
    small, whole = map(int, re.findall(r"takes (\d+) bytes; of the whole network it would be (\d+)", out)[0])
    assert small * 9 < whole
    assert percentages(out, "N% of turned ones")[0] < 40
    told = percentages(out, "the final model reads N%")
    assert len(told) == TRAINERS and min(told) > 70
    with connect(**chain.settings(None)) as network:
        job = network.job("lora")
        first, last = job.model(0), job.model()
        assert all("lora" in name for name in job.averaged)
        for name in first:
            assert (first[name] == last[name]).all() == ("lora" not in name), "the base stays as it was"


@pytest.mark.slow
def test_the_command_lines_of_an_example_train_on_a_network(tmp_path: Path) -> None:
    net = tmp_path / "net"
    done("localnet", "init", net, "--trainers", TRAINERS)
    running: list[subprocess.Popen[str]] = []
    try:
        done("localnet", "up", net)

        def start(key: str, *words: str) -> subprocess.Popen[str]:
            command = [
                sys.executable,
                PLACE / "digits.py",
                net / "consortium.toml",
                net / "keys" / f"{key}.key",
                *words,
            ]
            environment = {**os.environ, "QUORATE_HOME": str(tmp_path / key), "PYTHONPATH": str(PLACE.parent)}
            began = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            running.append(began)
            return began

        assert "created digits-sgd" in start("creator", "create", str(TRAINERS)).communicate(timeout=HANG_S)[0]
        training = [start(f"trainer-{each}", "train", f"{each + 1}/{TRAINERS}") for each in range(TRAINERS)]
        outs = [each.communicate(timeout=HANG_S)[0] for each in training]
    finally:
        for each in running:
            each.kill()
            each.wait()
        network = LocalNetwork.open(net)
        for name in network.members:
            network.kill(name)
    for out in outs:
        assert percentages(out, "round 10: the model came with N%")[0] > 90
        assert out.count("my update is ok") == 10
    (one,), (other,) = (re.findall("the final model is (.*)", out) for out in outs)
    assert one == other
