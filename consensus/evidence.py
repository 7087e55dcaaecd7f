"""What convicts a validator: two of its votes that no honest one casts together.

Two notarizes or two finalizes of one view that differ, or a nullify and a finalize of one view. If more than f, but
fewer than q, are Byzantine and the chain forks, the journals of honest nodes hold such pairs for at least n - 2f.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chain.block import Evidence, Item, ItemKind
from chain.certificate import (
    Certificate,
    Finalize,
    Notarize,
    Nullify,
    ValidatorSet,
    Vote,
    VoteKind,
    read_subject,
    verify_vote,
    votes_of,
)
from chain.codec import CodecError, decode, encode
from consensus.ordering.records import Held, Offence, OwnVote

TWO_NOTARIZES = "two notarizes"
TWO_FINALIZES = "two finalizes"
NULLIFY_AND_FINALIZE = "nullify and finalize"

_BROKEN: dict[frozenset[int], str] = {
    frozenset({VoteKind.NOTARIZE}): TWO_NOTARIZES,
    frozenset({VoteKind.FINALIZE}): TWO_FINALIZES,
    frozenset({VoteKind.NULLIFY, VoteKind.FINALIZE}): NULLIFY_AND_FINALIZE,
}

WITNESS_LIMIT = 2048


def view_of(vote: Vote) -> int | None:
    """The view of an ordering vote; None for any other vote and for bytes that are none."""
    try:
        subject = read_subject(vote.kind, vote.subject)
    except (CodecError, ValueError, KeyError):
        return None
    return subject.view if isinstance(subject, Notarize | Nullify | Finalize) else None


def offence(first: Vote, second: Vote) -> str | None:
    """Which rule the two votes break together; None if an honest validator may have cast both."""
    if first.signer != second.signer or first.epoch != second.epoch or first.subject == second.subject:
        return None
    broken = _BROKEN.get(frozenset((first.kind, second.kind)))
    if broken is None:
        return None
    view = view_of(first)
    return broken if view is not None and view == view_of(second) else None


def evidence_item(first: Vote, second: Vote) -> tuple[Item, bytes]:
    """The item for a block, and the witness that travels beside it."""
    kind, view = offence(first, second), view_of(first)
    assert kind is not None and view is not None, "only convicting pairs become evidence"
    record = Evidence(first.signer, first.epoch, view, kind)
    return Item(ItemKind.EVIDENCE, encode(record)), encode(Offence(first, second))


def witness_convicts(item: Item, witness: bytes, chain_id: bytes, validators: ValidatorSet) -> bool:
    try:
        pair = decode(Offence, witness, WITNESS_LIMIT)
    except CodecError:
        return False
    return (
        offence(pair.first, pair.second) is not None
        and evidence_item(pair.first, pair.second)[0] == item
        and verify_vote(chain_id, validators, pair.first)
        and verify_vote(chain_id, validators, pair.second)
    )


def _votes_in(records: Iterable[object]) -> Iterator[Vote]:
    for record in records:
        match record:
            case OwnVote(vote):
                yield vote
            case Held(certificate):
                yield from votes_of(certificate)
            case Certificate():
                yield from votes_of(record)
            case Offence(first, second):
                yield from (first, second)


def scan(records: Iterable[object]) -> list[Offence]:
    """Every pair of convicting votes that journals hold together, at most one for each signer and rule."""
    seen: dict[tuple[int, int, int], list[Vote]] = {}
    found: dict[tuple[int, int, str], Offence] = {}
    for vote in _votes_in(records):
        view = view_of(vote)
        if view is None:
            continue
        others = seen.setdefault((vote.epoch, view, vote.signer), [])
        for other in others:
            kind = offence(other, vote)
            if kind is not None:
                found.setdefault((vote.epoch, vote.signer, kind), Offence(other, vote))
        if all((vote.kind, vote.subject) != (other.kind, other.subject) for other in others):
            others.append(vote)
    return list(found.values())
