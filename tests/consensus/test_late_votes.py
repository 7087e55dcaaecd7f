"""Votes that repeat what is certified: their signatures are looked at when their signers say something else as well."""

from __future__ import annotations

import pytest

from chain.certificate import Finalize, Notarize, Nullify, Vote, VoteKind, assemble, sign_vote, verify_vote
from chain.codec import encode
from chain.genesis import Params
from consensus.effects import Received
from consensus.ordering import core as ordering_core
from consensus.ordering.core import Ordering
from consensus.ordering.events import Convicted
from tests.consensus.bare import Bare

VIEW = 1
LATE = 3


class Net(Bare):
    """Node 0 holds a notarization of the view that the last of the four did not sign."""

    def __init__(self) -> None:
        super().__init__(4, Params())
        self.looked_at: list[Vote] = []
        votes = [self.notarize(signer) for signer in range(LATE)]
        self.tell(0, assemble(self.validators, votes))

    @property
    def node(self) -> Ordering:
        return self.cores[0]

    def vote(self, signer: int, kind: VoteKind, subject: object) -> Vote:
        return sign_vote(self.keys[signer], self.genesis.chain_id, kind, 0, encode(subject), signer)

    def notarize(self, signer: int, block: int = 7) -> Vote:
        return self.vote(signer, VoteKind.NOTARIZE, Notarize(VIEW, 0, bytes([block]) * 32))

    def tell(self, peer: int, message: object) -> None:
        self.step(0, Received(peer, message))

    def convicted(self) -> list[tuple[Vote, Vote]]:
        return [(event.first, event.second) for event in self.events[0] if isinstance(event, Convicted)]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    made = Net()

    def verify(chain_id: bytes, validators: object, vote: Vote) -> bool:
        made.looked_at.append(vote)
        return verify_vote(chain_id, made.validators, vote)

    monkeypatch.setattr(ordering_core, "verify_vote", verify)
    return made


def test_a_late_vote_is_noted_and_not_looked_at(net: Net) -> None:
    late = net.notarize(LATE)
    net.tell(LATE, late)
    view = net.node.views[VIEW]
    assert net.looked_at == [] and LATE not in view.votes[VoteKind.NOTARIZE]
    assert view.votes_of(LATE) == [late]


def test_a_late_vote_for_something_else_is_looked_at(net: Net) -> None:
    other = net.notarize(LATE, block=8)
    net.tell(LATE, other)
    assert net.looked_at == [other] and net.node.views[VIEW].votes[VoteKind.NOTARIZE][LATE] == other


def test_a_late_vote_that_another_passes_on_is_looked_at(net: Net) -> None:
    late = net.notarize(LATE)
    net.tell(1, late)
    assert net.looked_at == [late]


def test_a_late_vote_convicts_with_another_of_its_signer(net: Net) -> None:
    late, other = net.notarize(LATE), net.notarize(LATE, block=8)
    net.tell(LATE, late)
    net.tell(1, other)
    assert net.convicted() == [(late, other)]


def test_a_late_finalize_convicts_with_a_nullify(net: Net) -> None:
    votes = [net.vote(signer, VoteKind.FINALIZE, Finalize(VIEW, bytes([7]) * 32)) for signer in range(4)]
    net.tell(1, assemble(net.validators, votes[:LATE]))
    net.tell(LATE, votes[LATE])
    nullify = net.vote(LATE, VoteKind.NULLIFY, Nullify(VIEW))
    net.tell(LATE, nullify)
    assert net.convicted() == [(votes[LATE], nullify)]


def test_a_forged_late_vote_convicts_nobody(net: Net) -> None:
    late, other = net.notarize(LATE), net.notarize(LATE, block=8)
    net.tell(LATE, Vote(late.kind, late.epoch, late.subject, LATE, bytes(64)))
    net.tell(LATE, other)
    assert net.convicted() == [] and net.looked_at[-1].signature == bytes(64)


def test_late_votes_count_for_nothing(net: Net) -> None:
    """A quorum is of votes that were looked at."""
    nullify = net.vote(LATE, VoteKind.NULLIFY, Nullify(VIEW))
    net.tell(LATE, net.notarize(LATE))
    net.tell(LATE, nullify)
    assert set(net.node.views[VIEW].votes[VoteKind.NOTARIZE]) == set(range(LATE))
