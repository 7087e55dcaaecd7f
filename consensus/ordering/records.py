"""What ordering writes to its journal, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass

from chain.block import Block
from chain.certificate import Certificate, Vote
from chain.codec import U64


@dataclass(frozen=True, slots=True)
class OwnVote:
    vote: Vote


@dataclass(frozen=True, slots=True)
class Body:
    """A block that this validator notarized or fetched: it can be served and built on after a crash."""

    block: Block


@dataclass(frozen=True, slots=True)
class Held:
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Offence:
    """Two votes of one signer that no honest validator casts together."""

    first: Vote
    second: Vote


SILENT_FOR_EVER = 2**62
MARGIN_VIEWS = 2
"""By so many views a lost journal may be ahead of the others, in their epoch or at the start of the next."""


@dataclass(frozen=True, slots=True)
class SilentUntil:
    """Set when a validator rejoins without its old journal: it may have voted in any view up to this one.

    A journal made for rejoining begins with one for ever; the others' answers replace it.
    """

    epoch: U64
    view: U64
