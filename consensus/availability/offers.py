"""Batches of others that may not be voted for yet, a few a creator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chain.batch import SignedBatch
from chain.certificate import Available
from consensus.availability.inputs import Verdict

OFFERS_HELD = 8
"""A creator: what it offers beyond these is dropped, for it offers again each second."""
ALONE_HELD = 32
"""And so many more with one transaction each, which may wait for a blob."""
BAD_REMEMBERED = 1_024


@dataclass(slots=True, eq=False)
class Offer:
    reference: Available
    creator: bytes
    """Consensus key."""
    signed: SignedBatch
    pulled: bool
    """Another voter gave it, so its creator may be gone: my vote goes to all."""
    verdict: Verdict | None = None
    turn: int = 0
    """To verify its signatures; who has the first does so before it votes."""
    asking: bool = False
    asked_ms: int = 0
    asked_at_executed: int = -1

    @property
    def digest(self) -> bytes:
        return self.reference.batch

    @property
    def is_alone(self) -> bool:
        return self.reference.transactions == 1

    @property
    def places(self) -> int:
        return ALONE_HELD if self.is_alone else OFFERS_HELD


class Offers:
    def __init__(self) -> None:
        self._held: dict[bytes, dict[bytes, Offer]] = {}
        self._bad: dict[bytes, None] = {}

    def __len__(self) -> int:
        return sum(len(offers) for offers in self._held.values())

    def __iter__(self) -> Iterator[Offer]:
        for offers in self._held.values():
            yield from offers.values()

    @property
    def creators(self) -> tuple[bytes, ...]:
        return tuple(self._held)

    def of(self, creator: bytes) -> tuple[Offer, ...]:
        return tuple(self._held.get(creator, {}).values())

    def get(self, digest: bytes) -> Offer | None:
        for offers in self._held.values():
            if digest in offers:
                return offers[digest]
        return None

    def hold(self, offer: Offer) -> None:
        """If there is room for it."""
        offers = self._held.setdefault(offer.creator, {})
        known = offers.get(offer.digest)
        if known is not None:
            if offer.pulled:
                known.pulled = True
            return
        if sum(each.is_alone == offer.is_alone for each in offers.values()) >= offer.places:
            return
        offers[offer.digest] = offer

    def release(self, digest: bytes) -> Offer | None:
        offer = self.get(digest)
        if offer is not None:
            offers = self._held[offer.creator]
            del offers[digest]
            if not offers:
                del self._held[offer.creator]
        return offer

    def condemn(self, digest: bytes) -> None:
        """The verdict on a batch is a function of its bytes: it need not be asked for twice."""
        self.release(digest)
        self._bad[digest] = None
        if len(self._bad) > BAD_REMEMBERED:
            del self._bad[next(iter(self._bad))]

    def is_bad(self, digest: bytes) -> bool:
        return digest in self._bad
