"""What blocks carry: how a leader fills one, and how a voter judges one.

The rules need to know which batches are available, which results are certified and how far execution is; they know
nothing of what a transaction or a model is.
"""

from __future__ import annotations

from dataclasses import dataclass

from chain.availability import AvailabilityCertificate
from chain.block import Block, Body, Item, ItemKind, Ready, item_digest
from chain.certificate import Available, Certificate, ValidatorSet, verify_certificate
from chain.codec import CodecError, decode, encode
from chain.genesis import Params
from chain.hashing import Domain, signing_bytes
from chain.keys import verify
from consensus.attestation import Attestation
from consensus.availability import Availability, is_expired
from consensus.evidence import witness_convicts
from consensus.lineage import Lineage, unexecuted_loads
from consensus.messages import Proposal
from consensus.ordering.payload import Draft, Taken, Verdict

ITEMS_WAITING = 256
WITNESS_LIMIT = 16 * 1024
BESIDE_BYTES = 448 * 1024
"""Of a proposal: items, witnesses and certificates. With the header and the references it has to fit its frame."""


@dataclass(frozen=True, slots=True)
class NextSet:
    """A set that is decided: it takes over once the state at its height is certified."""

    due_height: int
    validators: ValidatorSet


class Proposals:
    """Implements `Payload` for one validator, in whatever epoch its cores are."""

    def __init__(
        self,
        chain_id: bytes,
        params: Params,
        availability: Availability,
        attestation: Attestation,
        schedule: dict[int, NextSet],
        previous: ValidatorSet | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.params = params
        self._availability = availability
        self._attestation = attestation
        self._schedule = schedule
        self._previous = previous
        self._waiting: dict[bytes, tuple[Item, bytes]] = {}
        self._witnessed: dict[bytes, None] = {}
        self._wants_block_at: int | None = None
        self._executed_height = 0

    def executed(self, height: int, wants_block_at: int | None) -> None:
        self._executed_height = height
        self._wants_block_at = wants_block_at

    def new_epoch(self, previous: ValidatorSet) -> None:
        """What the voters of this epoch could not verify, they would wait for in every proposal that held it."""
        self._previous = previous
        self._witnessed.clear()
        self._waiting = {key: pair for key, pair in self._waiting.items() if self._witness_holds(*pair)}

    def offer(self, item: Item, witness: bytes) -> None:
        """An item that is to enter a block, if its witness holds in this epoch; beyond the bound the oldest goes."""
        if not self._witness_holds(item, witness):
            return
        self._waiting[item_digest(item)] = (item, witness)
        while len(self._waiting) > ITEMS_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def ordered(self, items: tuple[Item, ...]) -> None:
        for item in items:
            self._waiting.pop(item_digest(item), None)
            self._witnessed.pop(item_digest(item), None)

    # Filling a block

    def _newest_state(self, parent: Lineage) -> tuple[int, bytes, Certificate | None]:
        newest = self._attestation.newest
        if newest is None or not parent.executed_height < newest[1].height <= parent.height:
            return parent.executed_height, parent.executed_root, None
        certificate, subject = newest
        if certificate.epoch != parent.epoch:
            return parent.executed_height, parent.executed_root, None
        return subject.height, subject.state_root, certificate

    def draft(self, parent: Lineage, taken: Taken) -> Draft:
        height, root, certificate = self._newest_state(parent)
        references: tuple[Available, ...] = ()
        if unexecuted_loads(parent, height) < self.params.execution_window:
            references = self._availability.candidates(taken.batch, parent.height + 1)
        identities = tuple(reference.batch for reference in references)
        waiting = [pair for key, pair in self._waiting.items() if not taken.item(key)][: self.params.block_items]
        return Draft(
            body=Body(identities, tuple(item for item, _ in waiting)),
            executed_height=height,
            executed_root=root,
            witnesses=tuple(witness for _, witness in waiting),
            executed=certificate,
            available=self._beside(identities, waiting, certificate),
        )

    def _beside(
        self, identities: tuple[bytes, ...], items: list[tuple[Item, bytes]], executed: Certificate | None
    ) -> tuple[AvailabilityCertificate, ...]:
        """Certificates of batches, as far as there is room: each was sent to all when it was made."""
        left = BESIDE_BYTES - sum(len(item.data) + len(witness) for item, witness in items)
        left -= len(encode(executed)) if executed is not None else 0
        chosen: list[AvailabilityCertificate] = []
        for certificate in self._availability.certificates_for(identities):
            left -= len(encode(certificate))
            if left < 0:
                break
            chosen.append(certificate)
        return tuple(chosen)

    # Judging one

    def learn(self, proposal: Proposal) -> None:
        if len(proposal.witnesses) == len(proposal.block.body.items):
            for item, witness in zip(proposal.block.body.items, proposal.witnesses, strict=True):
                if item_digest(item) not in self._witnessed and self._witness_holds(item, witness):
                    self._witnessed[item_digest(item)] = None
        while len(self._witnessed) > ITEMS_WAITING:
            del self._witnessed[next(iter(self._witnessed))]

    def _witness_holds(self, item: Item, witness: bytes) -> bool:
        validators = self._attestation.validators
        try:
            if item.kind == ItemKind.RESULT:
                certificate = decode(Certificate, witness, WITNESS_LIMIT)
                return certificate.subject == item.data and verify_certificate(self.chain_id, validators, certificate)
            if item.kind == ItemKind.EVIDENCE:
                # What was done at the end of an epoch comes to light in the next.
                known = [validators] if self._previous is None else [validators, self._previous]
                return any(witness_convicts(item, witness, self.chain_id, members) for members in known)
            if item.kind == ItemKind.READY:
                ready = decode(Ready, item.data, 256)
                message = signing_bytes(Domain.READY, self.chain_id, validators.epoch, item.data)
                return verify(ready.validator, message, witness)
        except CodecError:
            return False
        return False

    def judge(self, block: Block, parent: Lineage, taken: Taken) -> Verdict:
        body, header = block.body, block.header
        params = self.params
        if len(body.batches) > params.block_references or len(body.items) > params.block_items:
            return Verdict.INVALID
        if any(len(item.data) > params.item_bytes or item.kind not in set(ItemKind) for item in body.items):
            return Verdict.INVALID
        if len(set(body.batches)) != len(body.batches) or any(taken.batch(identity) for identity in body.batches):
            return Verdict.INVALID
        if body.batches and unexecuted_loads(parent, header.executed_height) >= params.execution_window:
            return Verdict.INVALID
        return self._judge_knowledge(block, parent)

    def _judge_knowledge(self, block: Block, parent: Lineage) -> Verdict:
        """The rest depends on what has reached this validator: what it lacks leaves the verdict open."""
        header = block.header
        size_bytes = 0
        lacking = False
        for identity in block.body.batches:
            reference = self._availability.reference(identity)
            if reference is None:
                lacking = True
                continue
            if is_expired(reference, header.height):
                return Verdict.INVALID
            size_bytes += reference.size_bytes
        if size_bytes > self.params.block_bytes:
            return Verdict.INVALID
        if header.executed_height > parent.executed_height:
            lacking = lacking or not self._attestation.knows(header.executed_height, header.executed_root)
        lacking = lacking or any(item_digest(item) not in self._witnessed for item in block.body.items)
        return Verdict.PENDING if lacking else Verdict.VALID

    # When to propose

    def waiting(self, tip: Lineage, taken: Taken) -> bool:
        if any(not taken.item(key) for key in self._waiting):
            return True
        height, _, _ = self._newest_state(tip)
        has_room = unexecuted_loads(tip, height) < self.params.execution_window
        return has_room and self._availability.pending_batches(taken.batch, tip.height + 1)

    def interval_ms(self, now_ms: int) -> int:
        return self._availability.interval_ms(now_ms)

    def block_due_in(self, root: Lineage, wall_ms: int) -> int | None:
        wanted = self._wants_block_at
        if wanted is None:
            return None
        if wanted == 0:
            return 0 if root.height <= self._executed_height else None
        return None if root.time_ms >= wanted else max(0, wanted - wall_ms)

    def next_set(self, parent: Lineage, executed_height: int) -> bytes:
        following = self._schedule.get(parent.epoch)
        if following is None or executed_height < max(following.due_height, parent.epoch_height + 1):
            return b""
        return following.validators.digest()
