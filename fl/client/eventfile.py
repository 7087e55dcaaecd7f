"""TensorBoard's event files, as far as scalars go: a sequence of framed Event messages.

A frame is the length of its content (8 bytes, little-endian), a checksum of these 8 bytes, the content, and a checksum
of the content. A checksum is CRC-32C, rotated right by 15 bits, plus a constant (so that the checksum of a frame that
holds frames is not weak). The content is an Event in protocol buffers:

    Event    1 wall_time double, 2 step int64, 3 file_version string, 5 summary
    Summary  1 value, repeated
    Value    1 tag string, 2 simple_value float

The first event of a file says `brain.Event:2`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

VERSION = "brain.Event:2"

_MOST_BYTES = 1024 * 1024
"""Of one event: ours have a few hundred bytes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Event:
    wall_time: float
    step: int = 0
    version: str = ""
    scalars: Mapping[str, float] = field(default_factory=dict)


def framed(event: Event) -> bytes:
    """The event as a file holds it."""
    content = _written(event)
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def read_events(file: BinaryIO) -> Iterator[Event]:
    """Up to the end, or to the first frame that is torn, damaged or none of ours: what a writer that was killed has
    left behind ends like that."""
    while len(head := file.read(12)) == 12:
        length = int.from_bytes(head[:8], "little")
        if head[8:] != _checksum(head[:8]) or length > _MOST_BYTES:
            return
        content, check = file.read(length), file.read(4)
        if len(content) < length or check != _checksum(content):
            return
        try:
            yield _read(content)
        except (ValueError, struct.error):
            return


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little")


def _entry(byte: int) -> int:
    """Castagnoli's polynomial, bits reversed."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_entry, range(256)))


# Protocol buffers


def _written(event: Event) -> bytes:
    parts = [_key(1, _FIXED64), struct.pack("<d", event.wall_time), _key(2, _VARINT), _varint(event.step)]
    if event.version:
        parts.append(_sized(3, event.version.encode()))
    if event.scalars:
        values = (_sized(1, tag.encode()) + _key(2, _FIXED32) + _float(value) for tag, value in event.scalars.items())
        parts.append(_sized(5, b"".join(_sized(1, value) for value in values)))
    return b"".join(parts)


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _sized(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read(content: bytes) -> Event:
    wall_time, step, version, scalars = 0.0, 0, "", dict[str, float]()
    for number, value in _fields(content):
        match number, value:
            case 1, bytes():
                (wall_time,) = struct.unpack("<d", value)
            case 2, int():
                step = value
            case 3, bytes():
                version = value.decode()
            case 5, bytes():
                scalars = dict(_scalar(each) for _, each in _fields(value) if isinstance(each, bytes))
    return Event(wall_time, step, version, scalars)


def _scalar(content: bytes) -> tuple[str, float]:
    tag, number = "", 0.0
    for place, value in _fields(content):
        match place, value:
            case 1, bytes():
                tag = value.decode()
            case 2, bytes():
                (number,) = struct.unpack("<f", value)
    return tag, number


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field; raises ValueError for what is cut off or of a kind that we do not write."""
    at = 0
    while at < len(content):
        key, at = _varint_at(content, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint_at(content, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint_at(content, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(content):
            raise ValueError("a field that is cut off")
        yield key >> 3, content[at : at + length]
        at += length


def _varint_at(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that is cut off")
