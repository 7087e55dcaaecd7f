"""What more validators cost, and that more updates take no more memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.figures import Case, Curve
from benchmarks.network import Stage
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.scenarios import round as one_round
from benchmarks.scenarios import small
from benchmarks.windows import COST, LINKS, RATE

MEMORY = "aggregating: anonymous memory, the most of data processes"


def of_validators(settings: Settings, stage: Stage) -> Sequence[Case]:
    """Small updates, by the number of validators."""
    counts = settings.numbers("validators")
    cases = [small.measured(settings, stage, count, f"{count} validators") for count in counts]
    along = tuple(map(float, counts))
    curves = {}
    for name in (COST, LINKS, RATE):
        if name in cases[0].figures:
            medians = tuple(case.figures[name].median for case in cases)
            curves[name] = Curve("validators", cases[0].figures[name].unit, along, {"median": medians})
    return [*cases[:-1], replace(cases[-1], curves={**cases[-1].curves, **curves})]


def of_updates(settings: Settings, stage: Stage) -> Sequence[Case]:
    """One round each, by the number of its updates."""
    counts = settings.numbers("members")
    encoding = str(settings.encodings)
    cases = [one_round.measured(settings, stage, encoding, count, f"{count} updates") for count in counts]
    most = tuple(case.figures[MEMORY].median for case in cases)
    curve = Curve("updates", "MiB, anonymous", tuple(map(float, counts)), {"data process, aggregating": most})
    return [*cases[:-1], replace(cases[-1], curves={**cases[-1].curves, "memory by updates": curve})]


SCENARIOS = (
    Scenario(
        "validators",
        "Small updates by 4, 7 and 10 validators: what each more costs.",
        4,
        small.LOAD_SETTINGS
        | {
            "validators": Setting("4,7,10", "1,4", "numbers of validators, a case each"),
            "trainers": Setting(512, 32, "who each have an update in every round"),
            "samples": Setting(50, 3, "updates one at a time, at rest; 0: none"),
            "floor_updates": Setting(2048, 0, "updates of a pass of the floor; 0: no floor"),
            "window_s": Setting(10.0, 1.5, "seconds of a window"),
            "repeat": Setting(3, 1, "windows, one a repetition"),
        },
        of_validators,
    ),
    Scenario(
        "updates",
        "Memory of rounds of 8, 64 and 256 updates of a million parameters.",
        4,
        {
            **one_round.SCENARIOS[0].settings,
            "members": Setting("8,64,256", "2,6", "updates of the round, a case each"),
            "parameters": Setting(1_000_000, 50_000, "of the model"),
            "encodings": Setting("f32", "f32", "of the updates"),
            "at_once": Setting(8, 2, "updates on their way at a time"),
            "probes": Setting(0, 0, "small updates at most; 0: none"),
        },
        of_updates,
    ),
)
