"""Transactions that wait to be packed, oldest first, within bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chain.batch import MAX_BATCH_TRANSACTIONS

POOL_BYTES = 32 * 1024 * 1024
POOL_TRANSACTIONS = 65_536
BATCH_OVERHEAD_BYTES = 256
"""More than a signed batch's fields take besides its transactions."""
TRANSACTION_OVERHEAD_BYTES = 3
"""The length before each: transactions are shorter than 64 KiB."""


@dataclass(frozen=True, slots=True)
class Waiting:
    id: bytes
    transaction: bytes
    valid_until_ms: int

    @property
    def packed_bytes(self) -> int:
        return len(self.transaction) + TRANSACTION_OVERHEAD_BYTES


class Pool:
    def __init__(self) -> None:
        self._waiting: dict[bytes, Waiting] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, id: bytes) -> bool:
        return id in self._waiting

    def room(self) -> int:
        if len(self._waiting) >= POOL_TRANSACTIONS:
            return 0
        return max(0, POOL_BYTES - self.size_bytes)

    def add(self, waiting: Waiting) -> None:
        self._waiting[waiting.id] = waiting
        self.size_bytes += waiting.packed_bytes

    def put_back(self, returned: Iterable[Waiting]) -> None:
        """To the front, and beyond the bounds if need be: what was taken once is not dropped for want of room,
        and own outstanding batches are bounded by the creator's quota."""
        rest = self._waiting
        self._waiting = {}
        for waiting in returned:
            if waiting.id not in rest:
                self.add(waiting)
        self._waiting |= rest

    def discard(self, ids: Iterable[bytes]) -> None:
        for id in ids:
            waiting = self._waiting.pop(id, None)
            if waiting is not None:
                self.size_bytes -= waiting.packed_bytes

    def pack(self, limit_bytes: int, wall_ms: int) -> tuple[list[Waiting], list[bytes]]:
        """Takes out the oldest that fit together, and the ids of those met on the way that are past their time."""
        packed: list[Waiting] = []
        expired: list[bytes] = []
        left = limit_bytes - BATCH_OVERHEAD_BYTES
        for waiting in self._waiting.values():
            if waiting.valid_until_ms < wall_ms:
                expired.append(waiting.id)
                continue
            left -= waiting.packed_bytes
            if left < 0 or len(packed) == MAX_BATCH_TRANSACTIONS:
                break
            packed.append(waiting)
        self.discard(expired)
        self.discard(waiting.id for waiting in packed)
        return packed, expired
