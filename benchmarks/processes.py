"""What the processes of a local network use, read from /proc: a validator is a core and the data process below it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from cli.localnets import LocalNetwork

MIB = 1024 * 1024


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def roles(net: LocalNetwork) -> dict[str, int]:
    """Process numbers by role: `v0 core`, `v0 data`, …"""
    found = {}
    for name, member in net.members.items():
        if member.pid is not None:
            found[f"{name} core"] = member.pid
            for child in children(member.pid):
                found[f"{name} data"] = child
    return found


def anonymous_bytes(pid: int) -> int:
    """RssAnon: what no file backs. Mapped blobs are not in it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class MemoryWatch:
    """The most anonymous memory that each process of the network has had while this was on."""

    def __init__(self, net: LocalNetwork, every_s: float = 0.05) -> None:
        self._net = net
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes: dict[str, int] = {}

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        known, looked = roles(self._net), time.monotonic()
        while not self._over.wait(self._every_s):
            if time.monotonic() > looked + 1:
                known, looked = roles(self._net), time.monotonic()
            for role, pid in known.items():
                self.peak_bytes[role] = max(self.peak_bytes.get(role, 0), anonymous_bytes(pid))

    def worst_mib(self, kind: str) -> float:
        """Of all validators' processes of this kind, `core` or `data`."""
        return round(max(size for role, size in self.peak_bytes.items() if role.endswith(kind)) / MIB, 1)
