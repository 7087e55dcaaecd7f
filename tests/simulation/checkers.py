"""What must hold whatever happens, checked from outside: from frames as they leave, final blocks, states, disks.

Nothing here asks a node whether it is right. Quorums are counted and signatures verified anew, the chain is linked
block by block, and what each transaction must come to is worked out by a model of a dozen lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from chain import keys
from chain.availability import AvailabilityCertificate
from chain.batch import SignedBatch, batch_digest
from chain.block import Block, Header, block_digest, body_roots
from chain.certificate import (
    Available,
    Certificate,
    Executed,
    Finalize,
    Notarize,
    Nullify,
    Result,
    ValidatorSet,
    Vote,
    VoteKind,
)
from chain.codec import CodecError, decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, tx_id, verify_transaction
from consensus.messages import (
    BatchAnswer,
    BatchOffer,
    BlockAnswer,
    Proposal,
    RangeAnswer,
    ViewAnswer,
)

T = TypeVar("T")
Place = tuple[int, int]
"""(epoch, view)."""

VIOLATIONS_KEPT = 20

_TAGS = {
    VoteKind.NOTARIZE: b"quorate/notarize",
    VoteKind.NULLIFY: b"quorate/nullify",
    VoteKind.FINALIZE: b"quorate/finalize",
    VoteKind.AVAILABLE: b"quorate/available",
    VoteKind.EXECUTED: b"quorate/executed",
    VoteKind.RESULT: b"quorate/result",
    VoteKind.HELD: b"quorate/held",
}

AnyCertificate = Certificate | AvailabilityCertificate


def signed_by(public: bytes, tag: bytes, chain_id: bytes, epoch: int, subject: bytes, signature: bytes) -> bool:
    return keys.verify(public, bytes([len(tag)]) + tag + chain_id + epoch.to_bytes(8, "big") + subject, signature)


class Findings:
    """What was found wrong, with the virtual time at which it was, and how often everything else happened."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()

    def report(self, sentence: str) -> None:
        if len(self.violations) < VIOLATIONS_KEPT:
            self.violations.append(f"at {self._now():.3f} s: {sentence}")


def _read(cls: type[T], subject: bytes) -> T | None:
    try:
        return decode(cls, subject, 256)
    except CodecError:
        return None


