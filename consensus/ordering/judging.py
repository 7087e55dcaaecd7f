"""Is a proposal one that an honest validator may notarize? A verdict, and what is lacking for one."""

from __future__ import annotations

from dataclasses import dataclass

from chain.block import HEADER_VERSION, Header
from chain.certificate import VoteKind
from chain.genesis import Params
from consensus.lineage import header_fault
from consensus.ordering.blocktree import BlockTree
from consensus.ordering.payload import Payload, Verdict
from consensus.ordering.view import View
from consensus.ordering.views import LOOKAHEAD, Views


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    block: bytes | None = None
    """A body that is lacking."""
    certificates: tuple[tuple[int, VoteKind], ...] = ()
    """Views of which a certificate of that kind is lacking."""
    wait_ms: int = 0
    """By so much the header's time is ahead of what this clock tolerates."""


VALID = Judgement(Verdict.VALID)
INVALID = Judgement(Verdict.INVALID)


def well_formed(header: Header, number: int, chain_id: bytes, epoch: int, params: Params) -> bool:
    """What a proposal's bytes alone show."""
    repeats_last_of_epoch = header.view < number and bool(header.next_set)
    return (
        (header.view == number or repeats_last_of_epoch)
        and header.version == HEADER_VERSION
        and header.chain == chain_id
        and header.epoch == epoch
        and header.rules_version == params.rules_version
    )


def parent_of(view: View, views: Views) -> bytes | Judgement:
    """The digest of the block on which a proposal stands, or why it cannot be told or cannot be."""
    assert view.proposed is not None and view.proposal is not None, "only proposals are judged"
    parent_view = view.proposed.parent_view
    if parent_view >= view.number or parent_view < views.final_view:
        return INVALID
    named = views.notarized_at(parent_view)
    lacking = [(number, VoteKind.NULLIFY) for number in views.not_nullified(parent_view, view.number)]
    if named is None:
        lacking.insert(0, (parent_view, VoteKind.NOTARIZE))
    if lacking or named is None:
        return Judgement(Verdict.PENDING, certificates=tuple(lacking[:LOOKAHEAD]))
    header = view.proposal.block.header
    repeat = view.proposed.block == named
    return named if repeat or header.parent == named else INVALID


def judge(view: View, views: Views, tree: BlockTree, payload: Payload, params: Params, wall_ms: int) -> Judgement:
    parent = parent_of(view, views)
    if isinstance(parent, Judgement):
        return parent
    assert view.proposed is not None and view.proposal is not None
    lineage = tree.lineage(parent)
    if lineage is None:
        return Judgement(Verdict.PENDING, block=tree.first_missing(parent))
    if view.proposed.block == parent:
        return VALID if lineage.next_set else INVALID
    block, header = view.proposal.block, view.proposal.block.header
    if lineage.next_set or header.view != view.number:
        return INVALID
    if header_fault(lineage, header, view.leader, params.min_block_interval_ms) is not None:
        return INVALID
    if header.next_set != payload.next_set(lineage, header.executed_height):
        return INVALID
    ahead_ms = header.time_ms - wall_ms - params.drift_ms
    if ahead_ms > 0:
        return Judgement(Verdict.PENDING, wait_ms=ahead_ms)
    return Judgement(payload.judge(block, lineage, tree.ancestry(parent)))
