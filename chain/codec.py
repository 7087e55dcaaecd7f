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
are therefore bounded by the schema and by `limit`.

Whatever the bytes, `decode` and `unpack` raise `CodecError` and nothing else. `encode` raises it too, for a
record that no reader would accept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum, StrEnum
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

Plain: TypeAlias = "int | bytes | str | bool | tuple[Plain, ...] | None"
T = TypeVar("T")

MAX_DEPTH = 16
"""Arrays within arrays that `unpack` follows; the deepest record of the chain needs seven."""


class CodecError(ValueError):
    """The bytes are not the canonical encoding of the value expected, or the value has none."""


@dataclass(frozen=True, slots=True)
class Range:
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Length:
    """Of a byte string, or of a text's UTF-8 bytes; both ends included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Count:
    """Of an array's elements; both ends included."""

    low: int
    high: int


U8 = Annotated[int, Range(0, 2**8 - 1)]
U16 = Annotated[int, Range(0, 2**16 - 1)]
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**64 - 1)]
I64 = Annotated[int, Range(-(2**63), 2**63 - 1)]
Digest = Annotated[bytes, Length(32, 32)]
PublicKey = Annotated[bytes, Length(33, 33)]
"""A key-type byte (1 = Ed25519) and the key."""
Signature = Annotated[bytes, Length(64, 64)]

_Reader: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
_Writer: TypeAlias = Callable[[Any], Plain]


@dataclass(frozen=True, slots=True)
class _FieldCodec:
    read: _Reader
    write: _Writer


# Reading the heads. Each returns what the head says and where the next byte lies, and refuses every form but
# the shortest. An index beyond the end raises IndexError, which the public functions turn into CodecError.

_INTEGER_FORMS: dict[int, tuple[int, bool, int, int]] = {
    0xCC: (1, False, 2**7, 2**8 - 1),
    0xCD: (2, False, 2**8, 2**16 - 1),
    0xCE: (4, False, 2**16, 2**32 - 1),
    0xCF: (8, False, 2**32, 2**64 - 1),
    0xD0: (1, True, -(2**7), -(2**5) - 1),
    0xD1: (2, True, -(2**15), -(2**7) - 1),
    0xD2: (4, True, -(2**31), -(2**15) - 1),
    0xD3: (8, True, -(2**63), -(2**31) - 1),
}
"""First byte → width, signed, and the only values that need this form."""

_BYTES_FORMS = {0xC4: (1, 0), 0xC5: (2, 2**8), 0xC6: (4, 2**16)}
_TEXT_FORMS = {0xD9: (1, 2**5), 0xDA: (2, 2**8), 0xDB: (4, 2**16)}
_ARRAY_FORMS = {0xDC: (2, 2**4), 0xDD: (4, 2**16)}
"""First byte → width of the length, and the least length that needs this form."""


def _integer(data: bytes, at: int) -> tuple[int, int]:
    head = data[at]
    if head < 0x80:
        return head, at + 1
    if head >= 0xE0:
        return head - 0x100, at + 1
    form = _INTEGER_FORMS.get(head)
    if form is None:
        raise CodecError("expected an integer")
    width, signed, low, high = form
    end = at + 1 + width
    if end > len(data):
        raise CodecError("cut short")
    value = int.from_bytes(data[at + 1 : end], "big", signed=signed)
    if not low <= value <= high:
        raise CodecError("an integer is not in its shortest form")
    return value, end


def _length(data: bytes, at: int, forms: dict[int, tuple[int, int]], what: str) -> tuple[int, int]:
    form = forms.get(data[at])
    if form is None:
        raise CodecError(f"expected {what}")
    width, least = form
    end = at + 1 + width
    if end > len(data):
        raise CodecError("cut short")
    length = int.from_bytes(data[at + 1 : end], "big")
    if length < least:
        raise CodecError("a length is not in its shortest form")
    return length, end


def _taken(data: bytes, at: int, length: int, bounds: Length) -> tuple[bytes, int]:
    if not bounds.low <= length <= bounds.high:
        raise CodecError(f"{length} bytes where {bounds.low} to {bounds.high} are allowed")
    end = at + length
    if end > len(data):
        raise CodecError("cut short")
    return data[at:end], end


def _text(data: bytes, at: int, bounds: Length) -> tuple[str, int]:
    head = data[at]
    if 0xA0 <= head < 0xC0:
        length, at = head - 0xA0, at + 1
    else:
        length, at = _length(data, at, _TEXT_FORMS, "text")
    raw, at = _taken(data, at, length, bounds)
    try:
        return raw.decode(), at
    except UnicodeDecodeError:
        raise CodecError("text is not UTF-8") from None


