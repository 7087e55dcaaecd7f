"""A message on its way to the SuperNode: its records as objects, of which none but the small ones is ever in memory.

Chunks are cut from the arrays when they are asked for; a first pass over the arrays has told their ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.flowergate.objects import (
    ARRAY,
    ARRAYS,
    CHUNK,
    CHUNK_BYTES,
    MESSAGE,
    METRICS,
    RECORDS,
    SETTINGS,
    closed,
    head,
    object_id,
)
from fl.client.flowergate.protobuf import encode
from fl.client.flowergate.wire import Item, Items, Message, Metadata, Tree, Value

NUMPY = "numpy.ndarray"
"""How arrays are written: as `.npy`."""

Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ArraysRecord:
    """Named arrays. Flower's older clients get them without dtype and shape."""

    arrays: Mapping[str, NDArray[Any]]
    is_described: bool = True


@dataclass(frozen=True, slots=True)
class SettingsRecord:
    values: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class MetricsRecord:
    values: Mapping[str, int | float]


Record = ArraysRecord | SettingsRecord | MetricsRecord


@dataclass(frozen=True, slots=True)
class _Slice:
    """From byte `start` to `end` of an array's `.npy` form: its header, and its values behind that."""

    header: bytes
    values: memoryview
    start: int
    end: int

    def parts(self) -> tuple[bytes, memoryview]:
        size = len(self.header)
        return self.header[self.start : self.end], self.values[max(self.start - size, 0) : max(self.end - size, 0)]


class Parcel:
    """The records of a message. Making it reads all of the arrays once: in a thread, if they are large."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._small: dict[str, bytes] = {}
        self._slices: dict[str, _Slice] = {}
        self.size_bytes = 0
        trees = {name: self._record(record) for name, record in records.items()}
        self._tree = self._names(RECORDS, trees)

    def addressed(self, metadata: Metadata) -> Shipment:
        """To one node, at one moment."""
        body = encode(Message(metadata))
        root = closed(MESSAGE, [self._tree.object_id], body)
        named = object_id(root)
        return Shipment(self, replace(metadata, message_id=named), Tree(named, (self._tree,)), root)

    def content(self, named: str) -> bytes | None:
        small = self._small.get(named)
        if small is not None:
            return small
        found = self._slices.get(named)
        return None if found is None else b"".join((head(CHUNK, (), found.end - found.start), *found.parts()))

    def __contains__(self, named: str) -> bool:
        return named in self._small or named in self._slices

    def _record(self, record: Record) -> Tree:
        if isinstance(record, ArraysRecord):
            trees = {name: self._array(array, record.is_described) for name, array in record.arrays.items()}
            return self._names(ARRAYS, trees)
        kind = SETTINGS if isinstance(record, SettingsRecord) else METRICS
        items = Items(tuple(Item(name, value_of(value)) for name, value in record.values.items()))
        return self._keep(kind, {}, encode(items))

    def _names(self, kind: str, trees: Mapping[str, Tree]) -> Tree:
        body = json.dumps({name: tree.object_id for name, tree in trees.items()}).encode()
        return self._keep(kind, {tree.object_id: tree for tree in trees.values()}, body)

    def _array(self, array: NDArray[Any], is_described: bool) -> Tree:
        header, values = npy_of(array)
        size = len(header) + len(values)
        chunks = [
            self._chunk(_Slice(header, values, start, min(start + CHUNK_BYTES, size)))
            for start in range(0, size, CHUNK_BYTES)
        ]
        children = {chunk: Tree(chunk) for chunk in chunks}
        places = {chunk: place for place, chunk in enumerate(children)}
        said = {
            "dtype": str(array.dtype) if is_described else "",
            "shape": list(array.shape) if is_described else [],
            "stype": NUMPY,
            "arraychunk_ids": [places[chunk] for chunk in chunks],
        }
        return self._keep(ARRAY, children, json.dumps(said).encode())

    def _chunk(self, cut: _Slice) -> str:
        size = cut.end - cut.start
        opening = head(CHUNK, (), size)
        hashed = sha256(opening)
        for part in cut.parts():
            hashed.update(part)
        named = hashed.hexdigest()
        if named not in self._slices:
            self._slices[named] = cut
            self.size_bytes += len(opening) + size
        return named

    def _keep(self, kind: str, children: Mapping[str, Tree], body: bytes) -> Tree:
        content = closed(kind, list(children), body)
        named = object_id(content)
        if named not in self._small:
            self._small[named] = content
            self.size_bytes += len(content)
        return Tree(named, tuple(children.values()))


@dataclass(frozen=True, slots=True)
class Shipment:
    """A parcel with its address, as a SuperNode asks for it."""

    parcel: Parcel
    metadata: Metadata
    tree: Tree
    root: bytes

    @property
    def named(self) -> str:
        return self.metadata.message_id

    def content(self, named: str) -> bytes | None:
        return self.root if named == self.named else self.parcel.content(named)


def npy_of(array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """The header and the values of the array as a `.npy` file. A contiguous array is not copied."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), array.reshape(-1).view(np.uint8).data


def value_of(value: Setting) -> Value:
    if isinstance(value, bool):
        return Value(truth=value)
    if isinstance(value, int):
        return Value(sint64=value) if value < 1 << 63 else Value(uint64=value)
    return Value(double=value) if isinstance(value, float) else Value(string=value)


def values_of(items: Sequence[Item]) -> dict[str, Setting]:
    """Single values; lists and bytes are left out."""
    found: dict[str, Setting] = {}
    for item in items:
        if item.value is not None:
            given = (item.value.double, item.value.sint64, item.value.uint64, item.value.truth, item.value.string)
            told = [each for each in given if each is not None]
            if len(told) == 1:
                found[item.key] = told[0]
    return found
