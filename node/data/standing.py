"""How a peer has served this node so far, and how much is asked of it therefore; and whose turn it is to download.

Slowness is no fault that can be proven: a slow peer is given less to do and longer to do it, and is left alone for a
while, but it is not punished. What is proven (a wrong leaf, a leaf that was claimed and is not there) is blamed by
the swarm at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from node.ports import Peer


class Fault(StrEnum):
    """What a peer is blamed for."""

    WRONG_MANIFEST = "wrong_manifest"
    WRONG_LEAF = "wrong_leaf"
    FALSE_HAVE = "false_have"
    BAD_ANSWER = "bad_answer"


@dataclass(frozen=True, slots=True)
class SwarmLimits:
    downloads: int = 8
    """Blobs whose leaves are pulled at once; others wait for their turn."""
    turn_ms: int = 15_000
    """Then a download makes room if others wait for theirs."""
    turn_leaves: int = 15
    """One that got fewer leaves in its turn is no longer served before the others."""
    leaves: int = 64
    """Under way, over all peers and blobs."""
    leaves_per_peer: int = 4
    asks_per_peer: int = 8
    """Manifests and haves under way."""
    asked_others: int = 4
    """Peers beside the sources that are asked in one round who has the blob."""
    hedge_ms: int = 150
    """So long one peer may be silent before the next is asked for the manifest too."""
    ask_ms: int = 10_000
    again_ms: tuple[int, int] = (100, 5_000)
    """Between rounds in which nobody had the blob, growing from the first to the second."""
    poll_ms: tuple[int, int] = (100, 1_000)
    """Between two haves of one peer: while they change, and at most."""
    absent_ms: int = 2_000
    """Between two haves of a peer that had nothing, at most."""
    grace_ms: int = 500
    """So long after a download's beginning every peer is expected to begin its own."""
    patience_ms: int = 1_000
    """For so long a download sits idle for leaves that others were to fetch from the origin, before it fetches
    them itself."""
    direct_leaves: int = 4
    """A blob of no more leaves is pulled from its origin at once: sparing it would cost more time than bytes."""
    slow_ms: int = 2_000
    """A peer whose leaves take longer is given fewer to bring at once: they only wait for one another."""
    late_ms: int = 500
    """A leaf that is under way for longer may be asked of another peer too, if that one would be far faster."""
    leaf_ms: tuple[int, int] = (10_000, 80_000)
    """How long a leaf is waited for: of a peer in good standing, and of one that was waited for in vain before."""
    rest_ms: tuple[int, int] = (250, 30_000)
    """How long a peer that was waited for in vain is left alone, growing from the first to the second."""
    tick_ms: int = 100


class Standing:
    """One peer, over all blobs."""

    __slots__ = ("_limits", "_pause_ms", "_rests_until_ms", "allowance", "asks", "in_flight", "leaf_ms", "wait_ms")

    def __init__(self, limits: SwarmLimits) -> None:
        self._limits = limits
        self.allowance = min(2, limits.leaves_per_peer)
        self.in_flight = 0
        self.asks = asyncio.Semaphore(limits.asks_per_peer)
        self.wait_ms = limits.leaf_ms[0]
        self.leaf_ms = 0.0
        """What a leaf took of late, with its wait behind others."""
        self._pause_ms = 0
        self._rests_until_ms = 0

    def rests(self, now_ms: int) -> bool:
        return now_ms < self._rests_until_ms

    def has_credit(self, now_ms: int) -> bool:
        return self.in_flight < self.allowance and not self.rests(now_ms)

    def delivered(self, took_ms: int) -> None:
        self.leaf_ms += (took_ms - self.leaf_ms) * (0.25 if self.leaf_ms else 1.0)
        if took_ms > self._limits.slow_ms:
            self.allowance = max(1, self.allowance - 1)
        else:
            self.allowance = min(self.allowance + 1, self._limits.leaves_per_peer)
        self.wait_ms = self._limits.leaf_ms[0]
        self._pause_ms = 0

    def failed(self, now_ms: int, *, silent: bool) -> None:
        """It was waited for in vain, or its connection ended."""
        if silent:
            self.allowance = 1
            self.wait_ms = min(2 * self.wait_ms, self._limits.leaf_ms[1])
        if not self.rests(now_ms):
            # Several leaves that were under way together fail together, and count once.
            shortest, longest = self._limits.rest_ms
            self._pause_ms = min(max(2 * self._pause_ms, shortest), longest)
            self._rests_until_ms = now_ms + self._pause_ms


class Turns:
    """Lets a bounded number of downloads work at once. Those that made little of an earlier turn come after all
    others, so that blobs which hardly flow cannot keep out those which would; and so does what one source has more
    than half of the places for, so that no source keeps out the others."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._share = max(1, places // 2)
        self._of: Counter[Peer] = Counter()
        """Downloads of each source that work or wait."""
        self._waiting: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())

    @property
    def wanted(self) -> bool:
        """Somebody waits for a place."""
        return any(not each.done() for line in self._waiting for each in line)

    @asynccontextmanager
    async def turn(self, *, last: bool, source: Peer | None = None) -> AsyncIterator[None]:
        """`source`: on whose behalf it is downloaded, if on somebody's."""
        if source is not None:
            last |= self._of[source] >= self._share
            self._of[source] += 1
        try:
            await self._enter(last)
            try:
                yield
            finally:
                self._leave()
        finally:
            if source is not None:
                self._of[source] -= 1

    async def _enter(self, last: bool) -> None:
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting[last].append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        for line in self._waiting:
            while line:
                place = line.popleft()
                if not place.done():
                    place.set_result(None)
                    return
        self._free += 1


class Tally:
    """What the swarm did, for figures."""

    def __init__(self) -> None:
        self.faults: Counter[Fault] = Counter()
        self.leaves = 0
        self.leaf_bytes = 0
        self.duplicates = 0
        """Leaves that came although they were here already."""
        self.timeouts = 0
        self.blobs = 0
        self.served_leaves = 0
        self.served_bytes = 0

    def figures(self) -> dict[str, int]:
        faults = {f"swarm_faults_{fault}": self.faults[fault] for fault in Fault}
        return faults | {
            "swarm_blobs": self.blobs,
            "swarm_leaves": self.leaves,
            "swarm_leaf_bytes": self.leaf_bytes,
            "swarm_duplicates": self.duplicates,
            "swarm_timeouts": self.timeouts,
            "swarm_served_leaves": self.served_leaves,
            "swarm_served_bytes": self.served_bytes,
        }
