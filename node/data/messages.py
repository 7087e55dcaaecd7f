"""What the two processes of a validator say to one another over their pipe.

Requests carry an id, and their answer the same one; `Failed` may answer any. Whoever asks waits for the answer before
asking for more than a few things of a kind, which is what bounds the pipe. Both ends are the same operator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain.certificate import MAX_VALIDATORS
from chain.codec import U8, U16, U32, U64, CodecError, Count, Digest, Length, PublicKey, decode, encode
from fl.blobs import BlobClaim
from fl.records import Cid, JobRules, MaybeCid
from fl.tensors.layout import Schema

FRAME_BYTES = 8 * 1024 * 1024
ADDENDS = 1_024
INLINE_BYTES = 64 * 1024
"""Of an update that is no blob."""
ADDENDS_BYTES = 4 * 1024 * 1024
"""Of inline payloads in one message, if it is of more than one update."""
ROOTS = 16_384
BLOB_BYTES = "blob_bytes"
"""The figure by which the core sees that there may be much to sweep."""

Host = Annotated[str, Length(0, 255)]
Code = Annotated[str, Length(0, 32)]
Sentence = Annotated[str, Length(0, 1024)]


class Finding(IntEnum):
    """What became of a claim's blob."""

    OK = 1
    """Whole, good and durable here."""
    BAD = 2
    """Its bytes are here and break the rules: for good."""
    ABSENT = 3
    """Not whole here, and nobody waits for it."""
    FULL = 4
    """Not whole here, and the disk's reserve leaves no room for it. Whoever waits is not told so, and waits on: it
    comes once there is room."""


# From the core


@dataclass(frozen=True, slots=True)
class DataPeer:
    """Where another validator's data process listens."""

    key: PublicKey
    link_key: PublicKey
    host: Host
    port: U16


@dataclass(frozen=True, slots=True)
class Peers:
    """All whom blobs may be pulled from and given to, from now on. One whose port is 0 may pull but is not reachable
    yet."""

    peers: Annotated[tuple[DataPeer, ...], Count(0, 3 * MAX_VALIDATORS)]


@dataclass(frozen=True, slots=True)
class Judge:
    """Answered by Judged. With `wait`, not before the blob is whole (pulled from the sources first, and then from
    anyone) or the request forgotten; without it, at once."""

    id: U64
    claim: BlobClaim
    rules: JobRules | None
    sources: Annotated[tuple[PublicKey, ...], Count(0, MAX_VALIDATORS)]
    wait: bool


@dataclass(frozen=True, slots=True)
class Obtain:
    """Get a blob that the state names from whoever has it. Answered by Judged, OK, once it is durable here."""

    id: U64
    cid: Cid
    kind: U8


@dataclass(frozen=True, slots=True)
class Keep:
    """Store these bytes. Answered by Kept, once they are durable."""

    id: U64
    kind: U8
    data: Annotated[bytes, Length(0, 1024 * 1024)]


