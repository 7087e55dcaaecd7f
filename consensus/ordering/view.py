"""One view as one validator sees it, and the three guards on which safety rests."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from chain.certificate import Certificate, Finalize, Notarize, Nullify, Vote, VoteKind, read_subject
from consensus.messages import Proposal

ORDERING_KINDS = frozenset({VoteKind.NOTARIZE, VoteKind.NULLIFY, VoteKind.FINALIZE})


def subject_of(kind: int, subject: bytes) -> Notarize | Nullify | Finalize:
    found = read_subject(kind, subject)
    assert isinstance(found, Notarize | Nullify | Finalize), "the kind is one of ordering's"
    return found


class Slot(Enum):
    EMPTY = "no proposal yet"
    OPEN = "proposed, not yet judged"
    VALID = "judged valid"
    INVALID = "judged invalid, for ever"


@dataclass(slots=True)
class View:
    number: int
    leader: int
    slot: Slot = Slot.EMPTY
    proposal: Proposal | None = None
    proposed: Notarize | None = None
    equivocated: bool = False
    my_notarize: Vote | None = None
    my_nullify: Vote | None = None
    my_finalize: Vote | None = None
    votes: dict[int, dict[int, Vote]] = field(
        default_factory=lambda: {VoteKind.NOTARIZE: {}, VoteKind.NULLIFY: {}, VoteKind.FINALIZE: {}}
    )
    late: dict[int, dict[int, Vote]] = field(
        default_factory=lambda: {VoteKind.NOTARIZE: {}, VoteKind.NULLIFY: {}, VoteKind.FINALIZE: {}}
    )
    """By kind and signer, votes that repeat what was certified already: nobody has looked at their signatures, which
    only matter if their signers say something else as well."""
    certificates: dict[int, Certificate] = field(default_factory=dict)
    notarized: Notarize | None = None
    """The subject of this view's notarization, once there is one."""

    def is_late(self, vote: Vote) -> bool:
        certificate = self.certificates.get(vote.kind)
        return certificate is not None and certificate.subject == vote.subject

    def votes_of(self, signer: int) -> list[Vote]:
        """What came from a signer, the late ones too."""
        tallies = (*self.votes.values(), *self.late.values())
        return [tally[signer] for tally in tallies if signer in tally]

    def own_votes(self) -> list[Vote]:
        return [vote for vote in (self.my_notarize, self.my_nullify, self.my_finalize) if vote is not None]


def can_notarize(view: View, current: int, silent_until: int) -> bool:
    return (
        view.number == current
        and view.number > silent_until
        and view.slot is Slot.VALID
        and view.my_notarize is None
        and view.my_nullify is None
        and not view.equivocated
    )


def can_nullify(view: View, current: int, silent_until: int) -> bool:
    return (
        view.number == current and view.number > silent_until and view.my_nullify is None and view.my_finalize is None
    )


def can_finalize(view: View, final_view: int, silent_until: int) -> bool:
    return (
        view.number > final_view
        and view.number > silent_until
        and view.notarized is not None
        and view.my_finalize is None
        and view.my_nullify is None
        and not view.equivocated
    )
