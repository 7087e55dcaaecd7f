"""The ordering core of one epoch: the rules of `ordering/__init__.py`, stepped by events, answered in effects."""

from __future__ import annotations

from chain.block import Block, block_digest, body_roots
from chain.certificate import (
    Certificate,
    Finalize,
    Notarize,
    Nullify,
    ValidatorSet,
    Vote,
    VoteKind,
    assemble,
    sign_vote,
    verify_certificate,
    verify_vote,
    votes_of,
)
from chain.codec import CodecError, decode, encode
from chain.genesis import Params
from chain.keys import SigningKey
from consensus.availability.guards import VOTE_AHEAD
from consensus.beacon import beacon_seed
from consensus.effects import ALL, Alarm, Misbehaviour, Now, Output, PeerUp, Received, Send, Tick
from consensus.evidence import offence
from consensus.lineage import Lineage, first_leader
from consensus.messages import BlockAnswer, FetchBlock, FetchCertificate, Proposal, RangeAnswer
from consensus.ordering.answers import Answers
from consensus.ordering.blocktree import BlockTree
from consensus.ordering.events import Convicted, EpochOver, Finalized, PayloadChanged
from consensus.ordering.judging import judge, well_formed
from consensus.ordering.ownvotes import OwnVotes
from consensus.ordering.payload import Draft, Payload, Verdict
from consensus.ordering.proposing import block_on
from consensus.ordering.ranges import Covered, FalseRange, covered_rows
from consensus.ordering.records import MARGIN_VIEWS, SILENT_FOR_EVER, Body, Held, Offence, OwnVote, SilentUntil
from consensus.ordering.requests import Requests
from consensus.ordering.timing import Timing
from consensus.ordering.view import ORDERING_KINDS, Slot, View, can_finalize, can_notarize, can_nullify, subject_of
from consensus.ordering.views import RETAINED, Views

GREETING_LIMIT = 256
"""Messages that a peer is sent on a new link, and all peers at a standstill, at most."""


