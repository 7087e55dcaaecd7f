"""The state tree: one root for all rows of the state, with proofs that a key has a value or has none.

A row's hashed key names one of 2^16 buckets by its first 16 bits. A bucket's hash covers the pairs (key hash,
value hash) in it, sorted; above the buckets stands a binary tree of fixed depth. A proof is the bucket and
sixteen siblings, and shows absence as well as presence, because the bucket is complete.

Only pairs and nodes are held here, in memory, never values: those are the rows of the flat state, which this
tree is rebuilt from at start. For the last few heights it remembers what each apply replaced, nodes and
values, so that the state of a height that was certified a little later can still be proven.

A bucket is one byte string of 64-byte pairs, so that a million rows take about 80 MB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Annotated

from chain.codec import Count, Digest, Length
from chain.hashing import Domain, digest

DEPTH = 16
BUCKETS = 1 << DEPTH
PAIR_BYTES = 64
DEFAULT_HISTORY = 64
MAX_PROVEN_BUCKET_BYTES = 4_096 * PAIR_BYTES
"""A quarter of a billion rows fill buckets so far; a larger one could only be proven by a later format."""

_NODE_PREFIX = Domain.STATE_NODE.prefix
_BUCKET_PREFIX = Domain.BUCKET.prefix
# To copy a state that has the prefix takes less than to begin one.
_NODE_STATE = sha256(_NODE_PREFIX)
_BUCKET_STATE = sha256(_BUCKET_PREFIX)
_KEY_PREFIX = Domain.STATE_KEY.prefix
_VALUE_PREFIX = Domain.STATE_VALUE.prefix


class HeightNotKept(LookupError):
    """The tree no longer remembers this height, or has not reached it."""


@dataclass(frozen=True, slots=True)
class StateProof:
    bucket: Annotated[bytes, Length(0, MAX_PROVEN_BUCKET_BYTES)]
    """All pairs of the key's bucket."""
    siblings: Annotated[tuple[Digest, ...], Count(DEPTH, DEPTH)]
    """From the bucket upwards."""


@dataclass
class _Undo:
    """What one apply replaced: everything needed to see the state before it."""

    height: int
    root_before: bytes
    values: Mapping[bytes, bytes | None]
    buckets: dict[int, bytes] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)
    """Of nodes, and what stood there."""
    replaced: list[bytes] = field(default_factory=list)

    @cached_property
    def nodes(self) -> dict[int, bytes]:
        # Few heights are ever proven, and every one is replaced.
        return dict(zip(self.places, self.replaced, strict=True))


def _key_hash(key: bytes) -> bytes:
    return sha256(_KEY_PREFIX + key).digest()


def _value_hash(value: bytes) -> bytes:
    return sha256(_VALUE_PREFIX + value).digest()


def _bucket_hash(pairs: bytes) -> bytes:
    return sha256(_BUCKET_PREFIX + pairs).digest()


def _bucket_of(key_hash: bytes) -> int:
    return int.from_bytes(key_hash[:2], "big")


def _find(pairs: bytes, key_hash: bytes) -> int:
    """Where the pair of this key begins, or would be inserted; the pair is there if its first half is the
    key."""
    low, high = 0, len(pairs) // PAIR_BYTES
    while low < high:
        middle = (low + high) // 2
        at = middle * PAIR_BYTES
        if pairs[at : at + 32] < key_hash:
            low = middle + 1
        else:
            high = middle
    return low * PAIR_BYTES


def _with_pair(pairs: bytes, key_hash: bytes, value_hash: bytes | None) -> bytes:
    at = pairs.find(key_hash)
    if at < 0 or at % PAIR_BYTES:
        at = _find(pairs, key_hash)
    after = at + PAIR_BYTES if pairs[at : at + 32] == key_hash else at
    return pairs[:at] + (b"" if value_hash is None else key_hash + value_hash) + pairs[after:]


