"""Protocol Buffers, as much of it as Flower's fleet calls need, for bytes of which nothing is known.

A message is a frozen dataclass whose fields say their number and kind, and by their default how often they come:

    run_id: Annotated[int, On(1, Kind.UINT)] = 0                zero is not written, and what is absent is zero
    node: Annotated[Node | None, On(2, Node)] = None            None is not written, zero is
    trees: Annotated[tuple[Tree, ...], On(3, Tree)] = ()        any number; numbers are packed, and read either way

Reading skips fields that it does not know, as the format wants. It refuses, as `Malformed` and nothing else: lengths
beyond the end, varints of more than 64 bits, groups, text that is no UTF-8, a known field of another wire type, nesting
beyond `MOST_DEPTH`, and more than `MOST_FIELDS` fields in all, since a field of two bytes becomes an object of a
hundred. Equal messages are written as equal bytes: fields in the order of their numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from enum import Enum
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

MOST_DEPTH = 16
MOST_FIELDS = 1 << 18

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MOST_NUMBER = (1 << 29) - 1
_WORD = 1 << 64


class Malformed(ValueError):
    """Bytes that are no message of this form."""


class Kind(Enum):
    UINT = "unsigned, up to 64 bits"
    SINT = "signed, zig-zag"
    DOUBLE = "float64"
    BOOL = "true or false"
    TEXT = "UTF-8"
    BYTES = "bytes"


_WIRE = {
    Kind.UINT: _VARINT,
    Kind.SINT: _VARINT,
    Kind.BOOL: _VARINT,
    Kind.DOUBLE: _FIXED64,
    Kind.TEXT: _LENGTH,
    Kind.BYTES: _LENGTH,
}
_ZERO: dict[Kind, Any] = {
    Kind.UINT: 0,
    Kind.SINT: 0,
    Kind.DOUBLE: 0.0,
    Kind.BOOL: False,
    Kind.TEXT: "",
    Kind.BYTES: b"",
}


@dataclass(frozen=True, slots=True)
class On:
    """Beside a field's type: its number, and its kind or the class of its messages."""

    number: int
    form: Kind | type[Any]


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    name: str
    kind: Kind | None
    message: type[Any]
    is_many: bool
    is_present: bool
    """Whether a zero is written."""


_LAYOUTS: dict[type[Any], dict[int, _Field]] = {}


def _layout(cls: type[Any]) -> dict[int, _Field]:
    if cls not in _LAYOUTS:
        hints = get_type_hints(cls, include_extras=True)
        found = [_field(each, hints[each.name].__metadata__[0]) for each in fields(cls)]
        _LAYOUTS[cls] = {each.number: each for each in sorted(found, key=lambda each: each.number)}
    return _LAYOUTS[cls]


def _field(declared: Field[Any], on: On) -> _Field:
    kind = on.form if isinstance(on.form, Kind) else None
    message = object if isinstance(on.form, Kind) else on.form
    return _Field(on.number, declared.name, kind, message, declared.default == (), declared.default is None)


# Writing


def encode(message: Any) -> bytes:
    return b"".join(_pieces(message))


def _pieces(message: Any) -> Iterator[bytes]:
    for number, each in _layout(type(message)).items():
        value = getattr(message, each.name)
        if each.is_many:
            yield from _repeated(number, each, value)
        elif value is not None and (each.is_present or each.kind is None or value != _ZERO[each.kind]):
            yield from _single(number, each, value)


def _repeated(number: int, each: _Field, values: Any) -> Iterator[bytes]:
    kind = each.kind
    if kind is None or _WIRE[kind] == _LENGTH:
        for value in values:
            yield from _single(number, each, value)
    elif values:
        packed = b"".join(_scalar(kind, value) for value in values)
        yield _tag(number, _LENGTH) + _varint(len(packed))
        yield packed


