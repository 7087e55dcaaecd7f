"""One validator's cores, joined: what one learns, the others are told within the same step.

Still without input or output. Peers are named by their consensus keys, because indices change with the epoch and a
peer that catches up may belong to another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from chain.availability import AVAILABILITY_KINDS, AvailabilityCertificate
from chain.block import Body, Item, ItemKind
from chain.certificate import Certificate, ValidatorSet, Vote
from chain.codec import encode
from chain.genesis import Params
from chain.keys import SigningKey
from consensus import availability as avail
from consensus.attestation import (
    Attestation,
    BlockExecuted,
    ResultCertified,
    RoundComputed,
    RoundOver,
    StateCertified,
)
from consensus.availability import Availability
from consensus.availability.allowance import Allowance
from consensus.availability.core import SERVED_A_SECOND
from consensus.availability.inputs import Input
from consensus.catchup import CatchUp
from consensus.effects import ALL, Alarm, Misbehaviour, Now, Output, PeerUp, Received, Tick
from consensus.evidence import evidence_item
from consensus.lineage import Lineage, rebase
from consensus.messages import (
    BatchAnswer,
    BatchOffer,
    BatchPull,
    BlockAnswer,
    Channel,
    FetchBlock,
    FetchCertificate,
    FetchRange,
    OpenRound,
    Proposal,
    RangeAnswer,
    Status,
    ViewAnswer,
    ViewQuery,
)
from consensus.ordering.core import Ordering
from consensus.ordering.events import Convicted, EpochOver, Finalized, PayloadChanged
from consensus.ordering.records import MARGIN_VIEWS, SILENT_FOR_EVER
from consensus.ordering.view import ORDERING_KINDS
from consensus.proposals import NextSet, Proposals
from consensus.rejoin import Rejoin, answer_query

STATUS_EVERY_MS = 1_000
RANGES_A_SECOND = 16
"""To one peer: an answer is up to a megabyte, read and encoded for it."""
OUTSIDER = -2
"""In place of an index: the peer that is just speaking, which is not in the current set."""


@dataclass(frozen=True, slots=True)
class PeerMessage:
    peer: bytes
    message: object


@dataclass(frozen=True, slots=True)
class PeerLinked:
    """The connection to a peer for one channel stands, or stands again: what was sent there before may be lost."""

    peer: bytes
    channel: Channel


@dataclass(frozen=True, slots=True)
class ChainExecuted:
    """The node executed a final block; `wants_block_at` is the state machine's, after it."""

    height: int
    block: bytes
    state_root: bytes
    wants_block_at: int | None
    rounds_over: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class ItemOffered:
    item: Item
    witness: bytes


@dataclass(frozen=True, slots=True)
class ServeRange:
    """Answer this peer with final blocks of these heights, as far as they are stored."""

    peer: bytes
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ServeBlock:
    """Answer this peer with the final block of this digest, if it is stored."""

    peer: bytes
    block: bytes


@dataclass(frozen=True, slots=True)
class ServeBatch:
    peer: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Blame:
    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """Links are to follow this set; the last block of the one before is final."""

    validators: ValidatorSet
    root: Lineage


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message to one peer, or to every other validator of the current set if `to` is None."""

    to: bytes | None
    message: object


@dataclass(slots=True)
class ReplicaOutput:
    """As `Output`, with destinations by key. `persist` may hold records of both logs: the batches' is synced first."""

    persist: list[object] = field(default_factory=list)
    send: list[Outbound] = field(default_factory=list)
    events: list[object] = field(default_factory=list)
    acks: list[object] = field(default_factory=list)


