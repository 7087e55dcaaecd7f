"""What the data processes of two validators ask one another: who has a blob, what it is made of, one of its leaves.

A request is one type byte and a record. The answer to a LeafRequest is the leaf's bytes and nothing else, so that it
goes from a mapped file to the wire and from the wire to a file; an empty answer says "I do not have it", whatever the
question. No request is larger than REQUEST_BYTES and no answer larger than the limit of its kind, which the asking side
checks before it makes room for a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.codec import U32, CodecError, Length, decode, encode
from chain.unixfs import MAX_LEAVES, Manifest
from fl.records import Cid

REQUEST_BYTES = 128
HAVE_BYTES = MAX_LEAVES // 8 + 16
MANIFEST_BYTES = 32 * MAX_LEAVES + HAVE_BYTES + 32


@dataclass(frozen=True, slots=True)
class ManifestRequest:
    """Answered by Offer."""

    cid: Cid


@dataclass(frozen=True, slots=True)
class HaveRequest:
    """Answered by Have."""

    cid: Cid


@dataclass(frozen=True, slots=True)
class LeafRequest:
    cid: Cid
    index: U32


Request = ManifestRequest | HaveRequest | LeafRequest


@dataclass(frozen=True, slots=True)
class Have:
    """Which leaves are here: all of them, or those whose bits are set, the first leaf's being the lowest of the first
    byte."""

    whole: bool
    leaves: Annotated[bytes, Length(0, MAX_LEAVES // 8)]


@dataclass(frozen=True, slots=True)
class Offer:
    manifest: Manifest
    have: Have


_REQUESTS: dict[int, type[Request]] = {1: ManifestRequest, 2: HaveRequest, 3: LeafRequest}
_NUMBERS = {kind: number for number, kind in _REQUESTS.items()}


def to_request(request: Request) -> bytes:
    return bytes((_NUMBERS[type(request)],)) + encode(request)


def from_request(data: bytes) -> Request:
    """Raises CodecError."""
    if not data or data[0] not in _REQUESTS:
        raise CodecError("a request of no known type")
    return decode(_REQUESTS[data[0]], data[1:], REQUEST_BYTES)


def leaves_of(have: Have, count: int) -> int:
    """Bits beyond the blob's leaves are no leaves."""
    everything = all_leaves(count)
    return everything if have.whole else int.from_bytes(have.leaves, "little") & everything


def all_leaves(count: int) -> int:
    return (1 << count) - 1
