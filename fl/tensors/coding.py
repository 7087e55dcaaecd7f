"""What a job fixes for the values of its updates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Coding:
    encoding: str
    range_bits: int
    """R: every value of an update is within ±2^R."""
    share_ppm: int = 0
    """Of the values that an update in topk holds, in millionths."""
    updates: int = 1
    """N, for masked updates: the most that are summed."""
    cap: int = 1
    """The largest weight of one of them."""
    clip: int = 0
    """C: to which a masked update's values are clipped, in steps of 2^−G0."""
