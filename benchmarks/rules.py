"""What a whole round takes under each rule and encoding, as JSON: from the first update added to the last byte of the
model, without disk and hashing of files.

    python -m benchmarks.rules [--parameters 2000000] [--updates 20] [--repeats 3] [--rules median krum] [--out r.json]

`rate` is 10^9 values of updates a core-second, on one thread, in the best of the repeats. Beside it, from the same run,
stand two bounds of the whole round, `from_memory` and `from_cache`. A round is three stages, one after the other: the
sums' pages are taken, updates are added, the round is closed. `by_stages` takes of each the slower bound, and `share`
is what the rate is of that.

`from_memory` moves every byte that the round must move at the rates of `benchmarks.bounds.Memory`. Counted are: each
update once, and again if the rule first measures it (`clipped_mean`) or first chooses (`krum`, `multi_krum`, `bulyan`:
those chosen); the sums read and written once for every four updates, or once under a rule that looks at all at once,
and read once when the round closes, or once for each moment; the old model, and the old and the new moments. Of topk
updates the sums are touched where an entry stands. The new model is not counted: its chunks stay in the cache.
`counted_bytes` are these, of a value of an update.

`from_cache` runs each of the rule's compiled loops as often as the round does, at the rate that it has on data in the
nearest cache (`benchmarks.loops`): sums or norms of that encoding, reading and sorting, distances, moments, the model.
Under `krum`, `multi_krum` and `bulyan`, the choice among updates by their distances, in Python, is no such loop.

Both begin with what the system takes to give fresh pages for the sums: nothing else happens meanwhile.

`held_bytes` is what Python and numpy held at the most, beyond updates, base and moments, which are mapped files in a
node.
"""

from __future__ import annotations

import argparse
import json
import sys
import tracemalloc
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks import loops
from benchmarks.bounds import Memory, Row, memory_of, timed, touched_s
from benchmarks.kernels import LINE_BYTES, machine, rounded
from fl.aggregation import Aggregation, AggregationRules, Update, in_turn
from fl.closing import Closing
from fl.jobrules import SYNCHRONOUS, VISIBLE_TO_VALIDATORS, zero_model
from fl.kernels import FUSED, KERNEL_VERSION
from fl.kernels.golden import check_golden
from fl.records import JobRules
from fl.rules import RULES
from fl.rules.rule import Optimising, Settings, Streaming, written_settings
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.tensors.topk import TopK
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
        payload = encode_update(form, _place(member), {"w": np.roll(values, 977 * index)})
        made.append(Update(index, 1, member, 1, 0, payload, member))
    return made


