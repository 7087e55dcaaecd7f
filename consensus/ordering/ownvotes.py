"""What goes round under a validator's key and is not its own: another node runs with the key, or votes were lost."""

from __future__ import annotations

from chain.certificate import Certificate, votes_of
from consensus.effects import Alarm
from consensus.ordering.records import SILENT_FOR_EVER
from consensus.ordering.view import View
from consensus.ordering.views import RETAINED, Views


class OwnVotes:
    """Votes themselves are remembered in their views only. Of those forgotten this much is known: there are none
    between the last of an earlier incarnation and the first of this one."""

    def __init__(self, epoch: int, me: int | None) -> None:
        self._epoch = epoch
        self._me = me
        self._restored_to = 0
        self._cast_from = SILENT_FOR_EVER

    def restored(self, number: int) -> None:
        self._restored_to = max(self._restored_to, number)

    def cast(self, number: int) -> None:
        self._cast_from = min(self._cast_from, number)

    def foreign(self, certificate: Certificate, number: int, views: Views) -> bool:
        """Whether the certificate of this view holds a vote of this validator that it never cast."""
        mine = [vote for vote in votes_of(certificate) if vote.signer == self._me]
        if not mine or self._restored_to < number < self._cast_from:
            return bool(mine)
        known: View | None = views.known.get(number)
        return number > views.final_view - RETAINED and (known is None or mine[0] not in known.own_votes())

    def alarm(self, number: int) -> Alarm:
        sentence = (
            f"a vote of this validator's own key for view {number} of epoch {self._epoch} is going round that its "
            "journal does not hold: another node runs with this key, or the journal was rolled back"
        )
        return Alarm("KEY_IN_USE", sentence)