class Wire:
    """What validators said. An honest one is held to all of it, of the others only certificates count."""

    def __init__(self, chain_id: bytes, sets: Mapping[int, ValidatorSet], findings: Findings) -> None:
        self._chain_id = chain_id
        self._sets = sets
        self._findings = findings
        self._votes: dict[tuple[int, int, int], dict[int, bytes]] = {}
        """By (signer, epoch, view): the subject of its first vote of each kind."""
        self.rotten: int | None = None
        """A validator whose disk may make it attest to anything."""
        self._attested: dict[tuple[int, int, object], bytes] = {}
        self._valid: dict[AnyCertificate, bool] = {}
        self.notarized: dict[Place, bytes] = {}
        self.nullified: set[Place] = set()
        self.finalized: dict[Place, bytes] = {}
        self.available: dict[bytes, Available] = {}
        self.states: dict[int, tuple[bytes, bytes]] = {}
        self.results: dict[tuple[bytes, int], bytes] = {}
        self.headers: dict[bytes, Header] = {}
        self.batches: dict[bytes, SignedBatch] = {}
        self.nullifies: dict[tuple[int, int, int], bytes] = {}
        """By (signer, epoch, view), the signature."""
        self.top_view = 0

    # What honest validators send

    def sent(self, sender: int, message: object) -> None:
        match message:
            case Vote():
                self._vote(sender, message)
            case Proposal(vote, block, _, executed, available):
                self._block(block)
                self._vote(sender, vote)
                for certificate in (*available, *((executed,) if executed is not None else ())):
                    self._certificate(sender, certificate)
            case Certificate() | AvailabilityCertificate():
                self._certificate(sender, message)
            case RangeAnswer(_, rows):
                for row in rows:
                    if row.finalization is not None:
                        self._certificate(sender, row.finalization)
            case ViewAnswer(_, _, _, entry) if entry is not None:
                self._certificate(sender, entry)
            case BlockAnswer(block):
                self._block(block)
            case BatchOffer(signed) | BatchAnswer(signed):
                self.batches.setdefault(batch_digest(signed.batch), signed)

    def overheard(self, message: object) -> None:
        """From one who may say anything."""
        match message:
            case Proposal(_, block, _, executed, available):
                self._block(block)
                for certificate in (*available, *((executed,) if executed is not None else ())):
                    self._certificate(None, certificate)
            case Certificate() | AvailabilityCertificate():
                self._certificate(None, message)
            case BlockAnswer(block):
                self._block(block)
            case BatchOffer(signed) | BatchAnswer(signed):
                self.batches.setdefault(batch_digest(signed.batch), signed)

    def _block(self, block: Block) -> None:
        self.headers.setdefault(block_digest(block.header), block.header)

    def _vote(self, sender: int, vote: Vote) -> None:
        validators = self._sets.get(vote.epoch)
        if validators is None or vote.signer >= validators.n:
            self._findings.report(f"n{sender} sent a vote of a set that does not exist")
            return
        if not self._signature_holds(validators, vote.kind, vote.subject, vote.signer, vote.signature):
            self._findings.report(f"n{sender} sent a vote with a bad signature")
        if vote.signer != sender:
            # A peer's vote given back to it, which may be a liar's: the sender says nothing by it.
            return
        if vote.kind in (VoteKind.NOTARIZE, VoteKind.NULLIFY, VoteKind.FINALIZE):
            self._ordering_vote(vote)
        else:
            self._attestation(vote)

    def _ordering_vote(self, vote: Vote) -> None:
        view = self.view_of(vote.kind, vote.subject)
        self.top_view = max(self.top_view, view)
        cast = self._votes.setdefault((vote.signer, vote.epoch, view), {})
        if vote.kind == VoteKind.NULLIFY:
            self.nullifies[vote.signer, vote.epoch, view] = vote.signature
        first = cast.setdefault(vote.kind, vote.subject)
        self._findings.counts[f"votes {VoteKind(vote.kind).name.lower()}"] += first is vote.subject
        if first != vote.subject:
            self._findings.report(f"n{vote.signer} cast two votes of kind {VoteKind(vote.kind).name} in view {view}")
        if VoteKind.NULLIFY in cast and VoteKind.FINALIZE in cast:
            self._findings.report(f"n{vote.signer} both nullified and finalized view {view}")

    def _attestation(self, vote: Vote) -> None:
        subject: Available | Executed | Result | None
        about: object
        if vote.kind in (VoteKind.AVAILABLE, VoteKind.HELD):
            subject = _read(Available, vote.subject)
            about = subject.batch if subject is not None else b""
        elif vote.kind == VoteKind.EXECUTED:
            subject = _read(Executed, vote.subject)
            about = subject.height if subject is not None else 0
        else:
            subject = _read(Result, vote.subject)
            about = (subject.job, subject.round) if subject is not None else b""
        key = (vote.signer, vote.kind, about)
        if vote.signer != self.rotten and self._attested.setdefault(key, vote.subject) != vote.subject:
            self._findings.report(f"n{vote.signer} attested two things of kind {VoteKind(vote.kind).name}")

    @staticmethod
    def view_of(kind: int, subject: bytes) -> int:
        if kind == VoteKind.NOTARIZE:
            return decode(Notarize, subject, 256).view
        if kind == VoteKind.NULLIFY:
            return decode(Nullify, subject, 256).view
        return decode(Finalize, subject, 256).view

    # Certificates

    def _signature_holds(
        self, validators: ValidatorSet, kind: int, subject: bytes, signer: int, signature: bytes
    ) -> bool:
        public = validators.members[signer].consensus_key
        return signed_by(public, _TAGS[VoteKind(kind)], self._chain_id, validators.epoch, subject, signature)

    def verifies(self, certificate: AnyCertificate) -> bool:
        known = self._valid.get(certificate)
        if known is None:
            known = self._valid[certificate] = self._verify(certificate)
        return known

    def _verify(self, certificate: AnyCertificate) -> bool:
        validators = self._sets.get(certificate.epoch)
        if validators is None:
            return False
        n = len(validators.members)
        f = (n - 1) // 3
        bits = int.from_bytes(certificate.signers, "little")
        signers = [index for index in range(n) if bits >> index & 1]
        if bits >> n or len(signers) < n - f or len(signers) != len(certificate.signatures):
            return False
        if isinstance(certificate, AvailabilityCertificate):
            looked = int.from_bytes(certificate.looked, "little")
            if looked & ~bits or looked.bit_count() < min(n, max(f + 1, 2)):
                return False
            kinds = [VoteKind.AVAILABLE if looked >> signer & 1 else VoteKind.HELD for signer in signers]
        elif certificate.kind not in set(VoteKind) - {VoteKind.AVAILABLE, VoteKind.HELD}:
            return False
        else:
            kinds = [VoteKind(certificate.kind)] * len(signers)
        return all(
            self._signature_holds(validators, kind, certificate.subject, signer, signature)
            for kind, signer, signature in zip(kinds, signers, certificate.signatures, strict=True)
        )

    @staticmethod
    def _name(certificate: AnyCertificate) -> str:
        if isinstance(certificate, AvailabilityCertificate):
            return "available"
        return VoteKind(certificate.kind).name.lower() if certificate.kind in set(VoteKind) else str(certificate.kind)

    def _certificate(self, sender: int | None, certificate: AnyCertificate) -> None:
        if certificate in self._valid:
            if sender is not None and not self._valid[certificate]:
                self._findings.report(f"n{sender} passed on a certificate that does not verify")
            return
        if not self.verifies(certificate):
            if sender is not None:
                kind = self._name(certificate)
                self._findings.report(f"n{sender} sent a certificate of kind {kind} that does not verify")
            return
        self._findings.counts[f"certificates {self._name(certificate)}"] += 1
        self.holds(certificate)

    def holds(self, certificate: AnyCertificate) -> None:
        """A valid certificate exists: it must not contradict any other."""
        epoch, subject = certificate.epoch, certificate.subject
        if isinstance(certificate, AvailabilityCertificate):
            available = decode(Available, subject, 256)
            if available.batch not in self.available and not self._is_all_signed(available.batch):
                self._findings.report("a batch is certified that holds what nobody signed")
            if self.available.setdefault(available.batch, available) != available:
                self._findings.report("a batch is certified under two descriptions")
        elif certificate.kind == VoteKind.NOTARIZE:
            notarize = decode(Notarize, subject, 256)
            place = (epoch, notarize.view)
            if self.notarized.setdefault(place, subject) != subject:
                self._findings.report(f"view {notarize.view} has two notarizations")
            for between in range(notarize.parent_view + 1, notarize.view):
                if (epoch, between) in self.finalized:
                    self._skipped(between, notarize.view)
        elif certificate.kind == VoteKind.NULLIFY:
            place = (epoch, decode(Nullify, subject, 256).view)
            self.nullified.add(place)
            if place in self.finalized:
                self._findings.report(f"view {place[1]} has a finalization and a nullification")
        elif certificate.kind == VoteKind.FINALIZE:
            finalize = decode(Finalize, subject, 256)
            place = (epoch, finalize.view)
            if self.finalized.setdefault(place, finalize.block) != finalize.block:
                self._findings.report(f"view {finalize.view} has two finalizations")
            if place in self.nullified:
                self._findings.report(f"view {finalize.view} has a finalization and a nullification")
            for (other, view), held in self.notarized.items():
                if other == epoch and decode(Notarize, held, 256).parent_view < finalize.view < view:
                    self._skipped(finalize.view, view)
            notarized = self.notarized.get(place)
            if notarized is not None and decode(Notarize, notarized, 256).block != finalize.block:
                self._findings.report(f"view {finalize.view} has a finalization of another block than it notarized")
        elif certificate.kind == VoteKind.EXECUTED:
            executed = decode(Executed, subject, 256)
            state = (executed.block, executed.state_root)
            if self.states.setdefault(executed.height, state) != state:
                self._findings.report(f"two states are certified at height {executed.height}")
        else:
            result = decode(Result, subject, 256)
            if self.results.setdefault((result.job, result.round), subject) != subject:
                self._findings.report(f"two results are certified of round {result.round}")

    def _is_all_signed(self, batch: bytes) -> bool:
        """As far as its bytes were seen."""
        signed = self.batches.get(batch)
        transactions = signed.batch.transactions if signed is not None else ()
        try:
            read = [decode(Transaction, data, MAX_TRANSACTION_BYTES) for data in transactions]
        except CodecError:
            return False
        return all(verify_transaction(tx, tx_id(tx)) for tx in read)

    def _skipped(self, final: int, by: int) -> None:
        self._findings.report(f"the notarized block of view {by} does not stand on the final one of view {final}")


