"""What is lacking and whom to ask: one request at a time for each thing, each time to another peer, ever slower."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

FIRST_RETRY_MS = 300
LAST_RETRY_MS = 5_000
WANTED_LIMIT = 256

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Want:
    sources: list[int]
    asked: int
    due_ms: int
    retry_ms: int


class Wanted(Generic[K]):
    def __init__(self) -> None:
        self._wants: dict[K, _Want] = {}

    def want(self, key: K, sources: Iterable[int], now_ms: int) -> None:
        """Repeating a want changes nothing; those beyond the limit are dropped and come again when judged again."""
        if key not in self._wants and len(self._wants) < WANTED_LIMIT:
            asked = list(dict.fromkeys(sources))
            if asked:
                self._wants[key] = _Want(asked, 0, now_ms, FIRST_RETRY_MS)

    def __contains__(self, key: object) -> bool:
        return key in self._wants

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._wants))

    def got(self, key: K) -> None:
        self._wants.pop(key, None)

    def due(self, now_ms: int) -> list[tuple[K, int]]:
        asks = []
        for key, want in self._wants.items():
            if want.due_ms <= now_ms:
                asks.append((key, want.sources[want.asked % len(want.sources)]))
                want.asked += 1
                want.due_ms = now_ms + want.retry_ms
                want.retry_ms = min(want.retry_ms * 3 // 2, LAST_RETRY_MS)
        return asks

    def deadline(self) -> int | None:
        return min([want.due_ms for want in self._wants.values()]) if self._wants else None
