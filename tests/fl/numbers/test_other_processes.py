"""The same bytes without a compiler, and in a process of which a foreign library has set the processor otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fl.numbers import digests, flushing

ROOT = Path(__file__).resolve().parents[3]


def said_by(module: str, **environment: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_plain_python_gives_the_same_bytes_as_compiled_kernels() -> None:
    other = "1" if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0" else "0"
    assert said_by(digests.__name__, NUMBA_DISABLE_JIT=other) == digests.digests()


@pytest.mark.skipif(not flushing.SUPPORTED, reason="how this processor is told to flush is not known here")
def test_a_thread_that_flushes_denormals_sums_alike_and_writes_nothing() -> None:
    assert said_by(flushing.__name__) == [
        "sums equal: True",
        "a model refused: True",
        "golden vectors refused: True",
    ]
