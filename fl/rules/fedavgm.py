"""FedAvg with a momentum at the server (Hsu, Qi, Brown 2019): m' = μ·m + d, x' = x + η·m'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.kernels.moments import blend, move
from fl.rules.fedavg import FedAvg
from fl.rules.rule import BELOW_ONE, RATES, Optimising, Setting, SettingKind, Settings


class FedAvgM(FedAvg, Optimising):
    name = "fedavgm"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("learning_rate", SettingKind.REAL, *RATES, 1.0),
        Setting("momentum", SettingKind.REAL, 0.0, BELOW_ONE, 0.9),
    )
    moments = ("m",)

    def advance(
        self,
        moment: str,
        settings: Settings,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        sums: NDArray[np.int64],
        denominator: float,
    ) -> int:
        return blend(new, old, sums, denominator, settings["momentum"], 1.0)

    def move(
        self,
        settings: Settings,
        step: int,
        new: NDArray[np.float32],
        old: NDArray[np.float32],
        moments: Sequence[NDArray[np.float32]],
    ) -> int:
        return move(new, old, moments[0], settings["learning_rate"])
