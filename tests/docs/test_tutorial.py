"""The first hour, as docs/tutorial.md tells it: all its commands in one go, on a terminal, and what they print."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
FLOWER = ROOT / ".venv-flower-1.41" / "bin"
COLUMNS = 140
FILE = re.compile(r"`(\w+\.py)`[^`]*?:\n\n```python\n(.*?)```|`(\w+\.py)`\.[^\n]*:\n\n```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"(?:<!-- needs (\w+) -->\n)?```console\n(.*?)```", re.DOTALL)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MARK = "@@ block"


@dataclass(frozen=True)
class Block:
    needs: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def printed(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("$ ")]


BLOCKS = [Block(needs, text) for needs, text in BLOCK.findall(PAGE)]


def pattern(line: str) -> str:
    """Of a line of output: numbers, ids and columns' widths differ from run to run."""
    words = []
    for word in line.split():
        if re.fullmatch(r"[0-9a-f]{12,}|baf\w+", word):
            words.append(r"\S+")
        else:
            escaped = re.escape(word).replace("…", ".*")
            words.append(re.sub(r"\d+(\\\.\d+)?", r"\\d+(\\.\\d+)?", escaped))
    return r"\s+".join(words)


def on_a_terminal(script: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code, and all that a terminal was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["bash", script], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=script.parent, env=environment
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:
            break
        if not read:
            break
        sent += read
    os.close(ours)
    return process.wait(60), ESCAPE.sub("", sent.decode(errors="replace")).replace("\r", "\n")


def script_of(blocks: list[Block]) -> str:
    lines = ["set -eu", "trap 'quorate localnet down net > /dev/null 2>&1 || true' EXIT"]
    for number, block in enumerate(blocks):
        lines.append(f"echo '{MARK} {number} @@'")
        if block.needs == "flwr":
            lines.append(f"PATH={FLOWER}:$PATH; hash -r")
        lines += block.commands
        if block.needs == "flwr":
            lines.append(f"PATH=${{PATH#{FLOWER}:}}; hash -r")
    return "\n".join(lines) + "\n"


def is_at_hand(needed: str) -> bool:
    return (FLOWER / "quorate").exists() if needed == "flwr" else not needed or find_spec(needed) is not None


def files() -> dict[str, str]:
    return {first or third: second or fourth for first, second, third, fourth in FILE.findall(PAGE)}


def test_the_page_has_files_and_blocks_to_run() -> None:
    assert set(files()) == {"create.py", "train.py"}
    assert len(BLOCKS) >= 8 and {block.needs for block in BLOCKS} == {"", "torch", "flwr"}


def test_an_output_is_compared_but_for_its_numbers() -> None:
    assert re.search(pattern(" 1   8 of 8  0.33"), "  1  5 of 8   0.2  ")
    assert re.search(pattern("model bafkreiaaaa"), "model bafkreibbbb")
    assert not re.search(pattern("finished after 10 rounds"), "stopped after 10 rounds")


@pytest.mark.slow
def test_the_first_hour_runs_and_prints_what_the_page_says(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    blocks = [block for block in BLOCKS if is_at_hand(block.needs)]
    script = tmp_path / "tutorial.sh"
    script.write_text(script_of(blocks))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QUORATE_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "QUORATE_HOME": str(tmp_path / "home"),
        "TERM": "xterm",
        "COLUMNS": str(COLUMNS),
    }
    code, output = on_a_terminal(script, environment)
    assert code == 0, output[-4000:]
    parts = re.split(rf"{MARK} \d+ @@", output)[1:]
    assert len(parts) == len(blocks)
    missing = [
        line
        for block, part in zip(blocks, parts, strict=True)
        for line in block.printed
        if not re.search(pattern(line), part)
    ]
    assert not missing, f"not printed: {missing}\n{output}"
