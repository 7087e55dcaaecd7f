"""How the command answers: tables on a terminal, plain lines in a pipe, one envelope with --json."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from cli.localnets import LocalNetwork, Plan
from cli.node import progress
from cli.output import fields, rich_table, table, telling
from tests.cli.run import done, quorate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def genesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LocalNetwork.create(tmp_path_factory.mktemp("out") / "net", Plan(validators=1)).directory / "genesis.bin"


def on_a_terminal(*arguments: object) -> str:
    """What a terminal of 120 columns would be sent."""
    shown, end = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "cli.main", *map(str, arguments)]
    with subprocess.Popen(words, stdin=end, stdout=end, stderr=end, env=environment) as running:
        os.close(end)
        text, ends = b"", time.monotonic() + 60
        while time.monotonic() < ends and select.select([shown], [], [], 60)[0]:
            try:
                part = os.read(shown, 65_536)
            except OSError:
                break
            text += part
        assert running.wait(60) == 0
    os.close(shown)
    return text.decode()


def test_a_narrow_table_leaves_out_what_is_as_usual_in_every_row() -> None:
    columns, rows = ("ROUND", "STATE", "LATE", "FAILED"), [["1", "closed", "", ""], ["2", "closed", "1", ""]]
    assert telling(columns, rows, usual="closed") == (["ROUND", "LATE"], [["1", ""], ["2", "1"]])
    rows[1][1] = "failed"
    assert telling(columns, rows, usual="closed")[0] == ["ROUND", "STATE", "LATE"]


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Console(file=io.StringIO(), width=width)
    columns, rows = ("NAME", "STATUS", "SIZE", "ID"), [["wards", "running", "7", "0123456789abcdef" * 4]]
    screen.print(rich_table(columns, rows, spare=("SIZE", "STATUS")))
    assert isinstance(screen.file, io.StringIO)
    return [line.strip() for line in screen.file.getvalue().splitlines() if line.strip()]


def test_a_table_shortens_ids_and_then_spares_columns_rather_than_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, usual, narrow = (drawn(width, monkeypatch) for width in (120, 80, 22))
    assert wide[-1].endswith("0123456789abcdef" * 4) and wide[0].split() == ["NAME", "STATUS", "SIZE", "ID"]
    assert usual[-1].split() == ["wards", "running", "7", "01234567…"]
    assert (narrow[0].split(), narrow[-1].split()) == (["NAME", "ID"], ["wards", "01234567…"])
    assert {len(found) for found in (wide, usual, narrow)} == {3}, "nothing is folded"


def test_a_table_is_drawn_on_a_terminal(genesis: Path) -> None:
    assert "────" in on_a_terminal("genesis", "show", genesis)


def test_in_a_pipe_a_table_is_lines_with_tabs(genesis: Path) -> None:
    lines = done("genesis", "show", genesis).out.splitlines()
    assert "VALIDATOR\tADDRESS\tRPC\tCONSENSUS KEY" in lines
    assert lines[0].startswith("chain_id\t")
    assert not any("─" in line or "\x1b" in line for line in lines)


def test_what_a_stranger_wrote_makes_no_line_and_no_colour_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "tags"], [["kind\nv1\tleader", ["\x1b[31mred", "\u202egnol"]]])
    assert capsys.readouterr().out == "name\ttags\nkind\\nv1\\tleader\t\\x1b[31mred, \\u202egnol\n"


def test_json_is_one_line_with_one_envelope(genesis: Path) -> None:
    ran = done("genesis", "show", genesis, "--json")
    assert len(ran.out.splitlines()) == 1
    assert json.loads(ran.out).keys() == {"schema_version", "status", "data"}


def test_an_error_is_a_line_of_what_and_a_line_of_what_to_do(tmp_path: Path) -> None:
    ran = quorate("node", "status", "--url", "http://127.0.0.1:1")
    assert (ran.code, ran.out) == (3, "")
    what, do = ran.err.splitlines()
    assert what.startswith("Error: http://127.0.0.1:1 does not answer")
    assert do == "Check that the node runs."


def test_an_error_in_json_has_its_code_its_advice_and_its_exit_code() -> None:
    ran = quorate("node", "status", "--url", "ftp://x", "--json")
    assert ran.data == {
        "code": "BAD_URL",
        "message": "'ftp://x' is no URL of a node.",
        "advice": "It begins with http:// or https://.",
        "exit_code": 2,
    }


@pytest.mark.parametrize("arguments", [("nonsense",), ("keys", "new"), ("localnet", "init", "--validators", "11")])
def test_a_mistake_in_the_arguments_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert quorate(*arguments).code == 2


def test_every_complaint_about_a_configuration_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[node]\ndata_dir = 1\n[lynks]\n")
    ran = quorate("node", "start", "--config", tmp_path / "node.toml")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 5


def test_a_reader_that_has_seen_enough_is_no_error(genesis: Path) -> None:
    line = f"{sys.executable} -m cli.main node template | head -n 1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout == "[node]\n"
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("syncing", "said"),
    [
        (None, "no"),
        ({"target": 1000, "behind": 250, "eta_s": 90}, "250 blocks behind 1000 (75 %), 90 s to go"),
        ({"target": 1000, "behind": 250, "eta_s": 7200}, "250 blocks behind 1000 (75 %), 2.0 h to go"),
        ({"target": 1000, "behind": 999, "eta_s": None}, "999 blocks behind 1000 (0 %), measuring"),
    ],
)
def test_catching_up_is_told_with_the_time_that_it_will_take(syncing: object, said: str) -> None:
    assert progress({"syncing": syncing}) == said


def test_what_a_strangers_file_says_looks_like_no_line_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    fields({"status": "ok\nsigned_by\torg-a\x1b[2J", "é": "ü"})
    assert capsys.readouterr().out == "status\tok\\nsigned_by\\torg-a\\x1b[2J\né\tü\n"
