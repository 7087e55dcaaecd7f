"""Who may say of what kind a blob is, when several bring or want the same bytes. No account is the state's own word."""

from __future__ import annotations

from fl.blobs import PUBLIC_KINDS, BlobKind


def publishes(kind: BlobKind, before: BlobKind, account: bytes, owner: bytes) -> bool:
    """May `account` make public what came as private? The state may, and whoever brought it."""
    return kind in PUBLIC_KINDS and before not in PUBLIC_KINDS and account in (b"", owner)


def hides(kind: BlobKind, before: BlobKind, account: bytes, owner: bytes) -> bool:
    """Is what `owner` has only announced, as public, wanted as a private blob of somebody else?"""
    return kind not in PUBLIC_KINDS and before in PUBLIC_KINDS and owner not in (b"", account)
