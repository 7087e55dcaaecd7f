"""Frames of batches: their bytes are taken as they are, and must be what encoding would have given."""

from __future__ import annotations

import pytest

from chain.codec import CodecError, encode
from consensus.messages import MESSAGES, BatchAnswer, BatchOffer, Channel, from_frame, to_frame
from tests.consensus.availability.world import signed_batch

KINDS = [(number, cls) for number, (cls, _, _) in MESSAGES.items() if cls in (BatchOffer, BatchAnswer)]


@pytest.mark.parametrize(("number", "cls"), KINDS)
def test_a_batch_travels_in_the_encoding_of_its_message(number: int, cls: type) -> None:
    message = cls(signed_batch(1, nonces=range(3)))
    frame = to_frame(message)
    assert frame == bytes([number]) + encode(message)
    read = from_frame(Channel.DATA, frame)
    assert read == message and isinstance(read, BatchOffer | BatchAnswer)
    assert read.signed.encoded == message.signed.encoded and read.signed.reference == message.signed.reference


@pytest.mark.parametrize(("number", "cls"), KINDS)
def test_a_frame_that_is_no_encoding_of_a_batch_is_refused(number: int, cls: type) -> None:
    frame = to_frame(cls(signed_batch(1)))
    for spoilt in (
        frame[:1],
        frame[:2],
        frame[:-1],
        frame + b"\x00",
        frame[:1] + b"\x92" + frame[2:],
        frame[:1] + b"\xdc\x00\x01" + frame[2:],
    ):
        with pytest.raises(CodecError):
            from_frame(Channel.DATA, spoilt)
    with pytest.raises(CodecError):
        from_frame(Channel.CONSENSUS, frame)


@pytest.mark.parametrize(("number", "cls"), KINDS)
def test_a_batch_longer_than_its_message_may_be_is_not_read(number: int, cls: type) -> None:
    limit = MESSAGES[number][1]
    frame = to_frame(cls(signed_batch(1, size=30_000, nonces=range(limit // 30_000 + 1))))
    with pytest.raises(CodecError, match="at most"):
        from_frame(Channel.DATA, frame)
