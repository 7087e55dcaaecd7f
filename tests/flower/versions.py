"""The environments with Flower that `environments.sh` makes, and how a test runs a program in one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
VERSIONS = ("1.30", "1.39", "1.41")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def python_of(version: str) -> Path:
    """Skips the test where there is no such environment."""
    python = ROOT / f".venv-flower-{version}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no environment with Flower {version}: tests/flower/environments.sh makes it")
    return python


def started(version: str, *arguments: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A Python program under this version, in a process of its own."""
    return subprocess.Popen(
        [str(python_of(version)), *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **_ONE_THREAD, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"},
    )


def ended(process: subprocess.Popen[str], patience_s: float = 240.0) -> str:
    """What it has printed; fails the test if it has not ended well."""
    try:
        out, errors = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    assert process.returncode == 0, f"it ended with {process.returncode}:\n{errors[-4000:]}"
    return out
