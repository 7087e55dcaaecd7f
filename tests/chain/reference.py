"""A reader of records that follows the annotations step by step, by which the generated ones are judged; and records
drawn from what annotations allow, with the edges of every form among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as fields_of
from functools import cache
from random import Random
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgpack

from chain.codec import Count, Length, Range

CUT = "cut short"
SHORTEST = "shortest form"
EXPECTED = "expected"
BOUNDS = ("allowed", "outside")
NOT_TEXT = "not UTF-8"
MORE = "bytes follow"

INTEGERS = {
    0xCC: (1, False), 0xCD: (2, False), 0xCE: (4, False), 0xCF: (8, False),
    0xD0: (1, True), 0xD1: (2, True), 0xD2: (4, True), 0xD3: (8, True),
}  # fmt: skip
BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
ARRAY = {0xDC: 2, 0xDD: 4}


@cache
def fields(cls: Any) -> dict[str, Any]:
    """Annotations by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: hints[each.name] for each in fields_of(cls)}


class Fault(Exception):
    """The reason, as words that an error's sentence must hold one of."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons


@dataclass
class Cursor:
    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise Fault(CUT)
        self.at += count
        return taken

    def peek(self) -> int:
        if self.at == len(self.data):
            raise Fault(CUT)
        return self.data[self.at]


def read(cls: type, data: bytes) -> Any:
    """Raises Fault."""
    cursor = Cursor(data)
    record = _value(cls, cursor)
    if cursor.at != len(data):
        raise Fault(MORE)
    return record


def plain(annotation: Any, value: Any) -> Any:
    """The value as msgpack is to write it; the record is taken to be one that a reader accepts."""
    if isinstance(value, tuple):
        element = get_args(get_args(annotation)[0])[0]
        return tuple(plain(element, each) for each in value)
    if is_dataclass(value):
        return tuple(plain(inner, getattr(value, name)) for name, inner in fields(type(value)).items())
    return value


def _value(annotation: Any, cursor: Cursor) -> Any:
    if annotation is bool:
        head = cursor.peek()
        if head not in (0xC2, 0xC3):
            raise Fault(EXPECTED)
        cursor.at += 1
        return head == 0xC3
    if is_dataclass(annotation):
        return _record(annotation, cursor)  # type: ignore[arg-type]
    if get_origin(annotation) is not Annotated:
        if cursor.peek() == 0xC0:
            cursor.at += 1
            return None
        (inner,) = (each for each in get_args(annotation) if each is not NoneType)
        return _value(inner, cursor)
    base, bounds = get_args(annotation)
    if isinstance(bounds, Range):
        return _within(_integer(cursor), bounds)
    if isinstance(bounds, Count):
        count = _within(_length(cursor, ARRAY, 0x90, 16), bounds)
        return tuple([_value(get_args(base)[0], cursor) for _ in range(count)])
    assert isinstance(bounds, Length)
    if base is bytes:
        if bounds.low == bounds.high < 256:
            # Nothing but this one head can stand here.
            head = cursor.peek()
            if head != 0xC4:
                raise Fault(EXPECTED)
            cursor.at += 1
            if cursor.peek() != bounds.low:
                raise Fault(EXPECTED)
            cursor.at += 1
            return cursor.take(bounds.low)
        return cursor.take(_within(_length(cursor, BYTES, 0, 0), bounds))
    raw = cursor.take(_within(_length(cursor, TEXT, 0xA0, 32), bounds))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Fault(NOT_TEXT) from None


def _record(cls: type, cursor: Cursor) -> Any:
    annotations = fields(cls).values()
    head = msgpack.packb((None,) * len(annotations))[: -len(annotations)]
    if not cursor.data.startswith(head, cursor.at):
        raise Fault(EXPECTED, CUT)
    cursor.at += len(head)
    return cls(*[_value(annotation, cursor) for annotation in annotations])


def _integer(cursor: Cursor) -> int:
    head = cursor.peek()
    if head not in INTEGERS:
        if 0x80 <= head < 0xE0:
            raise Fault(EXPECTED)
        cursor.at += 1
        return head if head < 0x80 else head - 0x100
    cursor.at += 1
    width, signed = INTEGERS[head]
    value = int.from_bytes(cursor.take(width), "big", signed=signed)
    if len(msgpack.packb(value)) != 1 + width or msgpack.packb(value)[0] != head:
        raise Fault(SHORTEST)
    return value


def _length(cursor: Cursor, forms: dict[int, int], short: int, shorts: int) -> int:
    head = cursor.peek()
    if short <= head < short + shorts:
        cursor.at += 1
        return head - short
    if head not in forms:
        raise Fault(EXPECTED)
    cursor.at += 1
    width = forms[head]
    length = int.from_bytes(cursor.take(width), "big")
    # Of bytes there is no short form: one byte says how many at the least.
    least = {1: shorts, 2: 256 if 1 in forms.values() else shorts, 4: 65_536}[width]
    if length < least:
        raise Fault(SHORTEST)
    return length


def _within(value: int, bounds: Range | Length | Count) -> int:
    if not bounds.low <= value <= bounds.high:
        raise Fault(*BOUNDS)
    return value


# Drawing

_EDGES = sorted({sign * 2**power + step for power in (0, 5, 7, 8, 15, 16, 31, 32, 63, 64) for sign in (1, -1)
                 for step in (-1, 0, 1)})  # fmt: skip
_LONGEST = 300
"""Beyond 255, where the form of a length changes; the most of an array's elements is less."""
_MOST = 18