def _single(number: int, each: _Field, value: Any) -> Iterator[bytes]:
    kind = each.kind
    if kind is None:
        body = encode(value)
    elif _WIRE[kind] == _LENGTH:
        body = value.encode() if kind is Kind.TEXT else value
    else:
        yield _tag(number, _WIRE[kind]) + _scalar(kind, value)
        return
    yield _tag(number, _LENGTH) + _varint(len(body))
    yield body


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    assert 0 <= value < _WORD
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _scalar(kind: Kind, value: Any) -> bytes:
    if kind is Kind.DOUBLE:
        return struct.pack("<d", value)
    if kind is Kind.SINT:
        return _varint((value << 1) ^ (value >> 63))
    return _varint(int(value))


# Reading


def decode(cls: type[T], data: bytes | memoryview) -> T:
    return _Reading().message(cls, memoryview(data), 0)


class _Reading:
    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def message(self, cls: type[T], data: memoryview, depth: int) -> T:
        if depth > MOST_DEPTH:
            raise Malformed(f"messages in messages, more than {MOST_DEPTH} deep")
        layout, values = _layout(cls), dict[str, Any]()
        at, end = 0, len(data)
        while at < end:
            self._count()
            tag, at = _read_varint(data, at)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number <= _MOST_NUMBER:
                raise Malformed(f"the field number {number}")
            known = layout.get(number)
            if known is None:
                at = _skip(data, at, wire)
            elif wire == _LENGTH:
                piece, at = _read_piece(data, at)
                self._take_piece(known, piece, values, depth)
            else:
                if known.kind is None or _WIRE[known.kind] != wire:
                    raise Malformed(f"the field {known.name} has the wire type {wire}")
                value, at = _read_scalar(known.kind, data, at)
                _put(known, value, values)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def _take_piece(self, known: _Field, piece: memoryview, values: dict[str, Any], depth: int) -> None:
        kind = known.kind
        if kind is None:
            _put(known, self.message(known.message, piece, depth + 1), values)
        elif kind is Kind.TEXT:
            _put(known, _text(piece), values)
        elif kind is Kind.BYTES:
            _put(known, bytes(piece), values)
        elif known.is_many:
            at = 0
            while at < len(piece):
                self._count()
                value, at = _read_scalar(kind, piece, at)
                _put(known, value, values)
        else:
            raise Malformed(f"the field {known.name} has the wire type {_LENGTH}")

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"more than {MOST_FIELDS} fields")


def _put(known: _Field, value: Any, values: dict[str, Any]) -> None:
    if known.is_many:
        values.setdefault(known.name, []).append(value)
    else:
        values[known.name] = value


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while shift < 70:
        if at >= len(data):
            raise Malformed("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= _WORD:
                break
            return value, at
        shift += 7
    raise Malformed("a number of more than 64 bits")


def _read_scalar(kind: Kind, data: memoryview, at: int) -> tuple[Any, int]:
    if kind is Kind.DOUBLE:
        end = at + 8
        if end > len(data):
            raise Malformed("it ends within a number")
        return struct.unpack("<d", data[at:end])[0], end
    value, at = _read_varint(data, at)
    if kind is Kind.BOOL:
        return value != 0, at
    if kind is Kind.SINT:
        return (value >> 1) ^ -(value & 1), at
    return value, at


def _read_piece(data: memoryview, at: int) -> tuple[memoryview, int]:
    length, at = _read_varint(data, at)
    if length > len(data) - at:
        raise Malformed("a length beyond the end")
    return data[at : at + length], at + length


def _skip(data: memoryview, at: int, wire: int) -> int:
    if wire == _VARINT:
        return _read_varint(data, at)[1]
    if wire == _LENGTH:
        return _read_piece(data, at)[1]
    if wire not in (_FIXED64, _FIXED32):
        raise Malformed(f"the wire type {wire}")
    end = at + (8 if wire == _FIXED64 else 4)
    if end > len(data):
        raise Malformed("it ends within a number")
    return end


def _text(piece: memoryview) -> str:
    try:
        return str(piece, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("text that is no UTF-8") from None
