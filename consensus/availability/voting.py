"""Judging the batches that others offer: asked about, stored, voted for, or held until one of these may happen.

Whoever has the first turn to look has the application verify a batch's signatures before it votes; the others vote at
once that they hold it. If there is no certificate after `LOOK_AFTER_MS`, those of the second turn look as well and vote
again, and so on, a turn each time, until there is one or all have looked. Who is not relied on has no turn.
"""

from __future__ import annotations

from collections import Counter

from chain.batch import SignedBatch
from chain.certificate import Available, VoteKind
from consensus.availability import guards
from consensus.availability.certifying import Certifying
from consensus.availability.desk import Desk
from consensus.availability.guards import Judgement
from consensus.availability.inputs import CheckBatch, Verdict
from consensus.availability.lots import Lot, make_lot
from consensus.availability.offers import Offer
from consensus.effects import Now, Output

ASK_AGAIN_MS = 1_000
"""A whole batch is checked each time, so a pending one is not asked about at every block."""


class Voting:
    def __init__(self, desk: Desk, certifying: Certifying) -> None:
        self._desk = desk
        self._certifying = certifying
        self._passed_over: dict[int, int] = {}
        """Until when whoever was to look and did not is not relied on."""

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
        offer.turn = self._turn(offer, now)
        self._desk.offers.hold(offer)
        self._review_creator(creator, now, out)

    def _turn(self, offer: Offer, now: Now) -> int:
        """What goes alone may name a blob, which is fetched for nobody who did not sign for it. Of what a voter gave,
        its creator has found no certificate."""
        current, ref = self._desk.committee.current, offer.reference
        if offer.is_alone or offer.pulled or self._desk.committee.me is None or ref.epoch != current.epoch:
            return 0
        before = [seat for seat in self._seats_before(ref) if self._is_relied_on(seat, now)]
        return guards.turn_to_look(len(before), current.lookers)

    def _seats_before(self, ref: Available) -> list[int]:
        me = self._desk.committee.me
        assert me is not None
        return guards.seats_before(ref.creator, me, ref.sequence, self._desk.committee.current.n)

    def _is_relied_on(self, seat: int, now: Now) -> bool:
        return guards.is_relied_on(now.mono_ms, self._certifying.heard_ms(seat), self._passed_over.get(seat, 0))

    def turn(self) -> None:
        """Another epoch: a seat is another validator's."""
        self._passed_over = {}

    def look(self, now: Now, out: Output) -> None:
        """At what was voted for as held, once its certificate is late for want of those who look; the oldest first."""
        desk = self._desk
        if not guards.may_speak(desk.muted):
            return
        uncertified = desk.lots.uncertified.values()
        under_way = Counter(lot.creator for lot in uncertified if lot.looking)
        for lot in uncertified:
            if lot.looking or not guards.may_look(now.mono_ms, lot.look_ms, lot.looked, lot.signed is not None):
                continue
            if under_way[lot.creator] < guards.LOOKS_UNDER_WAY and self._lacks_lookers(lot):
                assert lot.signed is not None
                under_way[lot.creator] += 1
                lot.looking = True
                self._pass_over(lot, now)
                out.events.append(CheckBatch(lot.digest, lot.signed, True))

    def _lacks_lookers(self, lot: Lot) -> bool:
        """By the votes that were sent to all; it may be that only holders are missing."""
        known = ((self._desk.committee.of(epoch), votes) for epoch, votes in lot.votes.items())
        return not any(
            validators is not None and guards.lookers_among(votes.values()) >= validators.lookers
            for validators, votes in known
        )

    def _pass_over(self, lot: Lot, now: Now) -> None:
        current = self._desk.committee.current
        if self._desk.committee.me is None or lot.reference.epoch != current.epoch:
            return
        votes = lot.votes.get(current.epoch, {})
        for seat in self._seats_before(lot.reference):
            if seat not in votes or votes[seat].kind != VoteKind.AVAILABLE:
                self._passed_over[seat] = now.mono_ms + guards.PASSED_OVER_MS

    def checked(self, digest: bytes, verdict: Verdict, now: Now, out: Output) -> None:
        offer, lot = self._desk.offers.get(digest), self._desk.lots.get(digest)
        if offer is not None and offer.asking:
            offer.asking = False
            offer.verdict = verdict
            if verdict is Verdict.BAD:
                self._condemn(digest, offer.creator, out)
            self._review_creator(offer.creator, now, out)
        elif lot is not None and lot.looking:
            lot.looking = False
            if verdict is Verdict.BAD:
                self._condemn(digest, lot.creator, out)
                self._desk.lots.give_up(lot)
            elif verdict is Verdict.PENDING:
                lot.look_ms = now.mono_ms + ASK_AGAIN_MS
            else:
                lot.looked = True
                self._desk.announce(lot, out)
                self._certifying.cast(lot, None, now, out)

    def _condemn(self, digest: bytes, creator: bytes, out: Output) -> None:
        self._desk.offers.condemn(digest)
        peer = self._desk.committee.peer_with(creator)
        if peer is not None:
            self._desk.blame(peer, "a batch with a transaction that no creator may pack", out)

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
            elif judgement is Judgement.ASK and not offer.asking:
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
        out.events.append(CheckBatch(offer.digest, offer.signed, offer.turn == 0))

    def _vote(self, offer: Offer, now: Now, out: Output) -> None:
        lot = make_lot(offer.reference, offer.creator, offer.signed)
        lot.stored = True
        lot.looked = offer.turn == 0
        lot.look_ms = now.mono_ms + offer.turn * guards.LOOK_AFTER_MS
        self._desk.store(offer.signed, offer.digest, True, out)
        self._desk.lots.vote(lot, now.mono_ms)
        if guards.may_reference(lot.looked, lot.certificate):
            self._desk.announce(lot, out)
        creator = None if offer.pulled else self._desk.committee.peer_with(offer.creator)
        self._certifying.cast(lot, creator, now, out)
