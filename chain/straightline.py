"""Readers and writers of records, written out field by field as Python source.

`compiled` turns a record's annotations into one function that reads it and one that writes it, in the way in which
`dataclasses` makes an `__init__`: nothing is looked up, called or decided for a record that could be for its class. A
fault raises CodecError with the fields that lead to it. What the functions rarely need is in `chain.forms`. The source
is made of names and bounds in this program's own annotations, and of nothing that comes from outside.

A reader takes bytes and a place in them and returns the record and where the next byte lies. A writer returns the
record as nested tuples of plain values, each checked against its annotation.
"""

from __future__ import annotations

import linecache
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import groupby
from struct import Struct
from struct import error as StructError
from types import MemberDescriptorType, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from chain import forms
from chain.forms import CodecError, Count, Length, Range
from chain.frozen import unfrozen


@dataclass(frozen=True, slots=True)
class RecordCodec:
    read: Callable[[bytes, int], tuple[Any, int]]
    write: Callable[[Any], tuple[Any, ...]]


Names = dict[str, Any]
"""What the source refers to."""

Lines = list[str]


def _named(hint: str, value: object, names: Names) -> str:
    name = f"{hint}_{len(names)}"
    names[name] = value
    return name


def _indented(lines: Iterable[str]) -> Lines:
    return [f"    {line}" for line in lines]


@dataclass(frozen=True, slots=True)
class Piece:
    """Of an encoded record: what stands before a value, and the value's place as `struct` says it."""

    head: bytes
    code: str
    bounds: tuple[int, ...] = ()
    """The two between which a number there is of this form, and as annotated."""


class Shape(ABC):
    """What an annotation allows, as source that reads it and source that writes it."""

    @abstractmethod
    def reading(self, target: str, names: Names) -> Lines:
        """Statements that set `target` from `data` at `at`, and move `at` behind it."""

    @abstractmethod
    def writing(self, value: str, names: Names) -> Lines:
        """Statements after which the variable `value` holds something plain."""

    keeps = False
    """Whether what is plain is the value itself, whatever the value is."""

    def piece(self, value: Any) -> Piece | None:
        """How such a value is encoded, for a shape whose values are taken from their places as they are."""
        return None


@dataclass(frozen=True, slots=True)
class Integer(Shape):
    low: int
    high: int

    def reading(self, target: str, names: Names) -> Lines:
        general = f"{target}, at = integer(data, at, {self.low}, {self.high})"
        if self.low > 0 or self.high < 0x7F:
            return [general]
        wide = []
        if self.high >= 2**16 - 1:
            wide = [
                f"elif {target} == 0xCD:",
                f"    {target} = data[at + 1] << 8 | data[at + 2]",
                f"    if {target} < 0x100:",
                "        raise CodecError(NOT_SHORTEST)",
                "    at += 3",
            ]
        if self.high == 2**64 - 1:
            wide += [
                f"elif {target} == 0xCF:",
                f"    ({target},) = long_number(data, at + 1)",
                f"    if {target} < {2**32}:",
                "        raise CodecError(NOT_SHORTEST)",
                "    at += 9",
            ]
        return [f"{target} = data[at]", f"if {target} < 0x80:", "    at += 1", *wide, "else:", f"    {general}"]

    def piece(self, value: Any) -> Piece:
        head, code, least, most = forms.form_of_integer(value)
        return Piece(head, code, (max(self.low, least), min(self.high, most)))

    def writing(self, value: str, names: Names) -> Lines:
        return [
            f"if type({value}) is not int or not {self.low} <= {value} <= {self.high}:",
            f"    {value} = written_integer({value}, {self.low}, {self.high})",
        ]


@dataclass(frozen=True, slots=True)
class FixedBytes(Shape):
    """Read together with others of the kind that stand beside it: `_run`."""

    size: int
    keeps = True

    @property
    def head(self) -> bytes:
        return bytes((0xC4, self.size))

    def reading(self, target: str, names: Names) -> Lines:
        return _run([target], [self], names, _refusing([self]), b"")

    def piece(self, value: Any) -> Piece:
        return Piece(self.head, f"{self.size}s")

    def writing(self, value: str, names: Names) -> Lines:
        return [
            f"if type({value}) is not bytes or len({value}) != {self.size}:",
            f"    refuse_bytes({value}, {self.size}, {self.size})",
        ]


