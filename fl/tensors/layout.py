"""A job's schema, and the one safetensors header that it implies for each blob.

Theory. A safetensors file is the length of its header (8 bytes, little-endian), a JSON header padded with
spaces to a multiple of 8, and the tensors' bytes without gaps. Everything in the header follows from the
schema and one metadata entry, so a blob is checked by comparing its first bytes with those built here: no
hostile JSON is ever parsed. The order is the one in which the `safetensors` package writes: by dtype (its own
ranking, wide ones first, so that each tensor is aligned), then by name.

Flat order. The averaged tensors, sorted by name, each in C order, form one flat vector; that is also their
order in every blob. It is cut into blocks of at most `BLOCK` values that never cross a tensor's border (a
quantised block has one scale), and whole blocks are gathered into tiles, the unit of work of the kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chain.codec import U32, Count, Length
from fl.errors import Refused

Bytes: TypeAlias = bytes | bytearray | memoryview
Rows: TypeAlias = NDArray[np.uint8]
"""Payloads of one length, each a row."""

AVERAGED, FROZEN, LOCAL = "averaged", "frozen", "local"
ROLES = (AVERAGED, FROZEN, LOCAL)

BLOCK = 4096
"""Values that share one scale in a quantised encoding."""

TILE = 16384
"""Values a tile gathers at least, but for the last: with 8 bytes a sum, a tile stays in a core's cache."""

MAX_TENSORS = 4096
MAX_RANK = 8

_DTYPES: dict[str, tuple[int, str]] = {
    "BOOL": (1, "|b1"),
    "U8": (1, "|u1"),
    "I8": (1, "|i1"),
    "F8_E5M2": (1, "|u1"),
    "F8_E4M3": (1, "|u1"),
    "F8_E8M0": (1, "|u1"),
    "I16": (2, "<i2"),
    "U16": (2, "<u2"),
    "F16": (2, "<f2"),
    "BF16": (2, "<u2"),
    "I32": (4, "<i4"),
    "U32": (4, "<u4"),
    "F32": (4, "<f4"),
    "C64": (8, "<c8"),
    "F64": (8, "<f8"),
    "I64": (8, "<i8"),
    "U64": (8, "<u8"),
}
"""Name → bytes a value, and the numpy type that holds it (unsigned integers where numpy has no such float).
The position is the package's ranking of dtypes."""