@dataclass(frozen=True, slots=True)
class Zeros:
    """Store the model of zeros of this schema. Answered by Kept."""

    id: U64
    schema: Schema


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody waits for the answer to this request any more."""

    id: U64


@dataclass(frozen=True, slots=True)
class Begin:
    """A round takes updates. `step` is 1 more than the rounds of the job that were closed."""

    job: Digest
    round: U64
    rules: JobRules
    step: U64


@dataclass(frozen=True, slots=True)
class Addend:
    """An accepted update: the blob `cid`. `round` is what its header names."""

    index: U64
    round: U64
    member: Digest
    weight: U32
    group: U8
    cid: Cid


@dataclass(frozen=True, slots=True)
class Bundle:
    """Accepted updates that came inline, as columns in one order: of one group, and of one length, for their headers
    name one round. An update is not a record here, for there are thousands each second. Numbers are little-endian and
    of as many bytes as in `Addend`."""

    round: U64
    group: U8
    indices: Annotated[bytes, Length(8, 8 * ADDENDS)]
    members: Annotated[bytes, Length(32, 32 * ADDENDS)]
    weights: Annotated[bytes, Length(4, 4 * ADDENDS)]
    payloads: Annotated[bytes, Length(1, ADDENDS_BYTES + INLINE_BYTES)]


@dataclass(frozen=True, slots=True)
class Add:
    """Further updates of a round that has begun, in any order, each once for every life of the data process. Answered
    by Done."""

    id: U64
    job: Digest
    round: U64
    blobs: Annotated[tuple[Addend, ...], Count(0, ADDENDS)]
    bundles: Annotated[tuple[Bundle, ...], Count(0, ADDENDS)]


@dataclass(frozen=True, slots=True)
class Close:
    """The round's log is frozen and all of its `size` updates were added. Answered by Closed. `optimizer` is what the
    last closed round of the job left, if it left any."""

    id: U64
    job: Digest
    round: U64
    log_root: Digest
    size: U64
    kernel_version: U16
    base: Cid
    optimizer: MaybeCid


@dataclass(frozen=True, slots=True)
class Drop:
    """The round needs no sums any more."""

    job: Digest
    round: U64


@dataclass(frozen=True, slots=True)
class Mark:
    """The core is about to collect what must stay. Answered by Marked: what comes or is judged good from here on stays
    in any case."""

    id: U64


@dataclass(frozen=True, slots=True)
class Roots:
    """Blobs that must stay, in as many pieces as it takes. Answered by Swept; after the last piece, what is older than
    the mark, not named, not leased and not pinned is gone."""

    id: U64
    token: U64
    cids: Annotated[tuple[Cid, ...], Count(0, ROOTS)]
    last: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The answer to WhoIs, by the newest state. `roles` are those of an unrevoked member; a validator's operator key
    has the role `validator`."""

    id: U64
    current_key: bool
    roles: Annotated[tuple[Annotated[str, Length(1, 32)], ...], Count(0, 16)]


# From the data process


@dataclass(frozen=True, slots=True)
class Opened:
    """It is at work, and listens here for peers and for clients."""

    bulk_port: U16
    door_host: Host
    door_port: U16


@dataclass(frozen=True, slots=True)
class Judged:
    id: U64
    finding: U8
    code: Code
    """Why the blob is bad."""


@dataclass(frozen=True, slots=True)
class Kept:
    id: U64
    cid: Cid


@dataclass(frozen=True, slots=True)
class Done:
    id: U64


@dataclass(frozen=True, slots=True)
class Closed:
    id: U64
    ok: bool
    code: Code
    model: MaybeCid
    optimizer: MaybeCid
    record: MaybeCid


@dataclass(frozen=True, slots=True)
class Marked:
    id: U64
    token: U64


@dataclass(frozen=True, slots=True)
class Swept:
    id: U64
    blobs: U64
    size_bytes: U64


@dataclass(frozen=True, slots=True)
class Failed:
    """The request could not be done: a disk's or a program's fault, in words."""

    id: U64
    code: Code
    sentence: Sentence


@dataclass(frozen=True, slots=True)
class WhoIs:
    """May this key speak for this account, and as what? Answered by Standing."""

    id: U64
    account: Digest
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Figure:
    name: Annotated[str, Length(1, 64)]
    value: U64


@dataclass(frozen=True, slots=True)
class Figures:
    """Said each second. `full`: below the disk's reserve, so nothing more is promised."""

    full: bool
    free_bytes: U64
    figures: Annotated[tuple[Figure, ...], Count(0, 64)]


MESSAGES: dict[int, type] = {
    1: Peers,
    2: Judge,
    3: Obtain,
    4: Keep,
    5: Zeros,
    6: Forget,
    7: Begin,
    8: Close,
    9: Drop,
    10: Mark,
    11: Roots,
    12: Standing,
    13: Add,
    32: Opened,
    33: Judged,
    34: Kept,
    35: Done,
    36: Closed,
    37: Marked,
    38: Swept,
    39: Failed,
    40: WhoIs,
    41: Figures,
}

_TYPE_OF = {cls: number for number, cls in MESSAGES.items()}


def to_frame(message: object) -> bytes:
    return bytes((_TYPE_OF[type(message)],)) + encode(message)


def from_frame(frame: bytes) -> object:
    if not frame or frame[0] not in MESSAGES:
        raise CodecError("a frame of no known type")
    return decode(MESSAGES[frame[0]], frame[1:], FRAME_BYTES)