def _array(data: bytes, at: int) -> tuple[int, int]:
    head = data[at]
    if 0x90 <= head < 0xA0:
        return head - 0x90, at + 1
    return _length(data, at, _ARRAY_FORMS, "an array")


# One reader and one writer for each annotation.


def _int_codec(bounds: Range) -> _FieldCodec:
    low, high = bounds.low, bounds.high

    def read(data: bytes, at: int) -> tuple[int, int]:
        value, end = _integer(data, at)
        if value < low or value > high:
            raise CodecError(f"{value} is outside {low} to {high}")
        return value, end

    def write(value: Any) -> int:
        if type(value) is not int:
            if not isinstance(value, IntEnum):
                raise CodecError(f"expected an integer, not {type(value).__name__}")
            value = value.value
        if value < low or value > high:
            raise CodecError(f"{value} is outside {low} to {high}")
        return cast(int, value)

    return _FieldCodec(read, write)


def _bytes_codec(bounds: Length) -> _FieldCodec:
    low, high = bounds.low, bounds.high

    def read_any(data: bytes, at: int) -> tuple[bytes, int]:
        length, at = _length(data, at, _BYTES_FORMS, "bytes")
        return _taken(data, at, length, bounds)

    def read_fixed(data: bytes, at: int) -> tuple[bytes, int]:
        start = at + 2
        if data[at] != 0xC4 or data[at + 1] != low:
            raise CodecError(f"expected {low} bytes")
        end = start + low
        if end > len(data):
            raise CodecError("cut short")
        return data[start:end], end

    def write(value: Any) -> bytes:
        if type(value) is not bytes:
            raise CodecError(f"expected bytes, not {type(value).__name__}")
        if not low <= len(value) <= high:
            raise CodecError(f"{len(value)} bytes where {low} to {high} are allowed")
        return value

    return _FieldCodec(read_fixed if low == high < 2**8 else read_any, write)


def _text_codec(bounds: Length) -> _FieldCodec:
    def read(data: bytes, at: int) -> tuple[str, int]:
        return _text(data, at, bounds)

    def write(value: Any) -> str:
        if type(value) is not str:
            if not isinstance(value, StrEnum):
                raise CodecError(f"expected text, not {type(value).__name__}")
            value = value.value
        try:
            length = len(value.encode())
        except UnicodeEncodeError:
            raise CodecError("text is not UTF-8") from None
        if not bounds.low <= length <= bounds.high:
            raise CodecError(f"{length} bytes of text where {bounds.low} to {bounds.high} are allowed")
        return cast(str, value)

    return _FieldCodec(read, write)


def _read_bool(data: bytes, at: int) -> tuple[bool, int]:
    head = data[at]
    if head not in (0xC2, 0xC3):
        raise CodecError("expected a boolean")
    return head == 0xC3, at + 1


def _write_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise CodecError(f"expected a boolean, not {type(value).__name__}")
    return value


def _optional_codec(inner: _FieldCodec) -> _FieldCodec:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        return (None, at + 1) if data[at] == 0xC0 else inner.read(data, at)

    def write(value: Any) -> Plain:
        return None if value is None else inner.write(value)

    return _FieldCodec(read, write)


def _tuple_codec(inner: _FieldCodec, bounds: Count) -> _FieldCodec:
    low, high = bounds.low, bounds.high
    read_one, write_one = inner.read, inner.write

    def read(data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        count, at = _array(data, at)
        if not low <= count <= high:
            raise CodecError(f"{count} elements where {low} to {high} are allowed")
        values = []
        for _ in range(count):
            value, at = read_one(data, at)
            values.append(value)
        return tuple(values), at

    def write(value: Any) -> tuple[Plain, ...]:
        if type(value) is not tuple:
            raise CodecError(f"expected a tuple, not {type(value).__name__}")
        if not low <= len(value) <= high:
            raise CodecError(f"{len(value)} elements where {low} to {high} are allowed")
        return tuple([write_one(each) for each in value])

    return _FieldCodec(read, write)


def _record_codec(cls: type) -> _FieldCodec:
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in fields(cls)]
    codecs = [_codec_for(hints[name], f"{cls.__name__}.{name}") for name in names]
    head = cast(bytes, msgpack.packb((None,) * len(names)))[: -len(names) or None]
    head_length = len(head)
    read_steps = [codec.read for codec in codecs]
    write_steps = [codec.write for codec in codecs]
    values_of = attrgetter(*names) if len(names) > 1 else lambda record: (getattr(record, names[0]),)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        if not data.startswith(head, at):
            raise CodecError(f"expected the {len(names)} fields of {cls.__name__}")
        at += head_length
        values: list[Any] = []
        try:
            for step in read_steps:
                value, at = step(data, at)
                values.append(value)
        except CodecError as error:
            raise CodecError(f"{cls.__name__}.{names[len(values)]}: {error}") from None
        return cls(*values), at

    def write(record: Any) -> tuple[Plain, ...]:
        if type(record) is not cls:
            raise CodecError(f"expected {cls.__name__}, not {type(record).__name__}")
        done: list[Plain] = []
        try:
            for step, value in zip(write_steps, values_of(record), strict=True):
                done.append(step(value))
        except CodecError as error:
            raise CodecError(f"{cls.__name__}.{names[len(done)]}: {error}") from None
        return tuple(done)

    return _FieldCodec(read, write)


