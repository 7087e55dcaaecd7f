"""The weighted mean of updates of which none is longer than C: who is louder counts no more.

With r at least the length of an update in steps of 2^−G0, c = w·2^G where r ≤ C·2^G0; else c = f·2^G, f being
w·C·2^G0/r rounded down to 29 significant bits, so that x·c is exact. q = x·c toward zero, so that the update's part of
the mean is never longer than C. den = W·2^G.
"""

from __future__ import annotations

from math import floor, ldexp
from typing import ClassVar

from fl.records import JobRules
from fl.rules.fedavg import FedAvg
from fl.rules.rule import Setting, SettingKind, Settings
from fl.tensors.grid import Grid

FACTOR_BITS = 29
"""With the 24 of an F32, what float64 holds."""


class ClippedMean(FedAvg):
    name = "clipped_mean"
    settings: ClassVar[tuple[Setting, ...]] = (Setting("norm", SettingKind.REAL, 2.0**-40, 2.0**40),)
    clips = True

    def complaint(self, settings: Settings, rules: JobRules) -> str:
        grid = Grid(rules.range_bits, rules.cap, rules.maximum)
        if _bound(settings, grid) < 1:
            return f"The norm that updates are clipped to is less than a step of the grid, 2^-{grid.unweighted_bits}."
        return ""

    def factor(self, settings: Settings, grid: Grid, weight: int, norm: int) -> float:
        bound = _bound(settings, grid)
        if norm <= bound:
            return grid.factor(weight)
        product = weight * bound
        shift = FACTOR_BITS + norm.bit_length() - product.bit_length()
        scaled = (product << max(0, shift)) // (norm << max(0, -shift))
        spare = scaled.bit_length() - FACTOR_BITS
        if spare > 0:
            scaled, shift = scaled >> spare, shift - spare
        return ldexp(scaled, grid.weighted_bits - shift)


def _bound(settings: Settings, grid: Grid) -> int:
    """C·2^G0."""
    return floor(ldexp(settings["norm"], grid.unweighted_bits))
