"""Token buckets: so much at once, so much a second, for each of many who ask; the clock is handed in.

The number of buckets is bounded. The one untouched for longest makes room; whoever it belonged to starts with
a full one again, so the bound has to be larger than the number of askers whom the rate is to hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

BUCKETS_KEPT = 16_384


@dataclass(frozen=True, slots=True)
class Rate:
    per_second: float
    burst: float


class TokenBuckets:
    def __init__(self, rate: Rate, kept: int = BUCKETS_KEPT) -> None:
        self.rate = rate
        self._kept = kept
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """What is left, and when that was so."""

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, amount: float, now_s: float) -> float:
        """0 if the tokens were there and are taken; otherwise the seconds until they are, and none is taken.

        More than a whole bucket is given once the bucket is full, and is paid off afterwards.
        """
        rate = self.rate
        # Put back at the end: it is the one touched last.
        left, since = self._buckets.pop(key, (rate.burst, now_s))
        if now_s > since:
            left = min(rate.burst, left + (now_s - since) * rate.per_second)
        needed = min(amount, rate.burst)
        granted = left >= needed
        self._buckets[key] = (left - amount if granted else left, now_s)
        if len(self._buckets) > self._kept:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (needed - left) / rate.per_second
