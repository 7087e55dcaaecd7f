"""The batches' own log, and where in it each batch stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from chain.batch import SignedBatch
from consensus.availability import BatchStored
from node.records import BATCH_KIND, batch_entry, read_batch_entry
from node.segments import Location, SegmentedLog
from node.store import Store


class BatchLog:
    def __init__(self, log: SegmentedLog, store: Store) -> None:
        self.log = log
        self._store = store
        self._unsynced: deque[tuple[int, bytes, Location]] = deque()
        self._newest: dict[bytes, Location] = {}
        """Of those that have no row yet."""

    def append(self, record: BatchStored) -> int:
        number, location = self.log.append_at(BATCH_KIND, *batch_entry(record))
        digest = record.signed.reference.batch
        self._unsynced.append((number, digest, location))
        self._newest[digest] = location
        return number

    def settle(self) -> None:
        """Index what has become durable: a row never names bytes that a crash could take."""
        rows = {}
        number = 0
        while self._unsynced and self._unsynced[0][0] <= self.log.synced:
            number, digest, location = self._unsynced.popleft()
            rows[digest] = location
        if rows:
            self._store.keep_batches(number, rows)
        for digest, location in rows.items():
            if self._newest[digest] == location:
                del self._newest[digest]

    def replay(self, start: int) -> Iterator[BatchStored]:
        """Records from `start` on; those whose rows a crash has lost are indexed again."""
        indexed = self._store.batches_indexed()
        for number, _, payload, location in self.log.replay(max(min(start, indexed + 1), self.log.first)):
            record = read_batch_entry(payload)
            if number > indexed:
                self._store.keep_batches(number, {record.signed.reference.batch: location})
            if number >= start:
                yield record

    def holds(self, digest: bytes) -> bool:
        """Durably."""
        return self._store.batch_location(digest) is not None

    def read(self, digest: bytes) -> SignedBatch | None:
        """What was appended, durable or not. On any thread."""
        location = self._newest.get(digest) or self._store.batch_location(digest)
        return None if location is None else read_batch_entry(self.log.read(location)).signed
