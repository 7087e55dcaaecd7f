"""Whole clusters under faults and liars, a scenario a seed: safety throughout, then liveness once all is mended.

    python -m tests.simulation.campaign --seeds 2000 --first-seed 1 --jobs 2

The last line says `N passed, N failed`; each failing seed is printed with the one command that replays it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import rich.progress

from node.admission import Status
from tests.simulation.arena import Arena
from tests.simulation.byzantine import Adversary, Lore
from tests.simulation.faults import Faults, drawn_conditions
from tests.simulation.guards import GUARDS, broken
from tests.simulation.load import Load
from tests.simulation.loop import Crash, simulate
from tests.simulation.quick import remembered
from tests.simulation.scenario import Scenario, draw

LIVENESS_SECONDS = 120.0
"""Of virtual time from the moment at which everything is mended: until then all must agree on something new. Links
that were down take up to 6 s to be noticed, a standstill is broken after 10, and a timeout is 8 at most, of which a
turn holds f that are in vain."""
LOOK_SECONDS = 0.25
"""How often a run looks whether a checker has found something."""


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    event_hash: str
    violations: tuple[str, ...]
    stats: dict[str, int]
    cpu_seconds: float

    @property
    def passed(self) -> bool:
        return not self.violations


class _Run:
    def __init__(self, scenario: Scenario, direct: bool) -> None:
        self.scenario = scenario
        self._direct = direct
        self.violations: list[str] = []
        self.stats: Counter[str] = Counter()
        self.event_hash = ""
        self._arena: Arena | None = None

    async def main(self) -> None:
        try:
            await self._play()
        finally:
            for failure in asyncio.get_running_loop().failures:  # type: ignore[attr-defined]
                self.violations.append(_told(failure))

    async def _play(self) -> None:
        scenario = self.scenario
        arena = self._arena = Arena(scenario, drawn_conditions(scenario), self._direct)
        lore = Lore(arena) if scenario.byzantine else None
        load = Load(arena, scenario)
        faults = Faults(arena, scenario)
        vices = dict(scenario.byzantine)
        liars = []
        for host in arena.hosts:
            identity = host.index if host.index < scenario.n else arena.twins[host.index - scenario.n]
            if lore is not None and identity in vices:
                liars.append(Adversary(arena, host, vices[identity], lore))
        await arena.start()
        stirring = [arena.spawn(liar.stir()) for liar in liars]
        load.begin()
        faults.begin()
        if await self._safe_for(scenario.seconds):
            await faults.end()
            load.end()
            if await self._comes_right(load):
                load.check_models()
                arena.close_books()
        for task in stirring:
            task.cancel()

    async def _safe_for(self, seconds: float) -> bool:
        """Lets it run; False as soon as something was found."""
        assert self._arena is not None
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while loop.time() < ends and not self._found():
            await asyncio.sleep(min(LOOK_SECONDS, ends - loop.time()))
        return not self._found()

    def _found(self) -> bool:
        assert self._arena is not None
        return bool(self._arena.findings.violations) or bool(asyncio.get_running_loop().failures)  # type: ignore[attr-defined]

    async def _comes_right(self, load: Load) -> bool:
        """Until every honest node that is still there has executed, and seen certified, something new."""
        arena = self._arena
        assert arena is not None
        loop = asyncio.get_running_loop()
        begun = loop.time()
        goal = arena.chain.height + 1
        marker = arena.spawn(self._mark(load))
        reached: float | None = None
        while loop.time() < begun + LIVENESS_SECONDS and not self._found():
            await asyncio.sleep(LOOK_SECONDS)
            settled = not arena.outstanding() and not arena.uncertified() and arena.models_everywhere()
            if marker.done() and self._all_reached(goal) and settled:
                reached = loop.time() - begun
                break
        marker.cancel()
        if reached is None:
            if not self._found():
                arena.findings.report(self._why_not(goal, marker.done()))
            return False
        arena.findings.counts["liveness ms"] = int(reached * 1000)
        return not self._found()

    async def _mark(self, load: Load) -> None:
        """A transaction of the time after, through one honest node after the other until it is executed."""
        arena = self._arena
        assert arena is not None
        data = load.marker()
        while True:
            for host in arena.staying():
                if host.up:
                    for answer in await arena.submit(host.index, data, wait=Status.EXECUTED, within=5):
                        if answer.id is not None and arena.executed_everywhere(answer.id):
                            return
            await asyncio.sleep(0.1)

    def _all_reached(self, goal: int) -> bool:
        assert self._arena is not None
        for host in self._arena.staying():
            node = host.node
            if node is None or not host.up:
                return False
            if min(node.executor.executed.lineage.height, node.replica.attestation.certified_height()) < goal:
                return False
        return True

    def _why_not(self, goal: int, marked: bool) -> str:
        arena = self._arena
        assert arena is not None
        lines = [f"no progress to height {goal} in {LIVENESS_SECONDS:.0f} s; the new transaction done: {marked}"]
        lost = arena.outstanding()
        if lost:
            lines.append(f"{len(lost)} acknowledged transactions are not ordered, of {len(arena.acknowledged)}")
        if waiting := arena.uncertified():
            lines.append(f"{waiting} batches have no certificate")
        if not arena.models_everywhere():
            lines.append("somebody lacks the newest model")
        for host in arena.staying():
            node = host.node
            if node is None:
                lines.append(f"{host.machine.name} is down")
                continue
            ordering = node.replica.ordering
            lines.append(
                f"{host.machine.name}: view {ordering.view}, final {ordering.tree.root.height}, "
                f"executed {node.executor.executed.lineage.height}, "
                f"certified {node.replica.attestation.certified_height()}"
            )
        return "; ".join(lines)

    def finish(self) -> None:
        arena = self._arena
        if arena is None:
            return
        self.violations += arena.findings.violations
        self.stats = arena.findings.counts
        self.stats["views"] = arena.wire.top_view
        self.stats["acknowledged"] = len(arena.acknowledged)
        self.stats["frames"] = arena.network.delivered
        told = "/".join(f"{name}={count}" for name, count in sorted(self.stats.items()))
        self.event_hash = sha256(f"{arena.network.event_hash()}/{arena.bulk.event_hash()}/{told}".encode()).hexdigest()[
            :32
        ]


def _told(failure: BaseException) -> str:
    """The exception and the last places that it came through."""
    frames = traceback.extract_tb(failure.__traceback__)[-3:]
    places = " < ".join(f"{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})" for frame in frames[::-1])
    return f"{type(failure).__name__} in {places}: {failure}"


def run_seed(seed: int, direct: bool = True) -> Outcome:
    return run_scenario(draw(seed), direct)


def run_scenario(scenario: Scenario, direct: bool = True) -> Outcome:
    """With `direct` off, nothing is asked of frames as they leave: a broken promise must show in its consequences."""
    begun = time.process_time()
    run = _Run(scenario, direct)
    with remembered():
        try:
            simulate(run.main, collected=True)
        except (Exception, Crash) as failure:
            if _told(failure) not in run.violations:
                run.violations.append(_told(failure))
    run.finish()
    return Outcome(scenario.seed, run.event_hash, tuple(run.violations), dict(run.stats), time.process_time() - begun)


# The command


@dataclass(frozen=True, slots=True)
class Task:
    seed: int
    guard: str | None


def play(task: Task) -> Outcome:
    """One seed in a worker process, with a guard broken if one is named."""
    logging.getLogger("quorate").setLevel(logging.CRITICAL + 1)
    with broken(task.guard):
        return run_seed(task.seed)


def outcomes(tasks: Sequence[Task], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(play, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as workers:
        yield from workers.imap_unordered(play, tasks)


def replay_command(task: Task) -> str:
    guard = f" --guard {task.guard!r}" if task.guard else ""
    return f"python -m tests.simulation.campaign --seeds 1 --first-seed {task.seed}{guard}"


class Progress:
    """A bar on a terminal; in a pipe, a line now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = self._failed = 0
        self._begun = time.monotonic()
        self._said = 0
        self._bar: rich.progress.Progress | None = None
        if sys.stdout.isatty():
            columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TimeElapsedColumn())
            self._bar = rich.progress.Progress(*columns)
            self._task = self._bar.add_task("seeds", total=total)
            self._bar.start()

    def failed(self, lines: Sequence[str]) -> None:
        self._failed += 1
        tell = print if self._bar is None else self._bar.console.print
        for line in lines:
            tell(line)

    def advance(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"seeds, {self._failed} failed")
        elif self._done * 20 // self._total > self._said:
            self._said = self._done * 20 // self._total
            spent = time.monotonic() - self._begun
            print(f"{self._done} of {self._total} seeds in {spent:.0f} s, {self._failed} failed", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def print_totals(totals: Counter[str], sizes: Counter[int], slowest: int, cpu_seconds: float, runs: int) -> None:
    """What was exercised, so that a campaign that does nothing is seen to."""
    print("validators: " + ", ".join(f"n = {n}: {count} seeds" for n, count in sorted(sizes.items())))
    for name in sorted(totals):
        print(f"  {name}: {totals[name]}")
    print(f"slowest to come right: {slowest / 1000:.1f} s of {LIVENESS_SECONDS:.0f} s allowed (virtual)")
    print(f"{cpu_seconds / max(1, runs):.2f} s of processor time a seed")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--guard", choices=sorted(GUARDS), help="play with this guard broken")
    options = parser.parse_args(arguments)
    tasks = [Task(seed, options.guard) for seed in range(options.first_seed, options.first_seed + options.seeds)]
    totals: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    failed, slowest, cpu_seconds = 0, 0, 0.0
    progress = Progress(len(tasks))
    for outcome in outcomes(tasks, min(options.jobs, len(tasks))):
        task = Task(outcome.seed, options.guard)
        stats = Counter(outcome.stats)
        slowest = max(slowest, stats.pop("liveness ms", 0))
        totals += stats
        sizes[draw(outcome.seed).n] += 1
        cpu_seconds += outcome.cpu_seconds
        if not outcome.passed:
            failed += 1
            found = [f"  {sentence}" for sentence in outcome.violations[:5]]
            progress.failed([f"seed {outcome.seed} failed; to replay it: {replay_command(task)}", *found])
        elif len(tasks) == 1:
            print(f"event hash {outcome.event_hash}")
        progress.advance()
    progress.close()
    print_totals(totals, sizes, slowest, cpu_seconds, len(tasks))
    print(f"{len(tasks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
