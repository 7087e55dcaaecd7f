"""Whoever wants to be told what a node does without having a part in it: metrics, health."""

from __future__ import annotations

from typing import Protocol

from chain.block import Block
from consensus.lineage import Lineage


class Observer(Protocol):
    def final(self, block: Block, lineage: Lineage) -> None:
        """A block is final, durably."""

    def executed(self, height: int) -> None: ...
