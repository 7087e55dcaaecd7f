"""Half an hour of small updates at a steady pace beside large ones: does memory or the disk grow without end?

Growth is the slope of a line through the second half of each curve: caches are full by then, and what is kept for a
number of rounds has been replaced once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.accounts import rules_of
from benchmarks.campaign import LOAD, Generator
from benchmarks.checks import nothing_lost
from benchmarks.child import Child
from benchmarks.figures import LESS, MORE, Case, Curve, Figure
from benchmarks.network import Stage, Validators
from benchmarks.processes import MIB, Span, Watch
from benchmarks.rounds import closed_alike, rounds_closed
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.scenarios.large import created
from benchmarks.scenarios.small import LOAD_SETTINGS, VALIDATORS, moved, plan_of, warm_up
from benchmarks.trainers import TRAINERS, Plan, Trainers
from benchmarks.windows import Window, answered, cost_us, memory_curve, none_refused, rate, rate_curve, span_of, used
from fl.records import MAX_ROUNDS

_POINTS = 120
"""Of each curve."""


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    members, bulk = int(settings.trainers), int(settings.bulk_trainers)
    parameters = int(settings.bulk_parameters)
    rules = rules_of("large", parameters, bulk, MAX_ROUNDS, "f32")
    with stage.validators(int(settings.validators), members + bulk) as running:
        job = created(running, rules)
        small = plan_of(settings, running, "soak", float(settings.a_second))
        large = Plan(running.net.directory, rules.name, bulk, parameters, bulk, float(settings.bulk_pause_s), members)
        with Trainers(large) as trainers, Generator(small) as load:
            running.with_load(TRAINERS, trainers.pid)
            who = running.with_load(LOAD, load.pid)
            with Watch(who, float(settings.every_s)) as watch, disk_watch(running, float(settings.every_s)) as disk:
                running.level()
                load.go()
                warm_up(running, load, float(settings.warm_s), stage)
                windows = taken(running, settings, stage, load, trainers)
            stage.say("everything that is on its way")
            outcome = load.stop()
        running.forget(LOAD)
        running.forget(TRAINERS)
        stage.say("looking for what was lost")
        checks = asyncio.run(nothing_lost(running, outcome, stage.directory / "reader"))
        newest = rounds_closed(running, job)
        checks += closed_alike(running, job, [newest])
    whole = Span(windows[0][0].at_s, windows[-1][1].at_s)
    memory = memory_curve(watch, whole, max(1.0, whole.seconds / _POINTS))
    kept = disk_curve(disk, whole)
    figures = {
        "updates executed a second, by every validator": Figure("1/s", tuple(map(rate, windows)), MORE),
        "processor time an update and validator, bulk included": Figure(
            "µs", tuple(cost_us(each, ("core", "data")) for each in windows), LESS
        ),
        "large rounds closed": Figure("", (float(newest),), MORE),
    }
    for kind in ("core", "data"):
        figures[f"growth of anonymous memory, {kind}"] = Figure("MiB/h", (growth_an_hour(memory, kind),), LESS)
    for kind in kept.lines:
        figures[f"growth of the disk, {kind}"] = Figure("MiB/h", (growth_an_hour(kept, kind),), LESS)
    return [
        Case(
            "small and large for long",
            {"update_bytes": outcome.update_bytes},
            figures,
            {f"requests of {small.together}": answered(outcome, windows)},
            watch.used([span_of(each) for each in windows], [used(each) for each in windows]),
            {"load": rate_curve(outcome, whole, max(1.0, whole.seconds / _POINTS)), "memory": memory, "disk": kept},
            [*checks, none_refused(outcome)],
        )
    ]


def taken(running: Validators, settings: Settings, stage: Stage, load: Generator, trainers: Child) -> list[Window]:
    """One after another without a break, all through the time."""
    parts, whole_s = int(settings.repeat), 60 * float(settings.minutes)
    marks = [running.snapshot()]
    for number in range(parts):
        stage.say(f"minute {number * whole_s / parts / 60:.0f} of {settings.minutes}")
        time.sleep(whole_s / parts)
        trainers.check()
        marks.append(moved(running, marks[-1], load))
    return list(pairwise(marks))


Kept = list[tuple[float, dict[str, int]]]
"""By the monotonic clock, the bytes of the largest validator by what they are."""


@contextmanager
def disk_watch(running: Validators, every_s: float) -> Iterator[Kept]:
    found: Kept = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            validators = [kept_bytes(running.net.home(name) / "data") for name in running.net.members]
            kinds = {kind for each in validators for kind in each}
            most = {kind: max(each.get(kind, 0) for each in validators) for kind in kinds}
            found.append((time.monotonic(), most))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def kept_bytes(directory: Path) -> dict[str, int]:
    """On disk, by the entry of the data directory; files come and go meanwhile."""
    found: dict[str, int] = {}
    for path in directory.rglob("*"):
        try:
            blocks = path.lstat().st_blocks
        except FileNotFoundError:
            continue
        if path.parent != directory or path.is_dir():
            kind = path.relative_to(directory).parts[0]
            found[kind] = found.get(kind, 0) + blocks * 512
    return found


def disk_curve(kept: Kept, span: Span) -> Curve:
    shown = [(at_s - span.from_s, each) for at_s, each in kept if span.from_s <= at_s <= span.to_s]
    shown = shown[:: max(1, len(shown) // _POINTS)]
    kinds = sorted({kind for _, each in shown for kind in each})
    lines = {kind: tuple(each.get(kind, 0) / MIB for _, each in shown) for kind in kinds}
    return Curve("seconds", "MiB", tuple(at for at, _ in shown), lines)


def growth_an_hour(curve: Curve, line: str) -> float:
    """Of its second half; 0 where there are too few points to say."""
    values = curve.lines.get(line, ())
    half = len(values) // 2
    if len(values) - half < 2:
        return 0.0
    slope = np.polyfit(curve.at[half:], values[half:], 1)[0]
    return float(slope) * 3600


SCENARIOS = (
    Scenario(
        "soak",
        "Half an hour of small updates at a steady pace beside large ones: memory and disk.",
        32,
        VALIDATORS
        | {
            name: each
            for name, each in LOAD_SETTINGS.items()
            if name not in ("interval_ms", "samples", "floor_updates", "profile")
        }
        | {
            "trainers": Setting(512, 32, "of small updates, who each have one in every round"),
            "a_second": Setting(400.0, 100.0, "small updates sent a second; 0: as many as go"),
            "bulk_trainers": Setting(4, 2, "of large updates"),
            "bulk_parameters": Setting(1_000_000, 50_000, "of large updates"),
            "bulk_pause_s": Setting(2.0, 0.2, "seconds that each of them rests before an update"),
            "minutes": Setting(30.0, 0.1, "how long it goes on"),
            "every_s": Setting(5.0, 0.5, "seconds between two looks at memory and disk"),
            "repeat": Setting(6, 2, "parts of the time, one a repetition"),
            "warm_s": Setting(20.0, 1.0, "seconds of load before figures are taken"),
        },
        perform,
    ),
)
