"""What inline updates cost a data process, and its core to tell them; and what the end of their round does.

    python -m benchmarks.inline [--parameters 1000] [--updates 1024] [--together 16 64 256] [--rounds 10]
        [--encoding q8] [--rule fedavg]

A real data process below a core that does nothing but tell it updates, so many in a message, and close the round.
Processor time is of all threads of either process; medians of the rounds, the first apart, in which kernels are loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.accounts import rules_of, some_values
from benchmarks.dataprocess import data_process
from chain.cid import raw_cid
from fl.kernels import KERNEL_VERSION
from fl.records import EntryFields, JobRules
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of
from node.data.bundles import told

LOG_ROOT = b"r" * 32
_PAUSE_S = 0.05
"""After which nothing of the last round is under way."""


def cpu_s(pid: int) -> float:
    """Of all of its threads, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def updates_of(rules: JobRules, job: bytes, count: int, parameters: int) -> tuple[list[EntryFields], list[bytes]]:
    form, values = form_of(rules, 0), some_values(parameters + count)
    entries, payloads = [], []
    for index in range(count):
        member = index.to_bytes(32, "big")
        payload = encode_update(form, Place(job, 1, member), {"w": values[index : index + parameters]})
        entries.append((bytes(32), member, 1, 1 + index % 7, 0, raw_cid(payload), bytes(32), index))
        payloads.append(payload)
    return entries, payloads


async def measured(rules: JobRules, parameters: int, updates: int, together: int, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {
        name: [] for name in ("data_us_an_update", "core_us_an_update", "close_cpu_ms", "close_ms")
    }
    with tempfile.TemporaryDirectory(prefix="quorate-inline-") as directory:
        async with data_process(Path(directory)) as (pipe, plane):
            pid = pipe.pid
            assert pid is not None
            base = await plane.zeros(rules.schema)
            for number in range(rounds + 1):
                job = number.to_bytes(32, "big")
                entries, payloads = updates_of(rules, job, updates, parameters)
                await asyncio.sleep(_PAUSE_S)
                before, own = cpu_s(pid), time.process_time()
                plane.begin(job, 1, rules, 1)
                for start in range(0, updates, together):
                    places = range(start, min(start + together, updates))
                    some = slice(places.start, places.stop)
                    await plane.add(job, 1, told(places, entries[some], payloads[some]))
                summed, core = cpu_s(pid), time.process_time()
                began_s = time.monotonic()
                closed = await plane.close(job, 1, LOG_ROOT, updates, KERNEL_VERSION, base, b"")
                took_s = time.monotonic() - began_s
                if not closed.ok:
                    raise SystemExit(f"the round did not close: {closed.code}")
                plane.drop(job, 1)
                if number:
                    taken["data_us_an_update"].append((summed - before) / updates * 1e6)
                    taken["core_us_an_update"].append((core - own) / updates * 1e6)
                    taken["close_cpu_ms"].append((cpu_s(pid) - summed) * 1e3)
                    taken["close_ms"].append(took_s * 1e3)
    return {"together": together} | {name: round(statistics.median(values), 2) for name, values in taken.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000)
    parser.add_argument("--updates", type=int, default=1_024)
    parser.add_argument("--together", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--encoding", default="q8")
    parser.add_argument("--rule", default="fedavg")
    chosen = parser.parse_args(arguments)
    rules = rules_of("inline", chosen.parameters, chosen.updates, encoding=chosen.encoding)
    if chosen.rule != rules.rule:
        rules = replace(rules, rule=chosen.rule, weights="equal", cap=1)
    for together in chosen.together:
        found = asyncio.run(measured(rules, chosen.parameters, chosen.updates, together, chosen.rounds))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
