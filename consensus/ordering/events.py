"""What ordering is told beside the common events, and what it announces."""

from __future__ import annotations

from dataclasses import dataclass

from chain.block import Block
from chain.certificate import Certificate, Vote
from consensus.lineage import Lineage


@dataclass(frozen=True, slots=True)
class PayloadChanged:
    """Something that a proposal waited for may have come: judge again."""


@dataclass(frozen=True, slots=True)
class Finalized:
    """Final blocks, oldest first; the certificate is of the newest. An acknowledgement: it waits for the journal."""

    blocks: tuple[tuple[Block, Lineage], ...]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class EpochOver:
    """The last block of this epoch is final; its header names the next set."""

    root: Lineage


@dataclass(frozen=True, slots=True)
class Convicted:
    """Two votes that no honest validator casts together."""

    first: Vote
    second: Vote