class Ordering:
    def __init__(
        self,
        chain_id: bytes,
        validators: ValidatorSet,
        me: int | None,
        key: SigningKey | None,
        params: Params,
        root: Lineage,
        payload: Payload,
        *,
        previous: BlockTree | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.validators = validators
        self.epoch = validators.epoch
        self.me = me
        self._key = key
        self._seed = beacon_seed(key) if key is not None else b""
        self.params = params
        self.payload = payload
        n = validators.n
        # A creator may be ahead of its voters: its batch may be ordered below the height that it was made at.
        self.tree = BlockTree(root, n, first_leader(validators), params.execution_window, params.horizon + VOTE_AHEAD)
        if previous is not None:
            self.tree.inherit(previous)
        self._book = Views(self.tree.leader, root.digest)
        self.silent_until = 0
        self.over = False
        self._requests = Requests(self.epoch, n, me)
        self.timing = Timing(params, n, validators.f)
        self._own = OwnVotes(self.epoch, me)
        self._offenders: set[int] = set()
        self._answers = Answers(self._book)
        self._now = Now(0, 0)
        self._out = Output()
        self._replaying = False
        self._proposed = False
        self._enter(1)

    @property
    def view(self) -> int:
        return self._book.current

    @property
    def views(self) -> dict[int, View]:
        return self._book.known

    @property
    def final_view(self) -> int:
        return self._book.final_view

    @property
    def entry_certificate(self) -> Certificate | None:
        return self._book.entry_certificate()

    def unfinal(self) -> list[Block] | None:
        """The blocks between the last final one and the tip; None while a body is lacking."""
        _, tip = self._book.tip()
        return None if self.tree.lineage(tip) is None else self.tree.unfinal(tip)

    # Entry points

    def step(self, now: Now, event: object) -> Output:
        self._now, self._out = now, Output()
        self._proposed = False
        if not self.over:
            match event:
                case Received(peer, message):
                    self._received(peer, message)
                case PeerUp(peer):
                    self._say_all(peer)
                case Tick() | PayloadChanged():
                    pass
                case _:
                    raise TypeError(f"ordering takes no {type(event).__name__}")
            self._act()
        return self._out

    def replay(self, records: list[object], now: Now) -> Output:
        """Take up what the journal holds, own votes included; only what became final leaves."""
        self._now, self._out = now, Output()
        self._replaying = True
        for record in records:
            match record:
                case OwnVote(vote) if vote.epoch == self.epoch:
                    self._restore(vote)
                case Held(certificate) if certificate.epoch == self.epoch:
                    self._certified(certificate, relay=False)
                case Body(block) if block.header.epoch == self.epoch:
                    self.tree.add(block)
                    self._settle()
                case SilentUntil(epoch, view):
                    known = view == SILENT_FOR_EVER or epoch == self.epoch
                    self.silent_until = view if known else self.silent_until if epoch > self.epoch else MARGIN_VIEWS
                case Offence(first, second) if first.epoch == self.epoch:
                    self._offenders.add(first.signer)
                    self._out.events.append(Convicted(first, second))
            if self.over:
                break
        self._replaying = False
        if not self.over:
            self._settle()
        self._enter(self.view)
        self.timing.restarted(self.view)
        return Output(acks=self._out.acks, events=self._out.events)

    def deadline(self) -> int | None:
        """Monotonic time of the next Tick that this core needs."""
        if self.over:
            return None
        times = [self.timing.next_ms, self._requests.deadline()]
        return min((time for time in times if time is not None), default=None)

    # Messages

    def _received(self, peer: int, message: object) -> None:
        match message:
            case Proposal():
                self._proposal(peer, message)
            case Vote():
                self._vote(peer, message)
            case Certificate():
                self._certificate(peer, message)
            case FetchCertificate(epoch, view, kind):
                self._tell(peer, self._book.what_ended(view, kind) if epoch == self.epoch else None)
            case FetchBlock(identity):
                block = self.tree.block(identity)
                self._tell(peer, BlockAnswer(block) if block is not None else None)
            case BlockAnswer(block):
                self._body(block)
            case RangeAnswer():
                self._range(peer, message)
            case _:
                raise TypeError(f"ordering takes no {type(message).__name__}")

    def _blame(self, peer: int, reason: str) -> None:
        self._out.events.append(Misbehaviour(peer, reason))

    def _tell(self, peer: int, answer: object | None) -> None:
        self._out.send += [Send(peer, answer)] if answer is not None else []

    def _view_named(self, peer: int, statement: Vote | Certificate) -> int | None:
        try:
            return subject_of(statement.kind, statement.subject).view
        except CodecError:
            self._blame(peer, "a statement that cannot be read")
            return None

    def _proposal(self, peer: int, proposal: Proposal) -> None:
        vote = proposal.vote
        if vote.kind != VoteKind.NOTARIZE or vote.epoch != self.epoch:
            return
        try:
            subject = decode(Notarize, vote.subject, 256)
        except CodecError:
            self._blame(peer, "undecodable vote")
            return
        number = subject.view
        if not self._book.within(number) or number <= self.final_view or vote.signer != self.tree.leader(number):
            return
        header = proposal.block.header
        roots = (header.batch_root, header.item_root)
        if block_digest(header) != subject.block or roots != body_roots(proposal.block.body):
            # Whoever sends it may have spoilt it: that must not spoil the leader's view.
            self._blame(peer, "a proposal that does not hold the block it names")
            return
        view = self._book.at(number)
        known = view.proposal is not None and view.proposed == subject
        if not known and not self._verified(peer, vote):
            return
        if known or view.proposal is None:
            # What a leader says beside a second proposal could displace what honest ones have said.
            self.payload.learn(proposal)
        if view.proposal is None:
            view.proposal, view.proposed = proposal, subject
            sound = well_formed(header, number, self.chain_id, self.epoch, self.params)
            view.slot = Slot.OPEN if sound else Slot.INVALID
            if view.notarized is not None and view.notarized != subject:
                view.equivocated = True
            self.timing.saw(subject.block, self._now)
        self._count(vote)

    def _verified(self, peer: int, vote: Vote) -> bool:
        if verify_vote(self.chain_id, self.validators, vote):
            return True
        self._blame(peer, "a vote with a bad signature")
        return False

    def _vote(self, peer: int, vote: Vote) -> None:
        if vote.epoch != self.epoch or vote.kind not in ORDERING_KINDS:
            return
        number = self._view_named(peer, vote)
        if number is None:
            return
        self._tell(peer, self._answers.to_straggler(peer, vote.kind, number, self._now.mono_ms))
        if not self._book.within(number) or vote.signer >= self.validators.n:
            return
        view = self._book.at(number)
        if view.votes[vote.kind].get(vote.signer) == vote:
            return
        if peer == vote.signer and view.is_late(vote):
            view.late[vote.kind].setdefault(peer, vote)
            self.timing.heard(peer, number)
            return
        if not self._verified(peer, vote):
            return
        if vote.signer == self.me and vote not in view.own_votes():
            self._key_in_use(number)
            return
        self._count(vote)

    def _key_in_use(self, number: int) -> None:
        if number > self.silent_until:
            self._out.events.append(self._own.alarm(number))

    def _certificate(self, peer: int, certificate: Certificate) -> None:
        if certificate.epoch != self.epoch or certificate.kind not in ORDERING_KINDS:
            return
        number = self._view_named(peer, certificate)
        if number is None or number <= self.final_view:
            return
        view = self.views.get(number)
        if view is not None and certificate.kind in view.certificates:
            return
        if not verify_certificate(self.chain_id, self.validators, certificate):
            self._blame(peer, "a certificate that does not verify")
            return
        self._look_for_own(certificate, number)
        self._certified(certificate, relay=True)

    def _look_for_own(self, certificate: Certificate, number: int) -> None:
        if self._own.foreign(certificate, number, self._book):
            self._key_in_use(number)

    def _body(self, block: Block) -> None:
        identity = block_digest(block.header)
        if (block.header.batch_root, block.header.item_root) != body_roots(block.body):
            return
        if self._requests.take_block(identity):
            self._hold(block)
            self.timing.saw(identity, self._now)
            self._settle()

    def _hold(self, block: Block) -> None:
        identity = self.tree.add(block)
        self._requests.take_block(identity)
        if self.tree.block(identity) is block:
            self._out.persist.append(Body(block))

    def _range(self, peer: int, answer: RangeAnswer) -> None:
        root = self.tree.root
        try:
            for covered in covered_rows(answer, root.digest, root.height, self.chain_id, self.validators):
                for block in covered.blocks:
                    self._hold(block)
                self._look_for_own(covered.certificate, covered.view)
                if covered.view > self.final_view:
                    self._certified(covered.certificate, relay=False)
                else:
                    self._advance(covered)
                if self.over:
                    return
        except FalseRange as lie:
            self._blame(peer, str(lie))

    def _advance(self, covered: Covered) -> None:
        """A newer finalization is known, but not yet the blocks below it: they come in rows, and each is final."""
        newest = covered.blocks[-1].header
        if newest.height > self.tree.root.height:
            # Replay may begin behind the newer one.
            self._out.persist.append(Held(covered.certificate))
            self._deliver(block_digest(newest), covered.certificate)
        if not self.over:
            self._settle()

    # Votes and certificates

    def _count(self, vote: Vote) -> None:
        subject = subject_of(vote.kind, vote.subject)
        view = self._book.at(subject.view)
        tally = view.votes[vote.kind]
        self._look_for_offence(view, vote)
        if vote.signer in tally:
            return
        tally[vote.signer] = vote
        self.timing.heard(vote.signer, subject.view)
        if vote.kind in view.certificates or subject.view <= self.final_view:
            return
        same = [other for other in tally.values() if other.subject == vote.subject]
        if len(same) >= self.validators.quorum:
            self._certified(assemble(self.validators, same), relay=False)

    def _look_for_offence(self, view: View, vote: Vote) -> None:
        for other in view.votes_of(vote.signer):
            if offence(other, vote) is None or not verify_vote(self.chain_id, self.validators, other):
                continue
            if vote.kind == VoteKind.NOTARIZE and vote.signer == view.leader:
                view.equivocated = True
            if vote.signer not in self._offenders and not self._replaying:
                self._offenders.add(vote.signer)
                self._out.persist.append(Offence(other, vote))
                self._out.events.append(Convicted(other, vote))

    def _certified(self, certificate: Certificate, *, relay: bool) -> None:
        subject = subject_of(certificate.kind, certificate.subject)
        number = subject.view
        if number <= self.final_view:
            return
        view = self._book.at(number)
        if certificate.kind in view.certificates:
            return
        view.certificates[certificate.kind] = certificate
        for vote in votes_of(certificate):
            self.timing.heard(vote.signer, number)
            self._look_for_offence(view, vote)
            view.votes[certificate.kind].setdefault(vote.signer, vote)
        if not self._replaying:
            self._out.persist.append(Held(certificate))
            if relay:
                self._out.send.append(Send(ALL, certificate))
        match subject:
            case Notarize():
                self._on_notarization(view, subject)
            case Finalize():
                self._on_finalization(view, subject, certificate)
        if number >= self.view:
            self._enter(number + 1)

    def _on_notarization(self, view: View, subject: Notarize) -> None:
        view.notarized = subject
        if view.proposed is not None and view.proposed != subject:
            view.equivocated = True
        may_vote = self.me is not None and not self._replaying
        if may_vote and can_finalize(view, self.final_view, self.silent_until):
            self._cast(view, VoteKind.FINALIZE, encode(Finalize(view.number, subject.block)))

    def _on_finalization(self, view: View, subject: Finalize, certificate: Certificate) -> None:
        self._book.finalized(view.number, subject.block, certificate)
        self.timing.finalized(self._now)
        self._settle()
        self._book.forget()

    def _settle(self) -> None:
        """Deliver what is final, if every body down to the last delivered block is here."""
        if self._book.final_digest == self.tree.root.digest:
            return
        missing = self.tree.first_missing(self._book.final_digest)
        if missing is not None:
            if not self._replaying:
                self._want_block(missing)
            return
        assert self._book.final_certificate is not None, "a final digest other than the root's has its certificate"
        self._deliver(self._book.final_digest, self._book.final_certificate)

    def _deliver(self, identity: bytes, certificate: Certificate) -> None:
        if self.tree.lineage(identity) is None:
            sentence = "a finalization stands on a block that does not descend from the last final one"
            self._out.events.append(Alarm("FORK", sentence))
            return
        delivered = self.tree.finalize(identity)
        self.timing.forget(lambda seen: self.tree.block(seen) is not None)
        self._out.acks.append(Finalized(tuple(delivered), certificate))
        if self.tree.root.next_set:
            self.over = True
            self._out.events.append(EpochOver(self.tree.root))

    def _restore(self, vote: Vote) -> None:
        number = subject_of(vote.kind, vote.subject).view
        self._own.restored(number)
        if number <= self.final_view - RETAINED:
            return
        view = self._book.at(number)
        if vote.kind == VoteKind.NOTARIZE:
            view.my_notarize = vote
            subject = decode(Notarize, vote.subject, 256)
            block = self.tree.block(subject.block)
            if vote.signer == view.leader and block is not None:
                view.proposal = Proposal(vote, block, (), None, ())
                view.proposed, view.slot = subject, Slot.VALID
        elif vote.kind == VoteKind.NULLIFY:
            view.my_nullify = vote
        else:
            view.my_finalize = vote
        self._count(vote)
        if number > self.view:
            self._enter(number)

    def _cast(self, view: View, kind: VoteKind, subject: bytes, proposal: Proposal | None = None) -> None:
        assert self._key is not None and self.me is not None, "only a member of the set votes"
        vote = proposal.vote if proposal else sign_vote(self._key, self.chain_id, kind, self.epoch, subject, self.me)
        if kind == VoteKind.NOTARIZE:
            view.my_notarize = vote
        elif kind == VoteKind.NULLIFY:
            view.my_nullify = vote
        else:
            view.my_finalize = vote
        self._own.cast(view.number)
        self._out.persist.append(OwnVote(vote))
        self._out.send.append(Send(ALL, proposal or vote))
        self._count(vote)

    # Acting in the current view

    def _enter(self, number: int) -> None:
        self._book.current = number
        self.timing.entered(self._now, self.tree.leader(number), number, self.final_view)
        self._book.at(number)

    def _act(self) -> None:
        self.timing.interval_ms = self.payload.interval_ms(self._now.mono_ms)
        while True:
            before = self.view
            self._update_pending()
            self._judge_current()
            self._propose()
            self._time_out()
            if self.view == before or self.over:
                break
        if not self.over:
            self._update_pending()
            self._remind()
            self._ask()
            view = self._book.at(self.view)
            self.timing.arm(self._now, view, self._may_nullify(view))

    def _update_pending(self) -> None:
        view = self._book.at(self.view)
        nullifies = len(view.votes[VoteKind.NULLIFY])
        pending = nullifies > self.validators.f or view.slot in (Slot.OPEN, Slot.VALID)
        _, tip = self._book.tip()
        lineage = self.tree.lineage(tip)
        due: int | None = None
        if lineage is not None and not pending:
            unfinal = self.tree.unfinal(tip)
            pending = any(
                block.body.batches or block.body.items or block.header.next_set for block in unfinal
            ) or self.payload.waiting(lineage, self.tree.ancestry(tip))
            if not pending:
                due = self.payload.block_due_in(self.tree.root, self._now.wall_ms)
        self.timing.pend(self._now, pending or lineage is None, due, tip)

    def _judge_current(self) -> None:
        view = self._book.at(self.view)
        if view.slot is Slot.OPEN and view.my_nullify is None:
            verdict = self._judge(view)
            if verdict is not Verdict.PENDING:
                view.slot = Slot.VALID if verdict is Verdict.VALID else Slot.INVALID
        if self.me is None:
            return
        if can_notarize(view, self.view, self.silent_until) and view.proposal is not None:
            if view.leader != self.me:
                self._out.persist.append(Body(view.proposal.block))
                self.tree.add(view.proposal.block)
                self._cast(view, VoteKind.NOTARIZE, view.proposal.vote.subject)
        elif view.slot is Slot.INVALID:
            self._nullify("the proposal is invalid")

    def _judge(self, view: View) -> Verdict:
        judgement = judge(view, self._book, self.tree, self.payload, self.params, self._now.wall_ms)
        if judgement.block is not None:
            self._want_block(judgement.block)
        for number, kind in judgement.certificates:
            self._want_certificate(number, kind, view.leader)
        if judgement.wait_ms:
            self.timing.wake_in(self._now, judgement.wait_ms)
        return judgement.verdict

    def _propose(self) -> None:
        view = self._book.at(self.view)
        if (
            self.me is None
            or view.leader != self.me
            or view.my_notarize is not None
            or view.my_nullify is not None
            or self.view <= self.silent_until
            or not self.timing.is_pending
        ):
            return
        parent_view, parent = self._book.tip()
        for number in self._book.not_nullified(parent_view, self.view):
            self._want_certificate(number, VoteKind.NULLIFY, None)
            return
        lineage = self.tree.lineage(parent)
        if lineage is None:
            missing = self.tree.first_missing(parent)
            if missing is not None:
                self._want_block(missing)
            return
        if self.timing.too_soon(self._now, lineage):
            return
        if self._proposed:
            # A validator that is a quorum by itself would never leave this step.
            self.timing.wake_in(self._now, 0)
            return
        self._proposed = True
        self._publish(view, parent_view, lineage)

    def _publish(self, view: View, parent_view: int, lineage: Lineage) -> None:
        assert self._key is not None and self.me is not None
        draft: Draft | None = None
        if lineage.next_set:
            block = self.tree.block(lineage.digest)
            assert block is not None, "an unfinal block is held"
        else:
            draft = self.payload.draft(lineage, self.tree.ancestry(lineage.digest))
            block = block_on(
                lineage,
                draft,
                view.number,
                self.me,
                chain_id=self.chain_id,
                seed=self._seed,
                params=self.params,
                next_set=self.payload.next_set(lineage, draft.executed_height),
                wall_ms=self._now.wall_ms,
            )
        identity = self.tree.add(block)
        subject = Notarize(view.number, parent_view, identity)
        vote = sign_vote(self._key, self.chain_id, VoteKind.NOTARIZE, self.epoch, encode(subject), self.me)
        beside = (draft.witnesses, draft.executed, draft.available) if draft is not None else ((), None, ())
        proposal = Proposal(vote, block, *beside)
        view.proposal, view.proposed, view.slot = proposal, subject, Slot.VALID
        self.timing.saw(identity, self._now)
        self._out.persist.append(Body(block))
        self._cast(view, VoteKind.NOTARIZE, vote.subject, proposal)

    def _time_out(self) -> None:
        view = self._book.at(self.view)
        if view.leader in view.votes[VoteKind.NULLIFY] and view.leader != self.me:
            self._nullify("the leader gave up its view")
        elif (reason := self.timing.expired(self._now, view)) is not None:
            self._nullify(reason)

    def _may_nullify(self, view: View) -> bool:
        return self.me is not None and can_nullify(view, self.view, self.silent_until)

    def _nullify(self, reason: str) -> None:
        view = self._book.at(self.view)
        if self._may_nullify(view):
            self.timing.nullified(self._now, reason)
            self._cast(view, VoteKind.NULLIFY, encode(Nullify(view.number)))

    def _remind(self) -> None:
        if self.timing.resend_due(self._now):
            view = self._book.at(self.view)
            entry = self._book.entry_certificate()
            self._out.send += [Send(ALL, entry)] if entry is not None else []
            self._out.send += [Send(ALL, vote) for vote in view.own_votes()]
        if self.timing.standstill_due(self._now):
            self._say_all(ALL)

    def _say_all(self, peer: int) -> None:
        # The oldest first: from the last finalization on a peer can place what follows.
        said = self._book.sayings(self.me, peer)[:GREETING_LIMIT]
        self._out.send += [Send(peer, message) for message in said]

    def _want_block(self, identity: bytes) -> None:
        self._requests.block(identity, self.view, self._now.mono_ms)

    def _want_certificate(self, number: int, kind: VoteKind, prefer: int | None) -> None:
        self._requests.certificate(number, kind, prefer, self.view, self._now.mono_ms)

    def _ask(self) -> None:
        self._out.send += self._requests.due(
            self._now.mono_ms, lambda identity: self.tree.block(identity) is not None, self._holds_certificate
        )

    def _holds_certificate(self, number: int, kind: int) -> bool:
        view = self.views.get(number)
        return number <= self.final_view or (view is not None and kind in view.certificates)
