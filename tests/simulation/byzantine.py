"""Validators that lie: each is an honest node whose frames pass through an adversary, which may change, add, hold back
or send to some only; it signs with the validator's real key, and all adversaries of a run know what any of them knows.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from chain.availability import AVAILABILITY_KINDS, AvailabilityCertificate
from chain.batch import Batch, SignedBatch, batch_digest, sign_batch
from chain.block import EMPTY_BODY, HEADER_VERSION, Block, Body, Header, block_digest, body_roots
from chain.certificate import (
    Available,
    Certificate,
    Executed,
    Finalize,
    Notarize,
    Nullify,
    Result,
    Vote,
    VoteKind,
    read_subject,
    sign_vote,
)
from chain.codec import CodecError, decode, encode
from chain.hashing import Domain, digest
from consensus.beacon import beacon_seed, commitment, secret
from consensus.lineage import Lineage
from consensus.messages import (
    BatchAnswer,
    BatchOffer,
    Proposal,
    Status,
    channel_of,
    from_frame,
    to_frame,
)
from consensus.ordering.core import Ordering
from fl.blobs import BlobKind
from node.ports import Channel, Peer, PortError
from tests.simulation.arena import Arena, Station
from tests.simulation.loop import Crash, drawn_from
from tests.simulation.scenario import Vice

REMEMBERED = 512


class Lore:
    """What all adversaries of a run know: whatever was ever delivered to anyone."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._seen: set[bytes] = set()
        self.proposals: dict[tuple[int, int], dict[bytes, Proposal]] = defaultdict(dict)
        self.votes: OrderedDict[tuple[int, int, bytes], dict[int, Vote]] = OrderedDict()
        self.certificates: OrderedDict[Certificate | AvailabilityCertificate, None] = OrderedDict()
        self.batches: OrderedDict[bytes, AvailabilityCertificate] = OrderedDict()
        """Certified batches, the oldest first."""
        self.offers: OrderedDict[bytes, SignedBatch] = OrderedDict()
        self.listeners: list[Callable[[object], None]] = []
        arena.network.tap(self._tap)

    def _tap(self, at: float, source: str, target: str, channel: Channel, frame: bytes) -> None:
        if frame in self._seen:
            return
        self._seen.add(frame)
        try:
            message = from_frame(channel, frame)
        except CodecError:
            return
        self.learn(message)

    def learn(self, message: object) -> None:
        match message:
            case Proposal(vote, block, _, _, available):
                if vote.kind == VoteKind.NOTARIZE:
                    self.proposals[vote.epoch, block.header.view].setdefault(block_digest(block.header), message)
                for certificate in available:
                    self._batch(certificate)
            case Vote(kind, epoch, subject, signer):
                self.votes.setdefault((kind, epoch, subject), {})[signer] = message
                _trim(self.votes)
            case Certificate() | AvailabilityCertificate():
                self.certificates[message] = None
                _trim(self.certificates)
                if isinstance(message, AvailabilityCertificate):
                    self._batch(message)
            case BatchOffer(signed):
                self.offers[batch_digest(signed.batch)] = signed
                _trim(self.offers)
        for listen in self.listeners:
            listen(message)

    def _batch(self, certificate: AvailabilityCertificate) -> None:
        try:
            subject = read_subject(VoteKind.AVAILABLE, certificate.subject)
        except CodecError:
            return
        if isinstance(subject, Available) and subject.batch not in self.batches:
            self.batches[subject.batch] = certificate
            _trim(self.batches)


def _trim(table: OrderedDict[Any, Any]) -> None:
    while len(table) > REMEMBERED:
        table.popitem(last=False)


