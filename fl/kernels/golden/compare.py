"""What golden vectors of all kernels are compared by."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

REPEATS = 5
"""So that every vector stands at several positions of a SIMD register, and in the remainder."""


class GoldenMismatch(Exception):
    """A kernel's result differs from its golden vector: this machine cannot take part in aggregation."""


def read_only(array: NDArray[T]) -> NDArray[T]:
    """As the views over payloads are, so that the kernels compiled here are the ones that the node runs."""
    array.flags.writeable = False
    return array


def compare(kernel: str, got: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    if (wrong := np.flatnonzero(got != expected)).size:
        at = int(wrong[0])
        raise GoldenMismatch(f"{kernel} gives {got.flat[at]} where {expected.flat[at]} is right (vector {at}).")


def compare_top(kernel: str, got: int, expected: int) -> None:
    if got != expected:
        raise GoldenMismatch(f"{kernel} reports the magnitude {got:#x} where {expected:#x} is right.")
