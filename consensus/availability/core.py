"""The availability core: one step for each input, and the questions that ordering and the node may ask in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chain.availability import AVAILABILITY_KINDS, AvailabilityCertificate
from chain.batch import SignedBatch
from chain.certificate import Available, ValidatorSet, Vote, VoteKind, read_subject
from chain.genesis import Params
from chain.keys import SigningKey
from consensus.availability import guards
from consensus.availability.allowance import Allowance
from consensus.availability.certifying import Certifying
from consensus.availability.committee import Committee
from consensus.availability.creation import Creation
from consensus.availability.desk import Desk
from consensus.availability.inputs import (
    Advanced,
    BatchHere,
    Checked,
    Input,
    Muted,
    Need,
    NewEpoch,
    Ordered,
    Replay,
    ServeBatch,
    Submit,
)
from consensus.availability.lots import Lot, make_lot
from consensus.availability.pulls import Why
from consensus.availability.records import BatchStored, CertificateHeld, SequenceReserved
from consensus.availability.voting import Voting
from consensus.effects import Now, Output, PeerUp, Received, Send, Tick
from consensus.messages import BatchAnswer, BatchOffer, BatchPull, Status

SWEEP_MS = 250
"""How often what waits for time is looked through; its own times are whole seconds."""
SERVED_A_SECOND = 32
"""Batches to one peer: it asks for four at a time."""


class Availability:
    """`me` is None for a node outside the set: it stores, serves and follows, and neither creates nor votes.
    `previous` is the last epoch's set, whose unexpired batches and certificates are still good; a node that lives
    through the change keeps it by itself."""

    def __init__(
        self,
        chain_id: bytes,
        validators: ValidatorSet,
        me: int | None,
        key: SigningKey,
        params: Params,
        previous: ValidatorSet | None = None,
    ) -> None:
        self._desk = Desk(Committee(chain_id, validators, me, key, previous), params)
        self._certifying = Certifying(self._desk)
        self._voting = Voting(self._desk, self._certifying)
        self._creation = Creation(self._desk, self._certifying)
        self._served = Allowance(SERVED_A_SECOND)
        self._bare: set[bytes] = set()
        """While records are replayed: bytes without a vote, whose certificate may come later."""
        self._later: list[BatchStored | CertificateHeld] = []
        """While records are replayed: those of epochs that ordering's own replay has yet to reach."""
        self._now_ms = 0
        self._sweep_ms: int | None = None

    def step(self, now: Now, event: Input) -> Output:
        out = Output()
        self._now_ms = now.mono_ms
        self._take(event, now, out)
        if self._sweep_ms is not None and now.mono_ms >= self._sweep_ms:
            self._sweep_ms = None
            self._sweep(now, out)
        if isinstance(event, Received | Submit):
            self._bare.clear()
        if not isinstance(event, Replay):
            self._creation.progress(now, out)
            out.send += [Send(peer, BatchPull(digest)) for peer, digest in self._desk.pulls.due(now.mono_ms)]
        self._plan_sweep(now)
        return out

    def deadline(self) -> int | None:
        times = (self._creation.deadline(), self._sweep_ms)
        return min((time for time in times if time is not None), default=None)

    def _plan_sweep(self, now: Now) -> None:
        something = (
            self._desk.lots.uncertified
            or len(self._desk.pulls)
            or self._voting.waits_for_time
            or (self._desk.committee.has_left and len(self._desk.lots))
        )
        if not something:
            self._sweep_ms = None
        elif self._sweep_ms is None:
            self._sweep_ms = now.mono_ms + SWEEP_MS

    def _sweep(self, now: Now, out: Output) -> None:
        self._voting.review(now, out)
        self._voting.look(now, out)
        self._creation.sweep(now, out)
        self._certifying.sweep(now, out)

    def _take(self, event: Input, now: Now, out: Output) -> None:
        match event:
            case Received(peer, message):
                self._received(peer, message, now, out)
            case Submit(transactions, alone):
                self._creation.submit(transactions, alone, out)
            case Checked(batch, verdict):
                self._voting.checked(batch, verdict, now, out)
            case Advanced(height, executed):
                self._advanced(height, executed, now, out)
            case Ordered(height, digests):
                self._ordered(height, digests, now, out)
            case Need(digests):
                self._need(digests, now, out)
            case PeerUp(peer):
                self._desk.pulls.reconnected(peer, now.mono_ms)
                self._creation.connected(peer, out)
            case NewEpoch(validators, me, key):
                self._new_epoch(validators, me, key, now, out)
            case Muted(on):
                self._desk.muted = on
                self._voting.review(now, out)
            case Replay(records):
                self._replay(records, now)
            case Tick():
                pass

    # Messages

    def _received(self, peer: int, message: object, now: Now, out: Output) -> None:
        committee = self._desk.committee
        if isinstance(message, BatchAnswer):
            if peer in committee.sources:
                self._answered(peer, message.signed, now, out)
            return
        if isinstance(message, AvailabilityCertificate):
            if peer in committee.sources:
                self._certifying.certified(peer, message, now, out)
            return
        if not 0 <= peer < committee.current.n or peer == committee.me:
            return
        match message:
            case Vote(kind) if kind in AVAILABILITY_KINDS:
                self._certifying.voted(peer, message, now, out)
            case BatchOffer(signed):
                self._voting.offered(peer, signed.reference, signed, now, out)
            case BatchPull(batch):
                self._pulled(peer, batch, now, out)
            case Status():
                self._certifying.listed(peer, message, now, out)
            case _:
                pass

    def _pulled(self, peer: int, digest: bytes, now: Now, out: Output) -> None:
        if not self._served.take(peer, now.mono_ms):
            return
        lot = self._desk.lots.get(digest)
        if lot is not None and lot.stored and lot.signed is not None:
            out.send.append(Send(peer, BatchAnswer(lot.signed)))
        else:
            out.events.append(ServeBatch(peer, digest))

    def _answered(self, peer: int, signed: SignedBatch, now: Now, out: Output) -> None:
        desk = self._desk
        ref = signed.reference
        want = desk.pulls.get(ref.batch)
        asked = desk.pulls.was_asked(peer, ref.batch)
        if want is None or not guards.may_take_answer(asked):
            if not asked and not desk.pulls.is_excused(peer):
                desk.blame(peer, "answers with batches that it was not asked for", out)
            return
        lot = desk.lots.get(ref.batch)
        if want.why is Why.LISTED and lot is None:
            self._voting.pulled(peer, ref, signed, now, out)
        elif desk.committee.of(ref.epoch) is not None and not desk.committee.is_signed_by_creator(ref, signed):
            desk.blame(peer, "a batch that its creator did not sign", out)
            desk.pulls.failed(peer, ref.batch, now.mono_ms)
        elif lot is not None and not lot.stored:
            desk.store_named(lot, signed, out)
        else:
            desk.store(signed, ref.batch, False, out)

    # What ordering reports

    def _advanced(self, height: int, executed: int, now: Now, out: Output) -> None:
        desk = self._desk
        desk.final = max(desk.final, height)
        desk.executed = max(desk.executed, executed)
        for lot in desk.lots.expire(desk.final):
            self._expired(lot, now)
        self._creation.advanced(now)
        self._voting.review(now, out)

    def _expired(self, lot: Lot, now: Now) -> None:
        self._creation.expired(lot, now)
        self._certifying.closed(lot)
        want = self._desk.pulls.get(lot.digest)
        if want is not None and want.why is not Why.NEEDED:
            self._desk.pulls.done(lot.digest)

    def _ordered(self, height: int, digests: tuple[bytes, ...], now: Now, out: Output) -> None:
        desk = self._desk
        transactions = 0
        for digest in digests:
            lot = desk.lots.order(digest, height + guards.VOTE_AHEAD + desk.params.horizon)
            if lot is not None:
                transactions += lot.reference.transactions
                desk.spare(lot, out)
                self._creation.ordered(lot)
                self._certifying.closed(lot)
            offer = desk.release(digest, out)
            if offer is not None:
                desk.store(offer.signed, digest, False, out)
            want = desk.pulls.get(digest)
            if want is not None:
                desk.pulls.want(digest, Why.NEEDED, desk.committee.sources, now.mono_ms)
        desk.ordered(transactions, now.mono_ms)
        self._voting.review(now, out)

    def _need(self, digests: tuple[bytes, ...], now: Now, out: Output) -> None:
        desk = self._desk
        for digest in digests:
            lot = desk.lots.get(digest)
            offer = desk.release(digest, out)
            if lot is not None and lot.stored:
                out.events.append(BatchHere(digest))
            elif offer is not None:
                # Not in the book: with a certificate it would have been stored.
                desk.store(offer.signed, digest, False, out)
            else:
                signers: tuple[int, ...] = ()
                if lot is not None and lot.certificate is not None:
                    signers = desk.committee.signers(lot.certificate)
                others = tuple(peer for peer in desk.committee.sources if peer not in signers)
                desk.pulls.want(digest, Why.NEEDED, signers + others, now.mono_ms)

    def _new_epoch(self, validators: ValidatorSet, me: int | None, key: SigningKey, now: Now, out: Output) -> None:
        desk = self._desk
        desk.committee.turn(validators, me, key)
        known = desk.committee.epochs
        for lot in [lot for lot in desk.lots if lot.reference.epoch not in known]:
            # Only batches of this epoch and the last may be named, so for the book these are past their time.
            desk.lots.close(lot)
            self._expired(lot, now)
        for offer in list(desk.offers):
            if offer.reference.epoch not in known:
                desk.release(offer.digest, out)
        desk.pulls.turn(desk.committee.sources, now.mono_ms)
        self._served.clear()
        self._certifying.turn(now)
        self._voting.turn()
        later, self._later = self._later, []
        self._replay(later, now)
        self._voting.review(now, out)

    # Restart

    def _replay(self, records: Iterable[object], now: Now) -> None:
        current = self._desk.committee.current.epoch
        for record in records:
            match record:
                case BatchStored(signed, voted):
                    if signed.batch.epoch > current:
                        self._later.append(record)
                    else:
                        self._restore_batch(signed, voted, now)
                case CertificateHeld(certificate):
                    if certificate.epoch > current:
                        self._later.append(record)
                    else:
                        self._restore_certificate(certificate, now)
                case SequenceReserved(below):
                    self._creation.reserve(below)
                case _:
                    pass

    def _restore_batch(self, signed: SignedBatch, voted: bool, now: Now) -> None:
        desk = self._desk
        ref = signed.reference
        creator = desk.committee.key_at(ref.epoch, ref.creator)
        if creator is None or desk.lots.is_ordered(ref.batch) or guards.is_expired(ref, desk.final + 1):
            return
        desk.pulls.done(ref.batch)
        lot = desk.lots.get(ref.batch)
        if lot is None:
            if not voted:
                self._bare.add(ref.batch)
                return
            lot = make_lot(ref, creator)
        lot.stored = True
        if not voted or lot.voted:
            return
        if lot.certificate is None:
            lot.signed = signed
        if creator == desk.committee.key.public:
            self._creation.restore(lot, signed, now)
        else:
            desk.lots.vote(lot, now.mono_ms)

    def _restore_certificate(self, certificate: AvailabilityCertificate, now: Now) -> None:
        desk = self._desk
        ref = read_subject(VoteKind.AVAILABLE, certificate.subject)
        assert isinstance(ref, Available)
        creator = desk.committee.key_at(ref.epoch, ref.creator)
        if creator is None or desk.lots.is_ordered(ref.batch) or guards.is_expired(ref, desk.final + 1):
            return
        lot = desk.lots.get(ref.batch)
        if lot is None:
            if not desk.lots.takes_foreign:
                return
            lot = make_lot(ref, creator)
            lot.stored = ref.batch in self._bare
        if lot.certificate is None:
            desk.lots.certify(lot, certificate, now.mono_ms)
        if lot.stored:
            self._certifying.let_go(lot)
        else:
            sources = desk.committee.signers(certificate)
            desk.pulls.want(ref.batch, Why.CERTIFIED, sources, now.mono_ms + SWEEP_MS)

    # What ordering and the node ask

    @property
    def leavers(self) -> tuple[bytes, ...]:
        """Consensus keys of those numbered on from the current set: they were in the last one and may be asked for
        bytes."""
        return self._desk.committee.leavers

    def room(self) -> int:
        """Bytes of transactions that the pool still takes."""
        return self._creation.room()

    def is_whole(self, named: Iterable[bytes]) -> bool:
        """Whether the bytes of these batches, and of all that are certified, are here."""
        lots = self._desk.lots
        known = (lots.get(digest) for digest in named if not lots.is_ordered(digest))
        return all(lot is not None and lot.stored for lot in known) and all(lot.stored for lot in lots)

    def reference(self, digest: bytes) -> Available | None:
        """What a voter may accept in a proposal: a batch it has looked at, or has verified a certificate of."""
        lot = self._desk.lots.get(digest)
        if lot is None or not guards.may_reference(lot.looked, lot.certificate):
            return None
        return lot.reference

    def candidates(self, taken: Callable[[bytes], bool], height: int, blocked: bool = False) -> tuple[Available, ...]:
        """What a leader names in its block of this height: `taken` says what the block's unfinal ancestry names
        already, `blocked` that execution is too far behind for any batch."""
        return () if blocked else self._desk.lots.candidates(taken, height)

    def interval_ms(self, now_ms: int) -> int:
        """Between blocks that this validator makes."""
        return self._desk.interval_ms(now_ms)

    def pending_batches(self, taken: Callable[[bytes], bool], height: int) -> bool:
        """Whether there is a candidate at all."""
        return self._desk.lots.has_candidate(taken, height)

    def certificates_for(self, digests: Iterable[bytes]) -> tuple[AvailabilityCertificate, ...]:
        """Those known, to travel beside a proposal; a batch once final needs none."""
        lots = (self._desk.lots.get(digest) for digest in digests)
        return tuple(lot.certificate for lot in lots if lot is not None and lot.certificate is not None)

    def uncertified(self) -> tuple[bytes, ...]:
        """The list of a status frame."""
        return self._certifying.uncertified(self._now_ms)

    def open_batches(self) -> tuple[bytes, ...]:
        """By digest, those that may yet be ordered."""
        return tuple(lot.digest for lot in self._desk.lots)

    def offered(self) -> tuple[SignedBatch, ...]:
        """Those that may yet be voted for."""
        return tuple(offer.signed for offer in self._desk.offers)

    def waiting_alone(self) -> tuple[bytes, ...]:
        """Transactions in the pool that go alone, of batches that were given up too: they may name blobs."""
        return self._creation.waiting_alone

    def counts(self) -> dict[str, int]:
        """For metrics, and for tests of the bounds."""
        desk = self._desk
        return {
            "open": len(desk.lots),
            "uncertified": len(desk.lots.uncertified),
            "offers": len(desk.offers),
            "pulls": len(desk.pulls),
            "loose_votes": self._certifying.loose_votes,
            "pool": self._creation.pooled,
        }
