"""Trainers who want the model to fail, beside honest ones: an app whose first so many trainers attack.

Every attacker trains honestly first, on a part of the data like the others', and then says something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from fl.client.apps import Digits
from fl.client.partition import Partition, divided
from fl.client.perceptron import Data

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Attacker:
    """`together` are the parts of all attackers, who know of each other; `of` counts all trainers."""

    attack: str
    own: Data
    together: tuple[Data, ...]
    of: int


class Poisoned(Digits):
    def __init__(self, attack: str, attackers: int, alpha: float | None) -> None:
        self.attack = attack
        self.attackers = attackers
        self.alpha = alpha

    def parts(self, count: int, chance: np.random.Generator) -> list[Data | Attacker]:
        training, _ = self.data()
        partition = Partition(self.alpha, int(chance.integers(2**31)))
        parts = [training.take(rows) for rows in divided(training.y, count, partition)]
        bad = tuple(parts[: self.attackers])
        return [*(Attacker(self.attack, each, bad, count) for each in bad), *parts[self.attackers :]]

    def train(self, model: Any, data: Data | Attacker, config: Any, chance: Any) -> Any:
        if isinstance(data, Data):
            return super().train(model, data, config, chance)

        def honest(part: Data) -> Arrays:
            weights, _, _ = super(Poisoned, self).train(model, part, config, chance)
            return {name: weights[name] - model[name] for name in model}

        delta = ATTACKS[data.attack](data, honest)
        return {name: model[name] + delta[name] for name in model}, len(data.own), {"loss": 0.0}


Attack = Callable[[Attacker, Callable[[Data], Arrays]], Arrays]


def times(factor: float) -> Attack:
    return lambda who, honest: {name: factor * change for name, change in honest(who.own).items()}


def label_flip(who: Attacker, honest: Callable[[Data], Arrays]) -> Arrays:
    """A nine is a zero, an eight a one."""
    return honest(Data(who.own.x, 9 - who.own.y))


def little_is_enough(who: Attacker, honest: Callable[[Data], Arrays]) -> Arrays:
    """All say the same: their own mean, moved by as many standard deviations as still hides among the honest ones
    (Baruch et al. 2019)."""
    changes = [honest(part) for part in who.together]
    bad = len(who.together)
    needed = who.of // 2 + 1 - bad
    shift = NormalDist().inv_cdf((who.of - bad - needed) / (who.of - bad))
    return {
        name: np.mean([each[name] for each in changes], axis=0)
        - shift * np.std([each[name] for each in changes], axis=0)
        for name in changes[0]
    }


ATTACKS: Mapping[str, Attack] = {
    "scaling ×20": times(20.0),
    "amplified sign flip": times(-10.0),
    "label flip": label_flip,
    "sign flip": times(-1.0),
    "little is enough": little_is_enough,
}
