"""A reply on its way in: what its tree lists and is not here yet, checked object by object, then put together.

Chunks go to files of a directory of their own and are joined to one `.npy` a tensor, which is then mapped: a reply of
any size takes the memory of one chunk. The SuperNode is in the member's own domain and its app is not ours, so nothing
that arrives is believed: not sizes, names, JSON, headers of arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl.client.flowergate.objects import (
    ARRAY,
    ARRAYS,
    CHUNK,
    MESSAGE,
    METRICS,
    MOST_OBJECT_BYTES,
    RECORDS,
    SETTINGS,
    BadObject,
    Opened,
    ids_in,
    is_object_id,
    object_id,
    opened,
)
from fl.client.flowergate.parcels import NUMPY, ArraysRecord, MetricsRecord, Parcel, Record, SettingsRecord, values_of
from fl.client.flowergate.protobuf import Malformed, decode
from fl.client.flowergate.wire import Items, Tree

MOST_OBJECTS = 1 << 16
_MOST_NPY_HEADER = 10_000
_MOST_AXES = 32
_MOST_VALUES = 1 << 48
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|](?:f[248]|[iu][1248]|b1))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,15}(?:, ?\d{1,15})*,?)?)\), \} *\n"
)
_SPARE_BYTES = 64 * 1024 * 1024


def most_bytes(sent: int) -> int:
    """Of the reply to a message of so many: as many values in twice the width, twice, and some records."""
    return 4 * sent + _SPARE_BYTES


class Arrival:
    """Raises BadObject for all that is wrong. `directory` is its own and empty; `parcel` is what was sent, of which
    nothing needs to come back."""

    def __init__(self, tree: Tree, parcel: Parcel, directory: Path) -> None:
        self._root = tree.object_id
        self._parcel = parcel
        self._directory = directory
        self._small: dict[str, bytes] = {}
        self._chunks: dict[str, Path] = {}
        self._left_bytes = self._left_to_join = most_bytes(parcel.size_bytes)
        self.wanted: dict[str, None] = {}
        for number, named in enumerate(ids_in(tree)):
            if number >= MOST_OBJECTS:
                raise BadObject(f"a message of more than {MOST_OBJECTS} objects")
            if named not in parcel:
                self.wanted[named] = None

    @property
    def is_whole(self) -> bool:
        return not self.wanted

    def take(self, named: str, content: bytes) -> None:
        """An object that is wanted; one that is here already is taken for the same."""
        if named in self._small or named in self._chunks:
            return
        if named not in self.wanted:
            raise BadObject("an object that is not part of the message")
        if len(content) > MOST_OBJECT_BYTES:
            raise BadObject(f"an object of more than {MOST_OBJECT_BYTES} bytes")
        if len(content) > self._left_bytes:
            raise BadObject("more bytes than the reply to this message may have")
        if object_id(content) != named:
            raise BadObject("an object whose bytes have another id")
        if opened(content).kind == CHUNK:
            path = self._directory / f"{named}.chunk"
            path.write_bytes(content)
            self._chunks[named] = path
        else:
            self._small[named] = content
        self._left_bytes -= len(content)
        del self.wanted[named]

    def records(self) -> dict[str, Record]:
        """All of the reply. Reads and writes files: call it in a thread."""
        message = self._open(self._root, MESSAGE)
        if len(message.children) != 1:
            raise BadObject("a message without one dictionary of records")
        return {name: self._record(named) for name, named in self._names(message.children[0], RECORDS).items()}

    def _record(self, named: str) -> Record:
        found = opened(self._content(named))
        if found.kind == ARRAYS:
            arrays = {name: self._array(each) for name, each in self._names(named, ARRAYS).items()}
            return ArraysRecord(arrays)
        if found.kind not in (METRICS, SETTINGS):
            raise BadObject(f"a record of the class {found.kind}")
        try:
            values = values_of(decode(Items, found.body).items)
        except Malformed as error:
            raise BadObject(f"a record that cannot be read: {error}") from None
        if found.kind == SETTINGS:
            return SettingsRecord(values)
        return MetricsRecord({name: value for name, value in values.items() if isinstance(value, int | float)})

    def _array(self, named: str) -> NDArray[Any]:
        found = self._open(named, ARRAY)
        said = _json(found.body)
        order, written = said.get("arraychunk_ids"), said.get("stype")
        if written != NUMPY:
            raise BadObject(f"an array written as {written!r:.80}")
        if not isinstance(order, list) or not all(
            type(each) is int and 0 <= each < len(found.children) for each in order
        ):
            raise BadObject("an array whose chunks are in no order")
        if len(order) > MOST_OBJECTS:
            raise BadObject(f"an array of more than {MOST_OBJECTS} chunks")
        path = self._directory / f"{named}.npy"
        if not path.exists():
            self._join(path, [found.children[each] for each in order])
        return read_npy(path)

    def _join(self, path: Path, chunks: list[str]) -> None:
        # A chunk may be in any number of arrays.
        with open(path, "xb") as file:
            for each in chunks:
                body = self._open(each, CHUNK).body
                self._left_to_join -= len(body)
                if self._left_to_join < 0:
                    raise BadObject("arrays of more bytes than the reply to this message may have")
                file.write(body)

    def _names(self, named: str, kind: str) -> Mapping[str, str]:
        found = self._open(named, kind)
        names = _json(found.body)
        if not all(isinstance(each, str) and is_object_id(each) for each in names.values()):
            raise BadObject("a dictionary whose values are no ids")
        if set(names.values()) != set(found.children):
            raise BadObject("a dictionary with other children than it names")
        return names

    def _open(self, named: str, kind: str) -> Opened:
        found = opened(self._content(named))
        if found.kind != kind:
            raise BadObject(f"an object of the class {found.kind} where {kind} belongs")
        return found

    def _content(self, named: str) -> bytes:
        small = self._small.get(named)
        if small is not None:
            return small
        path = self._chunks.get(named)
        if path is not None:
            return path.read_bytes()
        sent = self._parcel.content(named)
        if sent is None:
            raise BadObject("an object that its tree does not list")
        return sent


def read_npy(path: Path) -> NDArray[Any]:
    """Mapped. Plain numbers only, exactly as many as the header says, which is written as numpy writes it: its own
    reader evaluates Python."""
    with open(path, "rb") as file:
        start = file.read(_MOST_NPY_HEADER)
    magic, version = start[:6], start[6:8]
    width = {b"\x01\x00": 2, b"\x02\x00": 4}.get(version, 0)
    if magic != b"\x93NUMPY" or not width:
        raise BadObject("an array that is no .npy")
    begin = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    found = _NPY_HEADER.fullmatch(start[8 + width : begin])
    if found is None or begin > len(start):
        raise BadObject("an array whose header is of another form")
    kind, is_fortran, sizes = (each.decode() for each in found.groups())
    dtype, shape = np.dtype(kind), tuple(int(each) for each in sizes.replace(",", " ").split())
    if len(shape) > _MOST_AXES or path.stat().st_size - begin != math.prod(shape) * dtype.itemsize:
        raise BadObject("an array whose header says another size")
    if math.prod(size or 1 for size in shape) > _MOST_VALUES:
        raise BadObject("an array of a shape that cannot be")
    order: Literal["F", "C"] = "F" if is_fortran == "True" else "C"
    if 0 in shape:
        return np.empty(shape, dtype, order=order)
    return np.memmap(path, dtype, mode="r", offset=begin, shape=shape, order=order)


def _json(body: memoryview) -> dict[str, Any]:
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise BadObject("an object whose body is no JSON") from None
    if not isinstance(found, dict):
        raise BadObject("an object whose body is no JSON table")
    return found
