"""Lots that the beacon draws.

The accounts must have been settled before the block whose beacon draws them: then nobody who chooses among them, or
joins them, knows the lots. What is left to a proposer is to withhold its block, one bit of choice a slot.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest

from chain.hashing import Domain, digest


def drawn(beacon: bytes, purpose: bytes, accounts: Iterable[bytes], count: int) -> tuple[bytes, ...]:
    """So many of the accounts, each as likely as any other, sorted. `purpose` tells apart what one beacon draws for."""
    return tuple(sorted(nsmallest(count, accounts, key=lambda each: digest(Domain.LOT, beacon, purpose, each))))
