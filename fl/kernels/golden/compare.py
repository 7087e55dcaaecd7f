"""What golden vectors of all kernels are compared by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl.kernels.sums import FUSED, Stack

ROWS = 3

T = TypeVar("T", bound=np.generic)

REPEATS = 5
"""So that every vector stands at several positions of a SIMD register, and in the remainder."""


class GoldenMismatch(Exception):
    """A kernel's result differs from its golden vector: this machine cannot take part in aggregation."""


def read_only(array: NDArray[T]) -> NDArray[T]:
    """As the views over payloads are, so that the kernels compiled here are the ones that the node runs."""
    array.flags.writeable = False
    return array


def stacks(*arrays: NDArray[Any]) -> Iterator[tuple[int, list[Stack]]]:
    """The same update so many times, in each form in which kernels sum them: alone, fused and in rows."""
    for fused in (1, FUSED):
        yield fused, [(each,) * fused for each in arrays]
    yield ROWS, [read_only(np.stack((each,) * ROWS)) for each in arrays]


def compare(kernel: str, got: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    if (wrong := np.flatnonzero(got != expected)).size:
        at = int(wrong[0])
        raise GoldenMismatch(f"{kernel} gives {got.flat[at]} where {expected.flat[at]} is right (vector {at}).")


def compare_top(kernel: str, got: int, expected: int) -> None:
    if got != expected:
        raise GoldenMismatch(f"{kernel} reports the magnitude {got:#x} where {expected:#x} is right.")
