"""Verified votes for batches that are not in the book: their voters hold what this validator has yet to see.

Bound: `LOOSE_VOTES` a signer and epoch, the oldest giving way.
"""

from __future__ import annotations

from chain.certificate import Vote
from consensus.availability import guards

LOOSE_VOTES = 256

_Signer = tuple[int, int]


class LooseVotes:
    def __init__(self) -> None:
        self._by_signer: dict[_Signer, dict[bytes, Vote]] = {}
        self._by_subject: dict[bytes, dict[_Signer, Vote]] = {}

    def __len__(self) -> int:
        return sum(len(votes) for votes in self._by_signer.values())

    def has(self, vote: Vote) -> bool:
        known = self._by_signer.get((vote.epoch, vote.signer), {}).get(vote.subject)
        return not guards.says_more(vote, known)

    def add(self, vote: Vote) -> None:
        signer = (vote.epoch, vote.signer)
        votes = self._by_signer.setdefault(signer, {})
        votes[vote.subject] = vote
        self._by_subject.setdefault(vote.subject, {})[signer] = vote
        if len(votes) > LOOSE_VOTES:
            self._forget(signer, next(iter(votes)))

    def of(self, subject: bytes, epoch: int) -> dict[int, Vote]:
        """By signer."""
        votes = self._by_subject.get(subject, {})
        return {vote.signer: vote for vote in votes.values() if vote.epoch == epoch}

    def take(self, subject: bytes) -> list[Vote]:
        votes = dict(self._by_subject.get(subject, {}))
        for signer in votes:
            self._forget(signer, subject)
        return list(votes.values())

    def _forget(self, signer: _Signer, subject: bytes) -> None:
        del self._by_signer[signer][subject]
        votes = self._by_subject[subject]
        if len(votes) == 1:
            del self._by_subject[subject]
        else:
            del votes[signer]

    def keep_epochs(self, known: frozenset[int]) -> None:
        for signer in [signer for signer in self._by_signer if signer[0] not in known]:
            for subject in list(self._by_signer[signer]):
                self._forget(signer, subject)
            del self._by_signer[signer]
