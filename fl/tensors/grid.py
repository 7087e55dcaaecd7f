"""The fixed-point grid on which updates are summed: exact int64 sums with static bounds.

An update's value x with weight w becomes q = RNE(x·c), c = w·2^G; the sum of all q is A and the mean is
A/den, den = W·2^G with W the sum of weights. With |x| ≤ 2^R and w ≤ cap, |x·c| ≤ 2^P, and N updates stay
within N·2^P ≤ 2^62: no sum overflows, and no update's acceptance depends on another's. x·c is exact in
float64 (24 bits times 20), so each q has one rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ldexp

from fl.errors import Refused

MAX_RANGE_BITS = 24
MAX_WEIGHT_CAP = 2**20
MAX_UPDATES = 2**17
DEFAULT_RANGE_BITS = 8


@dataclass(frozen=True, slots=True)
class Grid:
    range_bits: int
    """R: every value of an update is within ±2^R."""
    weight_cap: int
    """The largest weight of one update; 1 when all weigh the same."""
    max_updates: int
    """N: the most updates a round takes."""

    def __post_init__(self) -> None:
        if not 0 <= self.range_bits <= MAX_RANGE_BITS:
            raise Refused("BAD_RULES", f"The range must be 0 to {MAX_RANGE_BITS} bits.")
        if not 1 <= self.weight_cap <= MAX_WEIGHT_CAP:
            raise Refused("BAD_RULES", f"The weight cap must be 1 to {MAX_WEIGHT_CAP}.")
        if not 1 <= self.max_updates <= MAX_UPDATES:
            raise Refused("BAD_RULES", f"A round takes 1 to {MAX_UPDATES} updates.")

    @property
    def precision_bits(self) -> int:
        """P: one update's weighted value takes at most 2^P grid steps."""
        return min(50, 62 - (self.max_updates - 1).bit_length())

    @property
    def weighted_bits(self) -> int:
        """G, for sums in which the weight multiplies the value first."""
        return self.unweighted_bits - (self.weight_cap - 1).bit_length()

    @property
    def unweighted_bits(self) -> int:
        """G0, for rules that look at values without weights."""
        return self.precision_bits - self.range_bits

    def factor(self, weight: int) -> float:
        """c of an update; exact, as a weight has at most 21 bits."""
        return ldexp(weight, self.weighted_bits)

    def denominator(self, total_weight: int) -> int:
        """den of the mean, at most 2^62 and exact in float64."""
        return total_weight << self.weighted_bits

    def resolution(self, weight: int) -> float:
        """The grid step of an update's value at this weight; half of it bounds the rounding error."""
        return ldexp(1.0, -self.weighted_bits) / weight
