"""What each rule of aggregation takes for a round, beside what bounds it, as JSON and as a table.

    python -m benchmarks.rules [--updates 100] [--parameters 10000000] [--encoding f32] [--threads 1 2]
                               [--rules median krum ...] [--directory /var/tmp] [--out rules.json]

Updates lie in files that are mapped, as in a node, and were read once before: of all of them, with every kernel
compiled, one round is aggregated. Processor time is that of the whole process, from adding the updates to the last byte
of the model; memory is RssAnon, what no file backs, at its most beyond what it was before, looked at every 5 ms.
`promised` is the bound: the sums, a chunk of what is written, and for rules that look at all updates at once for each
thread a tile and what it sorts or compares in, and the distances.

Rates are in 10^9 values of updates a core-second. Beside them stands what bounds them, measured in the same run:
`cached` is the same loop over tiles that stay in the cache, `bandwidth` what a pass that reads and writes int64 moves,
divided by the bytes that the rule has to move for a value: the update's own and its share of the sums.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels import PLACE, bandwidth, cached, form_for, placed, spread_over
from benchmarks.processes import anonymous_bytes
from fl.aggregation import TILE_BYTES, Aggregation, AggregationRules, Update, in_turn
from fl.jobrules import SYNCHRONOUS, VISIBLE_TO_VALIDATORS, grid_of, zero_model_cid
from fl.kernels import FUSED, KERNEL_VERSION
from fl.kernels.golden import check_golden
from fl.kernels.payloads import Payloads
from fl.records import JobRules
from fl.rules import RULES, check_rule, rule_of
from fl.rules.rule import AtOnce, settings_of, written_settings
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place, encode_update
from fl.tensors.grid import Grid
from fl.tensors.layout import AVERAGED, TILE, Schema, TensorSpec
from fl.tensors.model import build_model
from fl.updates import form_of
from fl.weights import EQUAL

JOB, LOG_ROOT = bytes(32), bytes(32)
SCRATCH_BYTES = 2 * 1024 * 1024
"""What a kernel sorts or compares in, and a little."""


def settings_for(rule: str, updates: int) -> dict[str, int | float]:
    """A tenth of the updates may be faulty, and every one is clipped."""
    tenth = updates // 10
    chosen: dict[str, dict[str, int | float]] = {
        "clipped_mean": {"norm": 1.0},
        "median": {},
        "trimmed_mean": {"share": 10},
        "krum": {"faulty": tenth},
        "multi_krum": {"faulty": tenth, "chosen": updates - 2 * tenth},
        "bulyan": {"faulty": tenth},
    }
    return chosen.get(rule, {})


class Peak:
    """The most anonymous memory of this process while this was on, beyond what it was before."""

    def __enter__(self) -> Peak:
        self._over = Event()
        self._before = self._most = anonymous_bytes(os.getpid())
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, anonymous_bytes(os.getpid()))

    @property
    def bytes(self) -> int:
        return self._most - self._before


def rules_of(rule: str, schema: Schema, encoding: str, updates: int) -> AggregationRules:
    rules = JobRules(
        name="rules",
        schema=schema,
        initial=zero_model_cid(schema),
        mode=SYNCHRONOUS,
        rule=rule,
        encoding=encoding,
        range_bits=8,
        weights=EQUAL,
        cap=1,
        target=updates,
        minimum=updates,
        maximum=updates,
        deadline_ms=60_000,
        grace_ms=0,
        rounds=1,
        max_failed=1,
        privacy=VISIBLE_TO_VALIDATORS,
        metrics=(),
        config=(),
        app="",
        app_digest=b"",
        settings=written_settings(rule_of(rule), settings_for(rule, updates)),
    )
    check_rule(rules)
    return AggregationRules(JOB, 0, rules, 1)


def mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def written(directory: Path, schema: Schema, encoding: str, updates: int) -> list[Update]:
    """Each normal around a mean of its own."""
    rules = rules_of("median", schema, encoding, updates)
    form, made = form_of(rules.rules, 0), []
    draw = np.random.default_rng(1)
    for index in range(updates):
        place = Place(JOB, 0, index.to_bytes(32, "big"))
        values = draw.standard_normal(schema.tensors[0].shape, np.float32) * np.float32(0.1) + np.float32(index / 1e4)
        path = directory / str(index)
        path.write_bytes(encode_update(form, place, {"w": values}))
        payload = mapped(path)
        fingerprint = payload_fingerprint(payload, len(form.header(place)))
        made.append(Update(index, 0, place.member, 1, 0, payload, fingerprint))
    return made


def measure(rule: str, schema: Schema, encoding: str, updates: Sequence[Update], threads: int) -> dict[str, float]:
    base = build_model(schema, {"w": np.zeros(schema.tensors[0].shape, np.float32)})
    parameters, count = schema.tensors[0].shape[0], len(updates)
    with ThreadPoolExecutor(threads) as pool, Peak() as peak:
        # Its threads are there before, with their stacks.
        list(pool.map(time.sleep, [0.05] * threads))
        wall, processor = time.perf_counter(), time.process_time()
        aggregation = Aggregation(rules_of(rule, schema, encoding, count), spread_over(pool))
        for start in range(0, count, FUSED):
            aggregation.add(*updates[start : start + FUSED])
        closing = aggregation.finish(LOG_ROOT, base, None)
        written = closing.moments()
        with tempfile.TemporaryFile() as file:
            if written is not None:
                file.writelines(written)
                file.flush()
            moments = None if written is None else memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            for _ in closing.model(moments):
                pass
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "seconds": round(wall, 2),
        "core_seconds": round(processor, 2),
        "rate": round(parameters * count / processor / 1e9, 3),
        "memory_mib": round(peak.bytes / 2**20, 1),
        "promised_mib": round(promised(rule, parameters, count, threads) / 2**20, 1),
    }


def promised(rule: str, parameters: int, count: int, threads: int) -> int:
    sums = 8 * parameters + SCRATCH_BYTES
    if not rule_of(rule).all_at_once:
        return sums
    return sums + threads * (TILE_BYTES + SCRATCH_BYTES + 8192 * count + 12 * count**2) + 60 * count**2


class InCache:
    """As many tiles as the sums of eight, of updates of which there is one tile each."""

    def __init__(self, payloads: Payloads, count: int, grid: Grid) -> None:
        width = max(1024, min(TILE, TILE_BYTES // (4 * count) // 1024 * 1024))
        self.count, self.grid, self.spread = count, grid, in_turn
        self.edges = tuple(range(0, 9 * width, width))
        self._payloads = payloads

    def tile(self, tile: int, out: NDArray[np.float32]) -> None:
        for each in range(self.count):
            self._payloads.read(each, 0, out[each])


def in_cache(rule: str, encoding: str, count: int, grid: Grid) -> float:
    found = rule_of(rule)
    if not isinstance(found, AtOnce):
        return cached(encoding, 5, truncated=rule == "clipped_mean")["median"]
    form = form_for(encoding, TILE)
    values = np.random.default_rng(2).standard_normal((count, TILE)).astype(np.float32) / 8
    each = placed(form, [encode_update(form, PLACE, {"w": row}) for row in values])
    updates = InCache(each, count, grid)
    settings = settings_of(found, written_settings(found, settings_for(rule, count)))
    sums = np.zeros(updates.edges[-1], np.int64)
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        found.reduce(updates, sums, settings)
        best = max(best, count * sums.size / (time.process_time() - began) / 1e9)
    return round(best, 3)


def bounded(rule: str, schema: Schema, encoding: str, count: int, moved: float) -> dict[str, float]:
    form = form_for(encoding, schema.tensors[0].shape[0])
    shared = count if rule_of(rule).all_at_once else FUSED
    return {
        "cached": in_cache(rule, encoding, count, grid_of(rules_of(rule, schema, encoding, count).rules)),
        "bandwidth": round(moved / (form.data_bytes / form.layout.parameters + 16 / shared), 3),
    }


def table(report: dict[str, Any]) -> str:
    threads = str(report["threads"][0])
    lines = [
        "| rule | rate | cached | bandwidth | of the lower | MiB | promised |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rule, found in report["rules"].items():
        bound, measured = found["bounds"], found["threads"][threads]
        least = min(bound["cached"], bound["bandwidth"])
        lines.append(
            f"| `{rule}` | {measured['rate']} | {bound['cached']} | {bound['bandwidth']} "
            f"| {measured['rate'] / least:.0%} | {measured['memory_mib']} | {measured['promised_mib']} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--encoding", default="f32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=list(RULES))
    parser.add_argument("--directory", help="where the updates are written for as long as this takes")
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    schema = Schema((TensorSpec("w", "F32", (options.parameters,), AVERAGED),))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        updates = written(Path(directory), schema, options.encoding, options.updates)
        moved = bandwidth(options.parameters, 5, in_turn)["median"]
        figures = {
            rule: {
                "bounds": bounded(rule, schema, options.encoding, options.updates, moved),
                "threads": {
                    str(threads): measure(rule, schema, options.encoding, updates, threads)
                    for threads in options.threads
                },
            }
            for rule in options.rules
            if options.encoding in rule_of(rule).encodings
        }
    report = {
        "benchmark": "rules",
        "kernel_version": KERNEL_VERSION,
        "updates": options.updates,
        "parameters": options.parameters,
        "encoding": options.encoding,
        "threads": options.threads,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bandwidth_gb_s": moved,
        "rules": figures,
    }
    print(table(report))
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
