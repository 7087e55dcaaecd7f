"""Catching up: whom to ask for final blocks, from what peers say of themselves each second.

One finalization is enough to trust everything below it, so a peer that lies about its height, or gives less than it
could, wastes its turn and no more: it is asked less readily the next time, and among equals all take turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.messages import FetchRange, Status

NEAR = 2
"""So few blocks behind, the ordering messages themselves bring a validator up, unless those who have the blocks
started after them: then they are in their stores and no longer in their cores."""
BLOCKS_A_REQUEST = 128
PATIENCE_MS = 2_000


@dataclass(slots=True)
class _Peer:
    epoch: int
    final_height: int
    failures: int = 0
    asked_ms: int = -1


class CatchUp:
    def __init__(self) -> None:
        self._peers: dict[bytes, _Peer] = {}
        self._asked: bytes | None = None
        self._asked_ms = 0
        self._asked_height = 0
        self._asked_for = 0
        self._height = 0
        self._height_ms: int | None = None
        """Since when this validator is there."""

    def target(self) -> int:
        """The highest final height that any peer has claimed."""
        return max((peer.final_height for peer in self._peers.values()), default=0)

    def claims(self) -> list[int]:
        """Final heights as the peers last gave them, the highest first; any one of them may be a lie."""
        return sorted((peer.final_height for peer in self._peers.values()), reverse=True)

    def heard(self, key: bytes, status: Status) -> None:
        known = self._peers.setdefault(key, _Peer(0, 0))
        known.epoch, known.final_height = status.epoch, status.final_height

    def answered(self, key: bytes, height: int) -> None:
        """An answer came and brought this validator to `height`."""
        if key == self._asked:
            peer = self._peers[key]
            peer.failures = 0 if height >= self._asked_for else peer.failures + 1
            self._asked = None

    def deadline(self) -> int | None:
        return self._asked_ms + PATIENCE_MS if self._asked is not None else None

    def next_request(self, now_ms: int, epoch: int, height: int) -> tuple[bytes, FetchRange] | None:
        if self._asked is not None:
            if now_ms < self._asked_ms + PATIENCE_MS and height < self._asked_height + BLOCKS_A_REQUEST:
                return None
            self._peers[self._asked].failures += 1
            self._asked = None
        if self._height_ms is None or height != self._height:
            self._height, self._height_ms = height, now_ms
        near = NEAR if now_ms < self._height_ms + PATIENCE_MS else 0
        ahead = [
            (peer.failures, peer.asked_ms, -peer.final_height, key)
            for key, peer in self._peers.items()
            if peer.final_height > height + near or (peer.epoch > epoch and peer.final_height > height)
        ]
        if not ahead:
            return None
        key = min(ahead)[-1]
        peer = self._peers[key]
        peer.asked_ms = now_ms
        self._asked, self._asked_ms, self._asked_height = key, now_ms, height
        self._asked_for = min(peer.final_height, height + BLOCKS_A_REQUEST)
        return key, FetchRange(height + 1, height + BLOCKS_A_REQUEST)
