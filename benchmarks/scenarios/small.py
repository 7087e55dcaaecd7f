"""Small updates: how many a second, what each costs every validator, and how long one takes when nothing else goes on.

Each is a transaction of its own, signed by its trainer: a q8 delta, inline. Several jobs' rounds are answered in turn
by the same trainers (`benchmarks.campaign`), so that updates flow without a break; after a warm-up, figures are taken
over windows of time from the counters of every validator's state. In the end nothing acknowledged may be missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext

from benchmarks import floors
from benchmarks.campaign import LOAD, Generator, Plan
from benchmarks.checks import nothing_lost
from benchmarks.figures import LESS, MORE, Case, Figure, Floor, Latency, medians
from benchmarks.network import INTERVAL_MS, Snapshot, Stage, Validators
from benchmarks.probes import Probing
from benchmarks.processes import Span, Watch
from benchmarks.profiling import sampled, shares_of
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.windows import (
    Window,
    answered,
    figures_of,
    memory_curve,
    none_refused,
    rate_curve,
    span_of,
    used,
)
from cli.http import Place, fetch
from fl.client.errors import TimedOut

_WARM_S = 120.0
_LOOK_S = 0.2


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    return [measured(settings, stage, int(settings.validators), "small")]


def plan_of(settings: Settings, running: Validators, name: str, a_second: float = 0.0) -> Plan:
    return Plan(
        running.net.directory,
        name,
        int(settings.jobs),
        int(settings.trainers),
        int(settings.parameters),
        int(settings.together),
        int(settings.at_once),
        bool(settings.streamed),
        a_second,
    )


def measured(settings: Settings, stage: Stage, validators: int, name: str) -> Case:
    trainers, samples = int(settings.trainers), int(settings.samples)
    interval_ms = int(settings.interval_ms)
    with stage.validators(validators, trainers + samples, interval_ms=interval_ms) as running:
        stage.say("one at a time, at rest")
        rest = Probing(running.net, running.net.trainers[trainers:]).series("rest") if samples else []
        plan = plan_of(settings, running, name.replace(" ", "-"))
        stage.say(f"{plan.jobs} jobs, {plan.trainers} trainers join each")
        with Generator(plan) as load, Watch(running.with_load(LOAD, load.pid)) as watch:
            running.level()
            load.go()
            warm_up(running, load, float(settings.warm_s), stage)
            stacks = stage.directory / "stacks"
            with sampled(core_of(running), stacks) if settings.profile else nullcontext():
                windows = taken(running, load, settings, stage)
            stage.say("everything that is on its way")
            outcome = load.stop()
        running.forget(LOAD)
        stage.say("looking for what was lost")
        checks = asyncio.run(nothing_lost(running, outcome, stage.directory / "reader"))
    figures = figures_of(windows, outcome) | {"joins a second": Figure("1/s", (outcome.joins_a_second,), MORE)}
    if rest:
        figures["one update at rest"] = Figure("ms", medians(rest, max(3, int(settings.repeat))), LESS)
    if settings.profile:
        shares = shares_of(stacks.read_text())
        figures |= {f"time of a core: {name}": Figure("%", (100 * share,)) for name, share in shares.items()}
    whole = Span(windows[0][0].at_s, windows[-1][1].at_s)
    latencies = {
        "one at a time, at rest": Latency(tuple(rest)),
        f"requests of {plan.together}, under load": answered(outcome, windows),
        "between two rounds of a job, under load": Latency(tuple(outcome.turnovers_ms)),
    }
    return Case(
        name,
        {"update_bytes": outcome.update_bytes},
        figures,
        latencies,
        watch.used([span_of(each) for each in windows], [used(each) for each in windows]),
        {"load": rate_curve(outcome, whole), "memory": memory_curve(watch, whole)},
        [*checks, none_refused(outcome)],
        floor_of(settings, stage, figures, validators),
    )


def core_of(running: Validators) -> int:
    """The process of the last one."""
    pid = running.net.members[running.names[-1]].pid
    assert pid is not None
    return pid


def warm_up(running: Validators, load: Generator, least_s: float, stage: Stage) -> None:
    """Until every job has closed a round: with the first one, data processes load the kernels."""
    stage.say("warm-up")
    time.sleep(least_s)
    place, ends = Place(running.net.members["v0"].rpc), time.monotonic() + _WARM_S
    while min(int(fetch(place, f"/v1/jobs/{job}")["round"]) for job in load.jobs) < 2:
        load.check()
        if time.monotonic() > ends:
            raise TimedOut("NOT_WARM", f"Some job closed no round within {_WARM_S:g} s.", "Look at the logs.")
        time.sleep(_LOOK_S)


def taken(running: Validators, load: Generator, settings: Settings, stage: Stage) -> list[Window]:
    windows = []
    for number in range(int(settings.repeat)):
        stage.say(f"window {number + 1} of {settings.repeat}")
        before = running.snapshot()
        time.sleep(float(settings.window_s))
        windows.append((before, moved(running, before, load)))
    return windows


def moved(running: Validators, since: Snapshot, load: Generator) -> Snapshot:
    """Once each validator that runs has executed something: there is no rate, and no cost, of nothing."""
    ends = time.monotonic() + _WARM_S
    while True:
        load.check()
        now = running.snapshot()
        if all(count > since.executed.get(name, 0) for name, count in now.executed.items()):
            return now
        if time.monotonic() > ends:
            raise TimedOut("NOTHING_EXECUTED", f"Nothing was executed for {_WARM_S:g} s.", "Look at the logs.")
        time.sleep(_LOOK_S)


def floor_of(settings: Settings, stage: Stage, figures: dict[str, Figure], validators: int) -> list[Floor]:
    updates = int(settings.floor_updates)
    if not updates:
        return []
    stage.say("the floor")
    return floors.of_small(figures, validators, int(settings.parameters), updates, stage.directory)


LOAD_SETTINGS = {
    "trainers": Setting(1024, 48, "who each have an update in every round"),
    "jobs": Setting(8, 3, "whose rounds are answered in turn"),
    "parameters": Setting(1000, 1000, "of the model, each a byte of the update (q8)"),
    "together": Setting(64, 16, "updates sent together, and waited for"),
    "at_once": Setting(16, 2, "times so many are on their way to each validator"),
    "streamed": Setting(True, True, "on streams (/v1/ingest); false: each together is an HTTP request"),
    "interval_ms": Setting(INTERVAL_MS, INTERVAL_MS, "between two blocks at least: the chain's own parameter"),
    "samples": Setting(100, 5, "updates one at a time, at rest; 0: none"),
    "warm_s": Setting(5.0, 1.0, "seconds of load before figures are taken"),
    "floor_updates": Setting(4096, 256, "updates of a pass of the floor; 0: no floor"),
    "profile": Setting(False, False, "sample one validator's core (py-spy), which slows it down"),
}
VALIDATORS = {"validators": Setting(4, 4, "validators, two processes each")}

SCENARIOS = (
    Scenario(
        "small",
        "Updates of 1,000 parameters, inline, from many clients: rate, cost, latency at rest.",
        1.5,
        VALIDATORS
        | LOAD_SETTINGS
        | {"window_s": Setting(10.0, 1.5, "seconds of a window"), "repeat": Setting(3, 2, "windows, one a repetition")},
        perform,
    ),
    Scenario(
        "sustained",
        "The same for a whole minute on end.",
        2.5,
        VALIDATORS
        | LOAD_SETTINGS
        | {"window_s": Setting(60.0, 3.0, "seconds of the window"), "repeat": Setting(1, 1, "windows")},
        perform,
    ),
)
