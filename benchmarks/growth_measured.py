"""What a small update costs each of 4, 7 and 10 validators: real processes of this machine under load.

    python -m benchmarks.growth_measured --validators 4 7 10 [--seconds 10] [--json FILE]

The load is that of `quorate bench small`. Processor time is that of a validator's two processes for each update that
it has executed, from the first that is sent until all validators have executed the last. Bytes are those that its core
received on links from other validators meanwhile, TLS included (`ss`). With more validators than cores the rate says
how they share the machine and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.campaign import LOAD, Generator, Plan
from benchmarks.machine import signature_us
from benchmarks.network import Stage, Validators
from benchmarks.windows import cost_us, executed, rate

_CONNECTION = re.compile(r"^ESTAB +\d+ +\d+ +\S+:(\d+) +\S+:(\d+) .*?pid=(\d+),.*? bytes_received:(\d+)", re.MULTILINE)


def received_by_links(told: str, link_ports: set[int]) -> Counter[int]:
    """Bytes by process, of connections to or from these ports, as `ss -tinpHO` tells them."""
    found = Counter[int]()
    for own, other, pid, size in _CONNECTION.findall(told):
        if link_ports & {int(own), int(other)}:
            found[int(pid)] += int(size)
    return found


def _received(running: Validators) -> dict[str, int]:
    told = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout
    ports = {int(member.address.rpartition(":")[2]) for member in running.net.members.values()}
    by_process = received_by_links(told, ports)
    return {name: by_process[member.pid or 0] for name, member in running.net.members.items()}


def grown(validators: int, trainers: int, jobs: int, seconds: float) -> dict[str, Any]:
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="quorate-growth-") as directory:
        stage = Stage(Path(directory))
        with stage.validators(validators, trainers) as running:
            plan = Plan(running.net.directory, "growth", jobs, trainers, 1000)
            with Generator(plan) as load:
                running.with_load(LOAD, load.pid)
                running.level()
                before, bytes_before = running.snapshot(), _received(running)
                load.go()
                time.sleep(seconds)
                outcome = load.stop()
                running.level()
                after, bytes_after = running.snapshot(), _received(running)
            running.forget(LOAD)
    window = (before, after)
    done = executed(window)
    a_validator = [(bytes_after[name] - bytes_before[name]) / max(1, count) for name, count in done.items()]
    return {
        "validators": validators,
        "updates": max(done.values()),
        "updates_s": round(rate(window), 1),
        "update_bytes": outcome.update_bytes,
        "cpu_us": round(cost_us(window, ("core", "data")), 1),
        "core_us": round(cost_us(window, ("core",)), 1),
        "data_us": round(cost_us(window, ("data",)), 1),
        "signature_us": round(signature_us()[1], 1),
        "link_bytes": round(median(a_validator)),
        "load_average": round(load_average, 1),
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| validators | µs an update and validator | core | data process | one signature | bytes in | of the update's |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for each in found:
        names = ("validators", "cpu_us", "core_us", "data_us", "signature_us", "link_bytes")
        times = each["link_bytes"] / each["update_bytes"]
        lines.append("| " + " | ".join((*(str(each[name]) for name in names), f"{times:.2f}")) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validators", type=int, nargs="+", default=[4, 7, 10])
    parser.add_argument("--trainers", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load; what is on its way is waited for")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    for validators in given.validators:
        found.append(grown(validators, given.trainers, given.jobs, given.seconds))
        print(json.dumps(found[-1]), flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
