"""The robust rules, slow and obviously right: fractions and Python integers, everything tried.

A column holds one coordinate of every update, in the order of the round's log; `bits` is G0. Every rule gives the sums
A and the denominator.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

from tests.fl.numbers import oracle

Column: TypeAlias = Sequence[Fraction]
Mean: TypeAlias = tuple[int, int]


def on_grid(column: Column, bits: int) -> list[int]:
    return [oracle.steps(value, 1, bits) for value in column]


def median(column: Column, bits: int) -> Mean:
    ordered = sorted(on_grid(column, bits))
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle], 2**bits
    return ordered[middle - 1] + ordered[middle], 2 * 2**bits


def trimmed_mean(column: Column, share: Fraction, bits: int) -> Mean:
    count = len(column)
    cut = next(cut for cut in range(count + 1) if cut + 1 > count * share)
    kept = sorted(on_grid(column, bits))[cut : count - cut]
    return sum(kept), len(kept) * 2**bits


def closest(column: Column, wanted: int, bits: int) -> Mean:
    """Of the windows of sorted values, the first with the least distance from the median, by trying all."""
    ordered = sorted(map(Fraction, on_grid(column, bits)))
    count = len(ordered)
    centre = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    windows = [ordered[first : first + wanted] for first in range(count - wanted + 1)]
    best = min(windows, key=lambda window: sum(abs(each - centre) for each in window))
    return int(sum(best)), wanted * 2**bits


def squared_distance(one: Column, other: Column, bits: int) -> int:
    pairs = zip(on_grid(one, bits), on_grid(other, bits), strict=True)
    return sum((a - b) ** 2 for a, b in pairs)


def squared_norm(one: Column, bits: int) -> int:
    return sum(step**2 for step in on_grid(one, bits))


def by_score(rows: Sequence[Column], among: Sequence[int], faulty: int, bits: int) -> list[int]:
    """Positions, the best first: by the sum of the |among| − f − 2 smallest distances to others, at least of
    one, then by position."""

    def score(position: int) -> int:
        others = sorted(squared_distance(rows[position], rows[each], bits) for each in among if each != position)
        return sum(others[: max(1, len(among) - faulty - 2)])

    return sorted(among, key=lambda position: (score(position), position))


def best(rows: Sequence[Column], faulty: int, bits: int) -> list[int]:
    """Krum's order of all updates."""
    return by_score(rows, range(len(rows)), faulty, bits)


def selected(rows: Sequence[Column], faulty: int, bits: int) -> list[int]:
    """Bulyan's choice: θ = n − 2f times the best of those that remain."""
    remaining = list(range(len(rows)))
    chosen = []
    for _ in range(len(rows) - 2 * faulty):
        chosen.append(by_score(rows, remaining, faulty, bits)[0])
        remaining.remove(chosen[-1])
    return chosen


def bulyan(rows: Sequence[Column], faulty: int, bits: int) -> list[Mean]:
    chosen = [rows[position] for position in selected(rows, faulty, bits)]
    return [closest(column, len(chosen) - 2 * faulty, bits) for column in zip(*chosen, strict=True)]
