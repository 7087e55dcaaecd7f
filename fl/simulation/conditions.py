"""How simulated trainers behave: how long they take, who is slow, who fails. Drawn from the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What a random number is for. Each has a source of its own, so that none changes when another is not drawn."""

    TRAINING = 1
    PACE = 2
    TIME = 3
    FAILURE = 4
    EVALUATION = 5


@dataclass(frozen=True, slots=True)
class Conditions:
    """`seconds` is the median time from a round's opening to a trainer's answer, spread log-normally with the standard
    deviation `spread`. The share `stragglers` of the trainers take `slowness` times as long. With the probability
    `dropout` a trainer that began a round never answers it. `evaluators` share what is held out; a job without
    evaluation needs none."""

    seconds: float = 2.0
    spread: float = 0.3
    stragglers: float = 0.0
    slowness: float = 10.0
    dropout: float = 0.0
    evaluators: int = 4
    seed: int = 1


def source(seed: int, draw: Draw, *place: int) -> np.random.Generator:
    return np.random.default_rng([seed, draw, *place])


def takes_ms(conditions: Conditions, draw: Draw, who: int, round: int) -> int:
    """How long this trainer or this evaluator takes for this round."""
    pace = source(conditions.seed, Draw.PACE, draw, who)
    slow = conditions.slowness if pace.random() < conditions.stragglers else 1.0
    drawn = source(conditions.seed, draw, who, round).normal(0.0, conditions.spread)
    return max(1, int(1000 * conditions.seconds * slow * float(np.exp(drawn))))


def fails(conditions: Conditions, trainer: int, round: int) -> bool:
    """Whether this trainer never answers this round."""
    return bool(source(conditions.seed, Draw.FAILURE, trainer, round).random() < conditions.dropout)
