"""Rounds beside Flower's own, of one flat model of any size. What the ways are is said in `benchmarks.flower_sizes`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import LESS, Case, Figure
from benchmarks.flower_sites import FLOWER
from benchmarks.flower_sizes import WAYS, measure
from benchmarks.network import Stage
from benchmarks.scenario import Scenario, Setting, Settings
from cli.localnets import compile_kernels
from fl.client.errors import BadInput


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    ways = settings.words("ways")
    if unknown := set(ways) - set(WAYS):
        raise BadInput(
            "BAD_SETTING", f"There is no way {', '.join(sorted(unknown))}.", f"There are: {', '.join(WAYS)}."
        )
    if not FLOWER.is_dir():
        what = f"There is no {FLOWER.parent.name} in the checkout."
        raise BadInput("NO_FLOWER", what, "Make it: tests/flower/environments.sh 1.41")
    stage.say("compiling, if that was not done on this machine")
    compile_kernels()
    return [_sized(parameters, settings, ways, stage) for parameters in settings.numbers("parameters")]


def _sized(parameters: int, settings: Settings, ways: Sequence[str], stage: Stage) -> Case:
    stage.say(f"{parameters:,} parameters: {', '.join(ways)}")
    found = measure(parameters, int(settings.clients), int(settings.rounds), ways)["ways"]
    figures: dict[str, Figure] = {}
    for way, each in found.items():
        figures[f"{way}, a round"] = Figure("s", tuple(each["rounds_s"]), LESS)
        if "cpu_s" in each:
            figures[f"{way}, processor time of a round"] = Figure("s", (each["cpu_s"],), LESS)
        for stretch, seconds in each.get("stretches", {}).items():
            figures[f"{way}, {stretch.removesuffix('_s').replace('_', ' ')}"] = Figure("s", (seconds,))
        if "of_superlink" in each:
            figures[f"{way}, of the SuperLink's round"] = Figure("", (each["of_superlink"],), LESS)
        if "polling_share" in each:
            figures["polling, of the SuperLink's round"] = Figure("", (each["polling_share"],))
    return Case(f"{parameters:,}", {"parameters": parameters}, figures)


SCENARIOS = (
    Scenario(
        "flower",
        "Rounds of one flat model on Flower's SuperLink and on four validators.",
        12,
        {
            "parameters": Setting("1000,1000000,10000000", "1000", "of the model, a case each"),
            "rounds": Setting(4, 1, "rounds, after a first one"),
            "clients": Setting(4, 2, "clients, each in a process of its own"),
            "ways": Setting(",".join(WAYS), "superlink,q8", "what is measured"),
        },
        perform,
    ),
)
