"""Trainers and evaluators whose answers are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.jobdraft import Draft, draft_job
from fl.simulation.conditions import Conditions
from fl.simulation.play import Answer, Config, Measured, Model, Play, Played

START = {"a": np.array([[0.5, -1.0], [2.0, 0.25]], np.float32), "b": np.array([3.0], np.float32)}
Delta = Callable[[int, int, Model], Model]


def drawn(trainer: int, round: int, model: Model) -> Model:
    source = np.random.default_rng([trainer, round])
    return {name: source.normal(size=array.shape).astype(np.float32) for name, array in model.items()}


class Known:
    """Trainer i trains on i + 1 examples of the 2·i + 2 that it holds, and reports i as its loss. Evaluator i measures
    i + round on 10 examples."""

    def __init__(self, delta: Delta = drawn) -> None:
        self.delta = delta
        self.asked: list[tuple[int, int]] = []
        self.models: dict[int, dict[str, NDArray[Any]]] = {}
        self.configs: dict[int, Config] = {}

    def holds(self, trainer: int) -> int:
        return 2 * trainer + 2

    def train(self, trainer: int, round: int, model: Model, config: Config) -> Answer:
        self.asked.append((trainer, round))
        self.models[round] = {name: array.copy() for name, array in model.items()}
        self.configs[round] = dict(config)
        return Answer(self.delta(trainer, round, model), trainer + 1, (trainer * 1_000_000,))

    def evaluate(self, evaluator: int, round: int, model: Model) -> Measured:
        return Measured(10, ((evaluator + round) * 1_000_000,))


def drafted(trainers: int, **rules: Any) -> Draft:
    given: dict[str, Any] = {
        "rounds": 3,
        "target": trainers,
        "privacy": "visible-to-validators",
        "encoding": "f32",
        "metrics": ["loss"],
        "deadline_s": 60,
        "grace_s": 5,
    }
    return draft_job("toy", START, **(given | rules))


def played(
    trainers: int,
    cast: Known | None = None,
    conditions: Conditions | None = None,
    models: list[bytes] | None = None,
    **rules: Any,
) -> Played:
    """`models` are told, one for each round."""
    told: list[bytes] = [] if models is None else models
    draft, people = drafted(trainers, **rules), cast or Known()
    return Play(draft, people, trainers, conditions or Conditions(), lambda seen, model: told.append(model)).run()
