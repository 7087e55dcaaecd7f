"""Votes become certificates; and every voter owns what it voted for.

A batch whose creator fell silent is finished by those who voted for it: after a second each sends its vote to all
and lists the batch in its status frames; who lacks the batch pulls it and votes, whoever has the votes of a certificate
assembles it and floods it.
"""

from __future__ import annotations

from collections.abc import Iterable

from chain.availability import AvailabilityCertificate, assemble_availability
from chain.certificate import Available, ValidatorSet, Vote, VoteKind, read_subject
from chain.codec import CodecError
from consensus.availability import guards
from consensus.availability.allowance import Allowance
from consensus.availability.desk import Desk
from consensus.availability.inputs import Acknowledged, Candidate
from consensus.availability.lots import Lot, make_lot
from consensus.availability.pulls import Why
from consensus.availability.records import CertificateHeld
from consensus.availability.tally import LooseVotes
from consensus.effects import ALL, Now, Output, Send
from consensus.messages import Status

OWNED_AFTER_MS = 1_000
RESEND_LONGEST_MS = 8_000
RESENDS_A_SWEEP = 64
STATUS_GAP_MS = 500
"""A peer's status frames come each second; what comes faster is not looked at."""
ANSWERS_A_STATUS = 64
LISTED = 256
HELD_BYTES = 64 * 1024 * 1024
"""Of uncertified batches, as they are encoded; what was decoded from them takes as much again."""
LATE_VOTE_MS = 500
"""A vote that comes this long after the certificate was flooded says that its signer missed the flood."""
REMINDERS_A_SECOND = 64
GRACE_MS = 200
"""A certificate may overtake the creator's own offer, which is a megabyte."""


