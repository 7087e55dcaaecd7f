"""The kernels, in this process: how many parameters a second go through each encoding and rule, and what bounds it.

How they are measured, and what the bounds are, is said in `benchmarks.kernels` and `benchmarks.rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks import kernels, rules
from benchmarks.bounds import Row
from benchmarks.figures import MORE, Case, Figure
from benchmarks.network import Stage
from benchmarks.scenario import Scenario, Setting, Settings
from fl.kernels.golden import check_golden
from fl.rules import RULES

_UNIT = "G/core-s"


def of_encodings(settings: Settings, stage: Stage) -> Sequence[Case]:
    check_golden()
    parameters, repeats = int(settings.parameters), int(settings.repeat)
    cases = []
    for threads in settings.numbers("threads"):
        stage.say(f"encodings on {threads} threads")
        rows = kernels.measure(parameters, repeats, threads)
        cases.append(Case(f"{threads} threads", {"threads": threads}, _figures(rows)))
    return cases


def of_rules(settings: Settings, stage: Stage) -> Sequence[Case]:
    check_golden()
    parameters, updates, repeats = int(settings.parameters), int(settings.updates), int(settings.repeat)
    cases = []
    for name in sorted(RULES) if settings.rules == "all" else settings.words("rules"):
        stage.say(name)
        cases.append(Case(name, {}, _figures(rules.measure(parameters, updates, repeats, [name]))))
    return cases


def _figures(rows: Iterable[Row]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for row in rows:
        label = f"{row.encoding}: {row.what}" if row.encoding else row.what
        found[label] = Figure(_UNIT, (row.low, row.rate, row.high), MORE)
        if row.from_memory is not None and row.from_cache is not None and row.share is not None:
            found[f"{label}: from memory"] = Figure(_UNIT, (row.from_memory,))
            found[f"{label}: from cache"] = Figure(_UNIT, (row.from_cache,))
            found[f"{label}: share of what bounds it"] = Figure("", (row.share,), MORE)
            found[f"{label}: counted bytes"] = Figure("B/value", (row.counted_bytes,))
            found[f"{label}: working set"] = Figure("MiB", (row.working_set_bytes / 2**20,))
        if row.held_bytes:
            found[f"{label}: held"] = Figure("MiB", (row.held_bytes / 2**20,))
    return found


SCENARIOS = (
    Scenario(
        "kernels",
        "Each encoding's kernels beside what memory and the cache allow. No network.",
        1.5,
        {
            "parameters": Setting(10_000_000, 200_000, "of an update"),
            "repeat": Setting(7, 1, "repetitions"),
            "threads": Setting("1,2", "1", "threads; several, with commas, are a case each"),
        },
        of_encodings,
    ),
    Scenario(
        "rules",
        "Whole rounds under each rule and encoding, beside what memory and the cache allow. No network.",
        4,
        {
            "parameters": Setting(2_000_000, 50_000, "of an update"),
            "updates": Setting(20, 11, "of the round"),
            "repeat": Setting(3, 1, "repetitions, of which the best one counts"),
            "rules": Setting("all", "fedavg,median", "names of rules"),
        },
        of_rules,
    ),
)
