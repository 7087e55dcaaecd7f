"""What can go wrong for a client: one small hierarchy, each error with a stable code, what happened, what to do."""

from __future__ import annotations

from fl.errors import CODES


class QuorateError(Exception):
    """`code` is for programs, `what` for people, `todo` is the next step. `exit_code` is what a command ends with."""

    exit_code = 1

    def __init__(self, code: str, what: str, todo: str = "") -> None:
        super().__init__(f"{what} {todo}".rstrip())
        self.code = code
        self.what = what
        self.todo = todo

    def __reduce__(self) -> tuple[type[QuorateError], tuple[str, str, str]]:
        return type(self), (self.code, self.what, self.todo)


class BadInput(QuorateError, ValueError):
    """An argument cannot be what was meant: nothing was sent."""

    exit_code = 2


class BadFile(QuorateError):
    """A key file or a network file cannot be used."""

    exit_code = 2


class Unreachable(QuorateError):
    """No node, or too few of them, gave an answer that could be used."""

    exit_code = 3


_TODO = {
    "QUOTA_EXCEEDED": "Name in a transaction what was put before, wait until its lease ends, or use another node.",
    "LEAVE_EXPIRED": "Set this machine's clock.",
}
"""Refusals by a node's door for blobs after which there is something to do."""


class RefusedByChain(QuorateError):
    """The chain said no, under one of the codes of `fl.errors`; or a node did, to bytes for the chain."""

    exit_code = 4

    @classmethod
    def of(cls, code: str, what: str = "") -> RefusedByChain:
        """Of this code; `what` says more than its own sentence where the place knows more."""
        known = CODES.get(code)
        if known is None:
            # Not the chain's but a door's, which says all there is to say.
            return cls(code, what or "The node refused it.", _TODO.get(code, ""))
        return cls(code, known.what if what in ("", known.sentence) else what, known.todo)


class TimedOut(QuorateError):
    """It did not happen in the time given. A transaction that was sent may still be executed."""

    exit_code = 5


class Unverified(QuorateError):
    """What the nodes answered does not follow from the network file: they are on another chain, or they lie."""

    exit_code = 6


class PolicyForbids(QuorateError):
    """The site's own policy does not admit this: nothing was sent. Only the site can loosen it."""

    exit_code = 7
