"""An append-only Merkle log: one leaf an entry, a root at every size, a proof from any leaf to any later
root.

The tree over `size` leaves is that of RFC 6962: its left part is the largest perfect tree that is smaller,
the rest continues to the right. So the log is a row of perfect trees, the *peaks*, one for each bit of the
size; the peaks are all that appending needs. Nodes of perfect trees never change and are named by (level,
index), a leaf at level 0; every earlier root can be rebuilt from them. Of these, whoever keeps a log stores the leaves,
in *pages*, and the nodes from the page's own up: the few below are computed again from their page.

The root commits to the size as well, so that a proof cannot be read against a tree of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from chain.codec import U64, Count, Digest
from chain.hashing import Domain, digest

MAX_LEVELS = 64
PAGE_LEVEL = 6
PAGE_LEAVES = 1 << PAGE_LEVEL

NewNode = tuple[int, int, bytes]
"""(level, index, digest)"""


@dataclass(frozen=True, slots=True)
class Frontier:
    size: U64
    peaks: Annotated[tuple[Digest, ...], Count(0, MAX_LEVELS)]
    """Roots of the perfect trees from left to right, the largest first."""

    def root(self) -> bytes:
        if self.size.bit_count() != len(self.peaks):
            raise ValueError(f"a log of {self.size} leaves has {self.size.bit_count()} peaks, not {len(self.peaks)}")
        return _root(self.size, _joined(self.peaks))


EMPTY = Frontier(0, ())

# To copy a state that has the prefix takes less than to begin one.
_LEAF_STATE = sha256(Domain.LEAF.prefix)
_NODE_STATE = sha256(Domain.NODE.prefix)


@dataclass(frozen=True, slots=True)
class LogProof:
    path: Annotated[tuple[Digest, ...], Count(0, MAX_LEVELS)]
    """Siblings on the way from the leaf to the root."""


def leaf_digest(data: bytes) -> bytes:
    return leaf_digests((data,))[0]


def leaf_digests(leaves: Iterable[bytes]) -> list[bytes]:
    copy, digests = _LEAF_STATE.copy, []
    for data in leaves:
        state = copy()
        state.update(data)
        digests.append(state.digest())
    return digests


def _parent(left: bytes, right: bytes) -> bytes:
    return _parents((left, right))[0]


def _parents(nodes: Sequence[bytes]) -> list[bytes]:
    """Of neighbours, two by two; a last one without a neighbour has none."""
    copy, parents, each = _NODE_STATE.copy, [], iter(nodes)
    for left, right in zip(each, each):  # noqa: B905
        state = copy()
        state.update(left + right)
        parents.append(state.digest())
    return parents


def _joined(peaks: tuple[bytes, ...]) -> bytes:
    if not peaks:
        return b""
    joined = peaks[-1]
    for peak in reversed(peaks[:-1]):
        joined = _parent(peak, joined)
    return joined


def _root(size: int, joined: bytes) -> bytes:
    return digest(Domain.LOG_ROOT, size.to_bytes(8, "big"), joined)


def append(frontier: Frontier, leaf: bytes) -> tuple[Frontier, tuple[NewNode, ...]]:
    """The log with one more leaf digest, and the nodes that have become complete, the leaf first."""
    node, peaks = leaf, list(frontier.peaks)
    level, index = 0, frontier.size
    nodes = [(level, index, node)]
    while index & 1:
        node = _parent(peaks.pop(), node)
        level, index = level + 1, index >> 1
        nodes.append((level, index, node))
    return Frontier(frontier.size + 1, (*peaks, node)), tuple(nodes)


def extend(frontier: Frontier, leaves: Sequence[bytes]) -> tuple[Frontier, list[NewNode]]:
    """The log with these leaf digests behind it, and the nodes from a page's up that have become complete."""
    older, newer = list(frontier.peaks), []
    level, first, nodes = 0, frontier.size, list(leaves)
    stored: list[NewNode] = []
    while nodes:
        if level >= PAGE_LEVEL:
            stored.extend((level, first + at, node) for at, node in enumerate(nodes))
        if first & 1:
            nodes.insert(0, older.pop())
        if len(nodes) & 1:
            newer.append(nodes[-1])
        level, first, nodes = level + 1, first >> 1, _parents(nodes)
    return Frontier(frontier.size + len(leaves), (*older, *reversed(newer))), stored


def node_over(leaves: Sequence[bytes]) -> bytes:
    """The node that stands over these leaf digests, 2^k of them."""
    nodes = list(leaves)
    while len(nodes) > 1:
        nodes = _parents(nodes)
    return nodes[0]


def _peak_positions(size: int) -> list[tuple[int, int]]:
    positions, first = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            positions.append((level, first >> level))
            first += 1 << level
    return positions


def frontier_at(size: int, node: Callable[[int, int], bytes]) -> Frontier:
    """The log as it was when it had `size` leaves."""
    return Frontier(size, tuple(node(level, index) for level, index in _peak_positions(size)))


def prove(size: int, index: int, node: Callable[[int, int], bytes]) -> LogProof:
    """That the leaf at `index` is in the log of `size` leaves; `node(level, index)` reads a stored node."""
    if not 0 <= index < size:
        raise ValueError(f"a log of {size} leaves has no leaf {index}")
    peaks = _peak_positions(size)
    mine = next(at for at, (level, position) in enumerate(peaks) if index >> level == position)
    path = [node(level, index >> level ^ 1) for level in range(peaks[mine][0])]
    if right := peaks[mine + 1 :]:
        path.append(_joined(tuple(node(level, position) for level, position in right)))
    path.extend(node(level, position) for level, position in reversed(peaks[:mine]))
    return LogProof(tuple(path))


def verify_log(root: bytes, size: int, index: int, leaf: bytes, proof: LogProof) -> bool:
    """Whether `leaf` is the digest at `index` in the log of `size` leaves that has this root."""
    if not 0 <= index < size < 2**64:
        return False
    node, at, last = leaf, index, size - 1
    for sibling in proof.path:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = _parent(sibling, node)
            # The rightmost branch skips the levels at which it has no sibling.
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = _parent(node, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and _root(size, node) == root
