"""One round of many members, and what small updates of another job feel of it.

The members are a process of their own (`benchmarks.crowd`). Meanwhile small updates are sent at a steady pace, whether
or not the ones before have been answered; the latency of each is from when it was due to when it was executed. It
belongs to the part of the run in which it was due: at rest, while members join, while the round collects, while it
aggregates, as the first validator has it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.accounts import Account
from benchmarks.crowd import CROWD, Crowd, Plan
from benchmarks.figures import LESS, Case, Check, Figure, Latency
from benchmarks.network import Snapshot, Stage, Validators
from benchmarks.probes import Probes
from benchmarks.processes import MIB, Span, Watch
from benchmarks.rounds import closed_alike
from benchmarks.scenario import Scenario, Setting, Settings
from benchmarks.submitting import Submitting
from benchmarks.windows import memory_curve, span_of, used
from cli.http import Place, ask
from cli.localnets import LocalNetwork
from fl.client.errors import QuorateError, TimedOut

REST, JOINING, COLLECTING, AGGREGATING = "at rest", "joining", "collecting", "aggregating"
PROBES_A_JOB = 64
_PATIENCE_S = 900.0
_LOOK_S = 0.1


def perform(settings: Settings, stage: Stage) -> Sequence[Case]:
    return [measured(settings, stage, encoding, int(settings.members)) for encoding in settings.words("encodings")]


def measured(settings: Settings, stage: Stage, encoding: str, members: int, name: str = "") -> Case:
    probing = int(settings.probes) > 0
    trainers = members + (PROBES_A_JOB if probing else 0)
    with stage.validators(int(settings.validators), trainers) as running:
        plan = Plan(
            running.net.directory,
            "crowd",
            members,
            int(settings.parameters),
            encoding,
            str(settings.rule),
            str(settings.rule_settings),
            int(settings.at_once),
        )
        with Crowd(plan) as load, Watch(running.with_load(CROWD, load.pid)) as watch:
            running.level()
            with steady_probes(running.net, settings, members) as told:
                marks = parts(running, load, float(settings.rest_s) if probing else 0.0, stage)
            load.hear(_PATIENCE_S)
        running.forget(CROWD)
        checks = closed_alike(running, load.job, [1])
    return case_of(name or f"{members} × {plan.parameters:,} {encoding}", encoding, marks, told, watch, checks)


Marks = list[tuple[str, Snapshot]]
"""When each part began; the last one is the end."""


def parts(running: Validators, load: Crowd, rest_s: float, stage: Stage) -> Marks:
    marks = []
    if rest_s:
        stage.say(REST)
        marks.append((REST, running.snapshot()))
        time.sleep(rest_s)
    load.go()
    marks.append((JOINING, running.snapshot()))
    place, ends = Place(running.net.members["v0"].rpc), time.monotonic() + _PATIENCE_S
    while True:
        reply = ask(place, "GET", f"/v1/jobs/{load.job}/rounds/1", timeout_s=60)
        phase = str(reply.data["phase"]) if reply.status == 200 else JOINING
        if phase == "failed":
            raise QuorateError("ROUND_FAILED", f"The round failed: {reply.data['code']}.", "Look at the logs.")
        if phase != marks[-1][0] and phase in (COLLECTING, AGGREGATING, "closed"):
            stage.say(phase)
            marks.append((phase, running.snapshot()))
        if phase == "closed":
            return marks
        load.check()
        if time.monotonic() > ends:
            raise TimedOut("ROUND_STUCK", f"The round is still {phase}.", "Look at the logs.")
        time.sleep(_LOOK_S)


@contextmanager
def steady_probes(net: LocalNetwork, settings: Settings, first: int) -> Iterator[list[tuple[float, float]]]:
    """On a thread of its own while this is on: when each was due, by the monotonic clock, and its milliseconds."""
    told: list[tuple[float, float]] = []
    jobs, every_s = -(-int(settings.probes) // PROBES_A_JOB), float(settings.every_ms) / 1000
    if not jobs:
        yield told
        return
    ready, over = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def go_on() -> None:
        members = [Account.of(net, name) for name in net.trainers[first:]]
        async with Submitting(net) as submitting:
            probes = Probes(net, submitting, members)
            prepared = [await probes.prepare(f"probes-{number}") for number in range(jobs)]
            ready.set()
            sending = asyncio.create_task(probes.steadily(prepared, every_s, lambda *each: told.append(each)))
            await asyncio.to_thread(over.wait)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    def run() -> None:
        try:
            asyncio.run(go_on())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield told
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def case_of(
    name: str,
    encoding: str,
    marks: Marks,
    told: Sequence[tuple[float, float]],
    watch: Watch,
    checks: Sequence[Check],
) -> Case:
    begins = dict(marks[:-1])
    windows = {part: (snapshot, marks[place + 1][1]) for place, (part, snapshot) in enumerate(marks[:-1])}
    figures = {}
    for part, (before, after) in windows.items():
        peaks = watch.peaks(Span(before.at_s, after.at_s))
        figures[f"{part}: time"] = Figure("s", (after.at_s - before.at_s,), LESS)
        for kind, what in (("core", "cores"), ("data", "data processes")):
            seconds = sum(each for role, each in used((before, after)).items() if role.endswith(f" {kind}"))
            most = max((peak[1] for role, peak in peaks.items() if role.endswith(f" {kind}")), default=0)
            figures[f"{part}: processor time, all {what}"] = Figure("s", (seconds,), LESS)
            figures[f"{part}: anonymous memory, the most of {what}"] = Figure("MiB", (most / MIB,), LESS)
    collecting = begins.get(COLLECTING, begins[JOINING])
    end = marks[-1][1]
    figures["opened to closed"] = Figure("s", (end.at_s - collecting.at_s,), LESS)
    whole = Span(marks[0][1].at_s, end.at_s)
    return Case(
        name,
        {"encoding": encoding},
        figures,
        {f"small update, {part}": within(told, span_of(window)) for part, window in windows.items()},
        watch.used([whole], [used((marks[0][1], end))]),
        {"memory": memory_curve(watch, whole)},
        checks,
    )


def within(told: Sequence[tuple[float, float]], span: Span) -> Latency:
    return Latency(tuple(latency_ms for due_s, latency_ms in told if span.from_s <= due_s < span.to_s))


SCENARIOS = (
    Scenario(
        "round",
        "One round of many members, and what small updates of another job feel of it.",
        2,
        {
            "validators": Setting(4, 4, "validators, two processes each"),
            "members": Setting(1000, 12, "of the round, one update each"),
            "parameters": Setting(10_000, 2_000, "of the model"),
            "encodings": Setting("q8", "f32", "of the updates; several, with commas, are a case each"),
            "rule": Setting("fedavg", "fedavg", "that aggregates them"),
            "rule_settings": Setting("{}", "{}", "of the rule, as JSON"),
            "at_once": Setting(64, 4, "updates on their way at a time"),
            "probes": Setting(640, 64, "small updates at most; 0: none"),
            "every_ms": Setting(200.0, 50.0, "from one small update to the next"),
            "rest_s": Setting(10.0, 0.5, "seconds before members join"),
        },
        perform,
    ),
)
