"""The views above the last final one, as one validator knows them."""

from __future__ import annotations

from collections.abc import Callable

from chain.certificate import Certificate, VoteKind
from consensus.ordering.view import View

LOOKAHEAD = 16
"""Votes are kept for this many views ahead; certificates are taken from any distance."""
RETAINED = 8
"""Views below the last final one whose votes are kept, to recognise an offence that shows late."""


class Views:
    def __init__(self, leader_of: Callable[[int], int], root: bytes) -> None:
        self._leader_of = leader_of
        self.known: dict[int, View] = {}
        self.current = 1
        self.final_view = 0
        self.final_digest = root
        self.final_certificate: Certificate | None = None

    def at(self, number: int) -> View:
        view = self.known.get(number)
        if view is None:
            view = self.known[number] = View(number, self._leader_of(number))
        return view

    def within(self, number: int) -> bool:
        """Whether votes of this view are kept."""
        return number >= 1 and self.final_view - RETAINED < number <= self.current + LOOKAHEAD

    def finalized(self, number: int, identity: bytes, certificate: Certificate) -> None:
        self.final_view, self.final_digest, self.final_certificate = number, identity, certificate

    def forget(self) -> None:
        for number in [number for number in self.known if number <= self.final_view - RETAINED]:
            del self.known[number]

    def tip(self) -> tuple[int, bytes]:
        """The highest view below the current one that is notarized or final, and its block."""
        for number in range(self.current - 1, self.final_view, -1):
            identity = self.notarized_at(number)
            if identity is not None:
                return number, identity
        return self.final_view, self.final_digest

    def notarized_at(self, number: int) -> bytes | None:
        if number == self.final_view:
            return self.final_digest
        view = self.known.get(number)
        return view.notarized.block if view is not None and view.notarized is not None else None

    def not_nullified(self, parent: int, child: int) -> list[int]:
        """The views between a parent and its child of which no nullification is held."""
        return [
            number
            for number in range(parent + 1, child)
            if number not in self.known or VoteKind.NULLIFY not in self.known[number].certificates
        ]

    def entry_certificate(self) -> Certificate | None:
        """The certificate that led into the current view."""
        if self.final_certificate is not None and self.final_view == self.current - 1:
            return self.final_certificate
        before = self.known.get(self.current - 1)
        if before is None:
            return None
        return before.certificates.get(VoteKind.NULLIFY) or before.certificates.get(VoteKind.NOTARIZE)

    def what_ended(self, number: int, kind: int) -> Certificate | None:
        """For a peer that lacks it: a finalization at or above the view, else the kind asked for, else another."""
        if number <= self.final_view:
            return self.final_certificate
        view = self.known.get(number)
        if view is None:
            return None
        held = view.certificates
        return held.get(kind) or held.get(VoteKind.NOTARIZE) or held.get(VoteKind.NULLIFY)

    def sayings(self, me: int | None, peer: int) -> list[object]:
        """The last finalization, every certificate above it, and the own votes there, a proposal with its block; to one
        peer also what it said itself, so that it notices if it does not remember."""
        said: list[object] = [self.final_certificate] if self.final_certificate is not None else []
        for number in sorted(number for number in self.known if number > self.final_view):
            view = self.known[number]
            said += [view.certificates[kind] for kind in sorted(view.certificates)]
            votes: list[object] = list(view.own_votes())
            if view.my_notarize is not None and view.leader == me and view.proposal is not None:
                votes[0] = view.proposal
            said += votes
            said += view.votes_of(peer)
        return said
