"""How a data set falls to trainers: by chance alone, or label by label in uneven shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.errors import BadInput

SEED = 2026


@dataclass(frozen=True, slots=True)
class Partition:
    """`alpha` is that of a Dirichlet distribution, from which each label's shares are drawn: 1 is uneven, 0.1 leaves
    most trainers with a few labels only. None: every row falls to anyone alike (IID)."""

    alpha: float | None = None
    seed: int = SEED


def divided(labels: NDArray[Any], parts: int, partition: Partition) -> list[NDArray[np.int64]]:
    """The rows of each part, rising. Every row falls to exactly one, and each part has one at least."""
    if parts > len(labels):
        raise BadInput("TOO_MANY_PARTS", f"{len(labels)} examples do not fall into {parts} parts.", "Ask for fewer.")
    source = np.random.default_rng([partition.seed, parts])
    if partition.alpha is None:
        return [np.sort(rows) for rows in np.array_split(source.permutation(len(labels)), parts)]
    hands: list[list[int]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        rows = source.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(source.dirichlet([partition.alpha] * parts)[:-1]) * len(rows)
        for hand, part in zip(hands, np.split(rows, cuts.astype(int)), strict=True):
            hand.extend(part.tolist())
    for hand in hands:
        if not hand:
            hand.append(max(hands, key=len).pop())
    return [np.array(sorted(hand), np.int64) for hand in hands]
