"""Judging the batches that others offer: asked about, stored, voted for, or held until one of these may happen."""

from __future__ import annotations

from chain.batch import SignedBatch
from chain.certificate import Available
from consensus.availability import guards
from consensus.availability.certifying import Certifying
from consensus.availability.desk import Desk
from consensus.availability.guards import Judgement
from consensus.availability.inputs import CheckBatch, Verdict
from consensus.availability.lots import make_lot
from consensus.availability.offers import Offer
from consensus.effects import Now, Output

ASK_AGAIN_MS = 1_000
"""A whole batch is checked each time, so a pending one is not asked about at every block."""


class Voting:
    def __init__(self, desk: Desk, certifying: Certifying) -> None:
        self._desk = desk
        self._certifying = certifying
        self._held_back: dict[bytes, int] = {}
        """By digest, oldest first, until when offers are not looked at; some may be gone."""
        self._eager_until_ms = 0

    def offered(self, peer: int, reference: Available, signed: SignedBatch, now: Now, out: Output) -> None:
        """A creator's own offer of a batch."""
        committee = self._desk.committee
        if committee.of(reference.epoch) is None:
            return
        if not committee.is_peer(peer, reference.epoch, reference.creator):
            # In the last epoch's terms it may be the same validator under a rotated key.
            if reference.epoch == committee.current.epoch:
                self._desk.blame(peer, "offers a batch of another creator", out)
            return
        if self._is_spent(reference) or not self._is_sound(peer, reference, signed, out):
            return
        lot = self._desk.lots.get(reference.batch)
        if lot is None:
            self._hold(reference, signed, False, now, out)
        elif lot.stored:
            self._certifying.remind(peer, lot, out)
        else:
            self._desk.store_named(lot, signed, out)

    def pulled(self, peer: int, reference: Available, signed: SignedBatch, now: Now, out: Output) -> None:
        """A voter's answer about a batch that has no certificate known here."""
        if self._is_spent(reference):
            self._desk.pulls.done(reference.batch)
        elif self._is_sound(peer, reference, signed, out):
            self._desk.pulls.done(reference.batch)
            self._hold(reference, signed, True, now, out)
        else:
            self._desk.pulls.failed(peer, reference.batch, now.mono_ms)

    def _is_spent(self, reference: Available) -> bool:
        return self._desk.lots.is_ordered(reference.batch) or self._desk.offers.is_bad(reference.batch)

    def _is_sound(self, peer: int, reference: Available, signed: SignedBatch, out: Output) -> bool:
        desk = self._desk
        if desk.committee.of(reference.epoch) is None:
            return False
        if signed.batch.chain != desk.committee.chain_id:
            desk.blame(peer, "a batch of another chain", out)
        elif not guards.is_well_formed(reference, desk.params):
            desk.blame(peer, "a batch that breaks the limits of a batch", out)
        elif not desk.committee.is_signed_by_creator(reference, signed):
            desk.blame(peer, "a batch that its creator did not sign", out)
        else:
            return True
        return False

    def _hold(self, reference: Available, signed: SignedBatch, pulled: bool, now: Now, out: Output) -> None:
        creator = self._desk.committee.key_at(reference.epoch, reference.creator)
        assert creator is not None
        offer = Offer(reference, creator, signed, pulled)
        if not pulled and self._is_spare(offer, now):
            offer.held_until_ms = now.mono_ms + guards.HOLD_BACK_MS
        if self._desk.offers.hold(offer) and offer.held_until_ms:
            self._held_back[offer.digest] = offer.held_until_ms
        self._review_creator(creator, now, out)

    def _is_spare(self, offer: Offer, now: Now) -> bool:
        """What goes alone may name a blob, which is to come here as well."""
        current, me, ref = self._desk.committee.current, self._desk.committee.me, offer.reference
        if me is None or ref.epoch != current.epoch or offer.is_alone or now.mono_ms < self._eager_until_ms:
            return False
        others = [index for index in range(current.n) if index != ref.creator]
        spares = [
            each for each in others if guards.is_spare(ref.creator, each, ref.sequence, current.n, current.quorum)
        ]
        relied_on = (self._certifying.heard_ms(each) for each in others if each not in spares)
        return me in spares and guards.are_present(now.mono_ms, relied_on)

    def deadline(self) -> int | None:
        return next(iter(self._held_back.values()), None)

    def wake(self, now: Now, out: Output) -> None:
        """Who was to vote for what is held back here did not: it is looked at, and so is all else for a while."""
        while self._held_back:
            digest, until_ms = next(iter(self._held_back.items()))
            offer = self._desk.offers.get(digest)
            if offer is not None:
                if not guards.may_ask(now.mono_ms, until_ms):
                    return
                self._eager_until_ms = now.mono_ms + guards.EAGER_MS
                self._review_creator(offer.creator, now, out)
            del self._held_back[digest]

    def checked(self, digest: bytes, verdict: Verdict, now: Now, out: Output) -> None:
        offer = self._desk.offers.get(digest)
        if offer is None or not offer.asking:
            return
        offer.asking = False
        offer.verdict = verdict
        if verdict is Verdict.BAD:
            self._desk.offers.condemn(digest)
            creator = self._desk.committee.peer_with(offer.creator)
            if creator is not None:
                self._desk.blame(creator, "a batch with a transaction that no creator may pack", out)
        self._review_creator(offer.creator, now, out)

    def review(self, now: Now, out: Output) -> None:
        """Time, finality or a creator's quota moved: some that waited may be asked about or voted for."""
        for creator in self._desk.offers.creators:
            self._review_creator(creator, now, out)

    def _review_creator(self, creator: bytes, now: Now, out: Output) -> None:
        desk = self._desk
        for offer in desk.offers.of(creator):
            if offer.verdict is Verdict.PENDING and self._may_ask_again(offer, now):
                offer.verdict = None
            judgement = guards.may_vote_available(
                offer.reference, desk.final, desk.lots.outstanding(creator), offer.verdict, desk.params
            )
            if judgement is Judgement.REFUSE:
                desk.release(offer.digest, out)
            elif judgement is Judgement.VOTE and guards.may_speak(desk.muted):
                desk.offers.release(offer.digest)
                self._vote(offer, now, out)
            elif judgement is Judgement.ASK and not offer.asking and guards.may_ask(now.mono_ms, offer.held_until_ms):
                self._ask(offer, now, out)

    def _may_ask_again(self, offer: Offer, now: Now) -> bool:
        return self._desk.executed > offer.asked_at_executed and now.mono_ms >= offer.asked_ms + ASK_AGAIN_MS

    @property
    def waits_for_time(self) -> bool:
        return any(
            offer.verdict is Verdict.PENDING and self._desk.executed > offer.asked_at_executed
            for offer in self._desk.offers
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
