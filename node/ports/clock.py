"""The machine's clocks and its source of randomness."""

from __future__ import annotations

import os
import time

from consensus.effects import Now


class SystemClock:
    def now(self) -> Now:
        return Now(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)

    def entropy(self, size: int) -> bytes:
        return os.urandom(size)
