"""Everything that validators say to one another, and the bounds that hold before a byte is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain.availability import AvailabilityCertificate
from chain.batch import SignedBatch, read_signed_batch
from chain.block import Block
from chain.certificate import Certificate, Vote
from chain.codec import U8, U16, U64, CodecError, Count, Digest, Length, Signature, decode, encode


class Channel(IntEnum):
    """Votes must never queue behind bytes in bulk, so each has its own connection."""

    CONSENSUS = 0
    DATA = 1


Witness = Annotated[bytes, Length(0, 16 * 1024)]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A leader's notarize vote with the block that it names and all that a voter may lack to judge it."""

    vote: Vote
    block: Block
    witnesses: Annotated[tuple[Witness, ...], Count(0, 16)]
    executed: Certificate | None
    available: Annotated[tuple[AvailabilityCertificate, ...], Count(0, 64)]


@dataclass(frozen=True, slots=True)
class FetchCertificate:
    """Asks for what ended a view: its certificate of that kind, or a finalization at or above it."""

    epoch: U64
    view: U64
    kind: U8


@dataclass(frozen=True, slots=True)
class FetchBlock:
    block: Digest


@dataclass(frozen=True, slots=True)
class BlockAnswer:
    block: Block


@dataclass(frozen=True, slots=True)
class FetchRange:
    """Asks for final blocks of these heights, lowest first; the answer may hold fewer."""

    first: U64
    last: U64


@dataclass(frozen=True, slots=True)
class FinalBlock:
    block: Block
    finalization: Certificate | None


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    first: U64
    blocks: Annotated[tuple[FinalBlock, ...], Count(0, 256)]


@dataclass(frozen=True, slots=True)
class OpenRound:
    job: Digest
    round: U64


@dataclass(frozen=True, slots=True)
class Status:
    """Said each second on every link: peers pull, from the difference, what they lack."""

    epoch: U64
    view: U64
    final_view: U64
    final_height: U64
    executed_height: U64
    results: Annotated[tuple[OpenRound, ...], Count(0, 64)]
    uncertified: Annotated[tuple[Digest, ...], Count(0, 256)]


@dataclass(frozen=True, slots=True)
class ViewQuery:
    nonce: Digest


@dataclass(frozen=True, slots=True)
class ViewAnswer:
    nonce: Digest
    epoch: U64
    view: U64
    entry: Certificate | None
    signature: Signature


@dataclass(frozen=True, slots=True)
class BatchOffer:
    signed: SignedBatch


@dataclass(frozen=True, slots=True)
class BatchPull:
    batch: Digest


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    signed: SignedBatch


@dataclass(frozen=True, slots=True)
class DataAddress:
    """Where the sender's data process listens for its peers; an empty host is the one that the links know."""

    host: Annotated[str, Length(0, 255)]
    port: U16


_KIB = 1024
_BATCH_FRAME = 1024 * _KIB + 64 * _KIB

# type byte -> (class, size limit in bytes, channel)
MESSAGES: dict[int, tuple[type, int, Channel]] = {
    1: (Proposal, 512 * _KIB, Channel.CONSENSUS),
    2: (Vote, 1 * _KIB, Channel.CONSENSUS),
    3: (Certificate, 16 * _KIB, Channel.CONSENSUS),
    4: (FetchCertificate, 64, Channel.CONSENSUS),
    5: (FetchBlock, 64, Channel.CONSENSUS),
    6: (BlockAnswer, 256 * _KIB, Channel.CONSENSUS),
    7: (Status, 16 * _KIB, Channel.CONSENSUS),
    9: (ViewQuery, 64, Channel.CONSENSUS),
    10: (ViewAnswer, 16 * _KIB, Channel.CONSENSUS),
    11: (AvailabilityCertificate, 16 * _KIB, Channel.CONSENSUS),
    20: (BatchOffer, _BATCH_FRAME, Channel.DATA),
    21: (BatchPull, 64, Channel.DATA),
    22: (BatchAnswer, _BATCH_FRAME, Channel.DATA),
    23: (FetchRange, 64, Channel.DATA),
    24: (RangeAnswer, 1024 * _KIB, Channel.DATA),
    25: (DataAddress, 512, Channel.DATA),
}

_TYPE_OF = {cls: number for number, (cls, _, _) in MESSAGES.items()}

FRAME_LIMIT: dict[Channel, int] = {
    channel: 1 + max(size for _, size, lane in MESSAGES.values() if lane is channel) for channel in Channel
}


def channel_of(message: object) -> Channel:
    return MESSAGES[_TYPE_OF[type(message)]][2]


_ONE_FIELD = b"\x91"
"""Before the batch in a message that holds nothing else: its bytes are taken as they are, both ways."""


def to_frame(message: object) -> bytes:
    head = bytes((_TYPE_OF[type(message)],))
    if isinstance(message, BatchOffer | BatchAnswer):
        return b"".join((head, _ONE_FIELD, message.signed.encoded))
    return head + encode(message)


def from_frame(channel: Channel, frame: bytes) -> object:
    """Raises CodecError for anything that is not exactly one known message of this channel."""
    entry = MESSAGES.get(frame[0]) if frame else None
    if entry is None or entry[2] is not channel:
        raise CodecError("unknown message type for this channel")
    cls, limit, _ = entry
    if cls is BatchOffer or cls is BatchAnswer:
        if not frame.startswith(_ONE_FIELD, 1):
            raise CodecError(f"expected the field of {cls.__name__}")
        return cls(read_signed_batch(frame[2:], limit - len(_ONE_FIELD)))
    message: object = decode(cls, frame[1:], limit)
    return message
