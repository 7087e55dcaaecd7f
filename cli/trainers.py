"""Trainers as processes on this machine: how they are started and ended, and what their journals say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl.client.errors import QuorateError, TimedOut
from fl.records import Kind


@contextmanager
def orderly_end() -> Iterator[None]:
    """SIGTERM ends the processes that were started, as an interrupt does."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Trainers:
    """Trainers as processes, each with a home of its own, and what they wrote down there."""

    def __init__(self, directory: Path, commands: Sequence[Sequence[str]]) -> None:
        """`commands` are arguments to Python, to which `--home` is added."""
        self._directory = directory
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []

    def _home(self, index: int) -> Path:
        return self._directory / str(index)

    def start(self) -> None:
        house = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (house, os.environ.get("PYTHONPATH"))))
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        for index, command in enumerate(self._commands):
            home = self._home(index)
            home.mkdir(parents=True, exist_ok=True)
            with open(home / "log.txt", "wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *command, "--home", str(home)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        # An interrupt on this terminal is for the command, which ends its trainers itself.
                        start_new_session=True,
                        env={**os.environ, **one_thread, "PYTHONPATH": path},
                    )
                )

    def check(self) -> None:
        """Raises if one of them has ended as it should not."""
        for index, process in enumerate(self._processes):
            if process.poll() not in (None, 0):
                log = self._home(index) / "log.txt"
                lines = log.read_text(errors="replace").strip().splitlines()
                last = lines[-1] if lines else "it said nothing"
                raise QuorateError("TRAINER_ENDED", f"Trainer {index} ended: {last}", f"Look at {log}")

    def wait(self, ends: float) -> None:
        for process in self._processes:
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimedOut("TRAINERS_GO_ON", "The job is over and a trainer is not.", "Look at its log.") from None
        self.check()

    def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def journal(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for path in self._directory.glob("*/*/*/journal.jsonl"):
            # The last line may still be on its way.
            whole = path.read_text().rpartition("\n")[0]
            lines += [json.loads(line) for line in whole.splitlines()]
        return lines

    def finality(self) -> dict[int, list[float]]:
        """By round, of each update: seconds from signing to a proven receipt."""
        signed: dict[str, int] = {}
        taken: dict[int, list[float]] = defaultdict(list)
        for entry in sorted(self.journal(), key=lambda each: int(each["time_ms"])):
            if entry["kind"] == Kind.SUBMIT_UPDATE and entry["event"] == "signed":
                signed[entry["tx"]] = entry["time_ms"]
            elif entry["event"] == "proven" and entry["tx"] in signed:
                taken[entry["round"]].append((entry["time_ms"] - signed[entry["tx"]]) / 1000)
        return taken

    def transactions(self, event: str) -> set[str]:
        return {entry["tx"] for entry in self.journal() if entry["event"] == event}

    def receipts(self) -> dict[str, Path]:
        return {path.stem: path for path in self._directory.glob("*/*/*/receipts/*.bin")}
