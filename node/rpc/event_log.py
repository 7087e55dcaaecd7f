"""The events of executed blocks, by index, as JSON: read from the store, the newest kept for those who follow.

A subscriber has no queue. It has a place in this log, and reads on when it is able to; what it could not take yet
costs no memory, however slow it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chain.codec import decode
from fl.records import Event, EventKind
from node.rpc.fl_views import event_view
from node.rpc.requests import to_json
from node.store import Store

EVENT_LIMIT_BYTES = 4096
NEWEST_KEPT = 4_096
SCANNED_AT_ONCE = 1_000
"""Events looked at for one answer, of which a filter may let none through."""

KINDS = tuple(sorted(kind.value for kind in EventKind))


@dataclass(frozen=True, slots=True)
class Filter:
    """Empty: all kinds. None: every job, and what belongs to none."""

    kinds: frozenset[str] = frozenset()
    job: bytes | None = None

    def passes(self, event: Event) -> bool:
        return (not self.kinds or event.kind in self.kinds) and (self.job is None or event.job == self.job)


@dataclass(frozen=True, slots=True)
class Row:
    index: int
    event: Event
    text: str


class EventLog:
    def __init__(self, store: Store, size: Callable[[], int]) -> None:
        self._store = store
        self._size = size
        self._newest: dict[int, Row] = {}

    @property
    def head(self) -> int:
        """The index that the next event will have."""
        return self._size()

    def row(self, index: int) -> Row | None:
        return next(self._rows(index, index + 1), None)

    def page(self, first: int, limit: int, wanted: Filter) -> tuple[list[Row], int]:
        """At most `limit` that pass, and the index to go on from."""
        found: list[Row] = []
        stop = max(first, min(self.head, first + SCANNED_AT_ONCE))
        for row in self._rows(first, stop):
            if wanted.passes(row.event):
                found.append(row)
                if len(found) == limit:
                    return found, row.index + 1
        return found, stop

    def first_at(self, height: int) -> int:
        """The index of the first event of this height or a later one."""
        low, high = 0, self.head
        while low < high:
            middle = (low + high) // 2
            row = self.row(middle)
            if row is not None and row.event.height < height:
                low = middle + 1
            else:
                high = middle
        return low

    def _rows(self, first: int, stop: int) -> Iterator[Row]:
        stop = min(stop, self.head)
        if first < self.head - NEWEST_KEPT:
            for index, data in self._store.events(first, max(0, stop - first)):
                yield _row(index, data)
            return
        for index in range(first, stop):
            row = self._newest.get(index)
            if row is None:
                _, data = next(self._store.events(index, 1))
                row = self._newest[index] = _row(index, data)
                if len(self._newest) > NEWEST_KEPT:
                    del self._newest[next(iter(self._newest))]
            yield row


def _row(index: int, data: bytes) -> Row:
    event = decode(Event, data, EVENT_LIMIT_BYTES)
    return Row(index, event, to_json(event_view(index, event)).decode())
