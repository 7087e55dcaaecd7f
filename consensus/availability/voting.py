"""Judging the batches that others offer: held until they may be voted for, within bounds a creator."""

from __future__ import annotations

from dataclasses import dataclass

from chain.batch import SignedBatch
from chain.certificate import Available
from consensus.availability import guards
from consensus.availability.certifying import Certifying
from consensus.availability.desk import Desk
from consensus.availability.guards import Judgement
from consensus.availability.inputs import CheckBatch, Verdict
from consensus.availability.lots import Lot, make_lot
from consensus.effects import Now, Output

OFFERS_HELD = 8
"""A creator: what it offers beyond these is dropped, for it offers again each second."""
BAD_REMEMBERED = 1_024
ASK_AGAIN_MS = 1_000
"""A whole batch is checked each time, so a pending one is not asked about at every block."""


@dataclass(slots=True, eq=False)
class Offer:
    reference: Available
    creator: bytes
    signed: SignedBatch
    pulled: bool
    """Another voter gave it, so its creator may be gone: my vote goes to all."""
    verdict: Verdict | None = None
    asking: bool = False
    asked_ms: int = 0
    asked_at_executed: int = -1

    @property
    def digest(self) -> bytes:
        return self.reference.batch


class Voting:
    def __init__(self, desk: Desk, certifying: Certifying) -> None:
        self._desk = desk
        self._certifying = certifying
        self._held: dict[bytes, dict[bytes, Offer]] = {}
        self._bad: dict[bytes, None] = {}

    def get(self, digest: bytes) -> Offer | None:
        for offers in self._held.values():
            if digest in offers:
                return offers[digest]
        return None

    def held(self) -> int:
        return sum(len(offers) for offers in self._held.values())

    def offered(self, peer: int, reference: Available, signed: SignedBatch, now: Now, out: Output) -> None:
        """A creator's own offer of a batch."""
        desk = self._desk
        if desk.committee.of(reference.epoch) is None:
            return
        if not desk.committee.is_peer(peer, reference.epoch, reference.creator):
            # In the last epoch's terms it may be the same validator under a rotated key.
            if reference.epoch == desk.committee.current.epoch:
                desk.blame(peer, "offers a batch of another creator", out)
            return
        if self._is_sound(peer, reference, signed, out):
            lot = desk.lots.get(reference.batch)
            if lot is None:
                self._hold(reference, signed, False, now, out)
            elif lot.voted:
                self._certifying.remind(peer, lot, out)
            elif not lot.stored:
                desk.store_named(lot, signed, out)

    def pulled(self, peer: int, reference: Available, signed: SignedBatch, now: Now, out: Output) -> None:
        """A voter's answer about a batch that has no certificate known here."""
        if self._is_sound(peer, reference, signed, out):
            self._desk.pulls.done(reference.batch)
            self._hold(reference, signed, True, now, out)
        else:
            self._desk.pulls.failed(peer, reference.batch, now.mono_ms)

    def _is_sound(self, peer: int, reference: Available, signed: SignedBatch, out: Output) -> bool:
        desk = self._desk
        if signed.batch.chain != desk.committee.chain_id:
            desk.blame(peer, "a batch of another chain", out)
        elif desk.committee.of(reference.epoch) is None:
            return False
        elif not guards.is_well_formed(reference, desk.params):
            desk.blame(peer, "a batch that breaks the limits of a batch", out)
        elif not desk.committee.is_signed_by_creator(reference, signed):
            desk.blame(peer, "a batch that its creator did not sign", out)
        else:
            return not desk.lots.is_ordered(reference.batch) and reference.batch not in self._bad
        return False

    def _hold(self, reference: Available, signed: SignedBatch, pulled: bool, now: Now, out: Output) -> None:
        creator = self._desk.committee.key_at(reference.epoch, reference.creator)
        assert creator is not None
        offers = self._held.setdefault(creator, {})
        offer = offers.get(reference.batch)
        if offer is not None:
            offer.pulled |= pulled
        elif len(offers) < OFFERS_HELD:
            offers[reference.batch] = Offer(reference, creator, signed, pulled)
        self._review_creator(creator, now, out)

    def checked(self, digest: bytes, verdict: Verdict, now: Now, out: Output) -> None:
        offer = self.get(digest)
        if offer is None or not offer.asking:
            return
        offer.asking = False
        offer.verdict = verdict
        if verdict is Verdict.BAD:
            self._condemn(offer, out)
        self._review_creator(offer.creator, now, out)

    def _condemn(self, offer: Offer, out: Output) -> None:
        self._bad[offer.digest] = None
        if len(self._bad) > BAD_REMEMBERED:
            del self._bad[next(iter(self._bad))]
        creator = self._desk.committee.peer_with(offer.creator)
        if creator is not None:
            self._desk.blame(creator, "a batch with a transaction that no creator may pack", out)

    def review(self, now: Now, out: Output) -> None:
        """Time, finality or a creator's quota moved: some that waited may be asked about or voted for."""
        for creator in list(self._held):
            self._review_creator(creator, now, out)

    def _review_creator(self, creator: bytes, now: Now, out: Output) -> None:
        offers = self._held[creator]
        for offer in list(offers.values()):
            if offer.verdict is Verdict.PENDING and self._may_ask_again(offer, now):
                offer.verdict = None
            judgement = guards.may_vote_available(
                offer.reference,
                self._desk.final,
                self._desk.lots.outstanding(creator),
                offer.verdict,
                self._desk.params,
            )
            if judgement is Judgement.REFUSE:
                del offers[offer.digest]
            elif judgement is Judgement.VOTE:
                del offers[offer.digest]
                self._vote(offer, now, out)
            elif judgement is Judgement.ASK and not offer.asking:
                self._ask(offer, now, out)
        if not offers:
            del self._held[creator]

    def _may_ask_again(self, offer: Offer, now: Now) -> bool:
        return self._desk.executed > offer.asked_at_executed and now.mono_ms >= offer.asked_ms + ASK_AGAIN_MS

    @property
    def waits_for_time(self) -> bool:
        return any(
            offer.verdict is Verdict.PENDING and self._desk.executed > offer.asked_at_executed
            for offers in self._held.values()
            for offer in offers.values()
        )

    def _ask(self, offer: Offer, now: Now, out: Output) -> None:
        offer.asking = True
        offer.asked_ms = now.mono_ms
        offer.asked_at_executed = self._desk.executed
        out.events.append(CheckBatch(offer.digest, offer.signed))

    def _vote(self, offer: Offer, now: Now, out: Output) -> None:
        lot = make_lot(offer.reference, offer.creator, offer.signed)
        lot.stored = True
        self._desk.store(offer.signed, offer.digest, True, out)
        self._desk.lots.vote(lot, now.mono_ms)
        self._desk.announce(lot, out)
        creator = None if offer.pulled else self._desk.committee.peer_with(offer.creator)
        self._certifying.cast(lot, creator, now, out)

    def settle(self, lot: Lot, out: Output) -> None:
        """The batch has a certificate: what was held of it is worth storing, and needs no vote."""
        signed = self.release(lot.digest)
        if signed is not None:
            self._desk.store_named(lot, signed, out)

    def release(self, digest: bytes) -> SignedBatch | None:
        offer = self.get(digest)
        if offer is None:
            return None
        offers = self._held[offer.creator]
        del offers[digest]
        if not offers:
            del self._held[offer.creator]
        return offer.signed

    def turn(self) -> None:
        """Offers of an epoch that nobody can name any more go."""
        for creator, offers in list(self._held.items()):
            for digest, offer in list(offers.items()):
                if self._desk.committee.of(offer.reference.epoch) is None:
                    del offers[digest]
            if not offers:
                del self._held[creator]
