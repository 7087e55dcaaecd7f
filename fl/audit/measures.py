"""How far updates lie from what became of them: float64 figures for people, beside the exact ones of the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.audit.recorded import Contribution
from fl.records import JobRules
from fl.tensors.encodings import Place, decode_update
from fl.tensors.layout import AVERAGED, Bytes, Schema
from fl.tensors.model import parse_model
from fl.updates import form_of

_AT_ONCE = 1 << 20
"""Values of which float64 copies are made."""

Arrays = Mapping[str, NDArray[Any]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """Of an update: its norm, and how it lies to the change of the model in its group of tensors."""

    norm: float
    distance: float | None
    """None if the round made no model."""
    cosine: float | None
    """None if there is no angle: one of the two is zero."""


@dataclass(slots=True)
class _Sums:
    own: float = 0.0
    other: float = 0.0
    apart: float = 0.0
    common: float = 0.0

    def add(self, own: Doubles, other: Doubles) -> None:
        self.own += float(np.square(own).sum())
        self.other += float(np.square(other).sum())
        self.apart += float(np.square(own - other).sum())
        self.common += float((own * other).sum())


def measure(job: bytes, rules: JobRules, contribution: Contribution, base: Arrays, model: Arrays | None) -> Measure:
    """`base` and `model` are the round's, as `arrays_of` gives them."""
    place = Place(job, contribution.round, contribution.member)
    update = decode_update(form_of(rules, contribution.group), place, contribution.payload())
    sums = _Sums()
    for name, values in update.items():
        for part in _parts(values.size):
            own = values.reshape(-1)[part].astype(np.float64)
            sums.add(own, np.zeros_like(own) if model is None else _change(base, model, name, part))
    cosine = sums.common / sqrt(sums.own * sums.other) if sums.own and sums.other else None
    return Measure(sqrt(sums.own), None if model is None else sqrt(sums.apart), cosine)


def arrays_of(schema: Schema, blob: Bytes) -> Arrays:
    """The averaged tensors of a model, where they lie."""
    averaged = {each.name for each in schema.tensors if each.role == AVERAGED}
    return {name: array for name, array in parse_model(schema, blob).items() if name in averaged}


def ranks(measures: Sequence[tuple[int, Measure]]) -> list[int | None]:
    """Of each, among those of its group: 1 lies closest to the model's change. In the order given."""
    found: list[int | None] = [None] * len(measures)
    for group in {group for group, _ in measures}:
        distances = [(each.distance, place) for place, (its, each) in enumerate(measures) if its == group]
        known = sorted((distance, place) for distance, place in distances if distance is not None)
        for rank, (_, place) in enumerate(known, 1):
            found[place] = rank
    return found


# Two models


@dataclass(frozen=True, slots=True)
class Difference:
    """Norms of a difference and of what it is compared with."""

    absolute: float
    model: float
    change: float

    @property
    def to_model(self) -> float | None:
        return self.absolute / self.model if self.model else None

    @property
    def to_change(self) -> float | None:
        return self.absolute / self.change if self.change else None


def difference(actual: Arrays, other: Arrays, base: Arrays) -> tuple[Difference, dict[str, Difference]]:
    """Of two models that began as `base`: in all, and tensor by tensor."""
    squares = {name: _squares(actual, other, base, name) for name in actual}
    total = tuple(sum(each[place] for each in squares.values()) for place in range(3))
    return _rooted(total), {name: _rooted(each) for name, each in squares.items()}


def _squares(actual: Arrays, other: Arrays, base: Arrays, name: str) -> tuple[float, ...]:
    apart = size = change = 0.0
    for part in _parts(actual[name].size):
        values = actual[name].reshape(-1)[part].astype(np.float64)
        apart += float(np.square(values - other[name].reshape(-1)[part]).sum())
        size += float(np.square(values).sum())
        change += float(np.square(values - base[name].reshape(-1)[part]).sum())
    return apart, size, change


def _rooted(squares: Sequence[float]) -> Difference:
    return Difference(*map(sqrt, squares))


def _change(base: Arrays, model: Arrays, name: str, part: slice) -> Doubles:
    change: Doubles = model[name].reshape(-1)[part].astype(np.float64) - base[name].reshape(-1)[part]
    return change


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, size))