class Round:
    """All that a round under a rule takes, again and again."""

    def __init__(self, rule: str, encoding: str, values: NDArray[np.float32], count: int) -> None:
        self.rules = job(rule, encoding, values.size, count)
        self.rule = RULES[rule]
        self.updates = updates_of(self.rules, values, count)
        self.base = zero_model(self.rules.schema)
        self.kept = bytearray()
        """The moments, as a node has them in files: those that the round begins with, then those that it leaves."""
        if isinstance(self.rule, Optimising):
            self.kept = bytearray().join(self._summed(None).moments() or ())

    def close(self) -> None:
        closing = self._summed(self.kept or None)
        kept, place = memoryview(self.kept), 0
        for chunk in closing.moments() or ():
            kept[place : place + len(chunk)] = chunk
            place += len(chunk)
        for _ in closing.model(self.kept or None):
            pass

    def _summed(self, moments: bytearray | None) -> Closing:
        sums = Aggregation(AggregationRules(JOB, 1, self.rules, 1))
        for start in range(0, len(self.updates), FUSED):
            sums.add(*self.updates[start : start + FUSED])
        return sums.finish(bytes(32), self.base, moments)

    # What bounds it

    @property
    def parameters(self) -> int:
        return form_of(self.rules, 0).layout.parameters

    @property
    def values(self) -> int:
        return len(self.updates) * self.parameters

    @property
    def entries(self) -> list[NDArray[np.uint32]]:
        """The places that topk updates name."""
        form = form_of(self.rules, 0)
        if not isinstance(form.encoding, TopK):
            return []
        return [form.encoding.used(each.payload, len(form.header(_place(each.member))))[0] for each in self.updates]

    @property
    def again(self) -> int:
        """Updates that are read a second time."""
        count, given = len(self.updates), GIVEN.get(self.rule.name, {})
        if isinstance(self.rule, Streaming):
            return count if self.rule.clips else 0
        chosen = {"krum": 1, "multi_krum": given.get("chosen", 0), "bulyan": count - 2 * int(given.get("faulty", 0))}
        return int(chosen.get(self.rule.name, 0))

    @property
    def added(self) -> dict[str, float]:
        """Bytes that adding the updates moves, by how they are moved; without those that topk updates touch."""
        each, count = self.parameters, len(self.updates)
        updates = form_of(self.rules, 0).data_bytes
        again = {"read": float(self.again * updates)}
        if self.rule.all_at_once or self.entries:
            return {"read": again["read"] + count * updates, "changed": 0.0 if self.entries else 16.0 * each}
        return again | {"summed": float(count * updates + 16 * each * -(-count // FUSED))}

    @property
    def closed(self) -> dict[str, float]:
        """The same of the close: sums for each moment, or for the model; the old model; old moments, and new ones."""
        each, moments = self.parameters, len(self.rule.moments)
        return {"read": (8.0 * max(1, moments) + 4 + 8 * moments) * each, "changed": 8.0 * moments * each}

    @property
    def moved_bytes(self) -> float:
        moved = sum(self.added.values()) + sum(self.closed.values())
        return moved + 2 * LINE_BYTES * sum(each.size for each in self.entries)

    def stages(self, memory: Memory, repeats: int) -> list[tuple[float, float]]:
        """Seconds of each: that memory takes, that loops take."""
        fresh = memory.seconds(fresh=8 * self.parameters)
        touched = touched_s(self.entries, self.parameters, repeats) if self.entries else 0
        closing = loops.moments_s(self.rule.name) if self.rule.moments else loops.apply_s()
        return [
            (fresh, fresh),
            (memory.seconds(**self.added) + touched, self._adding_s()),
            (memory.seconds(**self.closed), self.parameters * closing),
        ]

    def _adding_s(self) -> float:
        rule, count, encoding = self.rule, len(self.updates), self.rules.encoding
        if isinstance(rule, Streaming):
            counted = sum(each.size for each in self.entries) or self.values
            return counted * (loops.sum_s(encoding, rule.clips) + (loops.norm_s(encoding) if rule.clips else 0))
        chosen = self.again
        each = loops.read_s(encoding) * (1 + chosen / count)
        if rule.name == "median":
            each += loops.ordered_s(count, (count - 1) // 2, count // 2 + 1)
        elif rule.name == "trimmed_mean":
            each += loops.ordered_s(count, count // 10, count - count // 10)
        else:
            last = loops.closest_s(chosen, 2 * chosen - count) if rule.name == "bulyan" else loops.chosen_s(chosen)
            each += loops.distances_s(count) + last * chosen / count
        return self.values * each


def _place(member: bytes) -> Place:
    return Place(JOB, 1, member)


def measure(
    parameters: int, updates: int, repeats: int, rules: Sequence[str] = (), encodings: Sequence[str] = ()
) -> list[Row]:
    """A row for each rule (all of them, if none are named) and each encoding that it goes with."""
    values = (np.random.default_rng(1).standard_normal(parameters, np.float32) / 8).astype(np.float32)
    return [
        _row(Round(name, encoding, values, updates), repeats)
        for name in rules or sorted(RULES)
        for encoding in sorted(RULES[name].encodings)
        if not encodings or encoding in encodings
    ]


def _row(of: Round, repeats: int) -> Row:
    memory = memory_of([bytes(each.payload) for each in of.updates[:FUSED]], of.parameters, repeats, in_turn)
    seconds = timed(repeats, of.close)
    rates = [of.values / each / 1e9 for each in seconds]
    stages = of.stages(memory, repeats)
    from_memory, from_cache, by_stages = (
        of.values / each / 1e9 for each in (*map(sum, zip(*stages, strict=True)), sum(map(max, stages)))
    )
    tracemalloc.start()
    of.close()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(len(each.payload) for each in of.updates) + len(of.base) + len(of.kept) + 8 * of.parameters
    return Row(
        of.rule.name,
        of.rules.encoding,
        rates[0],
        rates[-1],
        rates[0],
        from_memory,
        from_cache,
        of.moved_bytes / of.values,
        size,
        held,
        by_stages,
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=2_000_000)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rules", nargs="+", default=sorted(RULES))
    parser.add_argument("--encodings", nargs="+", default=[])
    parser.add_argument("--out", help="write the JSON there instead of to standard output")
    options = parser.parse_args(arguments)
    check_golden()
    rows = measure(options.parameters, options.updates, options.repeats, options.rules, options.encodings)
    report = {
        "parameters": options.parameters,
        "updates": options.updates,
        "kernel_version": KERNEL_VERSION,
        "machine": machine(),
        "giga_values_a_core_second": [rounded(row) for row in rows],
    }
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
