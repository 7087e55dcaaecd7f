"""What the commands have in common that look at rounds again: kernels, threads, steps, and how far they are."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from cli.output import F, line, on_terminal
from cli.transfer import Broken, size_text

if TYPE_CHECKING:
    from fl.audit.steps import Step
    from fl.client.audit.verify import Report
    from fl.client.network import AsyncNetwork

_BYTES = {"hash": "hashing", "check": "checking what is here", "fetch": "fetching"}
_COUNTS = {
    "entries": "entries of the log",
    "updates": "updates looked at",
    "add": "updates aggregated",
    "measured": "updates measured",
}
_MARKS = {"ok": ("ok", "green"), "failed": ("FAILED", "red"), "missing": ("missing", "yellow")}
_FINDINGS_SHOWN = 5
_LINES_S = 0.1
"""Between two lines of progress."""

Spread = Callable[[Sequence[Callable[[], int]]], list[int]]


def archive_option(command: F) -> F:
    return click.option(
        "--archive",
        "archives",
        multiple=True,
        metavar="URL",
        help="Ask this node too, which keeps what others have deleted; repeatable. It is believed no more than others.",
    )(command)


def keep_option(command: F) -> F:
    return click.option("--keep", "kept", is_flag=True, help="Leave what was fetched in the home, for the next run.")(
        command
    )


def with_archives(network: AsyncNetwork, archives: Sequence[str]) -> None:
    for url in archives:
        network.nodes.add(url)


@contextmanager
def threads() -> Iterator[Spread]:
    """All processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="audit") as pool:
        yield lambda pieces: list(pool.map(lambda piece: piece(), pieces))


class Looking:
    """How far it is, in one line of a terminal that the lines of the answer make room in; in pipes nothing."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()
        self._writing = threading.Lock()
        self._next_s = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        """From any thread."""
        with self._writing:
            if self._shown and time.monotonic() >= self._next_s:
                self._next_s = time.monotonic() + _LINES_S
                self._write(f"{self._what}: {_so_far(step, done, total)}")

    def tell(self, step: Step) -> None:
        self.clear()
        tell_step(step)

    def clear(self) -> None:
        with self._writing:
            if self._shown:
                self._write("")

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[2K{text[:width]}")
        sys.stderr.flush()


@contextmanager
def looking(what: str) -> Iterator[Looking]:
    shown = Looking(what)
    try:
        yield shown
    except KeyboardInterrupt:
        raise Broken from None
    finally:
        shown.clear()


def _so_far(step: str, done: int, total: int) -> str:
    if step in _BYTES:
        return f"{_BYTES[step]}, {size_text(done)} of {size_text(total)}"
    return f"{done} of {total} {_COUNTS.get(step, step)}"


def tell_step(step: Step) -> None:
    word, colour = _MARKS.get(step.verdict, (str(step.verdict), "bright_black"))
    if on_terminal():
        line(f"{click.style(word.ljust(8), fg=colour)}{step.name.ljust(13)}{step.sentence}")
    else:
        line(f"{word}\t{step.name}\t{step.sentence}")
    margin = " " * 8 if on_terminal() else "\t"
    for each in step.findings[:_FINDINGS_SHOWN]:
        line(f"{margin}{each.where}: expected {each.expected}, found {each.found}")
    rest = len(step.findings) + step.more - _FINDINGS_SHOWN
    if rest > 0:
        line(f"{margin}and {rest} more")


def step_data(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "verdict": str(step.verdict),
        "says": step.sentence,
        "findings": [{"where": each.where, "expected": each.expected, "found": each.found} for each in step.findings],
        "more_findings": step.more,
    }


def report_data(report: Report) -> dict[str, Any]:
    return {
        "verified": report.verified,
        "steps": [step_data(each) for each in report.steps],
        "rests_on": list(report.rests),
    }
