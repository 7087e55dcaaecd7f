"""Small updates: how many a second, what each costs every validator, and how long one takes when nothing else goes on.

Each is a transaction of its own, signed by its trainer: a q8 delta, inline. Several jobs' rounds are answered in turn
by the same trainers (`benchmarks.campaign`), so that updates flow without a break; after a warm-up, figures are taken
over windows of time from the counters of every validator's state. In the end nothing acknowledged may be missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.campaign import Generator, Outcome, Plan
from benchmarks.checks import nothing_lost
from benchmarks.figures import LESS, MORE, Case, Check, Curve, Figure, Latency
from benchmarks.machine import signature_us
from benchmarks.network import Snapshot, Stage, Validators
from benchmarks.probes import at_rest_ms
from benchmarks.processes import Span, Watch
from benchmarks.scenario import Scenario, Setting, Settings

LOAD = "load generator"
_BIN_S = 1.0


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    return [measured(settings, stage, int(settings.validators))]


def measured(settings: Settings, stage: Stage, validators: int, name: str = "small") -> Case:
    trainers, samples = int(settings.trainers), int(settings.samples)
    with stage.validators(validators, trainers + samples) as running:
        stage.say("one at a time, at rest")
        rest = asyncio.run(at_rest_ms(running.net, running.net.trainers[trainers:])) if samples else []
        plan = Plan(
            running.net.directory,
            name,
            int(settings.jobs),
            trainers,
            int(settings.parameters),
            int(settings.together),
            int(settings.at_once),
        )
        stage.say(f"{plan.jobs} jobs, {plan.trainers} trainers join each")
        with Generator(plan) as load:
            running.others[LOAD] = load.pid
            running.level()
            with Watch(running.who) as watch:
                windows = taken(running, load, settings, stage)
            stage.say("everything that is on its way")
            outcome = load.stop()
            del running.others[LOAD]
        running.level()
        stage.say("looking for what was lost")
        checks = asyncio.run(nothing_lost(running, outcome.jobs, outcome.acknowledged, stage.directory / "reader"))
    figures = figures_of(windows, outcome)
    spans = [Span(before.at_s, after.at_s) for before, after in windows]
    return Case(
        name,
        {"update_bytes": outcome.update_bytes},
        figures,
        {"at rest": Latency(tuple(rest)), f"in a request of {plan.together}, under load": under_load(outcome, spans)},
        watch.used(spans, [used(*window) for window in windows]),
        curves(watch, outcome, spans),
        [*checks, none_refused(outcome)],
    )


Window = tuple[Snapshot, Snapshot]


def taken(running: Validators, load: Generator, settings: Settings, stage: Stage) -> list[Window]:
    load.go()
    stage.say("warm-up")
    time.sleep(float(settings.warm_s))
    windows = []
    for number in range(int(settings.repeat)):
        stage.say(f"window {number + 1} of {settings.repeat}")
        before = running.snapshot()
        time.sleep(float(settings.window_s))
        windows.append((before, running.snapshot()))
    return windows


def used(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """Processor time by role of whoever was there all the time."""
    return {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s if role in before.cpu_s}


def executed(before: Snapshot, after: Snapshot) -> dict[str, int]:
    return {name: after.executed[name] - before.executed[name] for name in after.executed if name in before.executed}


def rate(before: Snapshot, after: Snapshot) -> float:
    """Of the slowest validator: what all of them have executed."""
    counts = executed(before, after)
    return min(count / (after.told_s[name] - before.told_s[name]) for name, count in counts.items())


def cost_us(window: Window, kinds: Sequence[str]) -> float:
    """Microseconds an update and validator, of these kinds of processes."""
    count = sum(executed(*window).values())
    seconds = sum(each for role, each in used(*window).items() if role.rpartition(" ")[2] in kinds)
    return seconds / max(1, count) * 1e6


def figures_of(windows: Sequence[Window], outcome: Outcome) -> dict[str, Figure]:
    signing, verifying = zip(*(signature_us() for _ in windows), strict=True)
    whole = [cost_us(window, ("core", "data")) for window in windows]
    spans = [Span(before.at_s, after.at_s) for before, after in windows]
    load = [used(*window)[LOAD] / max(1, max(executed(*window).values())) * 1e6 for window in windows]
    return {
        "updates executed a second, by every validator": Figure("1/s", tuple(rate(*each) for each in windows), MORE),
        "processor time an update and validator": Figure("µs", tuple(whole), LESS),
        "of it the core": Figure("µs", tuple(cost_us(each, ("core",)) for each in windows), LESS),
        "of it the data process": Figure("µs", tuple(cost_us(each, ("data",)) for each in windows), LESS),
        "one signature verified": Figure("µs", verifying),
        "processor time besides one signature": Figure(
            "µs", tuple(each - one for each, one in zip(whole, verifying, strict=True)), LESS
        ),
        "one signature made": Figure("µs", signing),
        "load generator, an update": Figure("µs", tuple(load)),
        "load generator without an update to send": Figure("share", tuple(starved(outcome, each) for each in spans)),
        "joins a second": Figure("1/s", (outcome.joins_a_second,), MORE),
    }


def starved(outcome: Outcome, span: Span) -> float:
    """Of all places for a request, the share of the span in which they had nothing to carry."""
    within = [
        max(0.0, min(from_s + seconds, span.to_s) - max(from_s, span.from_s)) for from_s, seconds in outcome.starved
    ]
    return sum(within) / span.seconds / outcome.lanes


def under_load(outcome: Outcome, spans: Sequence[Span]) -> Latency:
    return Latency(
        tuple(
            each.seconds * 1000
            for each in outcome.answers
            if any(span.from_s <= each.at_s <= span.to_s for span in spans)
        )
    )


def curves(watch: Watch, outcome: Outcome, spans: Sequence[Span]) -> dict[str, Curve]:
    start, end = spans[0].from_s, spans[-1].to_s
    bins = [0.0] * max(1, int((end - start) / _BIN_S))
    for each in outcome.answers:
        place = int((each.at_s - start) / _BIN_S)
        if each.at_s >= start and place < len(bins):
            bins[place] += each.count / _BIN_S
    at = tuple((place + 0.5) * _BIN_S for place in range(len(bins)))
    return {
        "updates answered": Curve("seconds", "1/s", at, {"all nodes": tuple(bins)}),
        "memory": memory_curve(watch, Span(start, end)),
    }


def memory_curve(watch: Watch, span: Span) -> Curve:
    """The most of all processes of a kind, second by second."""
    bins: dict[int, dict[str, float]] = {}
    for each in watch.moments:
        if span.from_s <= each.at_s <= span.to_s:
            kind = each.role.rpartition(" ")[2]
            most = bins.setdefault(int((each.at_s - span.from_s) / _BIN_S), {})
            most[kind] = max(most.get(kind, 0.0), each.anonymous_bytes / 2**20)
    kinds = sorted({kind for most in bins.values() for kind in most})
    places = [place for place in sorted(bins) if len(bins[place]) == len(kinds)]
    at = tuple((place + 0.5) * _BIN_S for place in places)
    return Curve("seconds", "MiB anonymous", at, {kind: tuple(bins[place][kind] for place in places) for kind in kinds})


def none_refused(outcome: Outcome) -> Check:
    refused = ", ".join(f"{count} {code}" for code, count in outcome.refused.items())
    return Check(f"refused: {refused}" if refused else "none was refused", not refused)


_LOAD = {
    "validators": Setting(4, 4, "validators, two processes each"),
    "trainers": Setting(1024, 48, "who each have an update in every round"),
    "jobs": Setting(6, 3, "whose rounds are answered in turn"),
    "parameters": Setting(1000, 1000, "of the model, each a byte of the update (q8)"),
    "together": Setting(64, 16, "updates a request"),
    "at_once": Setting(4, 2, "requests on their way to each validator"),
    "samples": Setting(100, 5, "updates one at a time, at rest"),
    "warm_s": Setting(5.0, 1.0, "seconds of load before figures are taken"),
}

SCENARIOS = (
    Scenario(
        "small",
        "Updates of 1,000 parameters, inline, from many clients: rate, cost, latency at rest.",
        1.5,
        _LOAD
        | {"window_s": Setting(10.0, 1.5, "seconds of a window"), "repeat": Setting(3, 2, "windows, one a repetition")},
        perform,
    ),
    Scenario(
        "sustained",
        "The same for a whole minute on end.",
        2.5,
        _LOAD | {"window_s": Setting(60.0, 3.0, "seconds of the window"), "repeat": Setting(1, 1, "windows")},
        perform,
    ),
)
