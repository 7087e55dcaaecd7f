"""How much a peer may have of what costs it nothing to ask for."""

from __future__ import annotations

from collections.abc import Hashable


class Allowance:
    """So many a second and peer."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._spent: dict[Hashable, tuple[int, int]] = {}

    def take(self, peer: Hashable, now_ms: int) -> bool:
        since, count = self._spent.get(peer, (now_ms, 0))
        if now_ms >= since + 1_000:
            since, count = now_ms, 0
        if count >= self._per_second:
            return False
        self._spent[peer] = (since, count + 1)
        return True

    def clear(self) -> None:
        self._spent = {}
