"""The bodies and certificates that a validator lacks, and the questions by which it gets them."""

from __future__ import annotations

from collections.abc import Callable

from chain.certificate import VoteKind
from consensus.effects import Send
from consensus.messages import FetchBlock, FetchCertificate
from consensus.ordering.wanted import Wanted

Want = tuple[str, bytes] | tuple[str, int, int]


class Requests:
    def __init__(self, epoch: int, n: int, me: int | None) -> None:
        self._epoch = epoch
        self._n = n
        self._me = me
        self._wanted: Wanted[Want] = Wanted()

    def block(self, identity: bytes, view: int, now_ms: int) -> None:
        self._wanted.want(("block", identity), self._others(view, None), now_ms)

    def certificate(self, number: int, kind: VoteKind, prefer: int | None, view: int, now_ms: int) -> None:
        self._wanted.want(("certificate", number, int(kind)), self._others(view, prefer), now_ms)

    def take_block(self, identity: bytes) -> bool:
        """Whether this body was asked for; it is then asked for no more."""
        asked = ("block", identity) in self._wanted
        self._wanted.got(("block", identity))
        return asked

    def deadline(self) -> int | None:
        return self._wanted.deadline()

    def due(
        self, now_ms: int, holds_block: Callable[[bytes], bool], holds_certificate: Callable[[int, int], bool]
    ) -> list[Send]:
        sends = []
        for key in self._wanted:
            match key:
                case ("block", bytes(identity)) if holds_block(identity):
                    self._wanted.got(key)
                case ("certificate", int(number), int(kind)) if holds_certificate(number, kind):
                    self._wanted.got(key)
        for key, peer in self._wanted.due(now_ms):
            match key:
                case ("block", bytes(identity)):
                    sends.append(Send(peer, FetchBlock(identity)))
                case ("certificate", int(number), int(kind)):
                    sends.append(Send(peer, FetchCertificate(self._epoch, number, kind)))
        return sends

    def _others(self, view: int, prefer: int | None) -> list[int]:
        """Everyone else, the preferred first, then in an order that differs by validator and view."""
        start = (view + (self._me or 0)) % self._n
        ring = [(start + step) % self._n for step in range(self._n)]
        first = [prefer] if prefer is not None else []
        return [index for index in first + ring if index != self._me]
