"""What is measured, as data: figures with all their repetitions, latencies, what processes used, curves, checks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = bool | int | float | str

PERCENTILES = (50, 90, 95, 99)
MORE, LESS = "more", "less"
"""Which of two figures is the better one; empty: neither."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number a repetition."""

    unit: str
    values: tuple[float, ...]
    better: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Of the values, as a share of their median."""
        return (max(self.values) - min(self.values)) / abs(self.median) if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of all samples together, of every repetition."""

    samples_ms: tuple[float, ...]

    def percentile(self, share: int) -> float:
        ordered = sorted(self.samples_ms)
        return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


@dataclass(frozen=True, slots=True)
class Use:
    """What one process used while it was measured: the median over the repetitions of its processor time, the most of
    its memory. `anonymous` is what no file backs."""

    role: str
    kind: str
    cpu_s: float
    resident_mib: float
    anonymous_mib: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over time, or over what `along` says."""

    along: str
    unit: str
    at: tuple[float, ...]
    lines: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Floor:
    """What the bare pipeline did with the same bytes in the same run, in one way or another (`name`), and the share of
    it that was reached: `of` names the figure that is compared."""

    name: str
    of: str
    unit: str
    value: float
    share: float
    steps: Mapping[str, float] = field(default_factory=dict)
    """Seconds of processor time of a pass, all processes together."""


@dataclass(frozen=True, slots=True)
class Case:
    """One set-up of a scenario, measured. `settings` are those in which it differs from the scenario's others."""

    name: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    processes: Sequence[Use] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    floors: Sequence[Floor] = ()

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


def rounded(value: float) -> float:
    """To four digits: no figure here is better than that."""
    return float(f"{value:.4g}")


def medians(series: Sequence[float], parts: int) -> tuple[float, ...]:
    """Of each of so many parts of a series, one after the other: its repetitions."""
    size = max(1, len(series) // parts)
    return tuple(
        statistics.median(series[start : start + size]) for start in range(0, size * min(parts, len(series)), size)
    )
