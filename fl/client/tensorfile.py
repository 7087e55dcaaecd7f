"""Tensors in files of the kinds that people have, a piece at a time: `.safetensors` and `.npz`.

Nothing that a file says of itself is believed before it is checked against the file's length, and no more than a piece
of a tensor is in memory, however large the file is. Floats of 16 bits that numpy does not know (bfloat16) are read as
the float32 that are equal to them.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from fl.client.errors import BadFile, BadInput, QuorateError
from fl.tensors.layout import (
    MAX_RANK,
    MAX_TENSORS,
    StoredTensor,
    header_bytes,
    header_entries,
    numpy_dtype,
    placed_in_order,
)

SAFETENSORS, NPZ = ".safetensors", ".npz"
PIECE = 1 << 18
"""Values that are in memory at a time."""
_MOST_HEADER_BYTES = 16 * 1024 * 1024
_MOST_UNPACKED = 1100
"""Bytes from one that is packed: deflate makes no more than 1032 of it."""
_BF16 = "BF16"
_OPAQUE = frozenset({"F8_E5M2", "F8_E4M3", "F8_E8M0", "C64"})
"""Bytes to numpy, or no numbers of one dimension."""
_NAMES = {"b": "BOOL", "i": "I", "u": "U", "f": "F"}

FLOATS = {"f32": "F32", "f16": "F16", "bf16": _BF16}
"""As options of commands name them."""


class TensorFile(Protocol):
    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By name, in the file's order."""
        ...

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """A tensor's values, flat and in C order."""
        ...


@contextmanager
def open_tensors(path: Path, kind: str = "") -> Iterator[TensorFile]:
    """The kind is that of the name, unless it is told. Raises BadFile for a file that is neither."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                # A device may have no end.
                raise ValueError("it is no plain file")
            yield _Safetensors(file) if (kind or path.suffix) == SAFETENSORS else _Npz(file)
    except QuorateError:
        raise
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except (ValueError, KeyError, TypeError, EOFError, RecursionError, BadZipFile, NotImplementedError) as error:
        raise BadFile(
            "BAD_ARRAYS", f"{path} cannot be read: {error}.", "Give an .npz or a .safetensors file."
        ) from error


def is_number(tensor: StoredTensor) -> bool:
    """Whether its values can be looked at."""
    return tensor.dtype not in _OPAQUE


def is_float(tensor: StoredTensor) -> bool:
    return tensor.dtype in ("F16", _BF16, "F32", "F64")


class _Safetensors:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
            raise ValueError("its header has no length that can be")
        header = json.loads(file.read(length), object_pairs_hook=_distinct)
        if not isinstance(header, dict) or len(header) > MAX_TENSORS + 1:
            raise ValueError(f"its header names more than {MAX_TENSORS} tensors, or none")
        self._begin = 8 + length
        self._places: dict[str, int] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                self._add(name, entry, size - self._begin)
        if sum(each.size_bytes for each in self.tensors.values()) > size - self._begin:
            raise ValueError("its tensors lie over one another")

    def _add(self, name: str, entry: Mapping[str, Any], data_bytes: int) -> None:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, start, stop]
        if len(shape) > MAX_RANK or not all(type(each) is int and 0 <= each < 2**40 for each in sizes):
            raise ValueError(f"the tensor {name!r} has a shape or a place that cannot be")
        tensor = StoredTensor(name, dtype, tuple(shape))
        if not start <= stop <= data_bytes or stop - start != tensor.size_bytes:
            raise ValueError(f"the tensor {name!r} is not where the header says")
        self.tensors[name] = tensor
        self._places[name] = self._begin + start

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        tensor = self.tensors[name]
        dtype, left = numpy_dtype(tensor.dtype), prod(tensor.shape)
        self._file.seek(self._places[name])
        while left:
            count = min(left, PIECE)
            yield _values(tensor.dtype, np.frombuffer(_exactly(self._file, count * dtype.itemsize), dtype))
            left -= count


class _Npz:
    """Arrays of numpy's, packed or not. What lies in Fortran's order is read at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = ZipFile(file)
        self._members: dict[str, str] = {}
        self.tensors: dict[str, StoredTensor] = {}
        if len(self._zip.namelist()) > MAX_TENSORS:
            raise ValueError(f"it holds more than {MAX_TENSORS} arrays")
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.file_size > _MOST_UNPACKED * max(
                info.compress_size, 1
            ):
                raise ValueError(f"the array {name!r} is not packed as numpy packs it")
            with self._zip.open(info) as member:
                shape, _, dtype = _npy_header(member)
            tensor = StoredTensor(name, name_of(dtype), shape)
            can_be = len(shape) <= MAX_RANK and all(type(each) is int and 0 <= each < 2**40 for each in shape)
            if not can_be or tensor.size_bytes > info.file_size:
                raise ValueError(f"the array {name!r} has a shape that cannot be")
            self._members[name] = info.filename
            self.tensors[name] = tensor

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        with self._zip.open(self._members[name]) as member:
            shape, is_fortran, dtype = _npy_header(member)
            left = prod(shape)
            if is_fortran:
                whole = np.frombuffer(_exactly(member, left * dtype.itemsize), dtype).reshape(shape, order="F")
                yield whole.ravel()
                return
            while left:
                count = min(left, PIECE)
                yield np.frombuffer(_exactly(member, count * dtype.itemsize), dtype)
                left -= count


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(member)
    return tuple(shape), is_fortran, dtype


