"""What the processes of a local network use, read from /proc: a validator is a core and the data process below it."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Use
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


@dataclass(frozen=True, slots=True)
class Processors:
    """Seconds of all of this machine's, since it began; those that waited for the disk were idle."""

    idle_s: float
    all_s: float

    @classmethod
    def now(cls) -> Processors:
        used = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
        return cls(sum(used[3:5]) / ticks, sum(used) / ticks)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a process had used at a moment of the monotonic clock."""

    at_s: float
    role: str
    cpu_s: float
    resident_bytes: int
    anonymous_bytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """Of the monotonic clock."""

    from_s: float
    to_s: float

    @property
    def seconds(self) -> float:
        return self.to_s - self.from_s


class Watch:
    """Looks at the processes again and again while it is on. `who` names them by role, as it is at the time: a process
    that ends and is started again is two processes with one role."""

    def __init__(self, who: Callable[[], Mapping[str, int]], every_s: float = 0.1) -> None:
        self._who = who
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.moments: list[Moment] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        known, looked = self._who(), time.monotonic()
        while not self._over.wait(self._every_s):
            if time.monotonic() > looked + 1:
                known, looked = self._who(), time.monotonic()
            for role, pid in known.items():
                found = moment(role, pid)
                if found is not None:
                    self.moments.append(found)

    def peaks(self, span: Span) -> dict[str, tuple[int, int]]:
        """By role, the most resident and the most anonymous bytes within the span."""
        found: dict[str, tuple[int, int]] = {}
        for each in self.moments:
            if span.from_s <= each.at_s <= span.to_s:
                before = found.get(each.role, (0, 0))
                most = max(before[0], each.resident_bytes), max(before[1], each.anonymous_bytes)
                found[each.role] = most
        return found

    def most_mib(self, kind: str) -> float:
        """Anonymous, of any process of this kind at any time."""
        found = (each.anonymous_bytes for each in self.moments if each.role.endswith(f" {kind}"))
        return round(max(found, default=0) / MIB, 1)

    def used(self, spans: Sequence[Span], cpu_s: Sequence[Mapping[str, float]]) -> list[Use]:
        """Of every process: its processor time, as it was measured for each of the spans, and its memory in them."""
        peaks = [self.peaks(span) for span in spans]
        times: defaultdict[str, list[float]] = defaultdict(list)
        for each in cpu_s:
            for role, seconds in each.items():
                times[role].append(seconds)
        return [
            Use(
                role,
                role.rpartition(" ")[2],
                round(statistics.median(seconds), 2),
                round(max(peak.get(role, (0, 0))[0] for peak in peaks) / MIB, 1),
                round(max(peak.get(role, (0, 0))[1] for peak in peaks) / MIB, 1),
            )
            for role, seconds in sorted(times.items())
        ]


def moment(role: str, pid: int) -> Moment | None:
    """None if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        used = cpu_seconds(pid)
    except OSError:
        return None
    found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(_SIZES)}
    return Moment(time.monotonic(), role, used, found.get("VmRSS", 0), found.get("RssAnon", 0))


_SIZES = ("VmRSS", "RssAnon")
