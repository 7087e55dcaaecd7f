"""scikit-learn's handwritten digits, divided among trainers as a consortium would find them: unevenly.

1,797 pictures of 8 × 8. A fifth is held out for tests; the rest is dealt out label by label, in shares drawn from a
Dirichlet distribution, so that some trainers hardly see some digits.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fl.client.errors import BadFile, BadInput
from fl.client.partition import SEED, Partition, divided
from fl.client.perceptron import Data

CLASSES = 10
FEATURES = 64
HELD_OUT = 360
SKEW = 0.5
"""Of the Dirichlet distribution: 1 is uneven, 0.1 leaves most trainers with a few digits only."""


def load_digits() -> tuple[Data, Data]:
    """What is trained on, and what is held out."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise BadInput(
            "MISSING_PACKAGE", "The digits are part of scikit-learn.", "Install it: pip install 'quorate[sklearn]'"
        ) from None
    x, y = load(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
    return Data(x[HELD_OUT:], y[HELD_OUT:]), Data(x[:HELD_OUT], y[:HELD_OUT])


def deal(data: Data, shares: int) -> list[Data]:
    """Every picture goes to exactly one share."""
    return [data.take(rows) for rows in divided(data.y, shares, Partition(SKEW))]


def save(data: Data, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=data.x, y=data.y)


def read(path: Path) -> Data:
    """An .npz file with `x`, rows of features, and `y`, the class of each."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = np.asarray(arrays["x"], np.float32), np.asarray(arrays["y"], np.int64)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BadFile("BAD_DATA", f"{path} cannot be read: {error}.", "Give an .npz file with x and y.") from error
    if x.ndim != 2 or y.shape != (len(x),) or len(y) == 0:
        raise BadFile("BAD_DATA", f"{path} holds x of shape {x.shape} and y of {y.shape}.", "Give rows and classes.")
    return Data(x, y)