class Certifying:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._loose = LooseVotes()
        self._status_ms: dict[int, int] = {}
        self._reminders = Allowance(REMINDERS_A_SECOND)
        self._first_listed = 0

    @property
    def loose_votes(self) -> int:
        return len(self._loose)

    # Votes

    def cast(self, lot: Lot, to: int | None, now: Now, out: Output) -> None:
        """My vote for a lot just entered in the book, or looked at since, to its creator or to all. It leaves after the
        lot is durable."""
        for vote in self._loose.take(lot.subject):
            lot.votes.setdefault(vote.epoch, {})[vote.signer] = vote
        lot.resend_ms = now.mono_ms + OWNED_AFTER_MS
        lot.resend_gap_ms = OWNED_AFTER_MS
        votes = self._own_votes(lot)
        if not lot.own:
            out.send += [Send(ALL if to is None else to, vote) for vote in votes]
        self._try_assemble(lot, now, out)

    def _own_votes(self, lot: Lot) -> list[Vote]:
        """In the terms of every epoch since the batch's own: a certificate of the last is as good as one of this, and
        may be nearer to its quorum. Nothing but the batch need be durable, for signatures are deterministic."""
        if not lot.voted:
            return []
        own: list[Vote] = []
        kind = guards.own_kind(lot.looked)
        for validators, me in self._desk.committee.memberships:
            if validators.epoch >= lot.reference.epoch:
                votes = lot.votes.setdefault(validators.epoch, {})
                if me not in votes or votes[me].kind != kind:
                    votes[me] = self._desk.committee.sign(kind, lot.subject, validators.epoch, me)
                own.append(votes[me])
        return own

    def voted(self, peer: int, vote: Vote, now: Now, out: Output) -> None:
        desk = self._desk
        if desk.committee.of(vote.epoch) is None:
            return
        if not desk.committee.is_peer(peer, vote.epoch, vote.signer):
            if vote.epoch == desk.committee.current.epoch:
                desk.blame(peer, "sends an availability vote of another", out)
            return
        reference = self._read(peer, vote.subject, out)
        if reference is None or desk.lots.is_ordered(reference.batch):
            return
        lot = desk.lots.get(reference.batch)
        if lot is None:
            self._voted_unseen(peer, vote, reference, now, out)
        elif vote.subject != lot.subject:
            desk.blame(peer, "votes for a false description of a batch", out)
        elif lot.certificate is not None:
            is_late = now.mono_ms >= lot.since_ms + LATE_VOTE_MS
            if is_late and self._reminders.take(peer, now.mono_ms):
                out.send.append(Send(peer, lot.certificate))
        elif guards.says_more(vote, lot.votes.get(vote.epoch, {}).get(vote.signer)):
            if desk.committee.is_valid_vote(vote):
                lot.votes.setdefault(vote.epoch, {})[vote.signer] = vote
                self._try_assemble(lot, now, out)
            else:
                desk.blame(peer, "an availability vote with a bad signature", out)

    def _voted_unseen(self, peer: int, vote: Vote, reference: Available, now: Now, out: Output) -> None:
        desk = self._desk
        creator = desk.committee.key_at(reference.epoch, reference.creator)
        if creator is None or guards.is_expired(reference, desk.final + 1):
            return
        if not guards.is_well_formed(reference, desk.params):
            desk.blame(peer, "votes for a batch that breaks the limits of a batch", out)
            return
        if not self._loose.has(vote):
            if not desk.committee.is_valid_vote(vote):
                desk.blame(peer, "an availability vote with a bad signature", out)
                return
            self._loose.add(vote)
        self._want_listed(peer, reference.batch, now)
        votes = self._loose.of(vote.subject, vote.epoch)
        validators = desk.committee.of(vote.epoch)
        assert validators is not None
        if guards.may_assemble(votes.values(), validators) and desk.lots.takes_foreign:
            self._assemble(make_lot(reference, creator), validators, votes, now, out)

    def _want_listed(self, peer: int, digest: bytes, now: Now) -> None:
        desk = self._desk
        if desk.offers.get(digest) is None and not desk.offers.is_bad(digest):
            desk.pulls.want(digest, Why.LISTED, (peer,), now.mono_ms)

    def _try_assemble(self, lot: Lot, now: Now, out: Output) -> None:
        for epoch, votes in lot.votes.items():
            validators = self._desk.committee.of(epoch)
            if validators is not None and guards.may_assemble(votes.values(), validators):
                self._assemble(lot, validators, votes, now, out)
                return

    def _assemble(self, lot: Lot, validators: ValidatorSet, votes: dict[int, Vote], now: Now, out: Output) -> None:
        certificate = assemble_availability(validators, votes.values())
        out.send.append(Send(ALL, certificate))
        self._accept(lot, certificate, now, out)

    # Certificates

    def certified(self, peer: int, certificate: AvailabilityCertificate, now: Now, out: Output) -> None:
        desk = self._desk
        if desk.committee.of(certificate.epoch) is None:
            return
        reference = self._read(peer, certificate.subject, out)
        if reference is None or desk.lots.is_ordered(reference.batch):
            return
        lot = desk.lots.get(reference.batch)
        if lot is None:
            creator = desk.committee.key_at(reference.epoch, reference.creator)
            if creator is None or guards.is_expired(reference, desk.final + 1) or not desk.lots.takes_foreign:
                return
            lot = make_lot(reference, creator)
        elif lot.certificate is not None:
            return
        verified = lot.votes.get(certificate.epoch, {}).values()
        if lot.subject != certificate.subject or not desk.committee.is_valid_certificate(certificate, verified):
            desk.blame(peer, "an availability certificate that does not verify", out)
            return
        self._accept(lot, certificate, now, out)

    def _accept(self, lot: Lot, certificate: AvailabilityCertificate, now: Now, out: Output) -> None:
        """Durable, then on all links from where it was made, then acknowledged: in this order nothing promised is lost
        with its creator. One that was received is not passed on: whoever voted and missed it says so in a second."""
        desk = self._desk
        announced = guards.may_reference(lot.looked, lot.certificate)
        out.persist.append(CertificateHeld(certificate))
        desk.lots.certify(lot, certificate, now.mono_ms)
        self._loose.take(lot.subject)
        if guards.may_acknowledge(lot.own, lot.certificate):
            out.acks.append(Acknowledged(tuple(id for id, _ in lot.cargo), lot.digest))
        if not announced:
            desk.announce(lot, out)
        out.events.append(Candidate(lot.digest))
        desk.spare(lot, out)
        if lot.stored:
            self.let_go(lot)
            return
        offer = desk.release(lot.digest, out)
        if offer is not None:
            desk.store_named(lot, offer.signed, out)
        else:
            desk.pulls.want(lot.digest, Why.CERTIFIED, desk.committee.signers(certificate), now.mono_ms + GRACE_MS)

    @staticmethod
    def let_go(lot: Lot) -> None:
        """The log serves the bytes from here on; own ones may yet have to be packed again."""
        if not lot.own:
            lot.signed = None

    def _read(self, peer: int, subject: bytes, out: Output) -> Available | None:
        try:
            reference = read_subject(VoteKind.AVAILABLE, subject)
        except CodecError:
            self._desk.blame(peer, "an availability statement that cannot be read", out)
            return None
        assert isinstance(reference, Available)
        return reference

    # Ownership

    def remind(self, peer: int, lot: Lot, out: Output) -> None:
        """What this peer lacks of a lot that it still asks about: the certificate, or else my votes."""
        if lot.certificate is not None:
            out.send.append(Send(peer, lot.certificate))
        else:
            out.send += [Send(peer, vote) for vote in self._own_votes(lot)]

    def listed(self, peer: int, status: Status, now: Now, out: Output) -> None:
        """A peer voted for these and has seen no certificate."""
        last = self._status_ms.get(peer)
        if last is not None and now.mono_ms < last + STATUS_GAP_MS:
            return
        self._status_ms[peer] = now.mono_ms
        before = len(out.send)
        for digest in status.uncertified:
            if len(out.send) - before >= ANSWERS_A_STATUS:
                return
            lot = self._desk.lots.get(digest)
            if lot is not None:
                self.remind(peer, lot, out)
            elif not self._desk.lots.is_ordered(digest):
                self._want_listed(peer, digest, now)

    def heard_ms(self, peer: int) -> int | None:
        """When the last status frame came that was looked at."""
        return self._status_ms.get(peer)

    def uncertified(self, now_ms: int) -> tuple[bytes, ...]:
        """What to list in a status frame; if it is too much for one, another part each time the sweep has passed."""
        owned = [
            digest for digest, lot in self._desk.lots.uncertified.items() if now_ms >= lot.since_ms + OWNED_AFTER_MS
        ]
        if len(owned) <= LISTED:
            return tuple(owned)
        first = self._first_listed % len(owned)
        return tuple((owned[first:] + owned[:first])[:LISTED])

    def sweep(self, now: Now, out: Output) -> None:
        self._first_listed += LISTED // 4
        due = [lot for lot in self._owed() if now.mono_ms >= lot.resend_ms]
        self._bound_memory()
        for lot in due[:RESENDS_A_SWEEP]:
            if lot.certificate is not None:
                out.send.append(Send(ALL, lot.certificate))
            else:
                out.send += [Send(ALL, vote) for vote in self._own_votes(lot)]
            lot.resend_gap_ms = min(max(2 * lot.resend_gap_ms, OWNED_AFTER_MS), RESEND_LONGEST_MS)
            lot.resend_ms = now.mono_ms + lot.resend_gap_ms

    def _owed(self) -> Iterable[Lot]:
        """What is said again until it has its effect. Who has left the set proposes no more, and the new set may hold
        nothing of what the old one certified last: to them its certificates are owed until they are ordered."""
        if self._desk.committee.has_left:
            return [lot for lot in self._desk.lots if lot.voted]
        return self._desk.lots.uncertified.values()

    def _bound_memory(self) -> None:
        """The quotas of a hundred creators are gigabytes: what is oldest is served from the log instead."""
        left = HELD_BYTES
        for lot in reversed(self._desk.lots.uncertified.values()):
            left -= lot.reference.size_bytes
            if left < 0:
                self.let_go(lot)

    def closed(self, lot: Lot) -> None:
        self._loose.take(lot.subject)

    def turn(self, now: Now) -> None:
        """Another epoch: what was voted for and not certified is voted for anew."""
        known = self._desk.committee.epochs
        self._loose.keep_epochs(known)
        self._status_ms = {}
        self._reminders.clear()
        for lot in self._owed():
            lot.votes = {epoch: votes for epoch, votes in lot.votes.items() if epoch in known}
            lot.resend_ms = now.mono_ms
            lot.resend_gap_ms = OWNED_AFTER_MS
