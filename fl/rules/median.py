"""The median of each coordinate: half of the updates would have to agree to move it.

With y on the grid of G0: for an odd number of updates A is the middle y and den = 2^G0; for an even number A is the sum
of the middle two and den = 2·2^G0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.order import network, sum_ordered
from fl.rules.rule import AtOnce, ClosedUpdates, Mean, Settings
from fl.rules.tiles import over_tiles


class Median(AtOnce):
    name = "median"
    stale = True

    def effort(self, updates: int) -> int:
        return effort_of_sorting(updates)

    def reduce(self, updates: ClosedUpdates, sums: NDArray[np.int64], settings: Settings) -> Mean:
        return mean_of_ordered(updates, sums, (updates.count - 1) // 2)


def effort_of_sorting(updates: int) -> int:
    """A sorted value takes ever more: of 1,024 updates thrice what one takes that is added, of 4,096 fifteen times
    that. More is left, for slow machines."""
    return updates * max(1, updates.bit_length() - 8)


def mean_of_ordered(updates: ClosedUpdates, sums: NDArray[np.int64], cut: int) -> Mean:
    """Of each coordinate without its `cut` lowest and highest values: den = (n − 2·cut)·2^G0."""
    first, last = cut, updates.count - cut
    lows, highs = network(updates.count, first, last)
    factor = 2.0**updates.grid.unweighted_bits

    def work(values: NDArray[np.float32], place: slice) -> None:
        sum_ordered(sums[place], values, lows, highs, first, last, factor)

    over_tiles(updates, work)
    return Mean((last - first) << updates.grid.unweighted_bits)
