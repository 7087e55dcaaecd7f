"""The SDK as a member installs it, `pip install .` and nothing else: in `.venv-sdk`, which `environment.sh` makes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.run import done

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-sdk"
NODE_LIBRARIES = ("numba", "llvmlite", "plyvel", "uvloop", "prometheus_client", "torch", "sklearn", "flwr")
ROOMS = ("chain", "fl", "quorate", "cli")

FOUR_LINES = """
import sys
import numpy as np
import quorate

network_file, key, home, name = sys.argv[1:]
my_data = np.linspace(0, 1, 10)

def train(model, data, lr):
    return {each: array - lr * (array - 1) for each, array in model.items()}, len(data), float(data.mean())

job = quorate.connect(network_file, key=key, home=home).job(name)
job.join()
for task in job.tasks():
    weights, examples, loss = train(task.model, my_data, **task.config)
    task.submit(weights=weights, examples=examples, metrics={"loss": loss})
    print(task.round, task.receipt.status, task.receipt.path)
print("model", job.model()["w"].mean())
"""

CREATE = """
import sys
import numpy as np
import quorate

network_file, key, home = sys.argv[1:]
with quorate.connect(network_file, key=key, home=home) as network:
    model = {"w": np.zeros((3, 2), np.float32)}
    job = network.create_job("toy", model, rounds=2, target=2, deadline_s=600, privacy="visible-to-validators",
                             config={"lr": 0.5}, metrics=["loss"])
    print(job.id)
"""

IMPORT_ALL = """
import importlib, pkgutil, sys
import chain, fl.client, quorate

for package in (chain, fl.client, quorate):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("fl.client.")]))
"""


def installed() -> Path:
    """Skips the test where the environment is missing, or of another state of the checkout."""
    makes = "tests/sdk/environment.sh makes it"
    if not (ENVIRONMENT / "bin" / "quorate").exists():
        pytest.skip(f"there is no {ENVIRONMENT.name}: {makes}")
    (packages,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            copy = packages / path.relative_to(ROOT)
            if not copy.exists() or copy.read_bytes() != path.read_bytes():
                pytest.skip(f"{ENVIRONMENT.name} has not this checkout's {path.relative_to(ROOT)}: {makes}")
    return ENVIRONMENT / "bin"


def started(program: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Away from the checkout, so that nothing is imported from there."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [str(installed() / program), *map(str, arguments)],
        cwd=cwd,
        env=plain,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ran(program: str, *arguments: object, cwd: Path, code: int = 0) -> str:
    with started(program, *arguments, cwd=cwd) as process:
        return ended(process, code)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        out, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, errors
    return out


@pytest.mark.parametrize("library", NODE_LIBRARIES)
def test_no_library_of_a_node_or_of_a_framework_comes_along(library: str, tmp_path: Path) -> None:
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is not None)"
    ran("python", "-c", program, cwd=tmp_path)


def test_every_module_of_the_sdk_is_imported_without_them(tmp_path: Path) -> None:
    assert int(ran("python", "-c", IMPORT_ALL, cwd=tmp_path)) > 40


@pytest.mark.parametrize("group", ["receipt", "tx", "job", "submit", "model", "blob", "dataset", "network", "keys"])
def test_the_commands_of_clients_are_there(group: str, tmp_path: Path) -> None:
    assert group in ran("quorate", group, "--help", cwd=tmp_path)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four validators, which run from this environment."""
    installed()
    directory = tmp_path_factory.mktemp("sdk") / "net"
    done("localnet", "init", directory, "--validators", 4, "--trainers", 2)
    try:
        done("localnet", "up", directory)
        yield directory
    finally:
        done("localnet", "down", directory, "--now")


@pytest.mark.slow
def test_four_lines_train_on_real_validators_and_their_receipts_verify_offline(net: Path, tmp_path: Path) -> None:
    network, keys, home = net / "consortium.toml", net / "keys", tmp_path / "home"
    ran("python", "-c", CREATE, network, keys / "creator.key", home, cwd=tmp_path)
    both = [
        started("python", "-c", FOUR_LINES, network, keys / f"trainer-{number}.key", home, "toy", cwd=tmp_path)
        for number in (0, 1)
    ]
    told = [ended(process).splitlines() for process in both]
    for lines in told:
        assert [line.split()[:2] for line in lines[:-1]] == [["1", "ok"], ["2", "ok"]]
        assert lines[-1] == "model 0.75"
    receipt = told[0][1].split()[2]
    shown = ran("quorate", "receipt", "verify", receipt, "--checkpoint", network, cwd=tmp_path)
    assert "kind\tsubmit_update\n" in shown and "says metrics\t0.5\n" in shown
    listed = ran("quorate", "receipt", "list", "--network", network, "--home", home, cwd=tmp_path)
    assert listed.count("submit_update") == 4 and listed.count("join_job") == 2

    other = tmp_path / "other"
    done("localnet", "init", other, "--validators", 1)
    ran("quorate", "receipt", "verify", receipt, "--checkpoint", other / "consortium.toml", cwd=tmp_path, code=6)