@dataclass(frozen=True, slots=True)
class Bytes(Shape):
    low: int
    high: int
    keeps = True

    def reading(self, target: str, names: Names) -> Lines:
        # In the form that is to be expected; any other, and whatever is wrong, is left to the general reader.
        head, width, length = 0xC5, 2, "data[at + 1] << 8 | data[at + 2]"
        if self.high < 2**8:
            head, width, length = 0xC4, 1, "data[at + 1]"
        low = max(self.low, forms.BYTES[head][2])
        return [
            f"{target}_size = {length} if data[at] == {head} else -1",
            f"{target} = data[at + {1 + width} : at + {1 + width} + {target}_size]",
            f"if {low} <= len({target}) == {target}_size <= {self.high}:",
            f"    at += {1 + width} + {target}_size",
            "else:",
            f"    {target}, at = byte_string(data, at, {self.low}, {self.high})",
        ]

    def piece(self, value: Any) -> Piece:
        return Piece(forms.bytes_head(len(value)), f"{len(value)}s")

    def writing(self, value: str, names: Names) -> Lines:
        return [
            f"if type({value}) is not bytes or not {self.low} <= len({value}) <= {self.high}:",
            f"    refuse_bytes({value}, {self.low}, {self.high})",
        ]


@dataclass(frozen=True, slots=True)
class Text(Shape):
    low: int
    high: int

    def reading(self, target: str, names: Names) -> Lines:
        return [f"{target}, at = text(data, at, {self.low}, {self.high})"]

    def writing(self, value: str, names: Names) -> Lines:
        return [
            f"if type({value}) is not str or not {value}.isascii() or not {self.low} <= len({value}) <= {self.high}:",
            f"    {value} = written_text({value}, {self.low}, {self.high})",
        ]


class Boolean(Shape):
    keeps = True

    def reading(self, target: str, names: Names) -> Lines:
        return [
            f"{target} = data[at] == 0xC3",
            f"if not {target} and data[at] != 0xC2:",
            "    raise CodecError('expected a boolean')",
            "at += 1",
        ]

    def writing(self, value: str, names: Names) -> Lines:
        return [f"if type({value}) is not bool:", f"    refuse_type({value}, 'a boolean')"]


@dataclass(frozen=True, slots=True)
class Optional(Shape):
    inner: Shape

    @property
    def keeps(self) -> bool:  # type: ignore[override]
        return self.inner.keeps

    def reading(self, target: str, names: Names) -> Lines:
        inner = _indented(self.inner.reading(target, names))
        return ["if data[at] == 0xC0:", f"    {target} = None", "    at += 1", "else:", *inner]

    def writing(self, value: str, names: Names) -> Lines:
        return [f"if {value} is not None:", *_indented(self.inner.writing(value, names))]


@dataclass(frozen=True, slots=True)
class Tuple(Shape):
    inner: Shape
    low: int
    high: int

    def reading(self, target: str, names: Names) -> Lines:
        each, count = f"{target}_each", f"{target}_count"
        return [
            f"{count}, at = array(data, at, {self.low}, {self.high})",
            f"{target} = []",
            f"for _ in range({count}):",
            *_indented(self.inner.reading(each, names)),
            f"    {target}.append({each})",
            f"{target} = tuple({target})",
        ]

    def writing(self, value: str, names: Names) -> Lines:
        each, plain = f"{value}_each", f"{value}_plain"
        check = [
            f"if type({value}) is not tuple or not {self.low} <= len({value}) <= {self.high}:",
            f"    refuse_tuple({value}, {self.low}, {self.high})",
        ]
        inner = _indented(self.inner.writing(each, names))
        if self.inner.keeps:
            return [*check, f"for {each} in {value}:", *inner]
        collected = [f"{plain} = []", f"for {each} in {value}:", *inner, f"    {plain}.append({each})"]
        return [*check, *collected, f"{value} = tuple({plain})"]


