"""The mean of each coordinate without its lowest and its highest values.

The share that is left out at either end is `share`/`of`, less than a half: k = ⌊n·share/of⌋ in integers, as no fraction
in binary is a fifth or a tenth. With y on the grid of G0 and sorted, A = Σ y(k..n−k−1) and den = (n−2k)·2^G0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.records import JobRules
from fl.rules.median import effort_of_sorting, mean_of_ordered
from fl.rules.rule import AtOnce, ClosedUpdates, Mean, Setting, SettingKind, Settings

_MOST_PARTS = 1_000_000


class TrimmedMean(AtOnce):
    name = "trimmed_mean"
    settings = (
        Setting("of", SettingKind.INTEGER, 1, _MOST_PARTS, 100),
        Setting("share", SettingKind.INTEGER, 0, _MOST_PARTS),
    )
    stale = True

    def complaint(self, settings: Settings, rules: JobRules) -> str:
        share, of = _parts(settings)
        if 2 * share < of:
            return ""
        return f"A trimmed mean leaves out less than half of the values at either end, not {share} of {of}."

    def fewest(self, settings: Settings) -> int:
        """One value is left out at either end: with fewer updates it would be the mean."""
        share, of = _parts(settings)
        return -(-of // share) if share else 1

    def effort(self, updates: int) -> int:
        return effort_of_sorting(updates)

    def reduce(self, updates: ClosedUpdates, sums: NDArray[np.int64], settings: Settings) -> Mean:
        share, of = _parts(settings)
        return mean_of_ordered(updates, sums, updates.count * share // of)


def _parts(settings: Settings) -> tuple[int, int]:
    return int(settings["share"]), int(settings["of"])