class Replica:
    def __init__(
        self,
        chain_id: bytes,
        params: Params,
        key: SigningKey,
        validators: ValidatorSet,
        root: Lineage,
        schedule: dict[int, NextSet],
        *,
        nonce: bytes,
        previous: ValidatorSet | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.params = params
        self.key = key
        self.schedule = schedule
        self.validators = validators
        self.me = validators.index_of(key.public)
        self.availability = Availability(chain_id, validators, self.me, key, params, previous)
        self.attestation = Attestation(chain_id, validators, self.me, key if self.me is not None else None)
        self.proposals = Proposals(chain_id, params, self.availability, self.attestation, schedule, previous)
        self.ordering = self._ordering(root, None)
        self.catch_up = CatchUp()
        self._nonce = nonce
        self._speaker = b""
        self._ranges_served = Allowance(RANGES_A_SECOND)
        self._batches_served = Allowance(SERVED_A_SECOND)
        self.rejoin: Rejoin | None = None
        self._muted = False
        self.executed_height = root.height
        self._status_ms: int | None = None
        self._events: deque[object] = deque()
        self._out = ReplicaOutput()
        self._now = Now(0, 0)
        self._payload_changed = True
        """Whether what ordering asks of its payload may have another answer than when it last asked."""

    def _ordering(self, root: Lineage, previous: Ordering | None) -> Ordering:
        return Ordering(
            self.chain_id,
            self.validators,
            self.me,
            self.key if self.me is not None else None,
            self.params,
            root,
            self.proposals,
            previous=previous.tree if previous is not None else None,
        )

    # Entry points

    def replay(
        self,
        now: Now,
        records: Iterable[object],
        recent: Iterable[tuple[int, Body]],
        certificate: Certificate | None = None,
    ) -> ReplicaOutput:
        """Take up the logs' records; `recent` holds the bodies of stored final blocks within the horizon by their
        heights, and `certificate` is the newest of an executed state."""
        self._now, self._out = now, ReplicaOutput()
        kept = list(records)
        self.availability.step(now, avail.Replay(kept))
        for height, body in recent:
            self.ordering.tree.remember_final(height, body.batches, body.items)
            self.availability.step(now, avail.Ordered(height, body.batches))
        while True:
            out = self.ordering.replay(kept, now)
            self._out.acks += out.acks
            self._deliver(out.acks)
            for event in out.events:
                if isinstance(event, Convicted):
                    self.proposals.offer(*evidence_item(event.first, event.second))
            if not self.ordering.over or not self._next_epoch(self.ordering.tree.root):
                break
        self._advanced()
        if certificate is not None:
            self._attest(Received(0, certificate))
        while self._events:
            self._take_up(self._events.popleft())
        self._out.send.clear()
        if self.ordering.silent_until == SILENT_FOR_EVER:
            self.rejoin = Rejoin(self._nonce)
        if self.ordering.silent_until:
            self._muted = True
            self._avail(avail.Muted(True))
        return self._out

    def step(self, now: Now, event: object) -> ReplicaOutput:
        self._now, self._out = now, ReplicaOutput()
        match event:
            case PeerMessage(peer, message):
                self._message(peer, message)
            case PeerLinked(peer, channel):
                self._linked(peer, channel)
            case ChainExecuted():
                self._executed(event)
            case ItemOffered(item, witness):
                self.proposals.offer(item, witness)
                self._payload_changed = True
            case RoundComputed() | RoundOver():
                self._attest(event)
            case Tick():
                self._avail(Tick())
                self._attest(Tick())
            case avail.Submit() | avail.Checked() | avail.Need():
                self._avail(event)
            case _:
                raise TypeError(f"a replica takes no {type(event).__name__}")
        deadline = self.ordering.deadline()
        if deadline is not None and self._now.mono_ms >= deadline:
            self._order(Tick())
        self._drain()
        if self._muted and self._is_whole():
            self._muted = False
            self._avail(avail.Muted(False))
            self._drain()
        self._periodic()
        return self._out

    def deadline(self) -> int | None:
        times = [
            self.ordering.deadline(),
            self.availability.deadline(),
            self.attestation.deadline(),
            self.catch_up.deadline(),
            self._status_ms,
        ]
        return min((time for time in times if time is not None), default=None)

    @property
    def silent(self) -> bool:
        """Whether a lost journal may hold votes for the current view."""
        return self.ordering.view <= self.ordering.silent_until

    def _is_whole(self) -> bool:
        """Whether all that a lost journal may have promised to hold is here again: bodies, batches, what is certified.

        Past the views of the lost votes, whatever they helped to notarize is in the ancestry of the tip.
        """
        if self.silent or self.executed_height < self.ordering.tree.root.height:
            return False
        unfinal = self.ordering.unfinal()
        if unfinal is None:
            return False
        return self.availability.is_whole(digest for block in unfinal for digest in block.body.batches)

    def _say(self, to: bytes | None, message: object) -> None:
        self._out.send.append(Outbound(to, message))

    def _linked(self, peer: bytes, channel: Channel) -> None:
        index = self.validators.index_of(peer)
        if channel is Channel.CONSENSUS:
            self._say(peer, self._status())
        if index is None:
            return
        if channel is Channel.DATA:
            self._avail(PeerUp(index))
        else:
            self._order(PeerUp(index))
            self._attest(PeerUp(index))

    # Routing

    def _key_of(self, number: int) -> bytes:
        if number == OUTSIDER:
            return self._speaker
        if number < self.validators.n:
            return self.validators.members[number].consensus_key
        return self.availability.leavers[number - self.validators.n]

    def _message(self, peer: bytes, message: object) -> None:
        if isinstance(message, FetchRange):
            last = min(message.last, message.first + 255, self.ordering.tree.root.height)
            if message.first <= last and self._ranges_served.take(peer, self._now.mono_ms):
                self._out.events.append(ServeRange(peer, message.first, last))
            return
        if isinstance(message, BatchPull) and self.validators.index_of(peer) is None:
            if self._batches_served.take(peer, self._now.mono_ms):
                self._out.events.append(ServeBatch(peer, message.batch))
            return
        if isinstance(message, FetchBlock) and self.ordering.tree.block(message.block) is None:
            # Final long ago: ordering has forgotten it, the rows have not.
            if self._batches_served.take(peer, self._now.mono_ms):
                self._out.events.append(ServeBlock(peer, message.block))
            return
        if isinstance(message, ViewQuery):
            answer = answer_query(self.key, self.chain_id, self.ordering, message)
            if answer is not None:
                self._say(peer, answer)
            return
        self._speaker = peer
        index = self.validators.index_of(peer)
        if isinstance(message, Status):
            self.catch_up.heard(peer, message)
        if self._is_handed_on(message) and peer in self.availability.leavers:
            self._avail(Received(self.validators.n + self.availability.leavers.index(peer), message))
            return
        if isinstance(message, RangeAnswer):
            # A peer outside the set may help too: what it says is certified or worthless.
            self._order(Received(index if index is not None else OUTSIDER, message))
            self._drain()
            self.catch_up.answered(peer, self.ordering.tree.root.height)
            return
        if index is None or index == self.me:
            return
        match message:
            case Proposal():
                self._proposal(index, message)
            case Vote(kind) | Certificate(kind) if kind in ORDERING_KINDS:
                self._order(Received(index, message))
            case Vote(kind) if kind in AVAILABILITY_KINDS:
                self._avail(Received(index, message))
            case Vote():
                self._attest(Received(index, message))
            case Certificate():
                self._attest(Received(index, message))
                # An older state than the newest is known from here on too.
                self._payload_changed = True
            case FetchCertificate() | FetchBlock() | BlockAnswer():
                self._order(Received(index, message))
            case AvailabilityCertificate() | BatchOffer() | BatchPull() | BatchAnswer() | Status():
                self._avail(Received(index, message))
            case ViewAnswer() if self.rejoin is not None:
                self._view_answer(index, message)

    @staticmethod
    def _is_handed_on(message: object) -> bool:
        """What those who left with the last epoch still owe to this one: certificates and bytes of their batches."""
        return isinstance(message, BatchAnswer | AvailabilityCertificate)

    def _proposal(self, index: int, proposal: Proposal) -> None:
        if proposal.vote.epoch != self.validators.epoch:
            return
        if proposal.executed is not None:
            self._attest(Received(index, proposal.executed))
        for certificate in proposal.available:
            self._avail(Received(index, certificate))
        self._order(Received(index, proposal))

    def _order(self, event: object) -> None:
        self._take(self.ordering.step(self._now, event))

    def _avail(self, event: Input) -> None:
        self._take(self.availability.step(self._now, event))

    def _attest(self, event: object) -> None:
        self._take(self.attestation.step(self._now, event))

    def _take(self, out: Output) -> None:
        self._out.persist += out.persist
        for send in out.send:
            to = None if send.to == ALL else self._key_of(send.to)
            self._say(to, send.message)
        self._out.acks += out.acks
        self._deliver(out.acks)
        for event in out.events:
            match event:
                # Indices are of this epoch, which an event before this one may be about to end.
                case avail.ServeBatch(peer, digest):
                    self._events.append(ServeBatch(self._key_of(peer), digest))
                case Misbehaviour(peer, reason):
                    self._events.append(Blame(self._key_of(peer), reason))
                case _:
                    self._events.append(event)

    def _deliver(self, acks: Iterable[object]) -> None:
        """What became final is known to the fellow cores at once; the node hears of it once it is durable."""
        for ack in acks:
            if isinstance(ack, Finalized):
                for block, _ in ack.blocks:
                    self.proposals.ordered(block.body.items)
                    self._events.append(avail.Ordered(block.header.height, block.body.batches))
                self._advanced()

    def _advanced(self) -> None:
        height = self.ordering.tree.root.height
        self.attestation.advance(height)
        self._events.append(avail.Advanced(height, self.executed_height))

    def _drain(self) -> None:
        while self._events or self._payload_changed:
            if self._events:
                self._take_up(self._events.popleft())
            else:
                self._payload_changed = False
                self._order(PayloadChanged())

    def _take_up(self, event: object) -> None:
        match event:
            case avail.Ordered() | avail.Advanced():
                self._avail(event)
            case avail.Referable() | avail.Candidate():
                self._payload_changed = True
            case ResultCertified(certificate, subject):
                self.proposals.offer(Item(ItemKind.RESULT, encode(subject)), encode(certificate))
                self._payload_changed = True
                self._out.events.append(event)
            case StateCertified():
                self._payload_changed = True
                self._out.events.append(event)
            case Convicted(first, second):
                self.proposals.offer(*evidence_item(first, second))
                self._payload_changed = True
                self._out.events.append(event)
            case EpochOver(root):
                self._next_epoch(root)
            case _:
                self._out.events.append(event)

    def _executed(self, event: ChainExecuted) -> None:
        self.executed_height = event.height
        self.proposals.executed(event.height, event.wants_block_at)
        for job, number in event.rounds_over:
            self._attest(RoundOver(job, number))
        self._attest(BlockExecuted(event.height, event.block, event.state_root))
        self._advanced()
        self._payload_changed = True

    # Epochs

    def _next_epoch(self, root: Lineage) -> bool:
        """Whether there is one, and it has begun."""
        following = self.schedule.get(self.validators.epoch)
        if following is None or following.validators.digest() != root.next_set:
            sentence = f"epoch {self.validators.epoch} ended with a set that this node does not know"
            self._out.events.append(Alarm("UNKNOWN_SET", sentence))
            return False
        self.validators = following.validators
        self.me = self.validators.index_of(self.key.public)
        previous = self.ordering
        root = rebase(root, self.validators)
        self.ordering = self._ordering(root, previous)
        if previous.silent_until:
            # A lost journal may hold votes for the first views of an epoch that no one else had yet begun.
            rejoined = previous.silent_until != SILENT_FOR_EVER
            self.ordering.silent_until = MARGIN_VIEWS if rejoined else SILENT_FOR_EVER
        self._out.events.append(EpochBegun(self.validators, root))
        self._take(
            self.attestation.new_epoch(self._now, self.validators, self.me, self.key if self.me is not None else None)
        )
        self.proposals.new_epoch(previous.validators)
        self._avail(avail.NewEpoch(self.validators, self.me, self.key))
        self._payload_changed = True
        return True

    # Each second

    def _status(self) -> Status:
        ordering = self.ordering
        return Status(
            epoch=self.validators.epoch,
            view=ordering.view,
            final_view=ordering.final_view,
            final_height=ordering.tree.root.height,
            executed_height=self.executed_height,
            results=tuple(OpenRound(job, number) for job, number in self.attestation.open_results()[:64]),
            uncertified=self.availability.uncertified()[:256],
        )

    def _neighbours(self) -> list[bytes]:
        """Those of the next set follow the chain before they are in office; those of the last one may not yet know
        that they are out of it."""
        following = self.schedule.get(self.validators.epoch)
        coming = [member.consensus_key for member in following.validators.members] if following is not None else []
        keys = dict.fromkeys((*coming, *self.availability.leavers))
        return [key for key in keys if key != self.key.public and self.validators.index_of(key) is None]

    def _periodic(self) -> None:
        now_ms = self._now.mono_ms
        if self._status_ms is None or now_ms >= self._status_ms:
            self._status_ms = now_ms + STATUS_EVERY_MS
            status = self._status()
            self._say(None, status)
            for key in self._neighbours():
                self._say(key, status)
            if self.rejoin is not None:
                self._say(None, ViewQuery(self.rejoin.nonce))
        request = self.catch_up.next_request(now_ms, self.validators.epoch, self.ordering.tree.root.height)
        if request is not None:
            self._say(*request)

    # Rejoining without the old journal

    def _view_answer(self, index: int, answer: ViewAnswer) -> None:
        assert self.rejoin is not None
        floor = self.rejoin.answered(self.chain_id, self.validators, index, answer)
        if floor is not None and floor.epoch == self.validators.epoch:
            self.ordering.silent_until = floor.view
            self._payload_changed = True
            self._out.persist.append(floor)
            self.rejoin = None
