"""Every guard that safety or a promise rests on, broken on purpose: the campaign must notice, or it proves nothing.

Each entry replaces the real function by one that forgets one thing, on all nodes, and knows the first seed of the
campaign that finds it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from chain import availability as certificates
from chain.availability import AvailabilityCertificate
from chain.certificate import Available, Certificate, Nullify, ValidatorSet, Vote, VoteKind
from chain.codec import encode
from consensus import attestation, proposals
from consensus.attestation import Attestation
from consensus.availability import Acknowledged, Availability, Verdict, committee
from consensus.availability import guards as availability_guards
from consensus.availability.creation import Creation
from consensus.availability.lots import Lot
from consensus.availability.offers import Offer
from consensus.effects import Now, Output
from consensus.messages import Proposal
from consensus.ordering import core, judging
from consensus.ordering.blocktree import Ancestry
from consensus.ordering.core import Ordering
from consensus.ordering.judging import Judgement
from consensus.ordering.payload import Verdict as BlockVerdict
from consensus.ordering.records import Body, Held
from consensus.ordering.view import Slot, View
from consensus.ordering.views import Views
from fl import machine
from fl.blobs import Demand
from fl.records import Account
from fl.tensors.grid import Grid
from node import retention
from node.checking import BatchChecks, Judged
from node.data import blobs
from node.data import judging as blob_judging
from node.data.blobs import Blob, BlobStore, Staging
from node.data.judging import GOOD, Judging
from node.data.judging import Verdict as BlobVerdict
from node.node import Node
from node.ports import DiskFailure, Peer
from tests.simulation.scenario import Scenario, Vice

Breaking = Callable[[], AbstractContextManager[object]]


@contextmanager
def _replaced(*replacements: tuple[object, str, object]) -> Iterator[None]:
    """Attributes of modules and classes, put back at the end."""
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in replacements]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _notarize_after_nullify() -> AbstractContextManager[object]:
    original = Ordering._judge_current

    def judge(self: Ordering) -> None:
        view = self._book.at(self.view)
        nullify, view.my_nullify = view.my_nullify, None
        original(self)
        view.my_nullify = view.my_nullify or nullify

    return _replaced((Ordering, "_judge_current", judge))


def _finalize_after_nullify() -> AbstractContextManager[object]:
    def can_finalize(view: View, final_view: int, silent_until: int) -> bool:
        return (
            view.number > max(final_view, silent_until)
            and view.notarized is not None
            and view.my_finalize is None
            and not view.equivocated
        )

    return _replaced((core, "can_finalize", can_finalize))


def _nullify_after_finalize() -> AbstractContextManager[object]:
    original = Ordering._nullify

    def nullify(self: Ordering, reason: str) -> None:
        original(self, reason)
        before = self.views.get(self.view - 1)
        open_still = before is not None and before.my_nullify is None and before.number > self.final_view
        if self.me is not None and before is not None and open_still:
            self._cast(before, VoteKind.NULLIFY, encode(Nullify(before.number)))

    return _replaced((Ordering, "_nullify", nullify))


def _second_notarize() -> AbstractContextManager[object]:
    original = Ordering._proposal

    def proposal(self: Ordering, peer: int, message: Proposal) -> None:
        view = self.views.get(self.view)
        if view is not None and view.proposal is not None and view.leader == message.vote.signer != self.me:
            view.proposal, view.proposed, view.slot = None, None, Slot.EMPTY
        original(self, peer, message)

    def can_notarize(view: View, current: int, silent_until: int) -> bool:
        again = view.my_notarize is None or (
            view.proposed is not None and view.my_notarize.subject != encode(view.proposed)
        )
        return (
            view.number == current
            and view.number > silent_until
            and view.slot is Slot.VALID
            and again
            and view.my_nullify is None
        )

    return _replaced((Ordering, "_proposal", proposal), (core, "can_notarize", can_notarize))


def _unchecked_parent() -> AbstractContextManager[object]:
    def parent_of(view: View, views: Views) -> bytes | Judgement:
        assert view.proposal is not None
        return view.proposal.block.header.parent

    return _replaced((judging, "parent_of", parent_of))


def _gaps_not_nullified() -> AbstractContextManager[object]:
    original = judging.parent_of

    def parent_of(view: View, views: Views) -> bytes | Judgement:
        judged = original(view, views)
        if isinstance(judged, bytes) or judged.verdict is not BlockVerdict.PENDING:
            return judged
        assert view.proposal is not None and view.proposed is not None
        named = views.notarized_at(view.proposed.parent_view)
        return named if named is not None and view.proposal.block.header.parent == named else judged

    return _replaced((judging, "parent_of", parent_of))


def _quorum_minus_one() -> AbstractContextManager[object]:
    return _replaced((ValidatorSet, "quorum", property(lambda self: self.n - self.f - 1)))


# Durability


async def _durable_soon(node: Node, batches: int, journal: int) -> None:
    with suppress(DiskFailure):
        await node.batches.log.durable(batches)
        node.batches.settle()
        await node.journal.durable(journal)


def _vote_before_fsync() -> AbstractContextManager[object]:
    async def durable(self: Node, batches: int, journal: int) -> None:
        asyncio.get_running_loop().create_task(_durable_soon(self, batches, journal))

    return _replaced((Node, "_durable", durable))


def _availability_before_durability() -> AbstractContextManager[object]:
    async def durable(self: Node, batches: int, journal: int) -> None:
        asyncio.get_running_loop().create_task(_durable_soon(self, batches, 0))
        await self.journal.durable(journal)

    return _replaced((Node, "_durable", durable))


def _not_journalled(kind: type) -> Breaking:
    def breaking() -> AbstractContextManager[object]:
        original = Node._append

        def append(self: Node, record: object) -> None:
            if not isinstance(record, kind):
                original(self, record)

        return _replaced((Node, "_append", append))

    return breaking


def _own_votes_not_counted() -> AbstractContextManager[object]:
    original = Ordering._restore

    def restore(self: Ordering, vote: Vote) -> None:
        vars(self)["_count"] = lambda vote: None
        original(self, vote)
        del vars(self)["_count"]

    return _replaced((Ordering, "_restore", restore))


def _own_votes_forgotten() -> AbstractContextManager[object]:
    return _replaced((Ordering, "_restore", lambda self, vote: None))


def _nothing_said_again() -> AbstractContextManager[object]:
    def remind(self: Ordering) -> None:
        self.timing.resend_due(self._now)
        self.timing.standstill_due(self._now)

    return _replaced((Ordering, "_remind", remind), (Ordering, "_say_all", lambda self, peer: None))


# Certificates and availability


def _certificates_unverified() -> AbstractContextManager[object]:
    def verify(
        chain_id: bytes,
        validators: ValidatorSet,
        certificate: Certificate | AvailabilityCertificate,
        verified: Iterable[Vote] = (),
    ) -> bool:
        return certificate.epoch == validators.epoch

    modules = (core, attestation, proposals)
    return _replaced(
        (committee, "verify_availability", verify), *((module, "verify_certificate", verify) for module in modules)
    )


def _votes_unverified() -> AbstractContextManager[object]:
    def verify(chain_id: bytes, validators: ValidatorSet, vote: Vote) -> bool:
        return vote.epoch == validators.epoch and vote.signer < validators.n

    return _replaced(*((module, "verify_vote", verify) for module in (core, committee, attestation)))


def _batches_unchecked() -> AbstractContextManager[object]:
    return _replaced((BatchChecks, "judge", lambda self, signed, look, wanted: Judged(Verdict.OK)))


def _f_lookers_are_enough() -> AbstractContextManager[object]:
    def is_enough(voters: int, lookers: int, validators: ValidatorSet) -> bool:
        return voters >= validators.quorum and lookers >= validators.lookers - 1

    return _replaced(*((module, "is_enough", is_enough) for module in (certificates, availability_guards)))


def _held_called_looked_at() -> AbstractContextManager[object]:
    return _replaced((availability_guards, "own_kind", lambda looked: VoteKind.AVAILABLE))


def _nobody_looks_later() -> AbstractContextManager[object]:
    return _replaced((availability_guards, "may_look", lambda *args: False))


def _bytes_are_enough() -> AbstractContextManager[object]:
    original = Availability.reference

    def reference(self: Availability, digest: bytes) -> Available | None:
        found = original(self, digest) or self._desk.offers.get(digest) or self._desk.lots.get(digest)
        return found.reference if isinstance(found, Offer | Lot) else found

    return _replaced((Availability, "reference", reference))


def _acknowledged_early() -> AbstractContextManager[object]:
    original = Creation._seal

    def seal(self: Creation, now: Now, out: Output) -> None:
        before = self._last
        original(self, now, out)
        if self._last is not None and self._last != before:
            out.acks.append(Acknowledged(tuple(id for id, _ in self._own[self._last].cargo), self._last))

    return _replaced((Creation, "_seal", seal))


def _expired_taken() -> AbstractContextManager[object]:
    def is_expired(reference: Available, height: int) -> bool:
        return False

    return _replaced((availability_guards, "is_expired", is_expired), (proposals, "is_expired", is_expired))


def _ordered_twice() -> AbstractContextManager[object]:
    return _replaced((Ancestry, "batch", lambda self, identity: False))


# Blobs


def _voted_without_the_blob() -> AbstractContextManager[object]:
    async def met(self: BatchChecks, demand: Demand, sources: tuple[Peer, ...]) -> Verdict:
        return Verdict.OK

    return _replaced((BatchChecks, "_met", met))


def _blob_unjudged() -> AbstractContextManager[object]:
    async def examined(self: Judging, *about: object) -> BlobVerdict:
        return GOOD

    return _replaced((Judging, "_examined", examined), (blob_judging, "check_part", lambda *args: None))


def _blob_not_durable() -> AbstractContextManager[object]:
    """Found, and so voted for, while its bytes are nowhere but in memory."""

    async def finish(self: BlobStore, staging: Staging) -> Blob:
        name = blobs.whole_name(staging.cid)
        if staging.name != name:
            self._disk.rename(staging.name, name)
            staging.moved(name)
        blob = Blob(staging.cid, staging.size_bytes, staging.kind, staging.manifest, staging.account)
        await self._appear(blob)
        del self._stagings[staging.cid]
        return blob

    return _replaced((BlobStore, "_finish", finish))


def _blobs_of_rounds_forgotten() -> AbstractContextManager[object]:
    return _replaced((retention, "roots", lambda *args: iter(())))


# Execution


def _wrong_root_unnoticed() -> AbstractContextManager[object]:
    return _replaced((Attestation, "_compare_state", lambda self, out: None))


def _nonce_not_consumed() -> AbstractContextManager[object]:
    def with_nonce_used(account: Account, nonce: int) -> Account:
        return account

    return _replaced((machine, "with_nonce_used", with_nonce_used))


def _average_off_by_one() -> AbstractContextManager[object]:
    original = Grid.denominator

    def denominator(self: Grid, weight: int) -> int:
        return original(self, weight + 1)

    return _replaced((Grid, "denominator", denominator))


def _liar(vice: Vice) -> Callable[[Scenario], bool]:
    return lambda scenario: any(vice in vices for _, vices in scenario.byzantine)


@dataclass(frozen=True, slots=True)
class Guard:
    breaking: Breaking
    seed: int = 0
    """The first seed of the campaign, from 1 on, that notices."""
    tempts: Callable[[Scenario], bool] = lambda scenario: True
    """Whether anything in a scenario needs the guard: no other can notice that it is broken."""


GUARDS: dict[str, Guard] = {
    "notarize after nullify": Guard(_notarize_after_nullify, 1),
    "finalize after nullify": Guard(_finalize_after_nullify, 1),
    "nullify after finalize": Guard(_nullify_after_finalize, 1),
    "second notarize": Guard(_second_notarize, 2),
    "unchecked parent": Guard(_unchecked_parent, 14),
    "gaps not nullified": Guard(_gaps_not_nullified, 14),
    "quorum minus one": Guard(_quorum_minus_one, 1),
    "vote before fsync": Guard(_vote_before_fsync, 1),
    "body not durable": Guard(_not_journalled(Body), 1),
    "certificate not durable": Guard(_not_journalled(Held), 1),
    "own votes not re-fed": Guard(_own_votes_not_counted, 17),
    "own votes not restored": Guard(_own_votes_forgotten, 1),
    "nothing said again": Guard(_nothing_said_again, 1),
    "certificates unverified": Guard(_certificates_unverified, 1),
    "votes unverified": Guard(_votes_unverified, 1, _liar(Vice.FORGE)),
    "availability vote before durability": Guard(_availability_before_durability, 1),
    "availability vote without check": Guard(_batches_unchecked, 2),
    "certificate with f looks": Guard(_f_lookers_are_enough, 1),
    "held called looked at": Guard(_held_called_looked_at, 31, _liar(Vice.BAD_BATCH)),
    "nobody looks later": Guard(_nobody_looks_later, 1),
    "reference to bytes merely stored": Guard(_bytes_are_enough, 8, _liar(Vice.NAME_UNCHECKED)),
    "acknowledgement before certificate": Guard(_acknowledged_early, 1),
    "expired batch accepted": Guard(_expired_taken, 61, lambda scenario: scenario.hasty),
    "batch ordered twice": Guard(_ordered_twice, 1),
    "vote without the blob": Guard(_voted_without_the_blob, 2),
    "blob unjudged": Guard(_blob_unjudged, 77, _liar(Vice.BAD_BATCH)),
    "blob not durable": Guard(_blob_not_durable, 1),
    "blobs of rounds forgotten": Guard(_blobs_of_rounds_forgotten, 2),
    "wrong root unnoticed": Guard(_wrong_root_unnoticed, 36, lambda scenario: scenario.rotten is not None),
    "nonce not consumed": Guard(_nonce_not_consumed, 1),
    "average off by one": Guard(_average_off_by_one, 5),
}


def broken(name: str | None) -> AbstractContextManager[object]:
    return nullcontext() if name is None else GUARDS[name].breaking()
