"""Bytes of batches that others hold: asked of one source at a time, in rotation, until they come.

Bounds: wants by why, asks in flight a peer, and remembered asks a peer. A peer that does not have a batch says
nothing, which is no fault; one that keeps answering what it was not asked is at fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

ASKS_IN_FLIGHT = 4
"""At one peer: an answer may be a megabyte, and a peer that never answers should hold up only its own."""
REMEMBERED_ASKS = 1_024
"""At one peer: its answer may come after the question was put to another."""
NEEDED_WANTS = 4_096
CERTIFIED_WANTS = 4_096
LISTED_WANTS = 8
"""At one peer: of batches that it claims to have voted for, on its word alone."""
LISTED_TRIES = 4
UNASKED_TOLERATED = 16
"""A link: answers to what was asked before a restart here may still be under way, and are not the peer's fault."""
FIRST_GAP_MS = 1_000
LONGEST_GAP_MS = 8_000


class Why(IntEnum):
    """The lower is asked for first."""

    NEEDED = 0
    """A final block names it."""
    CERTIFIED = 1
    LISTED = 2
    """A peer says that it voted for it and knows no certificate."""


@dataclass(slots=True, eq=False)
class Want:
    digest: bytes
    why: Why
    sources: list[int]
    at_ms: int
    gap_ms: int = FIRST_GAP_MS
    turn: int = 0
    tries: int = 0
    asked: int | None = None


_LIMITS = {Why.NEEDED: NEEDED_WANTS, Why.CERTIFIED: CERTIFIED_WANTS}


class Pulls:
    def __init__(self) -> None:
        self._wants: dict[Why, dict[bytes, Want]] = {why: {} for why in Why}
        self._in_flight: dict[int, int] = {}
        self._asks: dict[int, dict[bytes, None]] = {}
        self._unasked: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(len(wants) for wants in self._wants.values())

    def get(self, digest: bytes) -> Want | None:
        for wants in self._wants.values():
            if digest in wants:
                return wants[digest]
        return None

    def want(self, digest: bytes, why: Why, sources: tuple[int, ...], at_ms: int) -> None:
        if not sources:
            return
        want = self.get(digest)
        if want is None:
            if self._has_room(why, sources):
                turn = digest[0] % len(sources)
                self._wants[why][digest] = Want(digest, why, list(sources), at_ms, turn=turn)
            return
        want.sources += [source for source in sources if source not in want.sources]
        if why < want.why:
            del self._wants[want.why][digest]
            want.why = why
            self._wants[why][digest] = want
        if want.asked is None:
            want.at_ms = min(want.at_ms, at_ms)

    def _has_room(self, why: Why, sources: tuple[int, ...]) -> bool:
        if why is Why.LISTED:
            listed = sum(1 for want in self._wants[why].values() if want.sources[0] == sources[0])
            return listed < LISTED_WANTS
        return len(self._wants[why]) < _LIMITS[why]

    def due(self, now_ms: int) -> list[tuple[int, bytes]]:
        """What to ask of whom at this time: (peer, digest)."""
        asks: list[tuple[int, bytes]] = []
        for wants in self._wants.values():
            for want in [want for want in wants.values() if want.at_ms <= now_ms]:
                if want.asked is not None:
                    self._free(want)
                if want.why is Why.LISTED and want.tries >= LISTED_TRIES * len(want.sources):
                    del wants[want.digest]
                    continue
                peer = self._next_source(want)
                if peer is not None:
                    self._ask(want, peer, now_ms)
                    asks.append((peer, want.digest))
        return asks

    def _next_source(self, want: Want) -> int | None:
        for step in range(len(want.sources)):
            peer = want.sources[(want.turn + step) % len(want.sources)]
            if self._in_flight.get(peer, 0) < ASKS_IN_FLIGHT:
                want.turn += step + 1
                return peer
        return None

    def _ask(self, want: Want, peer: int, now_ms: int) -> None:
        want.asked = peer
        want.tries += 1
        want.at_ms = now_ms + want.gap_ms
        want.gap_ms = min(want.gap_ms * 3 // 2, LONGEST_GAP_MS)
        self._in_flight[peer] = self._in_flight.get(peer, 0) + 1
        asks = self._asks.setdefault(peer, {})
        asks.pop(want.digest, None)
        asks[want.digest] = None
        if len(asks) > REMEMBERED_ASKS:
            del asks[next(iter(asks))]

    def _free(self, want: Want) -> None:
        assert want.asked is not None
        self._in_flight[want.asked] -= 1
        want.asked = None

    def was_asked(self, peer: int, digest: bytes) -> bool:
        return digest in self._asks.get(peer, ())

    def is_excused(self, peer: int) -> bool:
        """Told of an answer that was not asked for."""
        self._unasked[peer] = self._unasked.get(peer, 0) + 1
        return self._unasked[peer] <= UNASKED_TOLERATED

    def failed(self, peer: int, digest: bytes, now_ms: int) -> None:
        """This peer's answer was no good: the next source is asked at once."""
        want = self.get(digest)
        if want is not None and want.asked == peer:
            self._free(want)
            want.at_ms = now_ms

    def done(self, digest: bytes) -> None:
        want = self.get(digest)
        if want is not None:
            if want.asked is not None:
                self._free(want)
            del self._wants[want.why][digest]

    def reconnected(self, peer: int, now_ms: int) -> None:
        """What was asked over the lost link is asked again."""
        self._unasked.pop(peer, None)
        for wants in self._wants.values():
            for want in wants.values():
                if want.asked == peer:
                    self._free(want)
                    want.at_ms = now_ms
                    want.gap_ms = FIRST_GAP_MS

    def turn(self, peers: tuple[int, ...], now_ms: int) -> None:
        """Indices mean other validators in another epoch: every source may have changed its name."""
        self._in_flight = {}
        self._asks = {}
        self._unasked = {}
        self._wants[Why.LISTED] = {}
        for wants in self._wants.values():
            for want in wants.values():
                want.asked = None
                want.sources = list(peers)
                want.at_ms = now_ms
        if not peers:
            self._wants = {why: {} for why in Why}
