"""One of the validators is killed under load, and started again: what clients feel, and how it comes back.

The load goes on all the time, to all nodes: whoever finds one gone goes to the next. Windows are taken before the
crash, while the validator is away, and after it has caught up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.campaign import LOAD, Generator, Outcome
from benchmarks.checks import nothing_lost
from benchmarks.figures import LESS, MORE, Case, Check, Figure
from benchmarks.network import Stage, Validators
from benchmarks.processes import Span, Watch
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.scenarios.small import LOAD_SETTINGS, VALIDATORS, plan_of, taken, warm_up
from benchmarks.windows import Window, answered, memory_curve, none_refused, rate, rate_curve, span_of, used
from fl.client.errors import TimedOut

BEFORE, AWAY, BACK = "before", "while it is away", "after it came back"
_CAUGHT_UP_S = 180.0
_READY_S = 60.0
_LOOK_S = 0.1
_NEAR = 3
"""Blocks behind the others: so far a validator may be in the middle of things."""


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    count = int(settings.validators)
    with stage.validators(count, int(settings.trainers)) as running:
        victim = running.names[-1]
        plan = plan_of(settings, running, "crash")
        stage.say(f"{plan.jobs} jobs, {plan.trainers} trainers join each")
        windows: dict[str, list[Window]] = {}
        with Generator(plan) as load, Watch(running.with_load(LOAD, load.pid)) as watch:
            running.level()
            load.go()
            warm_up(running, load, float(settings.warm_s), stage)
            windows[BEFORE] = taken(running, load, settings, stage)
            stage.say(f"{victim} is killed")
            killed_s = time.monotonic()
            running.net.kill(victim)
            windows[AWAY] = taken(running, load, settings, stage)
            stage.say(f"{victim} is started again")
            started_s = time.monotonic()
            running.net.start(victim)
            running.net.wait_ready([victim], _READY_S)
            caught_up_s = caught_up(running, victim) - started_s
            windows[BACK] = taken(running, load, settings, stage)
            outcome = load.stop()
        running.forget(LOAD)
        stage.say("looking for what was lost")
        checks = asyncio.run(nothing_lost(running, outcome, stage.directory / "reader"))
        checks.append(Check("all validators run in the end", len(running.names) == count))
    every = [window for part in windows.values() for window in part]
    whole = Span(every[0][0].at_s, every[-1][1].at_s)
    figures = {
        f"updates executed a second, {part}": Figure("1/s", tuple(map(rate, found)), MORE)
        for part, found in windows.items()
    }
    figures["longest time without an answer, after the crash"] = Figure("s", (pause(outcome, killed_s, whole),), LESS)
    figures["started again to caught up"] = Figure("s", (caught_up_s,), LESS)
    return [
        Case(
            "one of them killed",
            {"update_bytes": outcome.update_bytes},
            figures,
            {f"requests of {plan.together}, {part}": answered(outcome, found) for part, found in windows.items()},
            watch.used([span_of(each) for each in every], [used(each) for each in every]),
            {"load": rate_curve(outcome, whole), "memory": memory_curve(watch, whole)},
            [*checks, none_refused(outcome)],
        )
    ]


def caught_up(running: Validators, name: str) -> float:
    """When it had executed about what the others have, by the monotonic clock."""
    ends = time.monotonic() + _CAUGHT_UP_S
    while True:
        heights = running.heights("executed_height")
        if heights[name] + _NEAR >= max(heights.values()):
            return time.monotonic()
        if time.monotonic() > ends:
            raise TimedOut("NOT_CAUGHT_UP", f"{name} is at {heights}.", "Look at its log.")
        time.sleep(_LOOK_S)


def pause(outcome: Outcome, from_s: float, span: Span) -> float:
    """The longest time in which no node answered a request."""
    moments = sorted(each.at_s for each in outcome.answers if from_s <= each.at_s <= span.to_s)
    return max((later - earlier for earlier, later in pairwise([from_s, *moments])), default=span.to_s - from_s)


SCENARIOS = (
    Scenario(
        "crash",
        "One validator killed under load, and started again: rate, pause, catching up, nothing lost.",
        2.5,
        VALIDATORS
        | {
            name: each
            for name, each in LOAD_SETTINGS.items()
            if name not in ("interval_ms", "samples", "floor_updates", "profile")
        }
        | {
            "trainers": Setting(512, 32, "who each have an update in every round"),
            "window_s": Setting(5.0, 1.0, "seconds of a window"),
            "repeat": Setting(3, 1, "windows before the crash, and as many in each part after it"),
        },
        perform,
    ),
)
