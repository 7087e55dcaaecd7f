"""Rejoining with the same key and no journal: silent until every view that the lost journal could speak of is past.

The validator asks the others in which view they are. An honest one answers with a signature over the nonce, so an old
answer cannot be replayed. Among any 2f+1 others at least f+1 are honest; the lost journal's votes went to views that a
quorum had let it enter, so the highest of these answers is at most two views short of the highest vote.
"""

from __future__ import annotations

from dataclasses import replace

from chain.certificate import Finalize, Notarize, Nullify, ValidatorSet, read_subject, verify_certificate
from chain.hashing import Domain, signing_bytes
from chain.keys import SigningKey, verify
from consensus.messages import ViewAnswer, ViewQuery
from consensus.ordering.core import Ordering
from consensus.ordering.records import MARGIN_VIEWS, SilentUntil


def _message(chain_id: bytes, epoch: int, nonce: bytes, view: int) -> bytes:
    return signing_bytes(Domain.REJOIN, chain_id, epoch, nonce + view.to_bytes(8, "big"))


def answer_query(key: SigningKey, chain_id: bytes, ordering: Ordering, query: ViewQuery) -> ViewAnswer | None:
    """None while the certificate that would prove the answer is not here."""
    if ordering.view > 1 and ordering.entry_certificate is None:
        return None
    signature = key.sign(_message(chain_id, ordering.epoch, query.nonce, ordering.view))
    return ViewAnswer(query.nonce, ordering.epoch, ordering.view, ordering.entry_certificate, signature)


class Rejoin:
    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self._answers: dict[bytes, ViewAnswer] = {}

    def answered(self, chain_id: bytes, validators: ValidatorSet, index: int, answer: ViewAnswer) -> SilentUntil | None:
        """The view up to which to be silent, once 2f+1 others of this epoch have answered."""
        key = validators.members[index].consensus_key
        message = _message(chain_id, answer.epoch, self.nonce, answer.view)
        if answer.nonce != self.nonce or answer.epoch != validators.epoch or not verify(key, message, answer.signature):
            return None
        # No honest validator claims what it does not prove. Among 2f+1 who answered one way or the other, as many are
        # honest as it takes: whoever lies is counted, and believed nothing.
        self._answers[key] = answer if _entered(chain_id, validators, answer) else replace(answer, view=0, entry=None)
        same = [known.view for known in self._answers.values() if known.epoch == validators.epoch]
        if len(same) < 2 * validators.f + 1:
            return None
        return SilentUntil(validators.epoch, max(same) + MARGIN_VIEWS)


def _entered(chain_id: bytes, validators: ValidatorSet, answer: ViewAnswer) -> bool:
    """Whether the view is proven by the certificate that led into it: else a liar could silence the asker for ever."""
    if answer.view <= 1:
        return True
    if answer.entry is None or not verify_certificate(chain_id, validators, answer.entry):
        return False
    subject = read_subject(answer.entry.kind, answer.entry.subject)
    return isinstance(subject, Notarize | Nullify | Finalize) and subject.view == answer.view - 1
