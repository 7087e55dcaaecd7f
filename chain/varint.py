"""Unsigned integers as protobuf and the multiformats write them: seven bits a byte, the lowest first."""

from __future__ import annotations


class VarintError(ValueError):
    """Cut short, longer than it need be, or more than 64 bits."""


def to_varint(value: int) -> bytes:
    if not 0 <= value < 2**64:
        raise VarintError(f"{value} is no unsigned number of 64 bits")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends; in its shortest form only."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise VarintError("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise VarintError("a number has more than 64 bits")
    if value >= 2**64 or (shift and not byte):
        raise VarintError("a number is longer than it need be, or has more than 64 bits")
    return value, at