class Chain:
    """Final blocks and what came of executing them, as each node tells it."""

    def __init__(self, root: bytes, interval_ms: int, wire: Wire, findings: Findings) -> None:
        self._wire = wire
        self._findings = findings
        self._interval_ms = interval_ms
        self.digests: dict[int, bytes] = {0: root}
        self.blocks: dict[int, Block] = {}
        self.roots: dict[int, bytes] = {}
        self.receipts: dict[int, tuple[bytes, ...]] = {}
        self._ordered_at: dict[bytes, int] = {}

    def final(self, who: str, blocks: Iterable[Block], certificate: Certificate) -> None:
        height = 0
        for block in blocks:
            height = block.header.height
            identity = block_digest(block.header)
            known = self.digests.get(height)
            if known is None:
                self._append(who, block, identity)
            elif known != identity:
                self._findings.report(f"{who} holds another block for final at height {height} than others do")
        if not self._wire.verifies(certificate) or certificate.kind != VoteKind.FINALIZE:
            self._findings.report(f"{who} finalized height {height} without a valid finalization")
            return
        self._wire.holds(certificate)
        if decode(Finalize, certificate.subject, 256).block != self.digests.get(height):
            self._findings.report(f"{who} finalized height {height} by the finalization of another block")

    def _append(self, who: str, block: Block, identity: bytes) -> None:
        header = block.header
        height = header.height
        report = self._findings.report
        if self.digests.get(height - 1) != header.parent:
            report(f"{who}: the final block of height {height} does not stand on the final one below it")
        if (header.batch_root, header.item_root) != body_roots(block.body):
            report(f"{who}: the body of height {height} is not the one that its header names")
        below = self.blocks.get(height - 1)
        if below is not None and header.time_ms < below.header.time_ms + self._interval_ms:
            report(f"{who}: height {height} follows sooner than the interval allows")
        if below is not None and header.view <= below.header.view and header.epoch == below.header.epoch:
            report(f"{who}: height {height} is of an earlier view than its parent")
        for batch in block.body.batches:
            if batch in self._ordered_at:
                report(f"{who}: a batch of height {self._ordered_at[batch]} is ordered again at {height}")
            self._ordered_at[batch] = height
            if batch not in self._wire.available:
                self._findings.counts["batches ordered before their certificate was seen"] += 1
        self.digests[height] = identity
        self.blocks[height] = block
        self._findings.counts["blocks"] += 1
        self._findings.counts["batches"] += len(block.body.batches)
        self._findings.counts["items"] += len(block.body.items)

    def executed(self, who: str, height: int, block: bytes, root: bytes, receipts: tuple[bytes, ...]) -> None:
        report = self._findings.report
        if self.digests.get(height) != block:
            report(f"{who} executed at height {height} what is not final there")
        if self.roots.setdefault(height, root) != root:
            report(f"{who} computed another state after height {height} than others did")
        if self.receipts.setdefault(height, receipts) != receipts:
            report(f"{who} left other receipts at height {height} than others did")
        state = self._wire.states.get(height)
        if state is not None and state != (block, root):
            report(f"{who} computed another state after height {height} than the certified one")

    @property
    def height(self) -> int:
        return max(self.digests)


