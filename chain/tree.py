"""The state tree: one root for all rows of the state, with proofs that a key has a value or has none.

A row's hashed key names one of 2^16 buckets by its first 16 bits. A bucket's hash covers the pairs (key hash,
value hash) in it, sorted; above the buckets stand four levels of nodes, each the hash of its sixteen children. A proof
is the bucket and the fifteen siblings at each level, and shows absence as well as presence, because the bucket is
complete.

Only pairs and digests are held here, in memory, never values: those are the rows of the flat state, which this
tree is rebuilt from at start. For the last few heights it remembers what each apply replaced, digests and
values, so that the state of a height that was certified a little later can still be proven.

A bucket is one byte string of 64-byte pairs and a node one of its children's digests, so that a million rows take about
75 MB, and what an apply replaces is kept as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from chain.codec import Count, Digest, Length
from chain.hashing import DIGEST_BYTES, Domain, digest

DEPTH = 4
BRANCH_BITS = 4
BRANCHES = 1 << BRANCH_BITS
"""Of a node. Many, so that a block's writes share the nodes above them; yet each is hashed in full for one write."""
BUCKETS = BRANCHES**DEPTH
PROOF_DIGESTS = DEPTH * (BRANCHES - 1)
PAIR_BYTES = 64
DEFAULT_HISTORY = 64
MAX_PROVEN_BUCKET_BYTES = 4_096 * PAIR_BYTES
"""A quarter of a billion rows fill buckets so far; a larger one could only be proven by a later format."""

_NODE_PREFIX = Domain.STATE_NODE.prefix
_BUCKET_PREFIX = Domain.BUCKET.prefix
_KEY_PREFIX = Domain.STATE_KEY.prefix
_VALUE_PREFIX = Domain.STATE_VALUE.prefix


class HeightNotKept(LookupError):
    """The tree no longer remembers this height, or has not reached it."""


@dataclass(frozen=True, slots=True)
class StateProof:
    bucket: Annotated[bytes, Length(0, MAX_PROVEN_BUCKET_BYTES)]
    """All pairs of the key's bucket."""
    siblings: Annotated[tuple[Digest, ...], Count(PROOF_DIGESTS, PROOF_DIGESTS)]
    """From the bucket upwards, those of a level from left to right."""


@dataclass(frozen=True, slots=True)
class _Undo:
    """What one apply replaced: everything needed to see the state before it."""

    height: int
    root_before: bytes
    values: Mapping[bytes, bytes | None]
    buckets: dict[int, bytes]
    groups: list[dict[int, bytes]]
    """By level, the children of the nodes that changed."""


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
    if value_hash is not None and at >= 0 and not at % PAIR_BYTES:
        return pairs[: at + 32] + value_hash + pairs[at + PAIR_BYTES :]
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
        self._buckets = [b""] * BUCKETS
        self._levels = _empty_levels()
        """By level and node the digests of its children: buckets first, in the end the sixteen under the root."""
        self.root = _EMPTY_DIGESTS[DEPTH]
        filled = _filled(rows)
        for bucket, pairs in filled.items():
            self._buckets[bucket] = pairs
        self._rehash(filled)

    @property
    def oldest_height(self) -> int:
        return self._undo[0].height - 1 if self._undo else self.height

    def apply(self, height: int, writes: Mapping[bytes, bytes | None], previous: Mapping[bytes, bytes | None]) -> bytes:
        """Writes one block's rows (None deletes) and returns the root; `previous` holds what they replace."""
        if height <= self.height:
            raise ValueError(f"height {height} does not follow {self.height}")
        if writes.keys() - previous.keys():
            raise KeyError("what a write replaces is not told")
        buckets, root_before = self._buckets, self.root
        replaced: dict[int, bytes] = {}
        for key, value in writes.items():
            key_hash = sha256(_KEY_PREFIX + key).digest()
            bucket = key_hash[0] << 8 | key_hash[1]
            pairs = buckets[bucket]
            if bucket not in replaced:
                replaced[bucket] = pairs
            value_hash = None if value is None else sha256(_VALUE_PREFIX + value).digest()
            buckets[bucket] = _with_pair(pairs, key_hash, value_hash)
        self._undo.append(_Undo(height, root_before, previous, replaced, self._rehash(replaced)))
        self.height = height
        while self._undo[0].height <= height - self._history:
            self._undo.popleft()
        return self.root

    def _rehash(self, changed: Iterable[int]) -> list[dict[int, bytes]]:
        """Of these buckets. Returns, by level, what the children of the nodes above them were."""
        replaced = []
        above = {bucket: sha256(_BUCKET_PREFIX + self._buckets[bucket]).digest() for bucket in changed}
        for level in self._levels:
            groups: dict[int, bytes] = {}
            for child, digest_ in above.items():
                node, at = child >> BRANCH_BITS, child % BRANCHES * DIGEST_BYTES
                group = level[node]
                if node not in groups:
                    groups[node] = group
                level[node] = group[:at] + digest_ + group[at + DIGEST_BYTES :]
            above = {node: sha256(_NODE_PREFIX + level[node]).digest() for node in groups}
            replaced.append(groups)
        self.root = above.get(0, self.root)
        return replaced

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
        siblings: list[bytes] = []
        child = bucket
        for place, level in enumerate(self._levels):
            node, own = divmod(child, BRANCHES)
            group = next((u.groups[place][node] for u in undone if node in u.groups[place]), level[node])
            digests = [group[at : at + DIGEST_BYTES] for at in range(0, len(group), DIGEST_BYTES)]
            siblings += digests[:own] + digests[own + 1 :]
            child = node
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


def _node_hash(children: Sequence[bytes]) -> bytes:
    return digest(Domain.STATE_NODE, *children)


def _empty_digests() -> list[bytes]:
    """Of a bucket, then of a node at each level, up to the root, where there are no rows."""
    digests = [_bucket_hash(b"")]
    for _ in range(DEPTH):
        digests.append(_node_hash((digests[-1],) * BRANCHES))
    return digests


_EMPTY_DIGESTS = _empty_digests()


def _empty_levels() -> list[list[bytes]]:
    return [[each * BRANCHES] * BRANCHES ** (DEPTH - 1 - level) for level, each in enumerate(_EMPTY_DIGESTS[:DEPTH])]


def verify_state(root: bytes, key: bytes, value: bytes | None, proof: StateProof) -> bool:
    """Whether, in the state with this root, `key` has `value`, or has none if `value` is None."""
    pairs, key_hash = proof.bucket, _key_hash(key)
    if len(pairs) % PAIR_BYTES != 0 or len(proof.siblings) != PROOF_DIGESTS:
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
    node, child = _bucket_hash(pairs), _bucket_of(key_hash)
    for at in range(0, PROOF_DIGESTS, BRANCHES - 1):
        siblings = proof.siblings[at : at + BRANCHES - 1]
        child, own = divmod(child, BRANCHES)
        node = _node_hash((*siblings[:own], node, *siblings[own:]))
    return node == root
