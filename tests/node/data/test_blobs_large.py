"""Memory does not grow with a blob."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.data.worlds import MIB

ALLOWED_BYTES = 24 * MIB
"""Four receiving threads hold a leaf or two each and hashing threads another; LevelDB and the interpreter take some for
good."""


def rise(place: Path, mib: int) -> int:
    command = [sys.executable, "-m", "tests.node.data.large", str(place), str(mib)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_the_memory_of_a_store_does_not_grow_with_a_blob_of_64_mib(tmp_path: Path) -> None:
    assert rise(tmp_path, 64) < ALLOWED_BYTES


@pytest.mark.nightly
def test_the_memory_of_a_store_does_not_grow_with_a_blob_of_2_gib(tmp_path: Path) -> None:
    assert rise(tmp_path, 2048) < ALLOWED_BYTES
