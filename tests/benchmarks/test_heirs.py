"""Processor time of processes that nobody can be asked about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.heirs import Heirs
from benchmarks.processes import children

BURN = "import time\nwhile time.process_time() < 0.5: pass\nprint('burnt', flush=True)\ntime.sleep(1000)\n"
DETACHED = (
    f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {BURN!r}], start_new_session=True).wait()\n"
)
MOST = 0.4
"""Seconds: of half a second nearly all, as the system counts in hundredths."""
PATIENCE_S = 120.0


def burnt(program: str) -> subprocess.Popen[bytes]:
    """Once it has used half a second; it is still there."""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"burnt\n"
    return process


def until(reached: Callable[[], bool]) -> bool:
    ends = time.monotonic() + PATIENCE_S
    while not reached() and time.monotonic() < ends:
        time.sleep(0.02)
    return reached()


def test_a_detached_process_of_a_process_is_counted_and_stays_counted_when_it_is_gone() -> None:
    began = time.time()
    with Heirs(every_s=0.02) as heirs:
        process = burnt(BURN)
        assert until(lambda: heirs.between(began, time.time()) >= MOST)
        process.kill()
        process.wait()
        orphan = burnt(DETACHED)
        try:
            assert until(lambda: heirs.between(began, time.time()) >= 2 * MOST)
        finally:
            for child in children(orphan.pid):
                os.kill(child, signal.SIGKILL)
            orphan.wait()
        assert heirs.between(began, time.time()) >= 2 * MOST
    assert heirs.between(time.time(), time.time()) == 0


def test_what_was_begun_before_is_not() -> None:
    before = burnt(BURN)
    began = time.time()
    with Heirs(every_s=0.02) as heirs:
        during = burnt(BURN)
        assert until(lambda: heirs.between(began, time.time()) >= MOST)
        for each in (before, during):
            each.kill()
            each.wait()
    assert heirs.between(began, time.time()) < 2 * MOST
