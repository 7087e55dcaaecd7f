"""What a whole round takes under each rule and encoding, as JSON: from the first update added to the last byte of the
model, without disk and hashing of files.

    python -m benchmarks.rules [--parameters 2000000] [--updates 20] [--repeats 3] [--rules median krum] [--out r.json]

`rate` is 10^9 values of updates a core-second, on one thread. Beside it, from the same run: `from_memory`, what the
memory's bandwidth would allow if each byte of updates and sums were moved once; `from_cache`, the rule's own loops over
values that lie in a core's cache; `share`, the rate of the lesser of the two. `memory_bytes` is what Python and numpy
held at the most, beyond the updates and the base, which are mapped files in a node.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels import bandwidth, cached
from fl.aggregation import Aggregation, AggregationRules, Update, in_turn
from fl.jobrules import SYNCHRONOUS, VISIBLE_TO_VALIDATORS, grid_of, zero_model
from fl.kernels import FUSED
from fl.kernels.distances import LIMBS, add_norms
from fl.kernels.golden import check_golden
from fl.records import JobRules
from fl.rules import RULES
from fl.rules.rule import AtOnce, Settings, Streaming, settings_of, written_settings
from fl.tensors.encodings import Place, encode_update
from fl.tensors.grid import Grid
from fl.tensors.layout import AVERAGED, TILE, Schema, TensorSpec
from fl.updates import form_of
from fl.weights import EQUAL

JOB = bytes(32)
GIVEN: dict[str, Settings] = {
    "clipped_mean": {"norm": 100.0},
    "trimmed_mean": {"share": 1, "of": 10},
    "krum": {"faulty": 3},
    "multi_krum": {"faulty": 3, "chosen": 5},
    "bulyan": {"faulty": 3},
}


def job(rule: str, encoding: str, parameters: int, updates: int) -> JobRules:
    return JobRules(
        name="rules",
        schema=Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),)),
        initial=bytes(36),
        mode=SYNCHRONOUS,
        rule=rule,
        encoding=encoding,
        range_bits=8,
        weights=EQUAL,
        cap=1,
        target=updates,
        minimum=updates,
        maximum=updates,
        deadline_ms=1,
        grace_ms=0,
        rounds=1,
        max_failed=1,
        privacy=VISIBLE_TO_VALIDATORS,
        metrics=(),
        config=(),
        app="",
        app_digest=b"",
        settings=written_settings(RULES[rule], GIVEN.get(rule, {})),
        share_ppm=10_000 if encoding == "topk" else 0,
    )


def updates_of(rules: JobRules, values: NDArray[np.float32], count: int) -> list[Update]:
    form = form_of(rules, 0)
    made = []
    for index in range(count):
        member = bytes([index]) * 32
        payload = encode_update(form, Place(JOB, 1, member), {"w": np.roll(values, 977 * index)})
        made.append(Update(index, 1, member, 1, 0, payload, member))
    return made


def closed(rules: JobRules, updates: Sequence[Update], base: bytes) -> None:
    sums = Aggregation(AggregationRules(JOB, 1, rules, 1))
    for start in range(0, len(updates), FUSED):
        sums.add(*updates[start : start + FUSED])
    closing = sums.finish(bytes(32), base)
    moments = None if (chunks := closing.moments()) is None else b"".join(chunks)
    for _ in closing.model(moments):
        pass


def best(repeats: int, run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


class InCache:
    """Updates whose every tile is the same few values."""

    spread = staticmethod(in_turn)

    def __init__(self, grid: Grid, count: int, parameters: int) -> None:
        self.grid, self.count = grid, count
        width = 1024
        self.edges = tuple(range(0, parameters // width * width + 1, width))
        self._values = np.random.default_rng(2).standard_normal((count, width)).astype(np.float32)

    def tile(self, tile: int, out: NDArray[np.float32]) -> None:
        np.copyto(out, self._values)


def from_cache(rules: JobRules, count: int, repeats: int) -> float:
    rule = RULES[rules.rule]
    if isinstance(rule, Streaming):
        summed = cached(rules.encoding, repeats, rule.clips)["median"]
        return 1 / (1 / summed + 1 / measured_in_cache(repeats)) if rule.clips else summed
    assert isinstance(rule, AtOnce)
    updates = InCache(grid_of(rules), count, 256 * 1024)
    sums, settings = np.zeros(256 * 1024, np.int64), settings_of(rule, rules.settings)
    return count * sums.size / best(repeats, lambda: rule.reduce(updates, sums, settings)) / 1e9


def measured_in_cache(repeats: int) -> float:
    """How long updates are, of which those are clipped that are too long."""
    values, limbs = np.ones((1, TILE), np.float32), np.zeros((1, LIMBS), np.int64)

    def run() -> None:
        for _ in range(200):
            add_norms(limbs, values, 2.0**42)

    return 200 * TILE / best(repeats, run) / 1e9


def measure(rules: JobRules, values: NDArray[np.float32], count: int, repeats: int, moved: float) -> dict[str, float]:
    updates, base = updates_of(rules, values, count), zero_model(rules.schema)
    seconds = best(repeats, lambda: closed(rules, updates, base))
    tracemalloc.start()
    closed(rules, updates, base)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rate = count * values.size / seconds / 1e9
    stored = form_of(rules, 0).data_bytes / values.size
    # Of the rules that look at all at once, the sums are written and read once; of the others by every call.
    of_sums = 16 / count if RULES[rules.rule].all_at_once else 16 / FUSED
    memory_rate, cache_rate = moved / (stored + of_sums), from_cache(rules, count, repeats)
    return {
        "rate": round(rate, 3),
        "from_memory": round(memory_rate, 3),
        "from_cache": round(cache_rate, 3),
        "share": round(rate / min(memory_rate, cache_rate), 2),
        "memory_bytes": memory,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=2_000_000)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rules", nargs="+", default=sorted(RULES))
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    values = np.random.default_rng(1).standard_normal(options.parameters).astype(np.float32) / 8
    moved = bandwidth(options.parameters, options.repeats, in_turn)["median"]
    report = {
        "parameters": options.parameters,
        "updates": options.updates,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "bandwidth_gb_s": moved,
        "rules": {
            name: {
                encoding: measure(
                    job(name, encoding, options.parameters, options.updates),
                    values,
                    options.updates,
                    options.repeats,
                    moved,
                )
                for encoding in sorted(RULES[name].encodings)
            }
            for name in options.rules
        },
    }
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
