"""`quorate new`: what it writes runs at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fl.client.jobfile import read_job_file
from fl.client.scaffold import TEMPLATES
from tests.cli.run import done, quorate

ROOT = Path(__file__).parents[2]
FLOWER = ROOT / ".venv-flower-1.41" / "bin" / "python"
NEEDS = {"torch": "torch", "sklearn": "sklearn"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("template", [each for each in TEMPLATES if each != "flower"])
def test_what_is_new_learns_something_in_a_simulation(template: str) -> None:
    if template in NEEDS:
        pytest.importorskip(NEEDS[template], reason=f"the template {template} needs it")
    done("new", "wards", "--template", template)
    data = done("run", "wards/job.toml", "--simulate", 8, "--json").data
    assert (data["job"], data["status"], len(data["rounds"])) == ("wards", "finished", 10)
    first, last = (data["rounds"][place]["held_out"] for place in (0, -1))
    assert last["accuracy"] > 0.8 and last["loss"] < first["loss"]


def test_an_app_of_flowers_begins_as_one_too() -> None:
    if not FLOWER.exists():
        pytest.skip("tests/flower/environments.sh has not made .venv-flower-1.41")
    done("new", "wards", "--template", "flower")
    program = (
        "from pathlib import Path; from fl.client.jobfile import read_job_file\n"
        "file = read_job_file(Path('wards/job.toml')); draft = file.draft(8)\n"
        "print(draft.rules.app, [each.shape for each in draft.rules.schema.tensors])"
    )
    ran = subprocess.run([FLOWER, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert ran.stdout == "flower:app:app [(8, 3), (3,)]\n", ran


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_new_is_whole(template: str, tmp_path: Path) -> None:
    files = done("new", "wards", "--template", template, "--json").data["files"]
    assert {Path(each).name for each in files} == {"app.py", "job.toml", "README.md", ".gitignore"}
    for each in files:
        text = Path(each).read_text()
        assert "@NAME@" not in text and "@APP@" not in text, each
        assert all(len(line) <= 120 for line in text.splitlines()), each
    compile((tmp_path / "wards" / "app.py").read_text(), "app.py", "exec")
    file = read_job_file(tmp_path / "wards" / "job.toml")
    assert file.name == "wards" and file.rules["privacy"] == "visible-to-validators"


def test_what_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "wards").mkdir()
    done("new", "wards")
    (tmp_path / "wards" / "app.py").write_text("mine")
    ran = quorate("new", "wards", "--json")
    assert (ran.code, ran.data["code"]) == (2, "NOT_EMPTY")
    assert (tmp_path / "wards" / "app.py").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert quorate("new", "file", "--json").data["code"] == "NOT_EMPTY"


@pytest.mark.parametrize("name", ["a b", "-x", "x" * 65, "é"])
def test_what_cannot_name_a_job_names_no_directory(name: str, tmp_path: Path) -> None:
    ran = quorate("new", "--json", "--", name)
    assert (ran.code, ran.data["code"]) == (2, "BAD_NAME") and not list(tmp_path.iterdir())


def test_templates_are_part_of_the_package(tmp_path: Path) -> None:
    """As setuptools sees it: without them `quorate new` works in a checkout only."""
    setuptools = pytest.importorskip("setuptools", reason="it is asked what it packs")
    assert setuptools.__version__
    source = tmp_path / "source"
    shutil.copytree(ROOT / "fl", source / "fl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", source)
    shutil.copy(ROOT / "README.md", source)
    words = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "-d", tmp_path / "built"]
    ran = subprocess.run(list(map(str, words)), cwd=source, capture_output=True, text=True)
    assert ran.returncode == 0, ran
    packed = {path.relative_to(tmp_path / "built") for path in (tmp_path / "built").rglob("*.txt")}
    ours = {path.relative_to(ROOT) for path in (ROOT / "fl" / "client" / "scaffold").rglob("*.txt")}
    assert packed >= ours and len(ours) == 7


@pytest.mark.slow
def test_what_is_new_runs_on_four_validators_of_this_machine(tmp_path: Path) -> None:
    done("new", "wards")
    file = tmp_path / "wards" / "job.toml"
    file.write_text(file.read_text().replace("rounds = 10", "rounds = 2"))
    data = done("run", file, "--localnet", "--trainers", 2, "--json").data
    assert data["status"] == "finished" and data["rounds"][-1]["held_out"]["accuracy"] > 0.6
