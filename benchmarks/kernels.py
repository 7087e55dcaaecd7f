"""How many values a second go through the kernels of each encoding, beside what bounds them, as JSON.

    python -m benchmarks.kernels [--parameters 10000000] [--repeats 7] [--threads 1 2] [--out kernels.json]

A rate is the median over the repeats of values / seconds of processor time, all threads together, in 10^9 a second,
with all data in memory and every kernel compiled: so others on the machine do not count, but for the bandwidth that
they take. With several threads each one works on its own span of tiles, as in a node.

Beside what the node does stand its two bounds, measured in the same run: what memory moves of the bytes that are
counted, and the same compiled loop over data in the nearest cache. `benchmarks.bounds` says how they are measured,
`benchmarks.loops` on what. `share` is the rate over the lesser of the two. What a client alone does (`encode`,
`decode`) has none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks import loops
from benchmarks.bounds import Row, memory_of, timed, touched_s
from fl.aggregation import SPAN_TILES
from fl.kernels import FUSED, KERNEL_VERSION, apply_mean
from fl.kernels.distances import LIMBS
from fl.kernels.golden import check_golden
from fl.kernels.payloads import PAYLOADS, Payloads
from fl.rules.rule import Spread, Work
from fl.tensors.coding import Coding
from fl.tensors.encodings import Place, UpdateForm, check_payload, decode_update, encode_update, update_form
from fl.tensors.layout import AVERAGED, TILE, Schema, TensorSpec
from fl.tensors.topk import TopK

PLACE = Place(bytes(32), 1, bytes(32))
SHARE_PPM = 10_000
LINE_BYTES = 64


def spread_over(pool: ThreadPoolExecutor) -> Spread:
    def spread(pieces: Sequence[Work]) -> list[int]:
        return list(pool.map(lambda piece: piece(), pieces))

    return spread


def form_for(encoding: str, parameters: int) -> UpdateForm:
    schema = Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))
    return update_form(schema, Coding(encoding, 8, SHARE_PPM if encoding == "topk" else 0))


def placed(encoding: str, form: UpdateForm, payloads: Sequence[bytes]) -> Payloads:
    offset = len(form.header(PLACE))
    return PAYLOADS[encoding](form, [(payload, offset) for payload in payloads])


def measure(parameters: int, repeats: int, threads: int = 1, encodings: Sequence[str] = tuple(PAYLOADS)) -> list[Row]:
    """Rows of every encoding, and of the step that every round ends in."""
    values = (np.random.default_rng(1).standard_normal(parameters, np.float32) / 8).astype(np.float32)
    with ThreadPoolExecutor(threads) as pool:
        spread = spread_over(pool)
        rows = [row for each in encodings for row in _Encoding(each, values, repeats, spread).rows()]
        return [*rows, _apply(values, repeats, spread)]


class _Encoding:
    def __init__(self, encoding: str, values: NDArray[np.float32], repeats: int, spread: Spread) -> None:
        self.encoding, self.values, self.repeats, self.spread = encoding, values, repeats, spread
        self.form = form_for(encoding, values.size)
        # Each from other values: updates have their entries at other places, and are not read twice from a cache.
        self.payloads = [encode_update(self.form, PLACE, {"w": np.roll(values, 977 * each)}) for each in range(FUSED)]
        self.memory = memory_of(self.payloads, values.size, repeats, spread)
        self.stored = self.form.data_bytes / values.size

    def rows(self) -> Iterator[Row]:
        for truncated in (False, True):
            yield self._sum(truncated)
        yield self._norm()
        if self.encoding != "topk":
            yield self._read()
        payload, form, count = self.payloads[0], self.form, self.values.size
        yield self._plain("check", count, lambda: check_payload(form, PLACE, payload))
        yield self._plain("encode", count, lambda: encode_update(form, PLACE, {"w": self.values}))
        yield self._plain("decode", count, lambda: decode_update(form, PLACE, payload))

    def _row(
        self, what: str, count: int, run: Callable[[], object], bytes_a_value: float, memory_s: float, loop_s: float
    ) -> Row:
        row = self._plain(what, count, run)
        return Row(
            row.what,
            row.encoding,
            row.rate,
            row.low,
            row.high,
            count / memory_s / 1e9,
            1 / loop_s / 1e9,
            bytes_a_value,
            int(bytes_a_value * count),
        )

    def _plain(self, what: str, count: int, run: Callable[[], object]) -> Row:
        rates = [count / each / 1e9 for each in timed(self.repeats, run)]
        return Row(what, self.encoding, statistics.median(rates), rates[-1], rates[0])

    def _sum(self, truncated: bool) -> Row:
        group, last = placed(self.encoding, self.form, self.payloads), self.form.layout.tiles.size - 1
        sums, factors = np.zeros(self.values.size, np.int64), np.full(FUSED, loops.FACTOR)

        def add(first: int) -> int:
            return group.sum(sums, factors, first, min(first + SPAN_TILES, last), truncated)

        pieces = [partial(add, first) for first in range(0, last, SPAN_TILES)]
        what, run = "sum toward zero" if truncated else "sum", lambda: self.spread(pieces)
        count, loop_s = self.values.size * FUSED, loops.sum_s(self.encoding, truncated)
        if self.encoding == "topk":
            entries = entries_of(self.form, self.payloads)
            memory_s = self.memory.seconds(read=self.stored * count) + touched_s(entries, sums.size, self.repeats)
            share = sum(each.size for each in entries) / count
            return self._row(what, count, run, self.stored + 2 * LINE_BYTES * share, memory_s, loop_s * share)
        bytes_a_value = self.stored + 16 / FUSED
        return self._row(what, count, run, bytes_a_value, self.memory.seconds(summed=bytes_a_value * count), loop_s)

    def _norm(self) -> Row:
        group, limbs = placed(self.encoding, self.form, self.payloads), np.zeros(LIMBS, np.int64)
        last = self.form.layout.tiles.size - 1

        def add(each: int, first: int) -> int:
            group.add_norm(limbs.copy(), each, first, min(first + SPAN_TILES, last), loops.FACTOR)
            return 0

        pieces = [partial(add, each, first) for each in range(FUSED) for first in range(0, last, SPAN_TILES)]
        count, loop_s = self.values.size * FUSED, loops.norm_s(self.encoding)
        if self.encoding == "topk":
            loop_s *= sum(each.size for each in entries_of(self.form, self.payloads)) / count
        memory_s = self.memory.seconds(read=self.stored * count)
        return self._row("norm", count, lambda: self.spread(pieces), self.stored, memory_s, loop_s)

    def _read(self) -> Row:
        """Into a room that stays in the cache, as rules do that look at all updates at once."""
        group, out = placed(self.encoding, self.form, self.payloads), np.empty(2 * TILE, np.float32)

        def run() -> None:
            for start in range(0, self.values.size, out.size):
                for each in range(FUSED):
                    group.read(each, start, out[: self.values.size - start])

        count = self.values.size * FUSED
        memory_s = self.memory.seconds(read=self.stored * count)
        return self._row("read", count, run, self.stored, memory_s, loops.read_s(self.encoding))


def entries_of(form: UpdateForm, payloads: Sequence[bytes]) -> list[NDArray[np.uint32]]:
    """The places that topk updates name."""
    assert isinstance(form.encoding, TopK)
    return [form.encoding.used(each, len(form.header(PLACE)))[0] for each in payloads]


def _apply(values: NDArray[np.float32], repeats: int, spread: Spread) -> Row:
    """The new model goes to a room that stays in the cache, a chunk at a time."""
    sums, step = np.arange(values.size, dtype=np.int64), SPAN_TILES * TILE // 4
    memory = memory_of([values.tobytes()], values.size, repeats, spread)
    values.flags.writeable = False
    rooms = [np.empty(step, np.float32) for _ in range(os.cpu_count() or 1)]

    def apply(place: int) -> int:
        part = slice(place * step, (place + 1) * step)
        old = values[part]
        return apply_mean(rooms[place % len(rooms)][: old.size], old, sums[part], 1e12)

    pieces = [partial(apply, place) for place in range(-(-values.size // step))]
    rates = [values.size / each / 1e9 for each in timed(repeats, lambda: spread(pieces))]
    seconds = memory.seconds(read=12 * values.size)
    return Row(
        "apply",
        "",
        statistics.median(rates),
        rates[-1],
        rates[0],
        values.size / seconds / 1e9,
        1 / loops.apply_s() / 1e9,
        12,
        12 * values.size,
    )


def rounded(row: Row) -> dict[str, object]:
    """As JSON holds it."""
    found = {name: round(each, 3) if isinstance(each, float) else each for name, each in asdict(row).items()}
    return found if row.share is None else found | {"share": round(row.share, 2)}


def machine() -> dict[str, object]:
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--encodings", nargs="+", default=list(PAYLOADS))
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    report = {
        "parameters": options.parameters,
        "repeats": options.repeats,
        "kernel_version": KERNEL_VERSION,
        "machine": machine(),
        "giga_values_a_core_second": {
            f"{threads} threads": [
                rounded(row) for row in measure(options.parameters, options.repeats, threads, options.encodings)
            ]
            for threads in options.threads
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
