"""Records of one kind, read many at once.

Of encodings that are equally long, most differ only in the values: what stands between these, heads and lengths, is the
same, and each value has its place. Where that is so, all values of a place are taken in one go. Which encodings are so
is looked up, not assumed: whatever differs in another byte, or in a number of another form, is read for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, calcsize
from typing import Any, TypeVar

from chain import forms
from chain.codec import CodecError, decode, pack, to_plain
from chain.straightline import Piece, filler, shapes_of

T = TypeVar("T")

FEW = 8
"""Fewer are read one by one."""
TOGETHER = 64
"""At most, so that their bytes stay in a core's cache."""
FORMS_KEPT = 256


@dataclass(frozen=True, slots=True)
class _Form:
    fixed: tuple[tuple[int, int], ...]
    """Places, and the byte that stands there."""
    values: Struct
    bounds: tuple[int, ...]

    def others(self, encoded: bytes, count: int) -> set[int]:
        """Which of so many encodings, one behind the other, are not of this form in a byte between the values."""
        found: set[int] = set()
        size = self.values.size
        for place, expected in self.fixed:
            column = encoded[place::size]
            if column.count(expected) != count:
                found.update(index for index, byte in enumerate(column) if byte != expected)
        return found


_FORMS: dict[tuple[type, int], _Form] = {}
"""The newest of each kind and size."""


def decode_alike(cls: type[T], encoded: Sequence[bytes], limit: int) -> list[T | None]:
    """The records of those that are encoded alike. None for the others, of which `decode` has to be asked."""
    found: list[T | None] = [None] * len(encoded)
    if len(encoded) < FEW or {*map(type, encoded)} != {bytes}:
        return found
    sizes: dict[int, list[int]] = {}
    for place, data in enumerate(encoded):
        sizes.setdefault(len(data), []).append(place)
    for size, places in sizes.items():
        for start in range(0, len(places) if size <= limit else 0, TOGETHER):
            some = places[start : start + TOGETHER]
            if len(some) >= FEW:
                _fill(cls, encoded, some, found)
    return found


def _fill(cls: Any, encoded: Sequence[bytes], places: Sequence[int], found: list[Any]) -> None:
    """Puts the records of these equally long encodings in their places, as far as they are of one form: the newest of
    this size, or that of the first of them."""
    together = b"".join([encoded[place] for place in places])
    key = cls, len(encoded[places[0]])
    form = _FORMS.get(key)
    if form is not None:
        _take(cls, form, together, places, found)
    if found[places[0]] is None:
        try:
            form = _form_of(decode(cls, encoded[places[0]], key[1]))
        except CodecError:
            return
        if len(_FORMS) >= FORMS_KEPT:
            _FORMS.clear()
        _FORMS[key] = form
        _take(cls, form, together, places, found)


def _take(cls: Any, form: _Form, together: bytes, places: Sequence[int], found: list[Any]) -> None:
    filler(cls)(found, places, form.values.iter_unpack(together), form.bounds)
    for index in form.others(together, len(places)):
        found[places[index]] = None


def _form_of(record: Any) -> _Form:
    """That of a record's encoding."""
    cls: Any = type(record)
    shapes = shapes_of(cls)
    head = forms.array_head(len(shapes))
    fixed, codes, at, bounds = [*enumerate(head)], f">{len(head)}x", len(head), list[int]()
    for (name, shape), plain in zip(shapes.items(), to_plain(record), strict=True):
        piece = shape.piece(getattr(record, name)) or Piece(b"", f"{len(pack(plain))}s")
        fixed += enumerate(piece.head, at)
        codes += f"{len(piece.head)}x{piece.code}"
        at += len(piece.head) + calcsize(f">{piece.code}")
        bounds += piece.bounds
    return _Form(tuple(fixed), Struct(codes), tuple(bounds))