@dataclass(frozen=True, slots=True)
class Record(Shape):
    codec: RecordCodec

    def reading(self, target: str, names: Names) -> Lines:
        return [f"{target}, at = {_named('read', self.codec.read, names)}(data, at)"]

    def writing(self, value: str, names: Names) -> Lines:
        return [f"{value} = {_named('write', self.codec.write, names)}({value})"]


def _run(
    targets: Sequence[str],
    shapes: Sequence[FixedBytes],
    names: Names,
    refuse: Callable[[bytes, int], None],
    head: bytes,
) -> Lines:
    """Byte strings of fixed sizes that follow each other, and `head` before them, taken at once."""
    heads = [shape.head for shape in shapes]
    heads[0] = head + heads[0]
    layout = Struct("".join(f"{len(before)}s{shape.size}s" for before, shape in zip(heads, shapes, strict=True)))
    take, refuse_these = _named("take", layout.unpack_from, names), _named("refuse", refuse, names)
    taken = ", ".join(f"head_{place}, {target}" for place, target in enumerate(targets))
    return [
        "try:",
        f"    {taken} = {take}(data, at)",
        "except StructError:",
        f"    {refuse_these}(data, at)",
        f"if {' or '.join(f'head_{place} != {before!r}' for place, before in enumerate(heads))}:",
        f"    {refuse_these}(data, at)",
        f"at += {layout.size}",
    ]


def _refusing(
    shapes: Sequence[FixedBytes], places: Sequence[str] = ("",), head: bytes = b"", wanted: str = ""
) -> Callable[[bytes, int], None]:
    """What says why such a run is not there."""

    def refuse(data: bytes, at: int) -> None:
        if not data.startswith(head, at):
            raise CodecError(f"expected {wanted}")
        at += len(head)
        for place, shape in zip(places, shapes, strict=True):
            if data[at] != shape.head[0] or data[at + 1] != shape.head[1]:
                raise CodecError(f"{place}expected {shape.size} bytes")
            at += len(shape.head) + shape.size
            if at > len(data):
                raise CodecError(f"{place}cut short")

    return refuse


CODECS: dict[type, RecordCodec] = {}
"""Those that `compiled` has made."""


def compiled(cls: type) -> RecordCodec:
    if cls not in CODECS:
        CODECS[cls] = _compiled(cls)
    return CODECS[cls]


def _compiled(cls: type) -> RecordCodec:
    if not is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a record")
    shapes, names = shapes_of(cls), vars(forms) | {"StructError": StructError, "cls": cls}
    return RecordCodec(
        _made("read", _reader(cls, shapes, names), cls, names), _made("write", _writer(cls, shapes, names), cls, names)
    )


@cache
def shapes_of(cls: type) -> dict[str, Shape]:
    """By field."""
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: _shape(hints[each.name], f"{cls.__name__}.{each.name}") for each in fields(cls)}


Filler = Callable[[list[Any], Iterable[int], Iterable[tuple[Any, ...]], tuple[int, ...]], None]


@cache
def filler(cls: type) -> Filler:
    """What makes records of rows of values, and puts each in its place of a list. `bounds` are those of the numbers,
    in turn. Of a row that is no record it leaves the place as it is."""
    shapes, names = shapes_of(cls), vars(forms) | {"StructError": StructError, "cls": cls}
    numbers = [_local(name) for name, shape in shapes.items() if isinstance(shape, Integer)]
    within = " and ".join(f"{each}low <= {each} <= {each}high" for each in numbers) or "True"
    read: Lines = []
    for name, shape in shapes.items():
        if not isinstance(shape, Integer | FixedBytes | Bytes):
            read += [
                f"data, at = {_local(name)}, 0",
                *shape.reading(_local(name), names),
                "if at != len(data):",
                "    continue",
            ]
    body = [f"if not ({within}):", "    continue", *read]
    if read:
        body = ["try:", *_indented(body), "except (CodecError, IndexError, StructError):", "    continue"]
    body += [*_making(cls, list(shapes), names), "found[place] = record"]
    source = [
        "def fill(found, places, rows, bounds):",
        *_indented([f"{each}low, {each}high, *bounds = bounds" for each in numbers]),
        f"    for place, ({''.join(f'{_local(name)}, ' for name in shapes)}) in zip(places, rows):",
        *_indented(_indented(body)),
    ]
    fill: Filler = _made("fill", source, cls, names)
    return fill


