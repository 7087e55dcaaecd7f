"""How many parameters a second go through each encoding and its kernels, as JSON.

    python -m benchmarks.kernels [--parameters 10000000] [--repeats 7] [--threads 1 2] [--out kernels.json]

A figure is the median over the repeats of (parameters × updates) / seconds of processor time, all threads together, in
10^9 a second, with all data in memory and every kernel compiled: so others on the machine do not count, but for the
bandwidth that they take. With several threads each one works on its own span of tiles, as in a node. Beside the sums
stands what bounds them, measured in the same run: `cached` is the same loop over one tile, which stays in the cache;
`bandwidth` is what a pass that reads and writes int64 moves, divided by the bytes that a sum moves.
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
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fl.kernels import FUSED, KERNEL_VERSION, apply_mean
from fl.kernels.golden import check_golden
from fl.kernels.payloads import PAYLOADS, Payloads
from fl.rules.rule import Spread, Work
from fl.tensors.coding import Coding
from fl.tensors.encodings import Place, UpdateForm, check_payload, decode_update, encode_update, update_form
from fl.tensors.layout import AVERAGED, TILE, Schema, TensorSpec

PLACE = Place(bytes(32), 1, bytes(32))
SHARE_PPM = 10_000
SPAN_TILES = 64


def rate(count: int, repeats: int, run: Callable[[], object]) -> dict[str, float]:
    seconds = []
    run()
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
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


def measure(parameters: int, repeats: int, threads: int) -> dict[str, object]:
    values = np.random.default_rng(1).standard_normal(parameters).astype(np.float32) / 8
    with ThreadPoolExecutor(threads) as pool:
        spread = spread_over(pool)
        moved = bandwidth(parameters, repeats, spread)
        figures: dict[str, object] = {"bandwidth, GB/s": moved}
        for encoding in PAYLOADS:
            figures[encoding] = measure_encoding(encoding, values, repeats, spread, moved["median"])
        figures["apply"] = measure_apply(values, repeats, spread)
    return figures


def bandwidth(parameters: int, repeats: int, spread: Spread) -> dict[str, float]:
    sums = np.zeros(parameters, np.int64)
    step = SPAN_TILES * TILE

    def add(start: int) -> int:
        part = sums[start : start + step]
        np.add(part, 1, out=part)
        return 0

    return rate(16 * parameters, repeats, lambda: spread([partial(add, at) for at in range(0, parameters, step)]))


def measure_encoding(
    encoding: str, values: NDArray[np.float32], repeats: int, spread: Spread, moved: float
) -> dict[str, object]:
    form = form_for(encoding, values.size)
    payload = encode_update(form, PLACE, {"w": values})
    # Separate copies: an update read twice would come from the cache the second time.
    payloads = [bytes(bytearray(payload)) for _ in range(FUSED)]
    figures: dict[str, object] = {"bytes a parameter": round(form.data_bytes / values.size, 4)}
    for truncated in (False, True):
        for fused in (1, FUSED):
            name = f"sum{' toward zero' if truncated else ''}, {fused} a call"
            figures[name] = measure_sum(form, payloads, fused, truncated, repeats, spread)
    # A sum of topk touches the cache line of each entry, any other one all of a tile's sums once a call.
    touched = 2 * 64 * SHARE_PPM / 1_000_000 if encoding == "topk" else 16 / FUSED
    figures["sum, bandwidth"] = round(moved / (form.data_bytes / values.size + touched), 3)
    figures["sum, cached"] = cached(encoding, repeats)
    figures["read"] = measure_read(form, payload, repeats)
    figures["check"] = rate(values.size, repeats, lambda: check_payload(form, PLACE, payload))
    figures["encode"] = rate(values.size, repeats, lambda: encode_update(form, PLACE, {"w": values}))
    figures["decode"] = rate(values.size, repeats, lambda: decode_update(form, PLACE, payload))
    return figures


def form_for(encoding: str, parameters: int) -> UpdateForm:
    schema = Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))
    return update_form(schema, Coding(encoding, 8, SHARE_PPM if encoding == "topk" else 0))


def placed(form: UpdateForm, payloads: Sequence[bytes]) -> Payloads:
    offset = len(form.header(PLACE))
    return PAYLOADS[form.encoding.name](form, [(payload, offset) for payload in payloads])


def measure_sum(
    form: UpdateForm, payloads: Sequence[bytes], fused: int, truncated: bool, repeats: int, spread: Spread
) -> dict[str, float]:
    groups = [placed(form, payloads[start : start + fused]) for start in range(0, len(payloads), fused)]
    sums, factors = np.zeros(form.layout.parameters, np.int64), np.full(fused, 7 * 2.0**30)
    last = form.layout.tiles.size - 1

    def add(group: Payloads, first: int) -> int:
        return group.sum(sums, factors, first, min(first + SPAN_TILES, last), truncated)

    def run() -> None:
        for group in groups:
            spread([partial(add, group, first) for first in range(0, last, SPAN_TILES)])

    return rate(form.layout.parameters * len(payloads), repeats, run)


def cached(encoding: str, repeats: int, truncated: bool = False) -> dict[str, float]:
    form = form_for(encoding, TILE)
    values = np.random.default_rng(2).standard_normal(TILE).astype(np.float32) / 8
    group = placed(form, [encode_update(form, PLACE, {"w": values})] * FUSED)
    sums, factors = np.zeros(TILE, np.int64), np.full(FUSED, 7 * 2.0**30)

    def run() -> None:
        for _ in range(200):
            group.sum(sums, factors, 0, 1, truncated)

    return rate(200 * TILE * FUSED, repeats, run)


def measure_read(form: UpdateForm, payload: bytes, repeats: int) -> dict[str, float]:
    group, out = placed(form, [payload]), np.empty(TILE, np.float32)

    def run() -> None:
        for start in range(0, form.layout.parameters, TILE):
            group.read(0, start, out[: form.layout.parameters - start])

    return rate(form.layout.parameters, repeats, run)


def measure_apply(values: NDArray[np.float32], repeats: int, spread: Spread) -> dict[str, float]:
    sums, new = np.arange(values.size, dtype=np.int64), np.empty_like(values)
    step = SPAN_TILES * TILE

    def apply(start: int) -> int:
        part = slice(start, start + step)
        return apply_mean(new[part], values[part], sums[part], 1e12)

    return rate(values.size, repeats, lambda: spread([partial(apply, at) for at in range(0, values.size, step)]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    report = {
        "parameters": options.parameters,
        "repeats": options.repeats,
        "kernel_version": KERNEL_VERSION,
        "machine": {
            "processors": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "giga_parameters_a_core_second": {
            f"{threads} threads": measure(options.parameters, options.repeats, threads) for threads in options.threads
        },
    }
    text = json.dumps(report, indent=2)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
