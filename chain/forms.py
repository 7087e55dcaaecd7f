"""The forms that msgpack gives its values, and the bounds that annotations set.

Each reader here takes the bytes and a place in them, and returns a value or a length and where the next byte lies. It
refuses every form but the shortest, and what lies outside the bounds, before it takes anything. A byte beyond the end
raises IndexError or struct.error, which `chain.codec` turns into CodecError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from struct import Struct
from typing import Any, Never

import msgpack


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


Numbers = Callable[[bytes, int], tuple[Any, ...]]

_U8: Numbers = Struct(">B").unpack_from
_U16: Numbers = Struct(">H").unpack_from
_U32: Numbers = Struct(">I").unpack_from
long_number: Numbers = Struct(">Q").unpack_from

_INTEGERS: dict[int, tuple[Numbers, int, int, int]] = {
    0xCC: (_U8, 1, 2**7, 2**8 - 1),
    0xCD: (_U16, 2, 2**8, 2**16 - 1),
    0xCE: (_U32, 4, 2**16, 2**32 - 1),
    0xCF: (long_number, 8, 2**32, 2**64 - 1),
    0xD0: (Struct(">b").unpack_from, 1, -(2**7), -(2**5) - 1),
    0xD1: (Struct(">h").unpack_from, 2, -(2**15), -(2**7) - 1),
    0xD2: (Struct(">i").unpack_from, 4, -(2**31), -(2**15) - 1),
    0xD3: (Struct(">q").unpack_from, 8, -(2**63), -(2**31) - 1),
}
"""First byte → what reads the number, its width, and the only values that need this form."""

BYTES = {0xC4: (_U8, 1, 0), 0xC5: (_U16, 2, 2**8), 0xC6: (_U32, 4, 2**16)}
TEXT = {0xD9: (_U8, 1, 2**5), 0xDA: (_U16, 2, 2**8), 0xDB: (_U32, 4, 2**16)}
ARRAY = {0xDC: (_U16, 2, 2**4), 0xDD: (_U32, 4, 2**16)}
"""First byte → what reads the length, its width, and the least length that needs this form."""

NOT_SHORTEST = "an integer is not in its shortest form"

ANY_LENGTH = 2**32 - 1


def integer(data: bytes, at: int, low: int, high: int) -> tuple[int, int]:
    head = data[at]
    form = _INTEGERS.get(head)
    if form is not None:
        number, width, least, most = form
        (value,) = number(data, at + 1)
        if not least <= value <= most:
            raise CodecError(NOT_SHORTEST)
        end = at + 1 + width
    elif head < 0x80:
        value, end = head, at + 1
    elif head >= 0xE0:
        value, end = head - 0x100, at + 1
    else:
        raise CodecError("expected an integer")
    if not low <= value <= high:
        raise CodecError(f"{value} is outside {low} to {high}")
    return value, end


def _length(data: bytes, at: int, forms: dict[int, tuple[Numbers, int, int]], what: str) -> tuple[int, int]:
    form = forms.get(data[at])
    if form is None:
        raise CodecError(f"expected {what}")
    number, width, least = form
    (length,) = number(data, at + 1)
    if length < least:
        raise CodecError("a length is not in its shortest form")
    return length, at + 1 + width


def byte_string(data: bytes, at: int, low: int, high: int) -> tuple[bytes, int]:
    length, at = _length(data, at, BYTES, "bytes")
    return _taken(data, at, length, low, high)


def _taken(data: bytes, at: int, length: int, low: int, high: int) -> tuple[bytes, int]:
    if not low <= length <= high:
        raise CodecError(f"{length} bytes where {low} to {high} are allowed")
    end = at + length
    taken = data[at:end]
    if len(taken) != length:
        raise CodecError("cut short")
    return taken, end


def text(data: bytes, at: int, low: int, high: int) -> tuple[str, int]:
    head = data[at]
    if 0xA0 <= head < 0xC0:
        length, start = head - 0xA0, at + 1
    else:
        length, start = _length(data, at, TEXT, "text")
    raw, end = _taken(data, start, length, low, high)
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        raise CodecError("text is not UTF-8") from None


def array(data: bytes, at: int, low: int, high: int) -> tuple[int, int]:
    head = data[at]
    if 0x90 <= head < 0xA0:
        count, at = head - 0x90, at + 1
    else:
        count, at = _length(data, at, ARRAY, "an array")
    if not low <= count <= high:
        raise CodecError(f"{count} elements where {low} to {high} are allowed")
    return count, at


_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}
"""By width, as `struct` names signed numbers; unsigned ones in capitals."""


def form_of_integer(value: int) -> tuple[bytes, str, int, int]:
    """What stands before the number, its place as `struct` says it, and between what numbers have this form."""
    if 0 <= value < 0x80:
        return b"", "B", 0, 0x7F
    if -0x20 <= value < 0:
        return b"", "b", -0x20, -1
    forms = _INTEGERS.items()
    head, width, least, most = next((head, *form[1:]) for head, form in forms if form[2] <= value <= form[3])
    return bytes((head,)), _CODES[width].upper() if value >= 0 else _CODES[width], least, most


def bytes_head(length: int) -> bytes:
    head, (_, width, _) = next(each for each in reversed(BYTES.items()) if length >= each[1][2])
    return bytes((head,)) + length.to_bytes(width, "big")


def array_head(count: int) -> bytes:
    packed: bytes = msgpack.packb((None,) * count)
    return packed[: len(packed) - count]


# Writing. What a value is that is not plain at once, or why it is none.


def written_integer(value: Any, low: int, high: int) -> int:
    if type(value) is not int:
        if not isinstance(value, IntEnum):
            raise CodecError(f"expected an integer, not {type(value).__name__}")
        value = value.value
    if not low <= value <= high:
        raise CodecError(f"{value} is outside {low} to {high}")
    return int(value)


def written_text(value: Any, low: int, high: int) -> str:
    if type(value) is not str:
        if not isinstance(value, StrEnum):
            raise CodecError(f"expected text, not {type(value).__name__}")
        value = value.value
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise CodecError("text is not UTF-8") from None
    if not low <= length <= high:
        raise CodecError(f"{length} bytes of text where {low} to {high} are allowed")
    return str(value)


def refuse_type(value: Any, wanted: str) -> Never:
    raise CodecError(f"expected {wanted}, not {type(value).__name__}")


def refuse_bytes(value: Any, low: int, high: int) -> Never:
    if type(value) is not bytes:
        refuse_type(value, "bytes")
    raise CodecError(f"{len(value)} bytes where {low} to {high} are allowed")


def refuse_tuple(value: Any, low: int, high: int) -> Never:
    if type(value) is not tuple:
        refuse_type(value, "a tuple")
    raise CodecError(f"{len(value)} elements where {low} to {high} are allowed")
