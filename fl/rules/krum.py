"""Krum and multi-Krum: the updates that lie closest to their neighbours, and nothing of the others.

With f updates that may be faulty, the score of an update is the sum of its n−f−2 smallest squared distances to others,
exact on the grid of G0; the lowest score is best, and of equal ones the first in the round's log. Krum takes the best
update, multi-Krum the mean of the m best: A = Σ y over these, den = m·2^G0. Krum needs n ≥ 2f+3; multi-Krum also that
its m best need not hold a faulty one.

Beside tiles, the memory is 8 KiB·n + 12·n² bytes for each thread and less than 50·n² for the distances as integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.kernels.distances import LIMBS, add_distances, exact, pairs_of, sum_chosen
from fl.rules.rule import AtOnce, ClosedUpdates, Mean, Setting, SettingKind, Settings
from fl.rules.tiles import Rooms, over_tiles

MOST_COMPARED = 1024
"""Updates of which all pairs are compared: time and memory grow with the square."""

Distances: TypeAlias = Sequence[Sequence[int]]
"""Squared, from each to each; 0 from one to itself."""

FAULTY = "faulty"


def effort_of_pairs(updates: int) -> int:
    """A pair of updates takes less than a sixteenth of what adding one takes: more is left, for slow machines."""
    return updates + updates * updates // 32


class Krum(AtOnce):
    name = "krum"
    settings: ClassVar[tuple[Setting, ...]] = (Setting(FAULTY, SettingKind.INTEGER, 0, (MOST_COMPARED - 3) // 2),)
    most = MOST_COMPARED

    def chosen(self, settings: Settings) -> int:
        return 1

    def fewest(self, settings: Settings) -> int:
        faulty = int(settings[FAULTY])
        return max(2 * faulty + 3, self.chosen(settings) + faulty)

    def effort(self, updates: int) -> int:
        return effort_of_pairs(updates)

    def reduce(self, updates: ClosedUpdates, sums: NDArray[np.int64], settings: Settings) -> Mean:
        check_enough(updates, self.fewest(settings))
        scores = scores_by(distances_between(updates), int(settings[FAULTY]))
        chosen = self.chosen(settings)
        best = sorted(range(updates.count), key=lambda position: (scores[position], position))[:chosen]
        rows = np.arange(chosen, dtype=np.int32)
        factor = 2.0**updates.grid.unweighted_bits

        def work(values: NDArray[np.float32], place: slice) -> None:
            sum_chosen(sums[place], values, rows, factor)

        over_tiles(updates, work, best)
        return Mean(chosen << updates.grid.unweighted_bits, tuple(scores))


class MultiKrum(Krum):
    name = "multi_krum"
    settings = (Setting("chosen", SettingKind.INTEGER, 1, MOST_COMPARED), *Krum.settings)

    def chosen(self, settings: Settings) -> int:
        return int(settings["chosen"])


def check_enough(updates: ClosedUpdates, fewest: int) -> None:
    """The job's minimum promises it."""
    if updates.count < fewest:
        raise ValueError(f"the rule takes at least {fewest} updates, not {updates.count}")


def distances_between(updates: ClosedUpdates) -> Distances:
    factor = 2.0**updates.grid.unweighted_bits
    rooms = Rooms(lambda: np.zeros((pairs_of(updates.count), LIMBS), np.int64))

    def work(values: NDArray[np.float32], place: slice) -> None:
        with rooms.one() as limbs:
            add_distances(limbs, values, factor)

    over_tiles(updates, work)
    # The lower limbs have 52 bits: those of a thousand threads can be added.
    limbs = sum(rooms.all(), np.zeros((pairs_of(updates.count), LIMBS), np.int64))
    rows: list[list[int]] = []
    for position in range(updates.count):
        before = exact(limbs[pairs_of(position) : pairs_of(position + 1)])
        for other, distance in enumerate(before):
            rows[other].append(distance)
        rows.append([*before, 0])
    return rows


def neighbours_of(distances: Distances) -> list[list[int]]:
    """Of each position the others, the closest first; of equally close ones the first in the log."""
    positions = list(range(len(distances)))
    ordered = [sorted(positions, key=row.__getitem__) for row in distances]
    for position, others in enumerate(ordered):
        others.remove(position)
    return ordered


def scores_by(distances: Distances, faulty: int) -> list[int]:
    counted = len(distances) - faulty - 2
    # The smallest of a row is the 0 from itself to itself.
    return [sum(sorted(row)[: counted + 1]) for row in distances]
