"""How many parameters a second each aggregation kernel takes, as JSON.

    python -m benchmarks.kernels [--parameters 10000000] [--repeats 7] [--threads 1 2] [--out kernels.json]

A figure is the median over the repeats of (parameters × updates) / seconds, in 10^9 a second, with all data in
memory and every kernel compiled. With several threads each one works on its own span of tiles, as in a node.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import Aggregation, AggregationRules, Spread, Update, Work
from fl.kernels import FUSED, KERNEL_VERSION
from fl.kernels.golden import check_golden
from fl.tensors.coding import Coding
from fl.tensors.encodings import Place, check_payload, encode_update, update_form
from fl.tensors.grid import Grid
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.tensors.model import build_model

JOB, MEMBER, LOG_ROOT = bytes(32), bytes(32), bytes(32)


def rate(count: int, repeats: int, run: Callable[[], object]) -> dict[str, float]:
    seconds = []
    run()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    rates = sorted(count / each / 1e9 for each in seconds)
    return {
        "median": round(statistics.median(rates), 3),
        "low": round(rates[0], 3),
        "high": round(rates[-1], 3),
    }


def spread_over(pool: ThreadPoolExecutor) -> Spread:
    def spread(pieces: Sequence[Work]) -> list[int]:
        return list(pool.map(lambda piece: piece(), pieces))

    return spread


def measure(parameters: int, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    schema = Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))
    values = np.random.default_rng(1).standard_normal(parameters).astype(np.float32)
    with ThreadPoolExecutor(threads) as pool:
        spread = spread_over(pool)
        figures = measure_encoding(schema, "f32", values, repeats, spread)
        return figures | measure_encoding(schema, "q8", values, repeats, spread)


def measure_encoding(
    schema: Schema, encoding: str, values: NDArray[np.float32], repeats: int, spread: Spread
) -> dict[str, dict[str, float]]:
    grid = Grid(range_bits=8, weight_cap=1000, max_updates=2**17)
    base = build_model(schema, {"w": values})
    form, place = update_form(schema, Coding(encoding, grid.range_bits)), Place(JOB, 0, MEMBER)
    payload = encode_update(form, place, {"w": values})
    # Separate copies: an update read twice would come from the cache the second time.
    payloads = [bytes(bytearray(payload)) for _ in range(FUSED)]
    aggregation = Aggregation(AggregationRules(JOB, 0, schema, encoding, grid), spread)

    def add(fused: int) -> None:
        for start in range(0, FUSED, fused):
            first = aggregation.count
            group = payloads[start : start + fused]
            aggregation.add(*[Update(first + i, MEMBER, 7, each) for i, each in enumerate(group)])

    def check() -> None:
        check_payload(form, place, payload)

    def finish() -> None:
        for _ in aggregation.finish(LOG_ROOT, base).model():
            pass

    def add_singly() -> None:
        add(1)

    def add_fused() -> None:
        add(FUSED)

    return {
        f"sum {encoding}, 1 a call": rate(values.size * FUSED, repeats, add_singly),
        f"sum {encoding}, {FUSED} a call": rate(values.size * FUSED, repeats, add_fused),
        f"check_payload {encoding}": rate(values.size, repeats, check),
        f"finish after {encoding}, without hashing": rate(values.size, repeats, finish),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    report = {
        "benchmark": "kernels",
        "unit": "10^9 parameters of updates a second",
        "kernel_version": KERNEL_VERSION,
        "parameters": options.parameters,
        "repeats": options.repeats,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": {str(threads): measure(options.parameters, options.repeats, threads) for threads in options.threads},
    }
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
