"""Transactions that wait to be packed, oldest first, within bounds."""

from __future__ import annotations

from collections.abc import Iterable

from chain.batch import MAX_BATCH_TRANSACTIONS
from chain.frozen import record

POOL_BYTES = 32 * 1024 * 1024
POOL_TRANSACTIONS = 65_536
BATCH_OVERHEAD_BYTES = 256
"""More than a signed batch's fields take besides its transactions."""
TRANSACTION_OVERHEAD_BYTES = 3
"""The length before each: transactions are shorter than 64 KiB."""


def packed_bytes(transaction: bytes) -> int:
    return len(transaction) + TRANSACTION_OVERHEAD_BYTES


@record
class Waiting:
    id: bytes
    transaction: bytes
    valid_until_ms: int
    alone: bool = False
    """Goes into a batch of its own."""


class Pool:
    def __init__(self) -> None:
        self._shared: dict[bytes, Waiting] = {}
        self._alone: dict[bytes, Waiting] = {}
        self._alone_bytes = 0
        self.shared_bytes = 0
        """Of what may share a batch."""

    def __len__(self) -> int:
        return len(self._shared) + len(self._alone)

    @property
    def size_bytes(self) -> int:
        return self.shared_bytes + self._alone_bytes

    def __contains__(self, id: bytes) -> bool:
        return id in self._shared or id in self._alone

    @property
    def has_shared(self) -> bool:
        return bool(self._shared)

    @property
    def has_alone(self) -> bool:
        return bool(self._alone)

    @property
    def alone(self) -> tuple[bytes, ...]:
        """The transactions that go alone."""
        return tuple(waiting.transaction for waiting in self._alone.values())

    def room(self) -> int:
        if len(self) >= POOL_TRANSACTIONS:
            return 0
        return max(0, POOL_BYTES - self.size_bytes)

    def add(self, waiting: Waiting) -> None:
        if waiting.alone:
            self._alone[waiting.id] = waiting
            self._alone_bytes += packed_bytes(waiting.transaction)
        else:
            self._shared[waiting.id] = waiting
            self.shared_bytes += packed_bytes(waiting.transaction)

    def put_back(self, returned: Iterable[Waiting]) -> None:
        """To the front, and beyond the bounds if need be: what was taken once is not dropped for want of room,
        and own outstanding batches are bounded by the creator's quota."""
        shared, alone = self._shared, self._alone
        self._shared, self._alone = {}, {}
        for waiting in returned:
            if waiting.id not in shared and waiting.id not in alone:
                self.add(waiting)
        self._shared |= shared
        self._alone |= alone

    def discard(self, ids: Iterable[bytes]) -> None:
        shared, alone = self._shared, self._alone
        for id in ids:
            if id in shared:
                self.shared_bytes -= packed_bytes(shared.pop(id).transaction)
            elif id in alone:
                self._alone_bytes -= packed_bytes(alone.pop(id).transaction)

    def pack(self, limit_bytes: int, wall_ms: int) -> tuple[list[Waiting], list[bytes]]:
        """Takes out the oldest that fit together, and the ids of those met on the way that are past their time."""
        packed: list[Waiting] = []
        expired: list[bytes] = []
        left = limit_bytes - BATCH_OVERHEAD_BYTES
        for waiting in self._shared.values():
            if waiting.valid_until_ms < wall_ms:
                expired.append(waiting.id)
                continue
            left -= packed_bytes(waiting.transaction)
            if left < 0 or len(packed) == MAX_BATCH_TRANSACTIONS:
                break
            packed.append(waiting)
        self.discard(expired)
        self.discard([waiting.id for waiting in packed])
        return packed, expired

    def take_alone(self, wall_ms: int) -> tuple[Waiting | None, list[bytes]]:
        """Takes out the oldest that goes alone, and the ids of those met on the way that are past their time."""
        expired: list[bytes] = []
        found = None
        for waiting in self._alone.values():
            if waiting.valid_until_ms >= wall_ms:
                found = waiting
                break
            expired.append(waiting.id)
        self.discard(expired if found is None else (*expired, found.id))
        return found, expired
