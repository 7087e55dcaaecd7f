"""What the rules take that look at all updates of a round at once, as JSON.

    python -m benchmarks.comparing [--updates 100] [--parameters 10000000] [--encoding f32] [--threads 1 2]
                                   [--rules median krum ...] [--directory /var/tmp] [--out comparing.json]

Updates lie in files that are mapped, as in a node, and were read once before: of all of them, with every kernel
compiled, one round is aggregated. Processor time is that of the whole process, from adding the updates to the sums;
memory is RssAnon, what no file backs, at its most beyond what it was before, looked at every 5 ms. `promised` is the
bound: the sums, and for each thread a tile and what it sorts or compares in, and the distances.
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

import numpy as np

from benchmarks.kernels import spread_over
from benchmarks.processes import anonymous_bytes
from fl.aggregation import TILE_BYTES, Aggregation, AggregationRules, Update
from fl.jobrules import SYNCHRONOUS, VISIBLE_TO_VALIDATORS, zero_model_cid
from fl.kernels import KERNEL_VERSION
from fl.kernels.golden import check_golden
from fl.records import JobRules
from fl.rules import check_rule, rule_of
from fl.rules.rule import written_settings
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.tensors.model import build_model
from fl.updates import form_of
from fl.weights import EQUAL

JOB, LOG_ROOT = bytes(32), bytes(32)
SCRATCH_BYTES = 2 * 1024 * 1024
"""What a kernel sorts or compares in, and a little."""


def settings_for(rule: str, updates: int) -> dict[str, int]:
    """A tenth of the updates may be faulty."""
    tenth = updates // 10
    return {
        "median": {},
        "trimmed_mean": {"share": 10},
        "krum": {"faulty": tenth},
        "multi_krum": {"faulty": tenth, "chosen": updates - 2 * tenth},
        "bulyan": {"faulty": tenth},
    }[rule]


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
        name="comparing",
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
    with ThreadPoolExecutor(threads) as pool, Peak() as peak:
        # Its threads are there before, with their stacks.
        list(pool.map(time.sleep, [0.05] * threads))
        wall, processor = time.perf_counter(), time.process_time()
        aggregation = Aggregation(rules_of(rule, schema, encoding, len(updates)), spread_over(pool))
        aggregation.add(*updates)
        aggregation.finish(LOG_ROOT, base)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    parameters = schema.tensors[0].shape[0]
    count = len(updates)
    each = TILE_BYTES + SCRATCH_BYTES + 8192 * count + 12 * count**2
    promised = 8 * parameters + threads * each + 60 * count**2
    return {
        "seconds": round(wall, 2),
        "core_seconds": round(processor, 2),
        "memory_mib": round(peak.bytes / 2**20, 1),
        "promised_mib": round(promised / 2**20, 1),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--encoding", default="f32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rules", nargs="+", default=["median", "trimmed_mean", "krum", "multi_krum", "bulyan"])
    parser.add_argument("--directory", help="where the updates are written for as long as this takes")
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    schema = Schema((TensorSpec("w", "F32", (options.parameters,), AVERAGED),))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        updates = written(Path(directory), schema, options.encoding, options.updates)
        figures = {
            rule: {
                str(threads): measure(rule, schema, options.encoding, updates, threads) for threads in options.threads
            }
            for rule in options.rules
        }
    report = {
        "benchmark": "comparing",
        "kernel_version": KERNEL_VERSION,
        "updates": options.updates,
        "parameters": options.parameters,
        "encoding": options.encoding,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "by rule and threads": figures,
    }
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
