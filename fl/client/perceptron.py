"""A small classifier in plain numpy: what the demonstration trains. One hidden layer or none, softmax, SGD with
momentum.

Two runs from one seed give the same bytes on one machine, so a whole federated run can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Model = dict[str, NDArray[Any]]
"""hidden.weight, hidden.bias, output.weight, output.bias; the last two alone are a softmax regression."""


@dataclass(frozen=True, slots=True)
class Data:
    """Rows of features in [0, 1], and the class of each."""

    x: NDArray[Any]
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Data:
        return Data(self.x[rows], self.y[rows])


def initial_model(features: int, hidden: int, classes: int, seed: int) -> Model:
    source = np.random.default_rng(seed)
    if hidden == 0:
        return {
            "output.weight": np.zeros((features, classes), np.float32),
            "output.bias": np.zeros(classes, np.float32),
        }
    return {
        "hidden.weight": source.normal(0, np.sqrt(2 / features), (features, hidden)).astype(np.float32),
        "hidden.bias": np.zeros(hidden, np.float32),
        "output.weight": source.normal(0, np.sqrt(1 / hidden), (hidden, classes)).astype(np.float32),
        "output.bias": np.zeros(classes, np.float32),
    }


def train(
    model: Mapping[str, NDArray[Any]],
    data: Data,
    chance: int | list[int] | np.random.Generator,
    *,
    lr: float,
    epochs: int,
    batch: int,
    momentum: float,
) -> tuple[Model, float]:
    """The trained model, and the mean loss over the last epoch."""
    source = np.random.default_rng(chance)
    weights = {name: array.astype(np.float64) for name, array in model.items()}
    speed = {name: np.zeros_like(array) for name, array in weights.items()}
    loss = 0.0
    for _ in range(epochs):
        order, loss = source.permutation(len(data)), 0.0
        for start in range(0, len(data), batch):
            rows = order[start : start + batch]
            slope, part = _gradient(weights, data.x[rows], data.y[rows])
            loss += part * len(rows) / len(data)
            for name in weights:
                speed[name] = momentum * speed[name] - lr * slope[name]
                weights[name] += speed[name]
    return weights, loss


def accuracy(model: Mapping[str, NDArray[Any]], data: Data) -> float:
    _, scores = _forward(model, data.x)
    return float(np.mean(scores.argmax(axis=1) == data.y))


def mean_loss(model: Mapping[str, NDArray[Any]], data: Data) -> float:
    _, scores = _forward(model, data.x)
    return _losses(_shares(scores), data.y)


def _forward(model: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    hidden = np.maximum(x @ model["hidden.weight"] + model["hidden.bias"], 0) if "hidden.weight" in model else x
    return hidden, hidden @ model["output.weight"] + model["output.bias"]


def _shares(scores: NDArray[Any]) -> NDArray[Any]:
    share: NDArray[Any] = np.exp(scores - scores.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return share


def _losses(share: NDArray[Any], y: NDArray[Any]) -> float:
    likely = share[np.arange(len(y)), y].astype(np.float64)
    return float(-np.log(np.maximum(likely, 1e-300)).mean())


def _gradient(model: Mapping[str, NDArray[Any]], x: NDArray[Any], y: NDArray[Any]) -> tuple[Model, float]:
    hidden, scores = _forward(model, x)
    share = _shares(scores)
    loss = _losses(share, y)
    share[np.arange(len(y)), y] -= 1
    share /= len(y)
    slopes = {"output.weight": hidden.T @ share, "output.bias": share.sum(axis=0)}
    if "hidden.weight" in model:
        back = (share @ model["output.weight"].T) * (hidden > 0)
        slopes |= {"hidden.weight": x.T @ back, "hidden.bias": back.sum(axis=0)}
    return slopes, loss
