"""What the transactions say that wait for their block: read when they are taken or judged, and asked for in execution.

Between the two lies ordering, a second perhaps. What is not here any more is read again from the batches' log, so
nothing rests on it but time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from chain.batch import SignedBatch
from fl.errors import Refused
from fl.transactions import Reading

READINGS_BYTES = 32 * 1024 * 1024
"""Of memory, as `_size_bytes` has it."""
COPIES = 3
"""Of a transaction's bytes: its own, those of its body, those of the payload in it."""
READING_BYTES = 1_500
"""The records around them."""

Readings = tuple[Reading | Refused, ...]


def _size_bytes(transactions: Sequence[bytes]) -> int:
    return COPIES * sum(map(len, transactions)) + READING_BYTES * len(transactions)


class ReadBatches:
    def __init__(self, limit_bytes: int = READINGS_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._batches: OrderedDict[bytes, tuple[Readings, int]] = OrderedDict()
        """By digest, with what they take."""
        self._taken: OrderedDict[bytes, Reading] = OrderedDict()
        """By their bytes, of clients' transactions that are in no batch yet."""

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def taken(self, data: bytes, reading: Reading) -> None:
        """From a client, for a batch of this node's."""
        if data not in self._taken:
            self._taken[data] = reading
            self._grow(COPIES * len(data) + READING_BYTES)

    def stored(self, signed: SignedBatch) -> None:
        """A batch is in the log. If it is made of what was taken here, nobody will judge it."""
        transactions = signed.batch.transactions
        if transactions[0] not in self._taken:
            return
        readings = [self._taken.pop(data, None) for data in transactions]
        self._size_bytes -= sum(
            _size_bytes((data,)) for data, reading in zip(transactions, readings, strict=True) if reading is not None
        )
        found = tuple([reading for reading in readings if reading is not None])
        if len(found) == len(transactions):
            self.judged(signed, found)

    def judged(self, signed: SignedBatch, readings: Readings) -> None:
        """All transactions of a batch that was offered were read."""
        digest = signed.reference.batch
        if digest not in self._batches:
            size_bytes = _size_bytes(signed.batch.transactions)
            self._batches[digest] = readings, size_bytes
            self._grow(size_bytes)

    def take(self, digest: bytes) -> Readings | None:
        """For execution, which comes once."""
        readings, size_bytes = self._batches.pop(digest, (None, 0))
        self._size_bytes -= size_bytes
        return readings

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        while self._size_bytes > self._limit_bytes:
            if self._taken:
                data, _ = self._taken.popitem(last=False)
                self._size_bytes -= _size_bytes((data,))
            else:
                _, (_, gone_bytes) = self._batches.popitem(last=False)
                self._size_bytes -= gone_bytes
