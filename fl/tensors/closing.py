"""The record that closes a round, stored as a blob and named in the certified result.

It says how the new model came about; with the round's log of accepted updates, anyone who holds their
payloads can compute it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from chain.cid import LEAF_BYTES
from chain.codec import U8, U16, U32, U64, Count, Digest, Length
from fl.tensors.grid import MAX_UPDATES
from fl.tensors.layout import Bytes, Rows

CLOSING_VERSION = 2
MAX_SCORED = 4096
"""Updates of a round whose rule gives each a score."""
SCORE_BYTES = 32
MAX_GROUPS = 64

BlobName = Annotated[bytes, Length(0, 36)]
"""A CID, or nothing where there is no such blob."""
Score = Annotated[bytes, Length(0, SCORE_BYTES)]
"""An integer of 0 or more, big-endian without leading zeros."""


@dataclass(frozen=True, slots=True)
class ClosingRecord:
    version: U8
    rule: Annotated[str, Length(1, 32)]
    kernel_version: U16
    job: Digest
    round: U64
    log_root: Digest
    """Of the accepted updates: transaction, member, weight and payload of each."""
    ok: bool
    code: Annotated[str, Length(0, 32)]
    """Why the round failed; empty when it did not."""
    base: BlobName
    model: BlobName
    """Empty when the round failed."""
    optimizer: BlobName
    """The moments that the rule keeps; empty if it keeps none, and when the round failed."""
    denominators: Annotated[tuple[U64, ...], Count(1, MAX_GROUPS)]
    """Of each group of tensors, the steps in one unit of the mean; 0 for a group that no update changed."""
    weights: Annotated[tuple[U32, ...], Count(1, MAX_UPDATES)]
    """In the order of the log."""
    scores: Annotated[tuple[Score, ...], Count(0, MAX_SCORED)]
    """What the rule found out about each update, in the order of the log; nothing if it gives none."""
    copies: Annotated[tuple[Annotated[tuple[U32, ...], Count(2, MAX_UPDATES)], ...], Count(0, MAX_UPDATES // 2)]
    """Places in the log of updates with equal values, COPY: each such set sorted, and they by their first."""


MAX_CLOSING_BYTES = (
    1024
    + MAX_GROUPS * 9
    + MAX_UPDATES * 5
    + MAX_SCORED * (2 + SCORE_BYTES)
    # Most are taken by pairs, each with its count.
    + MAX_UPDATES * 5
    + MAX_UPDATES // 2
)


def score_bytes(score: int) -> bytes:
    return score.to_bytes((score.bit_length() + 7) // 8, "big")


def fingerprint(values: Bytes, digests: bytes) -> bytes:
    """Of an update's values, from those in its first leaf and the digests of the other leaves one after another. Two
    updates of one group and round have equal fingerprints if and only if they have equal values."""
    hasher = hashlib.sha256(values)
    hasher.update(digests)
    return hasher.digest()


def payload_fingerprint(payload: Bytes, offset: int) -> bytes:
    """The same, of a payload whose values begin at `offset`."""
    view = memoryview(payload)
    leaves = (view[start : start + LEAF_BYTES] for start in range(LEAF_BYTES, len(view), LEAF_BYTES))
    return fingerprint(view[offset:LEAF_BYTES], b"".join(hashlib.sha256(each).digest() for each in leaves))


def row_fingerprints(rows: Rows, offset: int) -> list[bytes]:
    """The same, of payloads of one leaf at most that lie in rows."""
    assert rows.shape[1] <= LEAF_BYTES, "a payload that is not a blob is small"
    return [hashlib.sha256(values).digest() for values in rows[:, offset:]]


def copies_of(fingerprints: Iterable[tuple[int, bytes]]) -> tuple[tuple[int, ...], ...]:
    """From group and fingerprint of each update, in the order of the log."""
    places: dict[tuple[int, bytes], list[int]] = {}
    for place, each in enumerate(fingerprints):
        places.setdefault(each, []).append(place)
    return tuple(tuple(each) for each in places.values() if len(each) > 1)
