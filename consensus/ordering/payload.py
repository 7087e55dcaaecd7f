"""What ordering asks of those who know what a block carries. Every answer is a pure function of what they know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from chain.availability import AvailabilityCertificate
from chain.block import Block, Body
from chain.certificate import Certificate
from consensus.lineage import Lineage
from consensus.messages import Proposal


class Verdict(Enum):
    VALID = "valid"
    PENDING = "pending"
    """Data is missing. Never a refusal in disguise: the question will be asked again."""
    INVALID = "invalid"
    """Whoever asks, whenever: no honest validator can ever accept it."""


class Taken(Protocol):
    """What the ancestry of a block holds already."""

    def batch(self, identity: bytes) -> bool: ...

    def item(self, identity: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Draft:
    body: Body
    executed_height: int
    executed_root: bytes
    witnesses: tuple[bytes, ...] = ()
    executed: Certificate | None = None
    available: tuple[AvailabilityCertificate, ...] = ()


class Payload(Protocol):
    def draft(self, parent: Lineage, taken: Taken) -> Draft: ...

    def judge(self, block: Block, parent: Lineage, taken: Taken) -> Verdict: ...

    def learn(self, proposal: Proposal) -> None:
        """Take note of what travels beside a block: certificates, witnesses."""

    def waiting(self, tip: Lineage, taken: Taken) -> bool:
        """Is there something that a block on this tip could carry?"""

    def interval_ms(self, now_ms: int) -> int:
        """How long a leader waits since its parent: the least that a chain allows, or longer under a load that larger
        blocks serve better."""

    def block_due_in(self, root: Lineage, wall_ms: int) -> int | None:
        """Milliseconds until the state machine waits for a block that no final one satisfies; None if it never does."""

    def next_set(self, parent: Lineage, executed_height: int) -> bytes:
        """Digest of the set that follows this epoch, once the state at its due height is certified; else empty."""