class StateTree:
    def __init__(
        self, rows: Iterable[tuple[bytes, bytes]] = (), height: int = 0, history: int = DEFAULT_HISTORY
    ) -> None:
        """The tree over the rows of the state after `height`; `history` heights below the newest are kept."""
        self.height = height
        self._history = history
        self._undo: deque[_Undo] = deque()
        filled = _filled(rows)
        self._buckets = [b""] * BUCKETS
        for bucket, pairs in filled.items():
            self._buckets[bucket] = pairs
        # The root is node 1, the children of node i are 2i and 2i+1, bucket b is node BUCKETS + b.
        self._nodes = _nodes_over(filled)

    @property
    def root(self) -> bytes:
        return self._nodes[1]

    @property
    def oldest_height(self) -> int:
        return self._undo[0].height - 1 if self._undo else self.height

    def apply(self, height: int, writes: Mapping[bytes, bytes | None], previous: Mapping[bytes, bytes | None]) -> bytes:
        """Writes one block's rows (None deletes) and returns the root; `previous` holds what they replace."""
        if height <= self.height:
            raise ValueError(f"height {height} does not follow {self.height}")
        if writes.keys() - previous.keys():
            raise KeyError("what a write replaces is not told")
        undo, buckets = _Undo(height, self.root, previous), self._buckets
        changed: dict[int, bytes] = {}
        for key, value in writes.items():
            key_hash = _key_hash(key)
            bucket = key_hash[0] << 8 | key_hash[1]
            changed[bucket] = _with_pair(
                changed[bucket] if bucket in changed else buckets[bucket],
                key_hash,
                None if value is None else _value_hash(value),
            )
        for bucket, pairs in changed.items():
            undo.buckets[bucket] = buckets[bucket]
            buckets[bucket] = pairs
        self._rehash(changed, undo)
        self.height = height
        self._undo.append(undo)
        while self._undo[0].height <= height - self._history:
            self._undo.popleft()
        return self.root

    def _rehash(self, changed: Mapping[int, bytes], undo: _Undo) -> None:
        nodes, copy = self._nodes, _BUCKET_STATE.copy
        dirty: Collection[int] = [BUCKETS + bucket for bucket in changed]
        undo.places += dirty
        undo.replaced += [nodes[index] for index in dirty]
        for index, pairs in zip(dirty, changed.values(), strict=True):
            state = copy()
            state.update(pairs)
            nodes[index] = state.digest()
        copy = _NODE_STATE.copy
        for _ in range(DEPTH):
            dirty = {index >> 1 for index in dirty}
            undo.places += dirty
            undo.replaced += [nodes[index] for index in dirty]
            for index in dirty:
                state = copy()
                state.update(nodes[2 * index])
                state.update(nodes[2 * index + 1])
                nodes[index] = state.digest()

    def _undone_down_to(self, height: int) -> Iterator[_Undo]:
        """What was applied above `height`, the earliest first: the first that names a thing has its old
        value."""
        if not self.oldest_height <= height <= self.height:
            raise HeightNotKept(f"height {height} is not kept; the tree has {self.oldest_height} to {self.height}")
        return (undo for undo in self._undo if undo.height > height)

    def root_at(self, height: int) -> bytes:
        for undo in self._undone_down_to(height):
            return undo.root_before
        return self.root

    def prove(
        self, height: int, key: bytes, current: Callable[[bytes], bytes | None]
    ) -> tuple[bytes | None, StateProof]:
        """The key's value after `height` (None: it had none), and the proof.

        `current` reads the newest state.
        """
        undone = list(self._undone_down_to(height))
        key_hash = _key_hash(key)
        bucket = _bucket_of(key_hash)
        pairs = next((u.buckets[bucket] for u in undone if bucket in u.buckets), self._buckets[bucket])
        siblings = []
        index = BUCKETS + bucket
        while index > 1:
            sibling = index ^ 1
            siblings.append(next((u.nodes[sibling] for u in undone if sibling in u.nodes), self._nodes[sibling]))
            index >>= 1
        for undo in undone:
            if key in undo.values:
                return undo.values[key], StateProof(pairs, tuple(siblings))
        return current(key), StateProof(pairs, tuple(siblings))


def _filled(rows: Iterable[tuple[bytes, bytes]]) -> dict[int, bytes]:
    """The buckets that hold something."""
    buckets: dict[int, bytes] = {}
    for key, value in rows:
        key_hash = sha256(_KEY_PREFIX + key).digest()
        bucket = key_hash[0] << 8 | key_hash[1]
        buckets[bucket] = buckets.get(bucket, b"") + key_hash + sha256(_VALUE_PREFIX + value).digest()
    for bucket, pairs in buckets.items():
        if len(pairs) > PAIR_BYTES:
            each = [pairs[at : at + PAIR_BYTES] for at in range(0, len(pairs), PAIR_BYTES)]
            each.sort()
            buckets[bucket] = b"".join(each)
    return buckets


def _empty_nodes() -> list[bytes]:
    levels = [_bucket_hash(b"")]
    for _ in range(DEPTH):
        levels.append(sha256(_NODE_PREFIX + levels[-1] + levels[-1]).digest())
    nodes = [b""]
    for depth, node in enumerate(reversed(levels)):
        nodes += [node] * 2**depth
    return nodes


_EMPTY_NODES = _empty_nodes()


def _nodes_over(buckets: Mapping[int, bytes]) -> list[bytes]:
    nodes = _EMPTY_NODES[:]
    dirty = set()
    for bucket, pairs in buckets.items():
        nodes[BUCKETS + bucket] = _bucket_hash(pairs)
        dirty.add((BUCKETS + bucket) >> 1)
    for _ in range(DEPTH):
        for index in dirty:
            nodes[index] = sha256(_NODE_PREFIX + nodes[2 * index] + nodes[2 * index + 1]).digest()
        dirty = {index >> 1 for index in dirty}
    return nodes


def verify_state(root: bytes, key: bytes, value: bytes | None, proof: StateProof) -> bool:
    """Whether, in the state with this root, `key` has `value`, or has none if `value` is None."""
    pairs, key_hash = proof.bucket, _key_hash(key)
    if len(pairs) % PAIR_BYTES != 0 or len(proof.siblings) != DEPTH:
        return False
    found = None
    previous = b""
    for at in range(0, len(pairs), PAIR_BYTES):
        each = pairs[at : at + 32]
        if each <= previous:
            return False
        if each == key_hash:
            found = pairs[at + 32 : at + PAIR_BYTES]
        previous = each
    if found != (None if value is None else _value_hash(value)):
        return False
    node, index = _bucket_hash(pairs), BUCKETS + _bucket_of(key_hash)
    for sibling in proof.siblings:
        left, right = (sibling, node) if index & 1 else (node, sibling)
        node = digest(Domain.STATE_NODE, left, right)
        index >>= 1
    return node == root
