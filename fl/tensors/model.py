"""Model blobs: the averaged and the frozen tensors of a schema as one safetensors file.

Any tool that reads safetensors opens them. The averaged tensors are canonical F32; the frozen ones are copied
byte for byte from model to model and never interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.encodings import flatten
from fl.tensors.layout import (
    AVERAGED,
    Bytes,
    Layout,
    Placed,
    Schema,
    StoredTensor,
    array_at,
    header_bytes,
    header_entries,
    holds_header,
    layout_of,
    model_tensors,
    numpy_dtype,
    placed_in_order,
)

_WRONG_HEADER = "The blob's header is not the one that the job's schema implies."


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of the flat vector that a model blob holds in one piece."""

    offset: int
    """In bytes, from the start of the blob."""
    start: int
    stop: int

    @property
    def end(self) -> int:
        """In bytes, like `offset`."""
        return self.offset + 4 * (self.stop - self.start)


@dataclass(frozen=True, slots=True, eq=False)
class ModelForm:
    """What a schema implies for every model of a job."""

    layout: Layout
    placed: tuple[Placed, ...]
    header: bytes
    size_bytes: int
    runs: tuple[Run, ...]


@lru_cache(maxsize=64)
def model_form(schema: Schema) -> ModelForm:
    layout = layout_of(schema)
    placed = placed_in_order(model_tensors(schema))
    header = header_bytes("format", "pt", header_entries(placed))
    places = {each.tensor.name: each for each in placed}
    runs: list[Run] = []
    for segment in layout.segments:
        offset = len(header) + places[segment.name].start
        if runs and runs[-1].end == offset:
            runs[-1] = Run(runs[-1].offset, runs[-1].start, segment.stop)
        else:
            runs.append(Run(offset, segment.start, segment.stop))
    return ModelForm(layout, placed, header, len(header) + placed[-1].stop, tuple(runs))


def build_model(schema: Schema, tensors: Mapping[str, NDArray[Any] | bytes]) -> bytes:
    """The blob of a model, canonical by construction. Averaged tensors may come in any real dtype; a frozen
    one comes as its bytes, or as an array of its own dtype (unsigned integers of its width for BF16 and F8)."""
    form = model_form(schema)
    unknown = tensors.keys() - {each.tensor.name for each in form.placed}
    if unknown:
        raise ValueError(f"the schema keeps no such tensors in a model: {', '.join(sorted(unknown))}")
    averaged = {each.name for each in schema.tensors if each.role == AVERAGED}
    flat = flatten(form.layout, {name: np.asarray(tensors[name]) for name in averaged & tensors.keys()})
    if not np.isfinite(flat).all():
        raise Refused("BAD_MODEL", "The model holds NaN, infinity, or a value too large for F32.")
    blob = bytearray(form.size_bytes)
    blob[: len(form.header)] = form.header
    for run in form.runs:
        blob[run.offset : run.end] = flat[run.start : run.stop].tobytes()
    for placed in form.placed:
        name = placed.tensor.name
        if name not in averaged:
            if name not in tensors:
                raise ValueError(f"the frozen tensor {name!r} is missing")
            start = len(form.header) + placed.start
            blob[start : start + placed.tensor.size_bytes] = _frozen_bytes(placed.tensor, tensors[name])
    return bytes(blob)


def _frozen_bytes(tensor: StoredTensor, given: NDArray[Any] | bytes) -> bytes:
    if isinstance(given, np.ndarray):
        if given.shape != tensor.shape or given.dtype != numpy_dtype(tensor.dtype):
            raise ValueError(
                f"tensor {tensor.name!r} must be {numpy_dtype(tensor.dtype)} of shape {tensor.shape}, "
                f"not {given.dtype} of shape {given.shape}"
            )
        given = given.tobytes()
    if len(given) != tensor.size_bytes:
        raise ValueError(f"tensor {tensor.name!r} must have {tensor.size_bytes} bytes, not {len(given)}")
    return given


def parse_model(schema: Schema, blob: Bytes) -> dict[str, NDArray[Any]]:
    """Read-only arrays by name, in the schema's order. Only the frame is checked."""
    form = model_form(schema)
    check_model_frame(form, blob)
    places = {each.tensor.name: each for each in form.placed}
    parsed: dict[str, NDArray[Any]] = {}
    for spec in schema.tensors:
        if spec.name in places:
            start = len(form.header) + places[spec.name].start
            parsed[spec.name] = array_at(blob, spec.dtype, prod(spec.shape), start).reshape(spec.shape)
    return parsed


def check_model(schema: Schema, blob: Bytes) -> None:
    """Raises `Refused("BAD_MODEL")` unless this is a model blob of the schema with canonical averaged tensors."""
    check_model_frame(model_form(schema), blob)
    check_model_part(schema, 0, blob)


def check_model_part(schema: Schema, start: int, part: Bytes) -> None:
    """What `check_model` says of the bytes from `start`, a multiple of 8, in a blob of the right length."""
    form = model_form(schema)
    if not holds_header(form.header, start, part):
        raise Refused("BAD_MODEL", _WRONG_HEADER)
    for run in form.runs:
        # No value lies across the end of a part: runs begin at multiples of 4, as parts do.
        first, last = max(run.offset, start), min(run.end, start + len(part))
        if first < last and not floats.is_canonical(array_at(part, "F32", (last - first) // 4, first - start)):
            raise Refused(
                "BAD_MODEL", "An averaged tensor holds NaN, infinity, −0 or a denormal; let the SDK build the blob."
            )


def check_model_frame(form: ModelForm, blob: Bytes) -> None:
    if blob[: len(form.header)] != form.header:
        raise Refused("BAD_MODEL", _WRONG_HEADER)
    if len(blob) != form.size_bytes:
        raise Refused("BAD_MODEL", f"The model must have {form.size_bytes} bytes, not {len(blob)}.")