def name_of(dtype: np.dtype[Any]) -> str:
    if dtype.kind not in _NAMES or dtype.itemsize > 8 or dtype.byteorder == ">":
        raise ValueError(f"no tensor is of the dtype {dtype}")
    return "BOOL" if dtype.kind == "b" else f"{_NAMES[dtype.kind]}{8 * dtype.itemsize}"


def _values(dtype: str, stored: NDArray[Any]) -> NDArray[Any]:
    if dtype != _BF16:
        return stored
    widened: NDArray[Any] = (stored.astype("<u4") << 16).view("<f4")
    return widened


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends in the middle of a tensor")
    return data


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names a tensor twice")
    return found


def whole(file: TensorFile, name: str) -> NDArray[Any]:
    """A tensor at once, of one's own."""
    tensor, parts = file.tensors[name], list(file.pieces(name))
    dtype = parts[0].dtype if parts else np.dtype(np.float32 if tensor.dtype == _BF16 else numpy_dtype(tensor.dtype))
    return np.concatenate([np.empty(0, dtype), *parts]).reshape(tensor.shape)


# Writing


def write_tensors(path: Path, tensors: Iterable[StoredTensor], pieces: Mapping[str, Iterable[NDArray[Any]]]) -> None:
    """A safetensors file of these tensors, in its own order; floats become those of the tensor's dtype."""
    placed = placed_in_order(tensors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(header_bytes("format", "pt", header_entries(placed)))
            for each in placed:
                for piece in pieces[each.tensor.name]:
                    file.write(stored_as(each.tensor, piece).tobytes())
        os.replace(temporary, path)
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another file.") from error
    finally:
        temporary.unlink(missing_ok=True)


def stored_as(tensor: StoredTensor, values: NDArray[Any]) -> NDArray[Any]:
    """Values in the dtype of a tensor. Raises BadInput for floats that it cannot hold."""
    if tensor.dtype == _BF16:
        return _rounded_to_bf16(tensor, values)
    with np.errstate(over="ignore"):
        stored = values.astype(numpy_dtype(tensor.dtype))
    _check_finite(tensor, values, stored)
    return stored


def _rounded_to_bf16(tensor: StoredTensor, values: NDArray[Any]) -> NDArray[Any]:
    """To the nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    rounded = np.where(np.isnan(values), bits | 0x00400000, rounded)
    _check_finite(tensor, values, rounded.view("<f4"))
    halves: NDArray[Any] = (rounded >> 16).astype("<u2")
    return halves


def _check_finite(tensor: StoredTensor, values: NDArray[Any], stored: NDArray[Any]) -> None:
    if is_float(tensor) and np.any(np.isfinite(values) & ~np.isfinite(stored)):
        raise BadInput("TOO_LARGE", f"{tensor.name!r} has values that {tensor.dtype} cannot hold.", "Choose f32.")


def as_floats(tensor: StoredTensor, dtype: str) -> StoredTensor:
    """The same tensor with floats of this dtype; whole numbers stay what they are."""
    return StoredTensor(tensor.name, dtype, tensor.shape) if is_float(tensor) else tensor
