"""Blocks: a header that commits to a small body of batch digests and items.

Certificates and witnesses travel beside a block, never inside: honest nodes hold different ones for one fact.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain.codec import U8, U16, U64, Count, Digest, Length, PublicKey, encode
from chain.hashing import Domain, digest

HEADER_VERSION = 1
MAX_BLOCK_REFERENCES = 64
MAX_BLOCK_ITEMS = 16
MAX_ITEM_BYTES = 8 * 1024
MAX_BLOCK_BYTES = 256 * 1024
"""Of an encoded Block: header, all references and all items fit with room to spare."""


class ItemKind(IntEnum):
    RESULT = 1
    EVIDENCE = 2
    READY = 3


@dataclass(frozen=True, slots=True)
class Item:
    """Something that validators attest rather than an account; `data` is the encoding of the kind's record.

    RESULT holds a certificate's `Result` subject, EVIDENCE an `Evidence`, READY a `Ready`.
    """

    kind: U8
    data: Annotated[bytes, Length(0, MAX_ITEM_BYTES)]


@dataclass(frozen=True, slots=True)
class Evidence:
    """That this validator broke a voting rule in this view; the two votes are the item's witness."""

    signer: U16
    epoch: U64
    view: U64
    kind: Annotated[str, Length(1, 32)]


@dataclass(frozen=True, slots=True)
class Ready:
    """A joining validator has synced to this height and computed this root."""

    height: U64
    root: Digest
    validator: PublicKey


@dataclass(frozen=True, slots=True)
class Body:
    batches: Annotated[tuple[Digest, ...], Count(0, MAX_BLOCK_REFERENCES)]
    items: Annotated[tuple[Item, ...], Count(0, MAX_BLOCK_ITEMS)]


EMPTY_BODY = Body((), ())


@dataclass(frozen=True, slots=True)
class Header:
    version: U16
    chain: Digest
    epoch: U64
    height: U64
    view: U64
    parent: Digest
    log_root: Digest
    """Root of the log of the digests of all earlier blocks: `height` leaves, the genesis block's first."""
    batch_root: Digest
    item_root: Digest
    executed_height: U64
    executed_root: Digest
    time_ms: U64
    rules_version: U16
    reveal: Digest
    commit: Digest
    next_set: Annotated[bytes, Length(0, 32)]
    """Digest of the next epoch's validator set in the last block of an epoch, else empty."""


@dataclass(frozen=True, slots=True)
class Block:
    header: Header
    body: Body


def block_digest(header: Header) -> bytes:
    return digest(Domain.HEADER, encode(header))


def item_digest(item: Item) -> bytes:
    return digest(Domain.ITEM, encode(item))


def body_roots(body: Body) -> tuple[bytes, bytes]:
    """What the header says of the body: (batch_root, item_root)."""
    batch_root = digest(Domain.BODY_BATCHES, *body.batches)
    item_root = digest(Domain.BODY_ITEMS, *(item_digest(item) for item in body.items))
    return batch_root, item_root
