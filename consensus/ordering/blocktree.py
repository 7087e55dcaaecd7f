"""The blocks above the last final one, and what their ancestries hold."""

from __future__ import annotations

from collections.abc import Iterable

from chain.block import Block, Item, block_digest, item_digest
from consensus.lineage import Lineage, descend

ITEMS_REMEMBERED = 4096
"""Final items that a leader will not include again. Executing one twice is harmless, so a bound is enough."""

BODIES_REMEMBERED = 64
"""Final blocks kept in memory to serve peers that are only a little behind."""


class Ancestry:
    """The batches and items in the ancestry of one block, as far back as either could be offered again."""

    def __init__(self, tree: BlockTree, batches: frozenset[bytes], items: frozenset[bytes]) -> None:
        self._tree = tree
        self._batches = batches
        self._items = items

    def batch(self, identity: bytes) -> bool:
        return identity in self._batches or self._tree.is_final_batch(identity)

    def item(self, identity: bytes) -> bool:
        return identity in self._items or self._tree.is_final_item(identity)


class BlockTree:
    """Rooted at the last final block. Holds every body that was proposed, notarized or fetched above it."""

    def __init__(self, root: Lineage, leaders: int, first_leader: int, window: int, horizon: int) -> None:
        self.root = root
        self._leaders = leaders
        self._first_leader = first_leader
        self._window = window
        self._horizon = horizon
        self._blocks: dict[bytes, Block] = {}
        self._lineages: dict[bytes, Lineage] = {root.digest: root}
        self._final_batches: dict[bytes, int] = {}
        self._final_items: dict[bytes, None] = {}
        self._recent: dict[bytes, Block] = {}
        self._ancestries: dict[bytes, Ancestry] = {}

    def leader(self, view: int) -> int:
        return (self._first_leader + view) % self._leaders

    def remember_final(self, height: int, batches: Iterable[bytes], items: Iterable[Item]) -> None:
        for identity in batches:
            self._final_batches[identity] = height
        for item in items:
            self._final_items[item_digest(item)] = None
        while self._final_batches:
            oldest = next(iter(self._final_batches))
            if self._final_batches[oldest] >= height - self._horizon:
                break
            del self._final_batches[oldest]
        while len(self._final_items) > ITEMS_REMEMBERED:
            del self._final_items[next(iter(self._final_items))]

    def inherit(self, other: BlockTree) -> None:
        """A new epoch starts on the same history."""
        self._final_batches = other._final_batches
        self._final_items = other._final_items
        self._recent = other._recent

    def is_final_batch(self, identity: bytes) -> bool:
        return identity in self._final_batches

    def is_final_item(self, identity: bytes) -> bool:
        return identity in self._final_items

    def add(self, block: Block) -> bytes:
        identity = block_digest(block.header)
        if block.header.height > self.root.height:
            self._blocks.setdefault(identity, block)
        return identity

    def block(self, identity: bytes) -> Block | None:
        return self._blocks.get(identity) or self._recent.get(identity)

    def lineage(self, identity: bytes) -> Lineage | None:
        """None while a body between the root and this block is missing, or if it does not descend from the root."""
        path: list[Block] = []
        at = identity
        while (known := self._lineages.get(at)) is None:
            block = self._blocks.get(at)
            if block is None or (path and block.header.height != path[-1].header.height - 1):
                return None
            path.append(block)
            at = block.header.parent
        for block in reversed(path):
            known = descend(known, block, self.leader(block.header.view), self._window)
            self._lineages[known.digest] = known
        return known

    def first_missing(self, identity: bytes) -> bytes | None:
        """The newest body that is lacking on the way from this block down to the root; None if none is."""
        at = identity
        while at != self.root.digest:
            block = self._blocks.get(at)
            if block is None:
                return at
            if block.header.height <= self.root.height + 1 and block.header.parent != self.root.digest:
                return None
            at = block.header.parent
        return None

    def unfinal(self, identity: bytes) -> list[Block]:
        """The blocks from just above the root up to this one."""
        path: list[Block] = []
        while identity != self.root.digest:
            block = self._blocks[identity]
            path.append(block)
            identity = block.header.parent
        path.reverse()
        return path

    def ancestry(self, identity: bytes) -> Ancestry:
        known = self._ancestries.get(identity)
        if known is None:
            path = self.unfinal(identity)
            known = Ancestry(
                self,
                frozenset(batch for block in path for batch in block.body.batches),
                frozenset(item_digest(item) for block in path for item in block.body.items),
            )
            self._ancestries[identity] = known
        return known

    def finalize(self, identity: bytes) -> list[tuple[Block, Lineage]]:
        """Move the root up to this block, whose path is whole; what does not lie above it is forgotten."""
        path = self.unfinal(identity)
        tip = self.lineage(identity)
        assert tip is not None, "the path is whole, so the lineage is known"
        delivered = []
        for block in path:
            lineage = self._lineages[block_digest(block.header)]
            delivered.append((block, lineage))
            self.remember_final(lineage.height, block.body.batches, block.body.items)
            self._recent[lineage.digest] = block
            if len(self._recent) > BODIES_REMEMBERED:
                del self._recent[next(iter(self._recent))]
        self.root = tip
        self._blocks = {key: block for key, block in self._blocks.items() if block.header.height > tip.height}
        kept = {key: line for key, line in self._lineages.items() if line.height > tip.height}
        self._lineages = {tip.digest: tip, **kept}
        self._ancestries = {}
        return delivered
