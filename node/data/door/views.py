"""What the door's answers look like in JSON; the OpenAPI document is made from these types."""

from __future__ import annotations

from typing import Literal, TypedDict

from chain.cid import cid_text
from chain.unixfs import leaf_count
from node.data.blobs import Blob, Lease, Listed
from node.rpc.schema import U64, Base64, CidText, HexDigest

KindWord = Literal["model", "dataset", "update", "optimizer", "record"]


class OfferView(TypedDict):
    """What became of a manifest: the node keeps the blob so long, and lacks these leaves of it. `missing` has a bit a
    leaf, the first leaf in the lowest bit of the first byte."""

    lease_until_ms: U64
    size_bytes: U64
    leaves: U64
    missing: Base64
    whole: bool


class ProgressView(TypedDict):
    """How many leaves are missing."""

    missing: U64
    whole: bool


class BlobView(TypedDict):
    """A blob that is whole here. `account` is whose it is, if anybody's."""

    cid: CidText
    size_bytes: U64
    leaves: U64
    kind: KindWord
    account: HexDigest | None


class BlobsView(TypedDict):
    blobs: list[BlobView]
    next: CidText | None


class HeldView(TypedDict):
    """A page of what is here, and all that was here before the disk lost some leaves of it."""

    blobs: list[BlobView]
    next: CidText | None
    lost: list[CidText]


class LeaseView(TypedDict):
    cid: CidText
    size_bytes: U64
    kind: KindWord
    until_ms: U64


class LeasesView(TypedDict):
    leased_bytes: U64
    leases: list[LeaseView]


class PinView(TypedDict):
    cid: CidText
    pinned: bool


class VerifiedView(TypedDict):
    """Leaves whose bytes are not what they were, and whether the blob is whole and right again."""

    cid: CidText
    damaged: list[U64]
    sound: bool


def blob_view(blob: Blob | Listed) -> BlobView:
    return BlobView(
        cid=cid_text(blob.cid),
        size_bytes=blob.size_bytes,
        leaves=leaf_count(blob.size_bytes),
        kind=_word(blob),
        account=blob.account.hex() if blob.account else None,
    )


def lease_view(lease: Lease) -> LeaseView:
    return LeaseView(cid=cid_text(lease.cid), size_bytes=lease.size_bytes, kind=_word(lease), until_ms=lease.until_ms)


def _word(of: Blob | Listed | Lease) -> KindWord:
    word: KindWord = of.kind.name.lower()  # type: ignore[assignment]
    return word