_RANK = {name: rank for rank, name in enumerate(_DTYPES)}
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the model. *Averaged* ones are F32 whatever the clients train in, *frozen* ones are
    copied byte for byte from model to model, *local* ones never leave their owner."""

    name: Annotated[str, Length(1, 200)]
    dtype: Annotated[str, Length(1, 16)]
    shape: Annotated[tuple[U32, ...], Count(0, MAX_RANK)]
    role: Annotated[str, Length(1, 16)]


@dataclass(frozen=True, slots=True)
class Schema:
    """The tensors in the model's own order. Decoding does not validate it: `check_schema` does, once, when a
    job is created, and everything else here relies on that."""

    tensors: Annotated[tuple[TensorSpec, ...], Count(1, MAX_TENSORS)]

    def __hash__(self) -> int:
        # Much is cached by schema, and asked for with each payload; comparing finds what else differs.
        return hash((len(self.tensors), self.tensors[-1].name))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as one kind of blob holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * _DTYPES[self.dtype][0]


@dataclass(frozen=True, slots=True)
class Placed:
    """A stored tensor and where its bytes lie, counted from the end of the header."""

    tensor: StoredTensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Segment:
    """An averaged tensor and its range of the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Layout:
    """What the flat vector of a schema looks like. Block `b` holds the values `blocks[b]` to `blocks[b+1]`,
    tile `t` the blocks `tiles[t]` to `tiles[t+1]`, that is the values `edges[t]` to `edges[t+1]`. These are as long as
    the model is large, and made when somebody works with it: a stranger's few bytes may name the largest of models."""

    segments: tuple[Segment, ...]
    parameters: int

    @cached_property
    def block_count(self) -> int:
        return sum(-(-(each.stop - each.start) // BLOCK) for each in self.segments)

    @property
    def blocks(self) -> NDArray[np.int64]:
        return self._cuts[0]

    @property
    def tiles(self) -> NDArray[np.int64]:
        return self._cuts[1]

    @property
    def edges(self) -> NDArray[np.int64]:
        return self._cuts[2]

    @cached_property
    def _cuts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        blocks, tiles, edges = [0], [0], [0]
        for segment in self.segments:
            for end in (*range(segment.start + BLOCK, segment.stop, BLOCK), segment.stop):
                blocks.append(end)
                if end - edges[-1] >= TILE:
                    tiles.append(len(blocks) - 1)
                    edges.append(end)
        if edges[-1] != self.parameters:
            tiles.append(len(blocks) - 1)
            edges.append(self.parameters)
        return _fixed(blocks), _fixed(tiles), _fixed(edges)


def check_schema(schema: Schema, max_parameters: int) -> None:
    """Raises `Refused("BAD_SCHEMA")`. `max_parameters` bounds the values of averaged and frozen tensors
    together."""
    if not 1 <= len(schema.tensors) <= MAX_TENSORS:
        raise Refused("BAD_SCHEMA", f"A model has 1 to {MAX_TENSORS} tensors.")
    names: set[str] = set()
    parameters = 0
    for spec in schema.tensors:
        _check_spec(spec)
        if spec.name in names:
            raise Refused("BAD_SCHEMA", f"Two tensors are named {spec.name!r}.")
        names.add(spec.name)
        if spec.role != LOCAL:
            parameters += prod(spec.shape)
    if all(spec.role != AVERAGED for spec in schema.tensors):
        raise Refused("BAD_SCHEMA", "At least one tensor must be averaged.")
    if parameters > max_parameters:
        raise Refused("BAD_SCHEMA", f"The model has {parameters} parameters; the chain admits {max_parameters}.")


def _check_spec(spec: TensorSpec) -> None:
    if _NAME.fullmatch(spec.name) is None:
        raise Refused("BAD_SCHEMA", "A tensor's name is 1 to 200 of A-Z a-z 0-9 . _ / and -.")
    if spec.name == "__metadata__":
        raise Refused("BAD_SCHEMA", "The name '__metadata__' belongs to the safetensors format.")
    if spec.role not in ROLES:
        raise Refused("BAD_SCHEMA", f"Tensor {spec.name!r} must be averaged, frozen or local.")
    if spec.dtype not in _DTYPES:
        raise Refused("BAD_SCHEMA", f"Tensor {spec.name!r} has an unknown dtype; known are {', '.join(_DTYPES)}.")
    if spec.role == AVERAGED and spec.dtype != "F32":
        raise Refused("BAD_SCHEMA", f"Tensor {spec.name!r} is averaged and must therefore be F32 on chain.")
    if len(spec.shape) > MAX_RANK or any(not 1 <= size < 2**32 for size in spec.shape):
        raise Refused("BAD_SCHEMA", f"Tensor {spec.name!r} must have at most {MAX_RANK} sizes of 1 or more.")


_NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {name: np.dtype(kind) for name, (_, kind) in _DTYPES.items()}


def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    return _NUMPY_DTYPES[dtype]


@lru_cache(maxsize=64)
def layout_of(schema: Schema) -> Layout:
    segments: list[Segment] = []
    start = 0
    for spec in sorted((each for each in schema.tensors if each.role == AVERAGED), key=lambda each: each.name):
        stop = start + prod(spec.shape)
        segments.append(Segment(spec.name, spec.shape, start, stop))
        start = stop
    return Layout(tuple(segments), start)


def _fixed(values: list[int]) -> NDArray[np.int64]:
    array = np.array(values, dtype=np.int64)
    array.flags.writeable = False
    return array


def model_tensors(schema: Schema) -> tuple[StoredTensor, ...]:
    return tuple(StoredTensor(each.name, each.dtype, each.shape) for each in schema.tensors if each.role != LOCAL)


def placed_in_order(tensors: Iterable[StoredTensor]) -> tuple[Placed, ...]:
    """The tensors in the order of their blob, each at its place."""
    placed: list[Placed] = []
    start = 0
    for tensor in sorted(tensors, key=lambda each: (-_RANK[each.dtype], each.name)):
        placed.append(Placed(tensor, start, start + tensor.size_bytes))
        start += tensor.size_bytes
    return tuple(placed)


def header_entries(placed: Iterable[Placed]) -> str:
    """The part of the JSON header that does not depend on the metadata."""
    return ",".join(
        f'"{each.tensor.name}":{{"dtype":"{each.tensor.dtype}",'
        f'"shape":[{",".join(map(str, each.tensor.shape))}],"data_offsets":[{each.start},{each.stop}]}}'
        for each in placed
    )


def header_bytes(key: str, value: str, entries: str) -> bytes:
    """The first bytes of a blob with one metadata entry, up to where the tensors begin. Names, keys and
    values are ASCII without quotes or backslashes, so nothing needs escaping."""
    text = f'{{"__metadata__":{{"{key}":"{value}"}},{entries}}}'.encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def holds_header(header: bytes, start: int, part: Bytes) -> bool:
    """Whether the bytes that stand at `start` of a blob are this header's, as far as it reaches into them."""
    expected = header[start : start + len(part)]
    return part[: len(expected)] == expected


def array_at(blob: Bytes | Rows, dtype: str, count: int, offset: int) -> NDArray[np.generic]:
    """A read-only flat view into a blob; a copy only where the blob itself is not aligned in memory. Of rows, what is
    there in each of them, as rows of a copy."""
    if isinstance(blob, np.ndarray):
        return _rows_at(blob, numpy_dtype(dtype), count, offset)
    array: NDArray[np.generic] = np.frombuffer(blob, numpy_dtype(dtype), count, offset)
    flags = array.flags
    if not flags.aligned:
        array = array.copy()
        flags = array.flags
    if flags.writeable:
        flags.writeable = False
    return array


def _rows_at(rows: Rows, dtype: np.dtype[np.generic], count: int, offset: int) -> NDArray[np.generic]:
    array: NDArray[np.generic] = rows[:, offset : offset + count * dtype.itemsize].copy().view(dtype)
    array.flags.writeable = False
    return array
