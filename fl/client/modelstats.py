"""What tensors in a file are like, and how those of two files differ: pass by pass over their pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.cid import cid_text
from chain.unixfs import Hasher, manifest_cid
from fl.client.tensorfile import TensorFile, is_number, open_tensors
from fl.tensors.layout import StoredTensor

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Figures are None where values are no numbers, or there are none. They are float64, for people."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    norm: float | None
    least: float | None
    most: float | None
    mean: float | None
    not_finite: int


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """`note` says why there are no figures, where there are none."""

    name: str
    note: str
    largest: float | None = None
    relative: float | None = None
    cosine: float | None = None


def cid_of_file(path: Path) -> str:
    hasher = Hasher()
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            hasher.update(data)
    return cid_text(manifest_cid(hasher.finish()))


def described(path: Path) -> list[TensorStats]:
    with open_tensors(path) as file:
        return [_stats(file, tensor) for tensor in file.tensors.values()]


def _stats(file: TensorFile, tensor: StoredTensor) -> TensorStats:
    count = prod(tensor.shape)
    plain = (tensor.name, tensor.dtype, tensor.shape, count)
    if not count or not is_number(tensor):
        return TensorStats(*plain, None, None, None, None, 0)
    squares = total = 0.0
    least, most, strange = math.inf, -math.inf, 0
    for piece in file.pieces(tensor.name):
        values = piece.astype(np.float64)
        finite = values[np.isfinite(values)]
        strange += values.size - finite.size
        if finite.size:
            with np.errstate(over="ignore"):
                squares += float(finite @ finite)
                total += float(finite.sum())
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    if strange == count:
        return TensorStats(*plain, None, None, None, None, strange)
    return TensorStats(*plain, math.sqrt(squares), least, most, total / (count - strange), strange)


def differences(first: Path, second: Path) -> Iterator[TensorDifference]:
    """Tensor by tensor: of the first file in its order, then what only the second one has."""
    with open_tensors(first) as one, open_tensors(second) as other:
        for tensor in one.tensors.values():
            yield _difference(one, other, tensor)
        for name in other.tensors:
            if name not in one.tensors:
                yield TensorDifference(name, "only in the second")


def _difference(one: TensorFile, other: TensorFile, tensor: StoredTensor) -> TensorDifference:
    name, against = tensor.name, other.tensors.get(tensor.name)
    if against is None:
        return TensorDifference(name, "only in the first")
    if against.shape != tensor.shape:
        return TensorDifference(name, f"of the shapes {_shape(tensor)} and {_shape(against)}")
    if not (is_number(tensor) and is_number(against)):
        return TensorDifference(name, f"{tensor.dtype} is not looked into")
    largest = apart = own = others = product = 0.0
    for a, b in _together(one.pieces(name), other.pieces(name)):
        with np.errstate(invalid="ignore", over="ignore"):
            change = b - a
            largest = max(largest, float(np.abs(change).max()))
            apart, own, others = apart + float(change @ change), own + float(a @ a), others + float(b @ b)
            product += float(a @ b)
    return TensorDifference(name, "", largest, _ratio(apart, own), _cosine(product, own, others))


def _together(
    first: Iterator[NDArray[Any]], second: Iterator[NDArray[Any]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The two in step, whatever the sizes of their pieces."""
    a = b = np.empty(0)
    while True:
        if not a.size:
            a = next(first, np.empty(0)).astype(np.float64)
        if not b.size:
            b = next(second, np.empty(0)).astype(np.float64)
        size = min(a.size, b.size)
        if not size:
            return
        yield a[:size], b[:size]
        a, b = a[size:], b[size:]


def _ratio(apart: float, own: float) -> float | None:
    """Norm of the difference by that of the first; None where that is nothing."""
    if apart == 0:
        return 0.0
    return math.sqrt(apart / own) if own else None


def _cosine(product: float, own: float, others: float) -> float | None:
    return product / (math.sqrt(own) * math.sqrt(others)) if own and others else None


def _shape(tensor: StoredTensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