def _codec_for(annotation: Any, where: str) -> _FieldCodec:
    if annotation is bool:
        return _FieldCodec(_read_bool, _write_bool)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _compiled(annotation)
    if get_origin(annotation) in (Union, UnionType):
        inner = [each for each in get_args(annotation) if each is not NoneType]
        if len(inner) == 1:
            return _optional_codec(_codec_for(inner[0], where))
    if get_origin(annotation) is Annotated:
        base, bounds = get_args(annotation)[:2]
        if base is int and isinstance(bounds, Range):
            return _int_codec(bounds)
        if base is bytes and isinstance(bounds, Length):
            return _bytes_codec(bounds)
        if base is str and isinstance(bounds, Length):
            return _text_codec(bounds)
        if get_origin(base) is tuple and isinstance(bounds, Count):
            element, *rest = get_args(base)
            if rest == [Ellipsis]:
                return _tuple_codec(_codec_for(element, where), bounds)
    raise TypeError(f"{where}: {annotation!r} has no canonical encoding")


_codecs: dict[type, _FieldCodec] = {}


def _compiled(cls: type) -> _FieldCodec:
    codec = _codecs.get(cls)
    if codec is None:
        if not is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a record")
        codec = _codecs[cls] = _record_codec(cls)
    return codec


def to_plain(record: object) -> tuple[Plain, ...]:
    """The record as nested tuples, every field checked against its annotation."""
    return cast("tuple[Plain, ...]", _compiled(type(record)).write(record))


def from_plain(cls: type[T], plain: Plain) -> T:
    data = pack(plain)
    return decode(cls, data, len(data))


def encode(record: object) -> bytes:
    return cast(bytes, msgpack.packb(_compiled(type(record)).write(record)))


def decode(cls: type[T], data: bytes, limit: int) -> T:
    """The record of which `data` is the encoding; `limit` is the most bytes that such a record may have
    here."""
    codec = _codecs.get(cls) or _compiled(cls)
    _check_size(data, limit)
    try:
        record, end = codec.read(data, 0)
    except IndexError:
        raise CodecError("cut short") from None
    if end != len(data):
        raise CodecError("bytes follow the value")
    return cast(T, record)


def pack(plain: Plain) -> bytes:
    _check_plain(plain, 0)
    return cast(bytes, msgpack.packb(plain))


def unpack(data: bytes, limit: int) -> Plain:
    """A value without a schema, as strict as `decode`."""
    _check_size(data, limit)
    try:
        plain, end = _read_plain(data, 0, 0)
    except IndexError:
        raise CodecError("cut short") from None
    if end != len(data):
        raise CodecError("bytes follow the value")
    return plain


def _check_size(data: bytes, limit: int) -> None:
    if type(data) is not bytes:
        raise CodecError(f"expected bytes, not {type(data).__name__}")
    if len(data) > limit:
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
        _ANY_TEXT.write(plain)
    elif kind not in (bytes, bool, NoneType):
        raise CodecError(f"{kind.__name__} has no canonical encoding")


_ANY_LENGTH = Length(0, 2**32 - 1)
_ANY_TEXT = _text_codec(_ANY_LENGTH)


def _read_plain(data: bytes, at: int, depth: int) -> tuple[Plain, int]:
    head = data[at]
    if head == 0xC0:
        return None, at + 1
    if head in (0xC2, 0xC3):
        return head == 0xC3, at + 1
    if head in _BYTES_FORMS:
        length, at = _length(data, at, _BYTES_FORMS, "bytes")
        return _taken(data, at, length, _ANY_LENGTH)
    if 0xA0 <= head < 0xC0 or head in _TEXT_FORMS:
        return _text(data, at, _ANY_LENGTH)
    if 0x90 <= head < 0xA0 or head in _ARRAY_FORMS:
        if depth == MAX_DEPTH:
            raise CodecError(f"arrays nest deeper than {MAX_DEPTH}")
        count, at = _array(data, at)
        values = []
        for _ in range(count):
            value, at = _read_plain(data, at, depth + 1)
            values.append(value)
        return tuple(values), at
    return _integer(data, at)
