"""Training code that fails is told where; packages that are missing are told by what installs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fl.client.appguard import AppFailed
from fl.client.apps import load_app
from tests.cli.run import done, quorate

ROOT = Path(__file__).parents[2]
APP = """
import numpy as np

class Mean:
    def model(self):
        return {"w": np.zeros(2, np.float32)}

    def data(self):
        return None, 0.0

    def parts(self, count, chance):
        return [float(number) for number in range(count)]

    def train(self, model, data, config, chance):
        return {"w": model["w"] + self.step()}, 1, {}

    def step(self):
        return 1

    def evaluate(self, model, data):
        return 1, {}

app = Mean()
"""
JOB = """
name = "mean"
app = "app:app"
rounds = 2
privacy = "visible-to-validators"
"""
BARE = """
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numba", "llvmlite", "plyvel", "uvloop", "prometheus_client"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
from cli import packages
packages.find_spec = lambda name: None
from cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def test_an_app_that_raises_is_one_line_with_its_file_and_line(job: Path) -> None:
    source = APP.replace("return 1\n", "return 1 // 0\n")
    (job.parent / "app.py").write_text(source)
    at = 1 + source.splitlines().index("        return 1 // 0")
    ran = quorate("run", job, "--simulate", 2)
    first, *rest = ran.err.splitlines()
    assert ran.code == 1
    assert f"{job.parent / 'app.py'}, line {at}, in step: ZeroDivisionError: " in first and "[APP_FAILED]" in first
    assert "--traceback" in rest[0] and "Traceback" not in ran.err
    assert "ZeroDivisionError" in quorate("run", job, "--simulate", 2, "--json").data["message"]


def test_all_that_led_there_is_shown_when_asked_for(job: Path) -> None:
    (job.parent / "app.py").write_text(APP.replace("return 1\n", "return 1 // 0\n"))
    ran = quorate("run", job, "--simulate", 2, "--traceback")
    assert ran.code == 1 and "Traceback (most recent call last)" in ran.err and "fl/simulation" in ran.err


@pytest.mark.parametrize("broken", ["x = ", "raise RuntimeError('no data here')", "import a_package_that_nobody_has"])
def test_an_app_that_cannot_be_imported_is_blamed_too(job: Path, broken: str) -> None:
    (job.parent / "app.py").write_text(f"{APP}\n{broken}\n")
    ran = quorate("run", job, "--simulate", 2, "--json")
    assert (ran.code, ran.data["code"]) == (1, "APP_FAILED")
    assert f"app.py, line {len(APP.splitlines()) + 2}" in ran.data["message"]


def test_an_app_that_is_not_there_is_a_mistake(job: Path) -> None:
    for name in ("nothing_like_it:app", "app:nothing", "app", "a-b:c", "../app:app", ":app"):
        job.write_text(JOB.replace("app:app", name))
        ran = quorate("run", job, "--simulate", 2, "--json")
        assert (ran.code, ran.data["code"]) == (2, "UNKNOWN_APP"), name


def test_a_setting_that_the_model_does_not_take_is_a_mistake_of_the_file(job: Path) -> None:
    job.write_text(JOB + "[model]\nhiden = 3\n")
    ran = quorate("run", job, "--simulate", 2, "--json")
    assert (ran.code, ran.data["code"]) == (2, "BAD_JOB_FILE")


def test_two_apps_of_one_name_are_two(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "app.py").write_text(APP.replace("return 1\n", f"return {number}\n"))
        found.append(load_app("app:app", place))
    assert found[0].digest != found[1].digest
    assert [each.app.step() for each in found] == [1, 2]  # type: ignore[attr-defined]


def test_what_an_app_raises_stays_at_hand(job: Path) -> None:
    (job.parent / "app.py").write_text(APP.replace("return 1\n", "raise KeyError('lr')\n"))
    with pytest.raises(AppFailed) as failed:
        load_app("app:app", job.parent).app.train({"w": 0}, 0.0, {}, None)  # type: ignore[arg-type, dict-item]
    assert isinstance(failed.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", ROOT / "examples" / "digits.toml", "--simulate", "2"),
        ("run", ROOT / "examples" / "digits.toml", "--localnet"),
        ("localnet", "init", "net"),
        ("node", "init"),
        ("node", "start"),
        ("demo",),
        ("verify", "digits", "1"),
    ],
)
def test_a_command_that_needs_the_node_says_what_installs_it_and_begins_nothing(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    words = [sys.executable, "-c", BARE, *map(str, arguments)]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ran.returncode == 2, ran
    assert "[MISSING_PACKAGE]" in ran.stderr and "pip install 'quorate[node]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 2 and not list(tmp_path.iterdir())


def test_an_encrypted_key_needs_no_node(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("open sesame")
    (tmp_path / "secret").chmod(0o600)
    done("keys", "new-account", tmp_path / "a.key", "--passphrase", f"file:{tmp_path / 'secret'}")
    program = BARE.replace("from cli.main", "import node; sys.modules['node'] = None\nfrom cli.main").replace(
        "main(sys.argv[1:])",
        "from cli.client import Client; from pathlib import Path\n"
        "print(Client(None, Path('a.key'), 'file:secret', None, 1.0).secret())",
    )
    words = [sys.executable, "-c", program]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ran.stdout == "b'open sesame'\n", ran
