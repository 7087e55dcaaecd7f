"""Local networks of real processes for tests: made, started, ended, and kept when a test has failed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import roles
from cli.localnets import LocalNetwork, Plan
from tests.node.load import HANG_S, until


@contextmanager
def local_network(plan: Plan, start: bool = True) -> Iterator[LocalNetwork]:
    place = Path(tempfile.mkdtemp(prefix="quorate-test-"))
    keep = True
    try:
        made = LocalNetwork.create(place / "net", plan)
        try:
            if start:
                start_all(made)
            yield made
            keep = False
        finally:
            said = {name: made.status(name) for name in made.members}
            for name in made.members:
                made.kill(name)
            if keep:
                print(f"\nkept: {place}\n{json.dumps(said, indent=1)}")
    finally:
        if not keep:
            shutil.rmtree(place)


def start_all(network: LocalNetwork) -> None:
    for name in network.members:
        network.start(name)
    network.wait_ready(network.members, HANG_S)


def data_pid(network: LocalNetwork, name: str) -> int | None:
    return roles(network).get(f"{name} data")


def kill_data(network: LocalNetwork, name: str) -> None:
    """SIGKILL, and the validator alone has to notice."""
    pid = data_pid(network, name)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def door_of(network: LocalNetwork, name: str) -> str:
    """Where this validator gives and takes blobs, once its data process is at work."""
    found: list[str] = []

    def open_() -> bool:
        said = network.status(name)
        if said is not None and said["data"]["door"]:
            found.append(str(said["data"]["door"]))
        return bool(found)

    until(f"{name} has a door for blobs", open_)
    return found[-1]
