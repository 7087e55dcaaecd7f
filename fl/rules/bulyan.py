"""Bulyan: Krum chooses updates one after the other, and of these each coordinate keeps the values nearest its median.

θ = n−2f times, the best of the updates that remain by Krum's score is chosen: with r of them left, the sum of its r−f−2
smallest squared distances among them, or the smallest one where that is none: towards the end fewer remain than Krum
alone would ask for. Of equal scores the first in the round's log is best. In each coordinate of the θ chosen, A is the
sum of the β = θ−2f consecutive sorted y closest to their median, as `fl.kernels.order.sum_closest` says, and
den = β·2^G0. It needs n ≥ 4f+3.

Memory is that of Krum, and 8·n² bytes to choose by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.kernels.order import network, sum_closest
from fl.rules.krum import (
    FAULTY,
    MOST_COMPARED,
    Distances,
    check_enough,
    distances_between,
    effort_of_pairs,
    neighbours_of,
    scores_by,
)
from fl.rules.rule import AtOnce, ClosedUpdates, Mean, Setting, SettingKind, Settings
from fl.rules.tiles import over_tiles


class Bulyan(AtOnce):
    name = "bulyan"
    settings = (Setting(FAULTY, SettingKind.INTEGER, 0, (MOST_COMPARED - 3) // 4),)
    most = MOST_COMPARED

    def fewest(self, settings: Settings) -> int:
        return 4 * int(settings[FAULTY]) + 3

    def effort(self, updates: int) -> int:
        return effort_of_pairs(updates)

    def reduce(self, updates: ClosedUpdates, sums: NDArray[np.int64], settings: Settings) -> Mean:
        check_enough(updates, self.fewest(settings))
        faulty = int(settings[FAULTY])
        distances = distances_between(updates)
        scores = scores_by(distances, faulty)
        chosen = selected(distances, scores, faulty)
        rows = np.arange(len(chosen), dtype=np.int32)
        lows, highs = network(len(chosen), 0, len(chosen))
        wanted = len(chosen) - 2 * faulty
        factor = 2.0**updates.grid.unweighted_bits

        def work(values: NDArray[np.float32], place: slice) -> None:
            sum_closest(sums[place], values, rows, lows, highs, wanted, factor)

        over_tiles(updates, work, chosen)
        return Mean(wanted << updates.grid.unweighted_bits, tuple(scores))


def selected(distances: Distances, scores: list[int], faulty: int) -> list[int]:
    """The n−2f choices, in their order. `scores` are Krum's of all.

    Each choice takes one update away and lets one distance less count. Of an update that counted the distance to the
    one chosen, this is the distance; of any other it is the largest that it counts. So a score is not summed anew, but
    lowered by one distance. `furthest` is where the largest stands among an update's neighbours."""
    count = len(distances)
    scores = list(scores)
    remaining = [True] * count
    neighbours = neighbours_of(distances)
    furthest = [count - faulty - 3] * count
    chosen = []
    for left in range(count, 2 * faulty, -1):
        others = [position for position in range(count) if remaining[position]]
        if left <= faulty + 3:
            for position in others:
                scores[position] = min((distances[position][each] for each in others if each != position), default=0)
        best = min(others, key=lambda each: (scores[each], each))
        chosen.append(best)
        remaining[best] = False
        for position in range(count):
            if remaining[position] and furthest[position] >= 0:
                row, near = distances[position], neighbours[position]
                last = near[furthest[position]]
                dropped = best if (row[best], best) <= (row[last], last) else last
                scores[position] -= row[dropped]
                if dropped == last:
                    furthest[position] -= 1
                    while furthest[position] >= 0 and not remaining[near[furthest[position]]]:
                        furthest[position] -= 1
    return chosen
