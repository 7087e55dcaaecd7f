"""What a validator tells a peer that is behind: asked, or because a vote shows that it is."""

from __future__ import annotations

from chain.certificate import Certificate, VoteKind
from consensus.ordering.views import Views

ANSWER_EVERY_MS = 200
"""To one peer, whose votes may come in a flood."""


class Answers:
    def __init__(self, views: Views) -> None:
        self._views = views
        self._answered_ms: dict[int, int] = {}

    def to_straggler(self, peer: int, kind: int, number: int, now_ms: int) -> Certificate | None:
        """The certificate by which a view was left in which this vote says that the peer still is."""
        views = self._views
        stuck = number < views.current and (kind == VoteKind.NULLIFY or number + 2 <= views.current)
        # A late vote to finalize is still of use, and says nothing of where its signer is.
        if not stuck or (kind == VoteKind.FINALIZE and number > views.final_view):
            return None
        if now_ms - self._answered_ms.get(peer, -ANSWER_EVERY_MS) < ANSWER_EVERY_MS:
            return None
        self._answered_ms[peer] = now_ms
        return views.what_ended(number, VoteKind.NULLIFY)
