"""The floor beside a case: the bare pipeline of `benchmarks.floor` run with the same updates, in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.figures import Figure, Floor
from benchmarks.floor import FloorResult, Pages, Workload, run_floor
from benchmarks.windows import COST, RATE
from fl.client.errors import QuorateError


def of_small(figures: Mapping[str, Figure], validators: int, parameters: int, updates: int, place: Path) -> list[Floor]:
    found = _run(Workload(validators, updates, parameters), place)
    rate, cost, floor_us = figures[RATE].median, figures[COST].median, found.cpu_us_an_update_and_validator
    return [
        Floor("rate", RATE, "1/s", found.updates_s, rate / found.updates_s, found.cpu_s),
        Floor("processor time", COST, "µs", floor_us, floor_us / cost),
    ]


def of_large(
    figures: Mapping[str, Figure],
    validators: int,
    trainers: int,
    parameters: int,
    encoding: str,
    passes: int,
    place: Path,
) -> list[Floor]:
    """Twice: for validators who write new files, and for those who write over files that they have."""
    floors = []
    for pages in Pages:
        found = _run(Workload(validators, trainers, parameters, encoding, pages, passes), place)
        rate, cost, name = figures[LARGE_RATE].median, figures[LARGE_COST].median, f"{pages.value} pages"
        floors += [
            Floor(f"rate, {name}", LARGE_RATE, "MiB/s", found.mib_s, rate / found.mib_s, found.cpu_s),
            Floor(f"processor time, {name}", LARGE_COST, "ms/MiB", found.cpu_ms_a_mib, found.cpu_ms_a_mib / cost),
        ]
    return floors


def _run(workload: Workload, place: Path) -> FloorResult:
    try:
        return run_floor(workload, place)
    except EOFError:
        raise QuorateError("FLOOR_ENDED", "A process of the floor ended before its time.", "See above why.") from None


LARGE_RATE = "updates a second"
LARGE_COST = "processor time for a MiB of updates, all processes"
