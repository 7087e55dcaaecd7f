"""Where a validator's core spends its time under load: samples of its stacks, by what they were doing (py-spy)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl.client.errors import BadInput

_RATE = 200
_ENDS_S = 30.0

SHARES = (
    ("signatures", ("chain/keys.py", "verify_transaction", "ed25519")),
    ("codec", ("chain/codec", "msgpack")),
    ("network", ("node/ports/links", "ssl.py", "aiohttp/", "node/rpc/", "selector", "uvloop")),
    ("storage", ("node/store.py", "node/ports/kv", "node/ports/disk", "node/segments.py", "plyvel")),
    (
        "execution",
        (
            "fl/machine.py",
            "fl/rounds.py",
            "fl/state.py",
            "fl/execution.py",
            "node/executor.py",
            "chain/tree.py",
            "chain/log.py",
        ),
    ),
    ("aggregation", ("fl/aggregation.py", "fl/kernels", "node/aggregator.py")),
    ("checks", ("fl/check.py", "fl/tensors/", "node/admission.py", "node/checking.py")),
    ("ordering and availability", ("consensus/",)),
    ("node", ("/node/",)),
    ("event loop, TLS, sockets", ("asyncio/runners.py",)),
)
"""Where a sampled stack belongs: the first row, from the innermost frame outwards, that matches."""
_IDLE = ("_worker (", "Condition.wait (", "wait (")
"""How the innermost frame of a thread that waits for work begins."""


@contextmanager
def sampled(pid: int, file: Path) -> Iterator[None]:
    """Its stacks while this is on, which slows it down. Raises BadInput without py-spy."""
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (program := shutil.which("py-spy", path=place)) is None:
        raise BadInput("MISSING_PACKAGE", "Profiles are taken by py-spy.", "Install it: pip install py-spy")
    command = [program, "record", "--pid", str(pid), "--output", str(file)]
    command += ["--format", "raw", "--rate", str(_RATE), "--duration", "3600", "--full-filenames"]
    sampling = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        sampling.send_signal(signal.SIGINT)
        sampling.wait(_ENDS_S)


def shares_of(stacks: str) -> dict[str, float]:
    """Of the samples that were not idle, largest first."""
    counted: Counter[str] = Counter()
    for line in stacks.splitlines():
        path, _, count = line.rpartition(" ")
        frames = path.split(";")[::-1]
        if not frames[0].startswith(_IDLE):
            counted[next((found for frame in frames if (found := _share(frame))), "other")] += int(count)
    whole = sum(counted.values()) or 1
    return {name: count / whole for name, count in counted.most_common()}


def _share(frame: str) -> str | None:
    return next((name for name, marks in SHARES if any(mark in frame for mark in marks)), None)