def _made(name: str, source: Lines, cls: type, names: Names) -> Any:
    file = f"<chain/straightline.py {cls.__qualname__} {name}>"
    exec(compile("\n".join(source), file, "exec"), names)
    # For whoever reads a traceback or a profile.
    linecache.cache[file] = (0, None, [f"{line}\n" for line in source], file)
    return names[name]


def _shape(annotation: Any, where: str) -> Shape:
    if annotation is bool:
        return Boolean()
    if isinstance(annotation, type) and is_dataclass(annotation):
        return Record(compiled(annotation))
    if get_origin(annotation) in (Union, UnionType):
        inner = [each for each in get_args(annotation) if each is not NoneType]
        if len(inner) == 1:
            return Optional(_shape(inner[0], where))
    if get_origin(annotation) is Annotated:
        base, bounds = get_args(annotation)[:2]
        if base is int and isinstance(bounds, Range):
            return Integer(bounds.low, bounds.high)
        if base is bytes and isinstance(bounds, Length):
            fixed = bounds.low == bounds.high < 2**8
            return FixedBytes(bounds.low) if fixed else Bytes(bounds.low, bounds.high)
        if base is str and isinstance(bounds, Length):
            return Text(bounds.low, bounds.high)
        if get_origin(base) is tuple and isinstance(bounds, Count):
            element, *rest = get_args(base)
            if rest == [Ellipsis]:
                return Tuple(_shape(element, where), bounds.low, bounds.high)
    raise TypeError(f"{where}: {annotation!r} has no canonical encoding")


def _reader(cls: type, shapes: dict[str, Shape], names: Names) -> Lines:
    head, wanted = forms.array_head(len(shapes)), f"the {len(shapes)} fields of {cls.__name__}"
    body: Lines = []
    for fixed, group in groupby(shapes.items(), lambda field: isinstance(field[1], FixedBytes)):
        if fixed:
            run = {name: shape for name, shape in group if isinstance(shape, FixedBytes)}
            alike, places = list(run.values()), [f"{cls.__name__}.{name}: " for name in run]
            body += _run([_local(name) for name in run], alike, names, _refusing(alike, places, head, wanted), head)
        else:
            body += _head(head, wanted)
            for name, shape in group:
                body += _naming(cls, name, shape.reading(_local(name), names))
        head = b""
    return ["def read(data, at):", *_indented([*body, *_making(cls, list(shapes), names), "return record, at"])]


def _writer(cls: type, shapes: dict[str, Shape], names: Names) -> Lines:
    body = ["if type(record) is not cls:", f"    refuse_type(record, {cls.__name__!r})"]
    for name, shape in shapes.items():
        body += [f"{_local(name)} = record.{name}", *_naming(cls, name, shape.writing(_local(name), names))]
    return ["def write(record):", *_indented([*body, f"return ({''.join(f'{_local(name)}, ' for name in shapes)})"])]


def _local(field: str) -> str:
    """The variable for a field: no other name ends so."""
    return f"{field}_"


def _head(head: bytes, wanted: str) -> Lines:
    if not head:
        return []
    differs = f"data[at] != {head[0]}" if len(head) == 1 else f"not data.startswith({head!r}, at)"
    return [f"if {differs}:", f"    raise CodecError('expected {wanted}')", f"at += {len(head)}"]


def _naming(cls: type, field: str, statements: Lines) -> Lines:
    """A fault in these names the field."""
    return [
        "try:",
        *_indented(statements),
        "except CodecError as error:",
        f"    raise CodecError(f'{cls.__name__}.{field}: {{error}}') from None",
    ]


def _making(cls: type, fields: Sequence[str], names: Names) -> Lines:
    """The record itself, as `chain.frozen` makes them."""
    slotted = all(isinstance(vars(cls).get(name), MemberDescriptorType) for name in fields)
    if not slotted or hasattr(cls, "__post_init__"):
        return [f"record = cls({', '.join(map(_local, fields))})"]
    names["unfrozen"] = unfrozen(cls)
    fill = [f"record.{name} = {_local(name)}" for name in fields]
    return ["record = unfrozen()", *fill, "record.__class__ = cls"]
