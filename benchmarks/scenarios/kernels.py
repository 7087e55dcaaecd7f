"""The kernels, in this process: how many parameters a second go through each encoding and rule, and what bounds it.

How they are measured, and what the bounds are, is said in `benchmarks.kernels` and `benchmarks.rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import kernels, rules
from benchmarks.figures import MORE, Case, Figure
from benchmarks.network import Stage
from benchmarks.scenario import Scenario, Setting, Settings
from fl.aggregation import in_turn
from fl.kernels.golden import check_golden
from fl.rules import RULES

_UNIT = "G/core-s"


def of_encodings(settings: Settings, stage: Stage) -> Sequence[Case]:
    check_golden()
    return [_encodings(settings, stage, threads) for threads in settings.numbers("threads")]


def _encodings(settings: Settings, stage: Stage, threads: int) -> Case:
    stage.say(f"encodings on {threads} threads")
    found = kernels.measure(int(settings.parameters), int(settings.repeat), threads)
    return Case(f"{threads} threads", {"threads": threads}, dict(_figures(found)))


def _figures(found: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Figure]]:
    """Whatever is a number, or has a median of several."""
    for name, each in found.items():
        label = f"{where}{name}"
        if isinstance(each, Mapping) and "median" in each:
            unit = "GB/s" if "GB/s" in name else _UNIT
            yield label, Figure(unit, (each["low"], each["median"], each["high"]), MORE)
        elif isinstance(each, Mapping):
            yield from _figures(each, f"{label}: ")
        elif isinstance(each, int | float):
            yield label, Figure("", (float(each),))


def of_rules(settings: Settings, stage: Stage) -> Sequence[Case]:
    check_golden()
    parameters, repeats = int(settings.parameters), int(settings.repeat)
    values: NDArray[np.float32] = np.random.default_rng(1).standard_normal(parameters, np.float32) / np.float32(8)
    moved = kernels.bandwidth(parameters, repeats, in_turn)["median"]
    names = sorted(RULES) if settings.rules == "all" else settings.words("rules")
    cases = []
    for name in names:
        figures: dict[str, Figure] = {}
        for encoding in sorted(RULES[name].encodings):
            stage.say(f"{name}, {encoding}")
            job = rules.job(name, encoding, parameters, int(settings.updates))
            found = rules.measure(job, values, int(settings.updates), repeats, moved)
            figures |= dict(_figures(found, f"{encoding}: "))
        cases.append(Case(name, {}, figures))
    return cases


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