def check_certified_blocks(wire: Wire, chain: Chain, findings: Findings) -> None:
    """Every finalization that was ever seen is of a block of the one chain, or of one above all that is final."""
    final = {identity: height for height, identity in chain.digests.items()}
    top = chain.blocks[chain.height].header if chain.blocks else None
    for (epoch, view), block in wire.finalized.items():
        if block not in final and top is not None and (epoch, view) <= (top.epoch, top.view):
            findings.report(f"the block that was finalized in view {view} is not in the chain")
    for height, (block, root) in wire.states.items():
        if chain.digests.get(height, block) != block:
            findings.report(f"a state is certified for another block at height {height}")
        if chain.roots.get(height, root) != root:
            findings.report(f"the certified state after height {height} is not the one that nodes computed")


# Durability: nothing may leave before that on which it stands is on the platter.

_NEAR_BYTES = 64 * 1024

Platter = Callable[[str], list[bytearray]]
"""The durable bytes of the files of a directory, the newest file first."""


def on_platter(files: Iterable[bytearray], needle: bytes) -> bool:
    return any(data.rfind(needle, max(0, len(data) - _NEAR_BYTES)) >= 0 or data.find(needle) >= 0 for data in files)


def check_durable(who: str, index: int, message: object, platter: Platter, wire: Wire, findings: Findings) -> None:
    """Of what a node says in its own name; a peer's votes that it gives back to that peer bind nobody."""
    match message:
        case Vote(kind, _, subject, signer, signature) if signer == index:
            if kind in (VoteKind.NOTARIZE, VoteKind.NULLIFY, VoteKind.FINALIZE):
                if not on_platter(platter("journal/"), signature):
                    findings.report(f"{who} sent a vote of kind {VoteKind(kind).name} that was not yet durable")
                if kind == VoteKind.NOTARIZE:
                    _check_order(who, message, platter, wire, findings)
                    _check_body(who, decode(Notarize, subject, 256).block, platter, wire, findings)
            elif kind in (VoteKind.AVAILABLE, VoteKind.HELD):
                signed = wire.batches.get(decode(Available, subject, 256).batch)
                if signed is not None and not on_platter(platter("batches/"), signed.signature):
                    findings.report(f"{who} voted for a batch that was not yet durable")
        case Proposal(vote, block):
            if not on_platter(platter("journal/"), vote.signature):
                findings.report(f"{who} sent a proposal that was not yet durable")
            _check_order(who, vote, platter, wire, findings)
            _check_body(who, block_digest(block.header), platter, wire, findings)
        case Certificate(kind) if kind not in (VoteKind.EXECUTED, VoteKind.RESULT):
            if not on_platter(platter("journal/"), encode(message)):
                findings.report(f"{who} sent a certificate of kind {VoteKind(kind).name} that was not yet durable")
        case AvailabilityCertificate():
            if not on_platter(platter("journal/"), encode(message)):
                findings.report(f"{who} sent a certificate of a batch that was not yet durable")


def _check_order(who: str, vote: Vote, platter: Platter, wire: Wire, findings: Findings) -> None:
    """What was cast first may be sent last, when a crash came between; the journal has the order of casting."""
    view = wire.view_of(vote.kind, vote.subject)
    nullify = wire.nullifies.get((vote.signer, vote.epoch, view))
    if nullify is not None:
        journal = b"".join(reversed(platter("journal/")))
        if 0 <= journal.find(nullify) < journal.find(vote.signature):
            findings.report(f"{who} notarized in view {view} after it had nullified it")


def _check_body(who: str, block: bytes, platter: Platter, wire: Wire, findings: Findings) -> None:
    header = wire.headers.get(block)
    if header is not None and not on_platter(platter("journal/"), encode(header)):
        findings.report(f"{who} notarized a block whose body was not yet durable")
