"""More validators than one machine bears, far from one another, in virtual time. How is said in `benchmarks.growth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.figures import LESS, Case, Curve, Figure
from benchmarks.growth import grown
from benchmarks.network import Stage
from benchmarks.scenario import Scenario, Setting, Settings

FIGURES = {
    "virtual time of a block": ("block_ms", "ms"),
    "virtual time to finality": ("finality_ms", "ms"),
    "slowest tenth to finality": ("finality_slowest_tenth_ms", "ms"),
    "batches that a block names": ("references_a_block", ""),
    "messages in, a validator and block": ("messages", ""),
    "bytes in, a validator and block": ("kib", "KiB"),
    "signatures checked, a validator and block": ("signatures", ""),
    "steps of the core, a validator and block": ("step_ms_a_block", "ms"),
}


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    counts = settings.numbers("validators")
    cases = [_of(count, settings, stage) for count in counts]
    curves = {
        name: Curve("validators", unit, tuple(map(float, counts)), {name: tuple(_only(case, name) for case in cases)})
        for name, (_, unit) in FIGURES.items()
    }
    return [*cases[:-1], replace(cases[-1], curves=curves)]


def _only(case: Case, name: str) -> float:
    return case.figures[name].median


def _of(count: int, settings: Settings, stage: Stage) -> Case:
    stage.say(f"{count} validators")
    found = grown(count, int(settings.blocks), float(settings.batches))
    figures = {name: Figure(unit, (float(found[key]),), LESS) for name, (key, unit) in FIGURES.items()}
    return Case(f"{count} validators", {"validators": count}, figures)


SCENARIOS = (
    Scenario(
        "growth",
        "4 to 100 validators in eight regions, simulated: time, messages and bytes of a block.",
        10,
        {
            "validators": Setting("4,7,10,25,50,100", "4,7", "numbers of validators, a case each"),
            "batches": Setting(1.0, 1.0, "of each validator, a second; 0: empty blocks"),
            "blocks": Setting(8, 3, "blocks that are looked at, after the first ones"),
        },
        perform,
    ),
)
