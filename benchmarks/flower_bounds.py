"""How far Flower's float32 may be from the exact rules, value by value: docs/flower-differences.md derives it.

Every function bounds |Flower's − Quorate's| for the same base model, the same trained weights and the same choices (of
updates, of ranks). A bound is a float64 array, of one entry a parameter, computed from the inputs and from Quorate's
results; nothing in it is taken from what Flower gave.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Moments:
    """What the moments of the two may differ by, from round to round."""

    mean: Values
    square: Values
    ambiguous: NDArray[np.bool_] = field(init=False)
    """Where fedyogi's sign may have been taken differently: no bound holds from there on."""

    def __post_init__(self) -> None:
        self.ambiguous = np.zeros(self.mean.shape, np.bool_)

    @staticmethod
    def none(parameters: int) -> Moments:
        return Moments(np.zeros(parameters), np.zeros(parameters))


def difference_error(error: Values, change: Values) -> Values:
    """Flower's change is its mean minus the model: one rounding more than the mean's."""
    return error + U * (np.abs(change) + error)


def averaged(error: Values, of_change: Values, old: Values, change: Values, keep: float, take: float) -> Values:
    """Of keep·old + take·change, both ways: three float32 roundings a term there, one of the result here."""
    size = keep * (np.abs(old) + error) + take * (np.abs(change) + of_change)
    return keep * error + take * of_change + (gamma(3) + U) * size + LEAST


def squared(of_change: Values, change: Values) -> Values:
    return of_change * (2 * np.abs(change) + of_change)


def root_error(of_square: Values, square: Values) -> Values:
    """|√a − √b| ≤ min(√|a − b|, |a − b| / √b)."""
    root = np.sqrt(square)
    with np.errstate(divide="ignore", invalid="ignore"):
        steep = np.where(root > 0, of_square / root, np.inf)
    return np.minimum(np.sqrt(of_square), steep) + U * root


def step_error(moments: Moments, mean: Values, square: Values, rate: float, tau: float) -> Values:
    """Of rate·m / (√v + τ), with m and v as Quorate has them and as Flower may have them."""
    root, of_root = np.sqrt(square), root_error(moments.square, square)
    here = root + tau
    there = np.maximum(root - of_root, 0) + tau
    largest = np.abs(mean) + moments.mean
    error: Values = rate * (moments.mean / here + largest * of_root / (here * there))
    return error + gamma(6) * rate * largest / there
