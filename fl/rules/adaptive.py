"""Adaptive optimisers at the server (Reddi et al. 2021): each value has its own step.

    m' = β1·m + (1−β1)·d
    v' = v + d²                          fedadagrad
         β2·v + (1−β2)·d²                fedadam
         v − (1−β2)·d²·sign(v − d²)      fedyogi
    x' = x + η·m' / (√v' + τ)

For fedadam η is η·√(1−β2^t)/(1−β1^t) in the t-th completed round of the job (Kingma, Ba 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.kernels.moments import approach_squares, blend, blend_squares, move_scaled
from fl.rules.fedavg import FedAvg
from fl.rules.rule import BELOW_ONE, RATES, Optimising, Setting, SettingKind, Settings

_NOTHING = 2.0**-100
"""What is subtracted from 1 without a trace."""


def _beta(name: str, default: float) -> Setting:
    return Setting(name, SettingKind.REAL, 0.0, BELOW_ONE, default)


def _rate(name: str, default: float) -> Setting:
    return Setting(name, SettingKind.REAL, *RATES, default)


class _Adaptive(FedAvg, Optimising):
    moments = ("m", "v")

    def advance(
        self,
        moment: str,
        settings: Settings,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        sums: NDArray[np.int64],
        denominator: float,
    ) -> int:
        if moment == "m":
            beta = settings["beta_1"]
            return blend(new, old, sums, denominator, beta, 1.0 - beta)
        return self.squares(settings, new, old, sums, denominator)

    def squares(
        self,
        settings: Settings,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        sums: NDArray[np.int64],
        denominator: float,
    ) -> int:
        """What v becomes."""
        beta = settings["beta_2"]
        return blend_squares(new, old, sums, denominator, beta, 1.0 - beta)

    def rate(self, settings: Settings, step: int) -> float:
        return settings["learning_rate"]

    def move(
        self,
        settings: Settings,
        step: int,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        moments: Sequence[NDArray[np.float32]],
    ) -> int:
        first, second = moments
        return move_scaled(new, old, first, second, self.rate(settings, step), settings["tau"])


class FedAdagrad(_Adaptive):
    name = "fedadagrad"
    settings: ClassVar[tuple[Setting, ...]] = (_beta("beta_1", 0.0), _rate("learning_rate", 0.1), _rate("tau", 1e-9))

    def squares(
        self,
        settings: Settings,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        sums: NDArray[np.int64],
        denominator: float,
    ) -> int:
        return blend_squares(new, old, sums, denominator, 1.0, 1.0)


class FedAdam(_Adaptive):
    name = "fedadam"
    settings: ClassVar[tuple[Setting, ...]] = (
        _beta("beta_1", 0.9),
        _beta("beta_2", 0.99),
        _rate("learning_rate", 0.1),
        _rate("tau", 1e-9),
    )

    def rate(self, settings: Settings, step: int) -> float:
        first, second = _power(settings["beta_1"], step), _power(settings["beta_2"], step)
        return settings["learning_rate"] * sqrt(1.0 - second) / (1.0 - first)


class FedYogi(_Adaptive):
    name = "fedyogi"
    settings: ClassVar[tuple[Setting, ...]] = (
        _beta("beta_1", 0.9),
        _beta("beta_2", 0.99),
        _rate("learning_rate", 0.01),
        _rate("tau", 1e-3),
    )

    def squares(
        self,
        settings: Settings,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        sums: NDArray[np.int64],
        denominator: float,
    ) -> int:
        return approach_squares(new, old, sums, denominator, 1.0 - settings["beta_2"])


@lru_cache(maxsize=64)
def _power(base: float, exponent: int) -> float:
    """By repeated product, as every processor rounds it."""
    power = 1.0
    for _ in range(exponent):
        power *= base
        if power < _NOTHING:
            return 0.0
    return power
