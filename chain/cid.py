"""Content identifiers: the names under which IPFS and this chain know the same bytes (CIDv1, sha2-256).

In binary: version, codec, hash function, hash length, digest; 36 bytes. As text: base32 in lower case after
a `b`. Data of one leaf is named by its plain hash (codec *raw*); larger data by the root of its UnixFS tree
(codec *dag-pb*), which this module reads and writes as a name only.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from hashlib import sha256

CID_BYTES = 36
LEAF_BYTES = 1024 * 1024

RAW_PREFIX = bytes([0x01, 0x55, 0x12, 0x20])
TREE_PREFIX = bytes([0x01, 0x70, 0x12, 0x20])

_TEXTS = 1024
"""CIDs whose text is at hand: a blob's is read or written with each of its leaves."""


class CidError(ValueError):
    """Not a CID of a kind that the chain uses."""


def raw_cid(data: bytes) -> bytes:
    if len(data) > LEAF_BYTES:
        raise CidError(f"one leaf has at most {LEAF_BYTES} bytes, not {len(data)}")
    return RAW_PREFIX + sha256(data).digest()


def check_cid(cid: bytes) -> None:
    if len(cid) != CID_BYTES or cid[:4] not in (RAW_PREFIX, TREE_PREFIX):
        raise CidError("not a CIDv1 with codec raw or dag-pb and a sha2-256 digest")


def version_1(cid: bytes) -> bytes:
    """The CID, or the one of version 1 that means the same. A CID of version 0 is a bare digest of a dag-pb block."""
    if len(cid) == CID_BYTES - 2 and cid.startswith(TREE_PREFIX[2:]):
        return TREE_PREFIX[:2] + cid
    check_cid(cid)
    return cid


def is_named(block: bytes | bytearray | memoryview, cid: bytes) -> bool:
    """Whether the CID's digest is that of these bytes."""
    return sha256(block).digest() == cid[-32:]


def is_raw(cid: bytes) -> bool:
    return len(cid) == CID_BYTES and cid.startswith(RAW_PREFIX)


@lru_cache(maxsize=_TEXTS)
def cid_text(cid: bytes) -> str:
    check_cid(cid)
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()


@lru_cache(maxsize=_TEXTS)
def parse_cid(text: str) -> bytes:
    if not text.startswith("b") or text != text.lower():
        raise CidError("a CID is written in lower-case base32 after a 'b'")
    body = text[1:].upper()
    try:
        cid = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        raise CidError("a CID is written in lower-case base32 after a 'b'") from None
    check_cid(cid)
    if cid_text(cid) != text:
        raise CidError("a CID is written without padding and with no stray bits")
    return cid
