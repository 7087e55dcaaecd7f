"""The canonical encoding: one value, one byte string.

Everything that is signed, hashed, sent or stored is a msgpack value made of integers, byte strings, text,
booleans, nil and positional arrays. Maps and floats do not occur, and each value has exactly one encoding:
the shortest. A record is a frozen, slotted dataclass; it is written as the array of its fields in order, and
its annotations are its schema:

    @dataclass(frozen=True, slots=True)
    class Vote:
        epoch: U64
        subject: Annotated[bytes, Length(0, 256)]
        signature: Signature

Reading follows the schema, not the bytes. The msgpack library accepts longer forms of the same value and
allocates what a header merely claims, so its reader is not used here: each field's reader checks form, range
and length before it takes anything, and whatever it accepts re-encodes to the same bytes. Memory and depth
are therefore bounded by the schema and by `limit`. `chain.forms` has what any field needs, and
`chain.straightline` makes the reader and the writer of a record.

Whatever the bytes, `decode` and `unpack` raise `CodecError` and nothing else. `encode` raises it too, for a
record that no reader would accept.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import error as StructError
from types import NoneType
from typing import Annotated, TypeAlias, TypeVar, cast

import msgpack

from chain import forms
from chain.forms import ANY_LENGTH, CodecError, Count, Length, Range
from chain.straightline import CODECS, compiled

__all__ = [
    "I64",
    "MAX_DEPTH",
    "U8",
    "U16",
    "U32",
    "U64",
    "CodecError",
    "Count",
    "Digest",
    "Length",
    "Plain",
    "PublicKey",
    "Range",
    "Signature",
    "decode",
    "encode",
    "from_plain",
    "pack",
    "packed",
    "to_plain",
    "unpack",
]

Plain: TypeAlias = "int | bytes | str | bool | tuple[Plain, ...] | None"
T = TypeVar("T")

MAX_DEPTH = 16
"""Arrays within arrays that `unpack` follows; the deepest record of the chain needs seven."""

U8 = Annotated[int, Range(0, 2**8 - 1)]
U16 = Annotated[int, Range(0, 2**16 - 1)]
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**64 - 1)]
I64 = Annotated[int, Range(-(2**63), 2**63 - 1)]
Digest = Annotated[bytes, Length(32, 32)]
PublicKey = Annotated[bytes, Length(33, 33)]
"""A key-type byte (1 = Ed25519) and the key."""
Signature = Annotated[bytes, Length(64, 64)]

packed: Callable[[Plain], bytes] = msgpack.packb
"""As `pack`, of values that nothing outside of a record's annotations can be: they are not looked at again."""
if msgpack.Packer.__module__ != "msgpack.fallback":
    # One packer, and its buffer, for all threads: compiled, it calls nothing back, so none comes between.
    packed = msgpack.Packer().pack


def to_plain(record: object) -> tuple[Plain, ...]:
    """The record as nested tuples, every field checked against its annotation."""
    return (CODECS.get(type(record)) or compiled(type(record))).write(record)


def from_plain(cls: type[T], plain: Plain) -> T:
    data = pack(plain)
    return decode(cls, data, len(data))


def encode(record: object) -> bytes:
    codec = CODECS.get(type(record)) or compiled(type(record))
    return packed(codec.write(record))


def decode(cls: type[T], data: bytes, limit: int) -> T:
    """The record of which `data` is the encoding; `limit` is the most bytes that such a record may have
    here."""
    if type(data) is not bytes or len(data) > limit:
        _refuse_size(data, limit)
    codec = CODECS.get(cls) or compiled(cls)
    record: T
    try:
        record, end = codec.read(data, 0)
    except (IndexError, StructError):
        raise CodecError("cut short") from None
    if end != len(data):
        raise CodecError("bytes follow the value")
    return record


def pack(plain: Plain) -> bytes:
    _check_plain(plain, 0)
    return packed(plain)


def unpack(data: bytes, limit: int) -> Plain:
    """A value without a schema, as strict as `decode`."""
    if type(data) is not bytes or len(data) > limit:
        _refuse_size(data, limit)
    try:
        plain, end = _read_plain(data, 0, 0)
    except (IndexError, StructError):
        raise CodecError("cut short") from None
    if end != len(data):
        raise CodecError("bytes follow the value")
    return plain


def _refuse_size(data: bytes, limit: int) -> None:
    if type(data) is not bytes:
        raise CodecError(f"expected bytes, not {type(data).__name__}")
    raise CodecError(f"{len(data)} bytes where at most {limit} are allowed")


def _check_plain(plain: Plain, depth: int) -> None:
    kind = type(plain)
    if kind is tuple:
        if depth == MAX_DEPTH:
            raise CodecError(f"arrays nest deeper than {MAX_DEPTH}")
        for each in cast("tuple[Plain, ...]", plain):
            _check_plain(each, depth + 1)
    elif kind is int:
        if not -(2**63) <= cast(int, plain) < 2**64:
            raise CodecError("an integer is outside 64 bits")
    elif kind is str:
        forms.written_text(plain, 0, ANY_LENGTH)
    elif kind not in (bytes, bool, NoneType):
        raise CodecError(f"{kind.__name__} has no canonical encoding")


def _read_plain(data: bytes, at: int, depth: int) -> tuple[Plain, int]:
    head = data[at]
    if head == 0xC0:
        return None, at + 1
    if head in (0xC2, 0xC3):
        return head == 0xC3, at + 1
    if head in forms.BYTES:
        return forms.byte_string(data, at, 0, ANY_LENGTH)
    if 0xA0 <= head < 0xC0 or head in forms.TEXT:
        return forms.text(data, at, 0, ANY_LENGTH)
    if 0x90 <= head < 0xA0 or head in forms.ARRAY:
        if depth == MAX_DEPTH:
            raise CodecError(f"arrays nest deeper than {MAX_DEPTH}")
        count, at = forms.array(data, at, 0, ANY_LENGTH)
        values = []
        for _ in range(count):
            value, at = _read_plain(data, at, depth + 1)
            values.append(value)
        return tuple(values), at
    return forms.integer(data, at, -(2**63), 2**64 - 1)