def drawn(annotation: Any, random: Random) -> Any:
    """A value that the annotation allows."""
    if annotation is bool:
        return random.random() < 0.5
    if is_dataclass(annotation):
        return annotation(*[drawn(inner, random) for inner in fields(annotation).values()])  # type: ignore[operator]
    if get_origin(annotation) is not Annotated:
        (inner,) = (each for each in get_args(annotation) if each is not NoneType)
        return None if random.random() < 0.5 else drawn(inner, random)
    base, bounds = get_args(annotation)
    low, high = bounds.low, bounds.high
    if isinstance(bounds, Range):
        edges = [edge for edge in _EDGES if low <= edge <= high]
        return random.choice((random.choice(edges), random.randint(low, high), random.randint(low, min(high, 200))))
    if isinstance(bounds, Count):
        count = random.randint(low, max(low, min(high, random.choice((1, 2, 3, _MOST)))))
        return tuple(drawn(get_args(base)[0], random) for _ in range(count))
    size = random.choice((low, min(high, _LONGEST), random.randint(low, min(high, _LONGEST))))
    if base is bytes:
        return random.randbytes(size)
    letters = random.choice(("abcxyz", "aé€𝄞"))
    text = "".join(random.choice(letters) for _ in range(size))
    while len(text.encode()) > size:
        text = text[:-1]
    return text + "a" * (size - len(text.encode()))


def damaged(data: bytes, other: bytes, random: Random) -> Iterator[bytes]:
    """Bytes near to `data`: changed, cut, longer forms of the same, and pieces of another encoding."""
    at = random.randrange(len(data))
    before, byte, after = data[:at], data[at], data[at + 1 :]
    yield before + bytes((random.randrange(256),)) + after
    yield before + bytes((random.choice((0x80, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xFF)),)) + after
    yield before
    yield before + after
    yield data + bytes((byte,))
    yield before + bytes((0xCC, byte)) + after
    yield before + bytes((0xCD, 0, byte)) + after
    yield before + bytes((0xCF, 0, 0, 0, 0)) + data[at : at + 4] + data[at + 5 :]
    yield before + bytes((byte + 1 & 0xFF, 0)) + after
    yield before + other[random.randrange(len(other)) :]
    for short, longer in ((0xC4, 0xC5), (0xC5, 0xC6), (0xD9, 0xDA), (0xDC, 0xDD)):
        found = data.find(bytes((short,)), at)
        if found >= 0:
            yield data[:found] + bytes((longer, 0)) + data[found + 1 :]
            yield data[: found + 1] + bytes((random.randrange(256),)) + data[found + 2 :]
