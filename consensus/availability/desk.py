"""What the parts of the core share: the book, the committee, the parameters, and how far the chain has come."""

from __future__ import annotations

from chain.batch import SignedBatch
from chain.genesis import Params
from consensus.availability import guards
from consensus.availability.committee import Committee
from consensus.availability.inputs import BatchHere, CheckSpared, Referable
from consensus.availability.lots import Lot, Lots
from consensus.availability.offers import Offer, Offers
from consensus.availability.pulls import Pulls
from consensus.availability.records import BatchStored
from consensus.effects import Misbehaviour, Output


class Desk:
    def __init__(self, committee: Committee, params: Params) -> None:
        self.committee = committee
        self.params = params
        self.lots = Lots(params)
        self.offers = Offers()
        self.pulls = Pulls()
        self.final = 0
        self.executed = 0
        self.muted = False
        self._busy_until_ms = 0

    def ordered(self, transactions: int, now_ms: int) -> None:
        """By a block that is final."""
        if guards.is_stream(transactions):
            self._busy_until_ms = now_ms + guards.BUSY_MS

    def interval_ms(self, now_ms: int) -> int:
        return guards.interval_ms(now_ms, self._busy_until_ms, self.params)

    def release(self, digest: bytes, out: Output) -> Offer | None:
        """Takes out an offer whose verdict no longer matters."""
        offer = self.offers.release(digest)
        if offer is not None and offer.asking:
            out.events.append(CheckSpared(digest))
        return offer

    @staticmethod
    def spare(lot: Lot, out: Output) -> None:
        """That nobody need look at it any more, should anybody be doing so."""
        if lot.looking:
            lot.looking = False
            out.events.append(CheckSpared(lot.digest))

    def store(self, signed: SignedBatch, digest: bytes, voted: bool, out: Output) -> None:
        out.persist.append(BatchStored(signed, voted))
        out.events.append(BatchHere(digest))
        self.pulls.done(digest)

    def store_named(self, lot: Lot, signed: SignedBatch, out: Output) -> None:
        """Bytes of a certified batch: a quorum holds them, nobody's vote is missing."""
        lot.stored = True
        self.store(signed, lot.digest, False, out)

    @staticmethod
    def announce(lot: Lot, out: Output) -> None:
        out.events.append(Referable(lot.reference))

    @staticmethod
    def blame(peer: int, reason: str, out: Output) -> None:
        out.events.append(Misbehaviour(peer, reason))
