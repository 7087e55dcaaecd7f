"""How far Flower's float32 may be from the exact rules, value by value: docs/flower-differences.md derives it.

Every function bounds |Flower's − Quorate's| for the same base model, the same trained weights and the same choices (of
updates, of ranks). A bound is a float64 array, of one entry a parameter, computed from the inputs and from Quorate's
results; nothing in it is taken from what Flower gave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

U = 2.0**-24
"""The unit roundoff of float32."""
LEAST = 2.0**-126
"""Quorate writes nothing smaller; Flower rounds there to multiples of 2^-149."""


def gamma(roundings: int) -> float:
    """By how much, relatively, this many float32 roundings in a row may err."""
    return roundings * U / (1 - roundings * U)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of one round: the model before, what each trainer sent to Flower and to Quorate, and the shares of the mean."""

    base: NDArray[np.float32]
    trained: NDArray[np.float32]
    """[trainers, parameters]"""
    deltas: NDArray[np.float32]
    shares: Values
    steps: float
    """By how much the grid of Quorate's sums may move the mean: half a step for each update, over all weights."""


def mean_error(inputs: Inputs) -> Values:
    """Of the mean change: Flower averages weights in float32, Quorate changes on its grid."""
    weights = inputs.shares @ np.abs(inputs.trained.astype(np.float64))
    changes = inputs.shares @ np.abs(inputs.deltas.astype(np.float64))
    # A share as float32, a product, and sums; then the change as the SDK sends it, and the grid.
    error: Values = gamma(len(inputs.trained) + 2) * weights + U * changes + inputs.steps + LEAST
    return error


def model_error(error: Values, new: NDArray[np.float32]) -> Values:
    """With the rounding of the model itself, here and there."""
    return error + U * (np.abs(new.astype(np.float64)) + error) * 2 + LEAST


@dataclass(frozen=True, slots=True)
class Moments:
    """Of an optimiser, or by how much they may differ; those that a rule does not have are zeros."""

    mean: Values
    square: Values

    @staticmethod
    def zeros(parameters: int) -> Moments:
        return Moments(np.zeros(parameters), np.zeros(parameters))


@dataclass(frozen=True, slots=True)
class Change:
    """The mean change of a round, d, and by how much Flower's may differ from it."""

    value: Values
    error: Values

    @property
    def largest(self) -> Values:
        return np.abs(self.value) + self.error

    @property
    def square_error(self) -> Values:
        return self.error * (2 * np.abs(self.value) + self.error)


def change_of(inputs: Inputs) -> Change:
    """Flower's is its mean minus the model: one rounding more than the mean."""
    value = inputs.shares @ inputs.deltas.astype(np.float64)
    error = mean_error(inputs)
    return Change(value, error + U * (np.abs(value) + error))


def averaged_error(of_old: Values, old: Values, change: Change, keep: float, take: float) -> Values:
    """Of keep·m + take·d: three float32 roundings a term there, one of the result here."""
    size = keep * (np.abs(old) + of_old) + take * change.largest
    return keep * of_old + take * change.error + (gamma(3) + U) * size + LEAST


def square_error(of_old: Values, old: Values, change: Change, keep: float, take: float) -> Values:
    """Of keep·v + take·d², a sum of what is not negative."""
    size = keep * (old + of_old) + take * change.largest**2
    return keep * of_old + take * change.square_error + (gamma(4) + U) * size + LEAST


def yogi_error(of_old: Values, old: Values, change: Change, take: float) -> Values:
    """Of v − take·d²·sign(v − d²). Where the two are so near to one another that Flower may see the other sign, the
    result may be off by twice the term."""
    size = old + of_old + change.largest**2
    either = np.abs(old - change.value**2) <= of_old + change.square_error + gamma(3) * size
    jump = np.where(either, 2 * take * change.largest**2, 0.0)
    return of_old + take * change.square_error + jump + (gamma(4) + U) * size + LEAST


def momentum_error(of_mean: Values, mean: Values, rate: float) -> Values:
    """Of rate·m."""
    return rate * (of_mean + gamma(3) * (np.abs(mean) + of_mean))


def adaptive_error(error: Moments, here: Moments, rate: float, tau: float) -> Values:
    """Of rate·m / (√v + τ), from the moments that Quorate has and what Flower's may differ by.
    |√a − √b| ≤ min(√|a − b|, |a − b| / √b)."""
    root = np.sqrt(here.square)
    with np.errstate(divide="ignore", invalid="ignore"):
        steep = np.where(root > 0, error.square / root, np.inf)
    of_root = np.minimum(np.sqrt(error.square), steep) + U * root
    ours, theirs = root + tau, np.maximum(root - of_root, 0) + tau
    largest = np.abs(here.mean) + error.mean
    moved: Values = error.mean / ours + largest * of_root / (ours * theirs)
    return rate * (moved + gamma(6) * largest / theirs)
