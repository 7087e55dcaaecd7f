"""What a small update takes while large ones are on their way: one at a time, first at rest and then beside bulk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from benchmarks.accounts import rules_of
from benchmarks.figures import LESS, MORE, Case, Figure, Latency, medians
from benchmarks.floors import LARGE_RATE
from benchmarks.network import Stage
from benchmarks.probes import Probing
from benchmarks.processes import MIB, Span, Watch
from benchmarks.rounds import closed_alike, is_open, rounds_closed
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.scenarios.large import created, update_bytes
from benchmarks.trainers import TRAINERS, Plan, Trainers
from benchmarks.windows import memory_curve, used
from fl.records import MAX_ROUNDS

REST, BESIDE = "at rest", "beside bulk"


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    return [measured(settings, stage, encoding) for encoding in settings.words("encodings")]


def measured(settings: Settings, stage: Stage, encoding: str) -> Case:
    trainers, samples, parameters = int(settings.trainers), int(settings.samples), int(settings.parameters)
    rules = rules_of("large", parameters, trainers, MAX_ROUNDS, encoding)
    with stage.validators(int(settings.validators), trainers + samples) as running:
        probes = running.net.trainers[trainers:]
        stage.say(f"{samples} small updates at rest")
        probing = Probing(running.net, probes)
        rest = probing.series("rest")
        probing.prepare("beside")
        bulk = created(running, rules)
        plan = Plan(running.net.directory, rules.name, trainers, parameters, trainers)
        with Trainers(plan) as load, Watch(running.with_load(TRAINERS, load.pid)) as watch:
            stage.say("warm-up: the first large round")
            is_open(running, bulk, 2, load.check)
            time.sleep(float(settings.warm_s))
            stage.say(f"{samples} small updates beside large ones")
            closed, before = rounds_closed(running, bulk), running.snapshot()
            beside = probing.series("beside", lambda: not load.alive)
            after, closed = running.snapshot(), rounds_closed(running, bulk) - closed
        running.forget(TRAINERS)
        checks = closed_alike(running, bulk, range(1, rounds_closed(running, bulk) + 1))
    parts = int(settings.repeat)
    at_rest, at_work = medians(rest, parts), medians(beside, parts)
    span = Span(before.at_s, after.at_s)
    mib = closed * trainers * update_bytes(parameters, encoding) / MIB
    return Case(
        f"beside {parameters / 1e6:g}M {encoding}",
        {"encoding": encoding},
        {
            "small update at rest": Figure("ms", at_rest, LESS),
            "small update beside bulk": Figure("ms", at_work, LESS),
            "times as long": Figure("", tuple(each / median(at_rest) for each in at_work), LESS),
            f"{LARGE_RATE}, meanwhile": Figure("MiB/s", (mib / span.seconds,), MORE),
        },
        {REST: Latency(tuple(rest)), BESIDE: Latency(tuple(beside))},
        watch.used([span], [used((before, after))]),
        {"memory": memory_curve(watch, span)},
        checks,
    )


SCENARIOS = (
    Scenario(
        "mixed",
        "A small update's way to executed, at rest and beside large updates at full rate.",
        1.5,
        {
            "validators": Setting(4, 4, "validators, two processes each"),
            "trainers": Setting(8, 2, "of large updates"),
            "parameters": Setting(10_000_000, 200_000, "of large updates"),
            "encodings": Setting("f32", "q8", "of large updates; several, with commas, are a case each"),
            "samples": Setting(150, 6, "small updates in each of the two series"),
            "repeat": Setting(3, 2, "parts of a series, each with its median"),
            "warm_s": Setting(3.0, 0.0, "seconds of bulk before the samples, beside the first round"),
        },
        perform,
    ),
)