class Adversary:
    def __init__(self, arena: Arena, station: Station, vices: tuple[Vice, ...], lore: Lore) -> None:
        self.arena = arena
        self.station = station
        self.vices = vices
        self.lore = lore
        members = arena.genesis.validator_set.members
        self.index = next(place for place, each in enumerate(members) if each.consensus_key == station.key.public)
        self.peers = {each.consensus_key: place for place, each in enumerate(members) if place != self.index}
        self._keys = {place: key for key, place in self.peers.items()}
        self.chance = drawn_from(arena.seed, station.machine.name, "adversary")
        self._plans: dict[int, dict[int, list[Proposal]]] = {}
        self._said: set[tuple[int, int, bytes]] = set()
        self._offered: dict[bytes, frozenset[int]] = {}
        self._unchecked: list[bytes] = []
        self._sequence = 1_000_000 + station.index * 100_000
        self._muted = False
        self._sly = self.chance.randrange(4) if Vice.BAD_BATCH in vices else 0
        """So many bad batches come first of which who holds them cannot tell; for others links are cut."""
        self._reached = frozenset(self.peers.values())
        if Vice.TWIN in vices:
            self._part()
        arena.network.wrap(station.machine.name, self)
        lore.listeners.append(self._hear)

    @property
    def ordering(self) -> Ordering | None:
        node = self.station.node
        return node.replica.ordering if node is not None and self.station.machine.running else None

    def _count(self, vice: Vice) -> None:
        self.arena.findings.counts[f"Byzantine: {vice.value}"] += 1

    # What leaves

    def __call__(self, peer: Peer, channel: Channel, frame: bytes) -> Iterable[tuple[Peer, Channel, bytes]]:
        index = self.peers.get(peer)
        if self._muted or index is None or index not in self._reached:
            return ()
        message = from_frame(channel, frame)
        try:
            replaced = self._replaced(index, message)
        except Exception as mistake:  # in a liar's node it would pass for one of its lies
            raise self._noted(mistake) from None
        if replaced is None:
            self.arena.wire.overheard(message)
            return ((peer, channel, frame),)
        for each in replaced:
            self.arena.wire.overheard(each)
        return [(peer, channel_of(each), to_frame(each)) for each in replaced]

    def _replaced(self, peer: int, message: object) -> list[Any] | None:
        """What this peer gets instead; None: just that."""
        match message:
            case Proposal(vote) if vote.signer == self.index and vote.epoch == self.arena.genesis.validator_set.epoch:
                return self._planned(peer, message)
            case Vote(VoteKind.FINALIZE) if Vice.RUSH_FORK in self.vices:
                self._rush(message)
            case Vote(VoteKind.EXECUTED) if Vice.LIE_STATE in self.vices and self.chance.random() < 0.7:
                return [self._false_state(message)]
            case Vote(VoteKind.RESULT) if Vice.LIE_RESULT in self.vices and self.chance.random() < 0.7:
                return [self._false_result(message)]
            case BatchOffer(signed) if Vice.WITHHOLD in self.vices:
                return [message] if peer in self._chosen_few(batch_digest(signed.batch)) else []
            case BatchAnswer() if Vice.WITHHOLD in self.vices:
                return []
            case AvailabilityCertificate() if Vice.WITHHOLD in self.vices:
                return [message] if self.chance.random() < 0.5 else []
            case Status() if Vice.BOAST in self.vices:
                return [self._boast(message)]
        return None

    def tell(self, message: object, *peers: int) -> None:
        """Past the honest half, to these peers or to all."""
        if self._muted or not self.station.machine.running:
            return
        self.arena.wire.overheard(message)
        channel, frame = channel_of(message), to_frame(message)
        for peer in peers or tuple(sorted(self._reached)):
            self.arena.network.inject(self.station.machine.name, self._keys[peer], channel, frame)

    def _some(self) -> tuple[int, ...]:
        everyone = sorted(self._keys)
        return tuple(self.chance.sample(everyone, self.chance.randint(1, len(everyone))))

    # As a leader

    def _planned(self, peer: int, proposal: Proposal) -> list[Any] | None:
        view = decode(Notarize, proposal.vote.subject, 256).view
        if view not in self._plans:
            self._plans[view] = self._plan(view, proposal)
        return list(self._plans[view].get(peer, [proposal]))

    def _plan(self, view: int, proposal: Proposal) -> dict[int, list[Proposal]]:
        leading = [vice for vice in _LEADING if vice in self.vices]
        ordering = self.ordering
        if ordering is None or not leading or self.chance.random() < 0.25:
            return {}
        vice = self.chance.choice(leading)
        others = sorted(self._keys)
        if vice is Vice.SILENT_LEADER:
            self._count(vice)
            told = () if self.chance.random() < 0.6 else self._some()
            return {peer: [] for peer in others if peer not in told}
        other = _LEADING[vice](self, ordering, view, proposal)
        if other is None:
            return {}
        self._count(vice)
        self.lore.learn(other)
        if vice is not Vice.EQUIVOCATE:
            return {peer: [other] for peer in others}
        half = set(self._some())
        plan = {peer: [other] if peer in half else [proposal] for peer in others}
        both = self.chance.choice((0.0, 0.3, 1.0))
        for peer in others:
            if self.chance.random() < both:
                plan[peer] = [proposal, other] if self.chance.random() < 0.5 else [other, proposal]
        return plan

    def craft(
        self,
        ordering: Ordering,
        view: int,
        parent_view: int,
        parent: Lineage,
        body: Body = EMPTY_BODY,
        *,
        later_ms: int = 0,
        available: tuple[AvailabilityCertificate, ...] = (),
        witnesses: tuple[bytes, ...] = (),
        changes: dict[str, Any] | None = None,
    ) -> Proposal:
        """A proposal as this validator could make it on that parent, signed."""
        chain_id, params = ordering.chain_id, ordering.params
        batch_root, item_root = body_roots(body)
        seed, count = beacon_seed(self.station.key), parent.reveals[self.index].count
        header = Header(
            version=HEADER_VERSION,
            chain=chain_id,
            epoch=ordering.epoch,
            height=parent.height + 1,
            view=view,
            parent=parent.digest,
            log_root=parent.log.root(),
            batch_root=batch_root,
            item_root=item_root,
            executed_height=parent.executed_height,
            executed_root=parent.executed_root,
            time_ms=max(self.arena.now_ms(), parent.time_ms + params.min_block_interval_ms) + later_ms,
            rules_version=params.rules_version,
            reveal=secret(seed, chain_id, count),
            commit=commitment(secret(seed, chain_id, count + 1)),
            next_set=b"",
        )
        block = Block(replace(header, **(changes or {})), body)
        subject = Notarize(view, parent_view, block_digest(block.header))
        vote = self._vote(VoteKind.NOTARIZE, subject)
        return Proposal(vote, block, witnesses, None, available)

    def _vote(self, kind: VoteKind, subject: object) -> Vote:
        genesis = self.arena.genesis
        return sign_vote(
            self.station.key, genesis.chain_id, kind, genesis.validator_set.epoch, encode(subject), self.index
        )

    def _on_its_parent(self, ordering: Ordering, proposal: Proposal) -> tuple[int, Lineage] | None:
        parent = ordering.tree.lineage(proposal.block.header.parent)
        subject = decode(Notarize, proposal.vote.subject, 256)
        return None if parent is None else (subject.parent_view, parent)

    def _twice(self, ordering: Ordering, view: int, proposal: Proposal) -> Proposal | None:
        place = self._on_its_parent(ordering, proposal)
        if place is None:
            return None
        keep = self.chance.random() < 0.5
        later_ms = self.chance.randrange(1, 50)
        body = Body(proposal.block.body.batches, ()) if keep else EMPTY_BODY
        return self.craft(ordering, view, *place, body, later_ms=later_ms, available=proposal.available)

    def _unchecked_reference(self, ordering: Ordering, view: int, proposal: Proposal) -> Proposal | None:
        place = self._on_its_parent(ordering, proposal)
        uncertified = [each for each in self.lore.offers if each not in self.lore.batches][-4:]
        choices = self._unchecked[-4:] or uncertified
        if place is None or not choices:
            return None
        return self.craft(ordering, view, *place, Body((self.chance.choice(choices),), ()))

    def _stale_reference(self, ordering: Ordering, view: int, proposal: Proposal) -> Proposal | None:
        place = self._on_its_parent(ordering, proposal)
        if place is None or not self.lore.batches:
            return None
        oldest = list(self.lore.batches)[:8]
        batch = self.chance.choice(oldest)
        return self.craft(ordering, view, *place, Body((batch,), ()), available=(self.lore.batches[batch],))

    def _wrong_parent(self, ordering: Ordering, view: int, proposal: Proposal) -> Proposal | None:
        root, final_view = ordering.tree.root, ordering.final_view
        subject = decode(Notarize, proposal.vote.subject, 256)
        if proposal.block.header.parent == root.digest:
            forged = {"parent": digest(Domain.HEADER, view.to_bytes(8, "big"))}
            return self.craft(ordering, view, subject.parent_view, root, changes=forged)
        named = self.chance.choice((final_view, subject.parent_view))
        return self.craft(ordering, view, named, root)

    def _mutant(self, ordering: Ordering, view: int, proposal: Proposal) -> Proposal | None:
        place = self._on_its_parent(ordering, proposal)
        if place is None:
            return None
        header = proposal.block.header
        noise = digest(Domain.HEADER, header.parent, view.to_bytes(8, "big"))
        changes = self.chance.choice(
            (
                {"time_ms": header.time_ms + 3_600_000},
                {"time_ms": header.time_ms - 3_600_000},
                {"executed_height": header.height - 1, "executed_root": noise},
                {"executed_height": header.height + 5, "executed_root": noise},
                {"log_root": noise},
                {"reveal": noise},
                {"batch_root": noise},
                {"height": header.height + 1},
                {"view": view + 1},
                {"epoch": header.epoch + 1},
                {"next_set": noise},
                {"chain": noise},
                {"rules_version": header.rules_version + 1},
            )
        )
        return self.craft(ordering, view, *place, changes=changes)

    def _rush(self, vote: Vote) -> None:
        """As soon as a view is notarized, and before its finality is known: the next block beside it."""
        finalize, ordering = decode(Finalize, vote.subject, 256), self.ordering
        view = finalize.view + 1
        if ordering is None or ordering.tree.leader(view) != self.index or view in self._plans:
            return
        block = ordering.tree.block(finalize.block)
        if block is None:
            return
        below = ordering.tree.lineage(block.header.parent)
        if below is None:
            return
        known = ordering.tree.block(below.digest)
        is_final = below.digest == ordering.tree.root.digest or known is None
        parent_view = ordering.final_view if is_final else known.header.view if known is not None else 0
        rushed = self.craft(ordering, view, parent_view, below)
        self._count(Vice.RUSH_FORK)
        self._plans[view] = {peer: [rushed] for peer in self._keys}
        self.lore.learn(rushed)
        self.tell(rushed)

    # As a voter

    def _noted(self, mistake: Exception) -> Exception:
        """A mistake of this file, so that it fails the run."""
        context = {"message": "an adversary failed", "exception": mistake}
        asyncio.get_running_loop().call_exception_handler(context)
        return mistake

    def _hear(self, message: object) -> None:
        match message:
            case Proposal(vote, block) if Vice.DOUBLE_VOTE in self.vices:
                subject = decode(Notarize, vote.subject, 256)
                if self._first(vote.kind, vote.epoch, vote.subject):
                    self._count(Vice.DOUBLE_VOTE)
                    to = self._some()
                    self.tell(self._vote(VoteKind.NOTARIZE, subject), *to)
                    self.tell(self._vote(VoteKind.FINALIZE, Finalize(subject.view, block_digest(block.header))), *to)
            case Vote(VoteKind.NULLIFY, epoch, subject_bytes) if Vice.NULLIFY_AND_FINALIZE in self.vices:
                if self._first(VoteKind.NULLIFY, epoch, subject_bytes):
                    nullify = decode(Nullify, subject_bytes, 256)
                    self._count(Vice.NULLIFY_AND_FINALIZE)
                    self.tell(self._vote(VoteKind.NULLIFY, nullify), *self._some())
                    for identity in self.lore.proposals[epoch, nullify.view]:
                        finalize = Finalize(nullify.view, identity)
                        self.tell(self._vote(VoteKind.FINALIZE, finalize), *self._some())
            case Vote(VoteKind.FINALIZE, epoch, subject_bytes) if Vice.NULLIFY_AND_FINALIZE in self.vices:
                if self._first(VoteKind.FINALIZE, epoch, subject_bytes):
                    finalize = decode(Finalize, subject_bytes, 256)
                    self.tell(self._vote(VoteKind.FINALIZE, finalize), *self._some())
                    self.tell(self._vote(VoteKind.NULLIFY, Nullify(finalize.view)), *self._some())

    def _first(self, kind: int, epoch: int, subject: bytes) -> bool:
        key = (kind, epoch, subject)
        fresh = key not in self._said and epoch == self.arena.genesis.validator_set.epoch
        self._said.add(key)
        return fresh and self.ordering is not None

    def _false_state(self, vote: Vote) -> Vote:
        subject = decode(Executed, vote.subject, 256)
        self._count(Vice.LIE_STATE)
        return self._vote(VoteKind.EXECUTED, replace(subject, state_root=digest(Domain.BUCKET, subject.state_root)))

    def _false_result(self, vote: Vote) -> Vote:
        subject = decode(Result, vote.subject, 256)
        self._count(Vice.LIE_RESULT)
        model = subject.model[:-1] + bytes([subject.model[-1] ^ 1]) if subject.model else b""
        return self._vote(VoteKind.RESULT, replace(subject, model=model, round=subject.round))

    def _boast(self, status: Status) -> Status:
        self._count(Vice.BOAST)
        ahead = self.chance.choice((1, 5, 1_000, 2**40))
        return replace(status, final_height=status.final_height + ahead, view=status.view + ahead)

    def _chosen_few(self, batch: bytes) -> frozenset[int]:
        """Just enough to certify a batch, or one too few."""
        if batch not in self._offered:
            self._count(Vice.WITHHOLD)
            quorum = self.arena.genesis.validator_set.quorum
            count = quorum - self.chance.choice((1, 1, 2))
            self._offered[batch] = frozenset(self.chance.sample(sorted(self._keys), count))
        return self._offered[batch]

    # Of its own accord

    async def stir(self) -> None:
        acts = [(vice, act) for vice, act in _STIRRING.items() if vice in self.vices]
        while acts:
            await asyncio.sleep(self.chance.uniform(0.2, 2.0))
            vice, act = self.chance.choice(acts)
            if self.ordering is not None:
                self._count(vice)
                act(self)

    def _mute(self) -> None:
        self._muted = True
        asyncio.get_running_loop().call_later(self.chance.uniform(0.3, 4.0), self._unmute)

    def _unmute(self) -> None:
        self._muted = False

    def _part(self) -> None:
        """Each twin speaks to some peers only; which, changes."""
        everyone = sorted(self._keys)
        self._reached = frozenset(self.chance.sample(everyone, self.chance.randint(1, len(everyone))))

    def _repeat_old(self) -> None:
        known = list(self.lore.certificates)
        for certificate in self.chance.sample(known, min(3, len(known))):
            self.tell(certificate, *self._some())

    def _forge(self) -> None:
        """A certificate with a signature too few, or with one that nobody made."""
        quorum = self.arena.genesis.validator_set.quorum
        recent = [entry for entry in self.lore.votes.items() if len(entry[1]) < quorum][-16:]
        if not recent:
            return
        (kind, epoch, subject), votes = self.chance.choice(recent)
        if self.chance.random() < 0.4:
            others = [signer for signer in range(self.arena.scenario.n) if signer not in votes]
            forged = Vote(kind, epoch, subject, self.chance.choice(others), self.chance.randbytes(64))
            self.tell(forged, *self._some()[:2])
            return
        known = self.lore.votes
        if kind in AVAILABILITY_KINDS:
            looked = known.get((VoteKind.AVAILABLE, epoch, subject), {})
            votes = known.get((VoteKind.HELD, epoch, subject), {}) | looked
        signatures = {signer: vote.signature for signer, vote in votes.items()}
        if self.chance.random() < 0.5:
            for signer in range(self.arena.scenario.n):
                if len(signatures) < quorum:
                    signatures.setdefault(signer, self.chance.randbytes(64))
        packed = tuple(signatures[signer] for signer in sorted(signatures))
        if kind in AVAILABILITY_KINDS:
            # With a look too few, or with looks that nobody took.
            lookers = looked if self.chance.random() < 0.5 else signatures
            certificate = AvailabilityCertificate(epoch, subject, self._bits(signatures), self._bits(lookers), packed)
            self.tell(certificate, *self._some()[:2])
        else:
            self.tell(Certificate(kind, epoch, subject, self._bits(signatures), packed), *self._some()[:2])

    def _bits(self, signers: Iterable[int]) -> bytes:
        return sum(1 << signer for signer in signers).to_bytes((self.arena.scenario.n + 7) // 8, "little")

    def _garbage(self) -> None:
        channel = self.chance.choice(list(Channel))
        frame = self.chance.randbytes(self.chance.randint(0, 200))
        if self.chance.random() < 0.5 and self.lore.certificates:
            whole = to_frame(next(reversed(self.lore.certificates)))
            frame = whole[: self.chance.randrange(len(whole))]
        for peer in self._some()[:2]:
            self.arena.network.inject(self.station.machine.name, self._keys[peer], channel, frame)

    def _offer_bad(self) -> None:
        if self._sly > 0:
            self._sly -= 1
            self._offer(self.arena.bad_transaction(self.chance, "signature"), 2)
            return
        bad = self.arena.bad_blob(self.chance) if self.chance.random() < 0.7 else None
        if bad is None:
            self._offer(self.arena.bad_transaction(self.chance, "signature", "bytes", "values"))
        else:
            self.arena.spawn(self._offer_bad_blob(*bad))

    async def _offer_bad_blob(self, transaction: bytes, blob: bytes, account: bytes) -> None:
        """The batch is good in itself; the blob that it names is there for everyone to pull, and bad."""
        with suppress(Crash, PortError):
            await self.station.data.put(blob, BlobKind.UPDATE, account)
            if self.ordering is not None:
                self._offer(transaction)

    def _offer_unjudged(self) -> None:
        """Nobody can tell yet whether this batch is good, so nobody may vote for it."""
        self._offer(self.arena.bad_transaction(self.chance, "unknown job"))

    def _offer(self, transaction: bytes, times: int = 0) -> None:
        ordering = self.ordering
        assert ordering is not None, "acts are for a node that runs"
        self._sequence += 1
        height, horizon = ordering.tree.root.height, ordering.params.horizon
        # More than one transaction some hold before anybody has looked.
        transactions = (transaction,) * (times or self.chance.choice((1, 2)))
        batch = Batch(
            ordering.chain_id, ordering.epoch, self.index, self._sequence, height, height + horizon, transactions
        )
        signed = sign_batch(self.station.key, batch)
        self._unchecked.append(batch_digest(batch))
        self.tell(BatchOffer(signed))
        self.tell(self._vote(VoteKind.AVAILABLE, signed.reference))
        if self.lore.batches and self.chance.random() < 0.3:
            certified = self.chance.choice(list(self.lore.batches.values()))
            self.tell(replace(certified, subject=encode(signed.reference)))


_LEADING: dict[Vice, Callable[[Adversary, Ordering, int, Proposal], Proposal | None]] = {
    Vice.EQUIVOCATE: Adversary._twice,
    Vice.SILENT_LEADER: lambda adversary, ordering, view, proposal: None,
    Vice.NAME_UNCHECKED: Adversary._unchecked_reference,
    Vice.NAME_STALE: Adversary._stale_reference,
    Vice.WRONG_PARENT: Adversary._wrong_parent,
    Vice.MUTANT: Adversary._mutant,
}

_STIRRING: dict[Vice, Callable[[Adversary], None]] = {
    Vice.MUTE: Adversary._mute,
    Vice.TWIN: Adversary._part,
    Vice.STALE: Adversary._repeat_old,
    Vice.FORGE: Adversary._forge,
    Vice.GARBAGE: Adversary._garbage,
    Vice.BAD_BATCH: Adversary._offer_bad,
    Vice.NAME_UNCHECKED: Adversary._offer_unjudged,
}
