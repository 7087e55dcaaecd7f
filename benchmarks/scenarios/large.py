"""Large updates: rounds of trainers who are clients of the SDK and have prepared what they send, or train.

A round's time is that of its blocks, from the one that opened it to the one that closed it. Each round is a repetition.
The first ones are left out: data processes load the kernels, and files of rounds that are no longer kept are not there
yet to be written over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks import floors
from benchmarks.accounts import rules_of
from benchmarks.figures import LESS, MORE, Case, Curve, Figure, Floor
from benchmarks.floors import LARGE_COST, LARGE_RATE
from benchmarks.network import Stage, Validators
from benchmarks.probes import create as create_job
from benchmarks.processes import MIB, Span, Watch
from benchmarks.rounds import Round, closed_alike, followed
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.submitting import Submitting
from benchmarks.trainers import TRAINERS, Plan, Trainers
from benchmarks.windows import memory_curve, span_of, used
from fl.records import JobRules

_PATIENCE_S = 600.0
PARAMETERS_S = "parameters × updates a second"


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    return [
        measured(settings, stage, parameters, encoding)
        for parameters in settings.numbers("parameters")
        for encoding in settings.words("encodings")
    ]


def name_of(parameters: int, encoding: str) -> str:
    million = parameters / 1e6
    return f"{million:g}M {encoding}"


def measured(settings: Settings, stage: Stage, parameters: int, encoding: str) -> Case:
    trainers, rounds = int(settings.trainers), int(settings.rounds)
    rules = rules_of("large", parameters, trainers, rounds, encoding)
    with stage.validators(int(settings.validators), trainers, int(settings.update_rounds)) as running:
        job = created(running, rules)
        stage.say(f"{rounds} rounds of {trainers} updates of {name_of(parameters, encoding)}")
        prepared = bool(int(settings.prepared))
        plan = Plan(running.net.directory, "large", trainers, parameters, int(settings.at_once), prepared=prepared)
        with Trainers(plan) as load, Watch(running.with_load(TRAINERS, load.pid)) as watch:
            found = followed(running, job, rounds, _PATIENCE_S, load.check)[int(settings.warm_rounds) :]
            load.hear(_PATIENCE_S)
        running.forget(TRAINERS)
        checks = closed_alike(running, job, range(1, rounds + 1))
    size = update_bytes(parameters, encoding)
    figures = figures_of(found, trainers, size, parameters)
    spans = [span_of(each.window) for each in found]
    floor = floor_of(settings, stage, figures, parameters, encoding)
    return Case(
        name_of(parameters, encoding),
        {"parameters": parameters, "encoding": encoding, "update_bytes": size},
        figures,
        {},
        watch.used(spans, [used(each.window) for each in found]),
        {"memory": memory_curve(watch, Span(spans[0].from_s, spans[-1].to_s)), "rounds": round_curve(found)},
        checks,
        floor,
    )


def created(running: Validators, rules: JobRules) -> str:
    """The job's id."""

    async def create() -> str:
        async with Submitting(running.net) as submitting:
            return await create_job(running.net, submitting, rules)

    job = asyncio.run(create())
    running.level()
    return job


def update_bytes(parameters: int, encoding: str) -> int:
    """Of its values."""
    return parameters * {"f32": 4, "f16": 2, "bf16": 2, "q8": 1}[encoding]


def figures_of(rounds: Sequence[Round], trainers: int, size: int, parameters: int) -> dict[str, Figure]:
    mib = trainers * size / MIB
    seconds = tuple(each.seconds for each in rounds)
    cpu = [used(each.window) for each in rounds]
    validators = len(rounds[0].window[0].executed)

    def of_kind(kind: str) -> tuple[float, ...]:
        """Milliseconds a MiB and validator."""
        return tuple(
            sum(each for role, each in found.items() if role.endswith(kind)) / validators / mib * 1000 for found in cpu
        )

    return {
        "round": Figure("s", seconds, LESS),
        LARGE_RATE: Figure("MiB/s", tuple(mib / each for each in seconds), MORE),
        PARAMETERS_S: Figure("M/s", tuple(trainers * parameters / each / 1e6 for each in seconds), MORE),
        LARGE_COST: Figure("ms/MiB", tuple(sum(found.values()) / mib * 1000 for found in cpu), LESS),
        "of it a validator's data process": Figure("ms/MiB", of_kind(" data"), LESS),
        "of it a validator's core": Figure("ms/MiB", of_kind(" core"), LESS),
        "of it all trainers": Figure("ms/MiB", tuple(found.get(TRAINERS, 0.0) / mib * 1000 for found in cpu), LESS),
    }


def round_curve(rounds: Sequence[Round]) -> Curve:
    numbers = tuple(float(each.number) for each in rounds)
    return Curve("round", "s", numbers, {"opened to closed": tuple(each.seconds for each in rounds)})


def floor_of(
    settings: Settings, stage: Stage, figures: dict[str, Figure], parameters: int, encoding: str
) -> list[Floor]:
    passes = int(settings.floor_passes)
    if not passes:
        return []
    stage.say("the floor")
    validators, trainers = int(settings.validators), int(settings.trainers)
    return floors.of_large(figures, validators, trainers, parameters, encoding, passes, stage.directory)


def _settings(parameters: str, quick: str, rounds: int) -> dict[str, Setting]:
    return {
        "validators": Setting(4, 4, "validators, two processes each"),
        "trainers": Setting(16, 2, "who each have an update in every round"),
        "prepared": Setting(1, 1, "1: they encode their updates ahead; 0: they fetch each model and encode each time"),
        "parameters": Setting(parameters, quick, "of the model; several, with commas, are a case each"),
        "encodings": Setting("f32,q8", "q8", "of the updates; each is a case"),
        "rounds": Setting(rounds, 2, "in all"),
        "warm_rounds": Setting(4, 1, "of them, left out: files are written over from the fifth, 10M q8 from the 12th"),
        "at_once": Setting(8, 2, "trainers who send at a time"),
        "update_rounds": Setting(
            2, 0, "rounds after its own in which validators keep an update; then they write over it"
        ),
        "floor_passes": Setting(2, 0, "of the floor, after one that warms up; 0: no floor"),
    }


SCENARIOS = (
    Scenario(
        "medium",
        "Updates of a million parameters, f32 and q8: rounds, bytes a second, cost.",
        1.5,
        _settings("1000000", "100000", 11),
        perform,
    ),
    Scenario(
        "large",
        "Updates of 10 and 40 million parameters, f32 and q8.",
        7,
        _settings("10000000,40000000", "200000", 8),
        perform,
    ),
)
