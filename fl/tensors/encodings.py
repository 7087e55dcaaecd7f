"""Updates as payloads: the table of encodings, and what is done with each.

An update is the *change* of every averaged tensor against the round's model. Its payload is a safetensors
file whose header names job, round and member, so a payload made for another place is not even well-formed;
after the header come the encoded values and nothing else. `check_payload` is a pure function of bytes and
immutable job rules: every validator gives the same verdict. It is the same whether a payload is looked at whole or
in parts (`check_part`), since no value lies across the border of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.f32 import F32
from fl.tensors.layout import (
    Bytes,
    Layout,
    Schema,
    StoredTensor,
    header_bytes,
    header_entries,
    holds_header,
    layout_of,
    place,
)
from fl.tensors.q8 import Q8


class Encoding(Protocol):
    """One way to write the flat vector. `offset` is where the header ends; every value of 4 bytes lies at a
    multiple of 4 from there."""

    name: str

    def stored(self, layout: Layout) -> tuple[StoredTensor, ...]:
        """The tensors of the payload, in any order."""

    def check(self, layout: Layout, range_bits: int, part: Bytes, start: int) -> None:
        """Raises `Refused` unless what these bytes decode to is finite and within ±2^R. They stand at `start` behind
        the header, a multiple of 4, and end with a whole value."""

    def encode(self, layout: Layout, range_bits: int, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        """The bytes after the header, in pieces, of the averaged tensors in flat order. Values are made canonical; one
        beyond ±2^R raises `Refused`, after pieces that are then to be thrown away."""

    def decode(self, layout: Layout, payload: Bytes, offset: int) -> NDArray[np.float32]: ...


ENCODINGS: dict[str, Encoding] = {each.name: each for each in (F32(), Q8())}


@dataclass(frozen=True, slots=True, eq=False)
class UpdateForm:
    """What a schema and an encoding imply for every update of a job."""

    encoding: Encoding
    layout: Layout
    entries: str
    data_bytes: int

    def header(self, job: str, round: int, member: str) -> bytes:
        return header_bytes("update", f"{job}/{round}/{member}", self.entries)


@lru_cache(maxsize=64)
def update_form(schema: Schema, encoding: str) -> UpdateForm:
    if encoding not in ENCODINGS:
        raise Refused("NOT_SUPPORTED", f"The encoding {encoding!r} is unknown; known are {', '.join(ENCODINGS)}.")
    chosen = ENCODINGS[encoding]
    layout = layout_of(schema)
    placed = place(chosen.stored(layout))
    return UpdateForm(chosen, layout, header_entries(placed), placed[-1].stop)


def payload_bytes(schema: Schema, encoding: str, job: str, round: int, member: str) -> int:
    """The exact size of such an update's payload."""
    form = update_form(schema, encoding)
    return len(form.header(job, round, member)) + form.data_bytes


def check_frame(form: UpdateForm, job: str, round: int, member: str, payload: Bytes) -> int:
    """The offset of the values, in a payload with exactly the implied header and length."""
    header = form.header(job, round, member)
    if payload[: len(header)] != header:
        raise Refused("WRONG_HEADER")
    missing = len(header) + form.data_bytes - len(payload)
    if missing < 0:
        raise Refused("OVERSIZE", f"{-missing} bytes follow the update's values.")
    if missing > 0:
        raise Refused("WRONG_HEADER", f"The header promises {missing} bytes more than the payload holds.")
    return len(header)


def check_payload(
    schema: Schema, encoding: str, range_bits: int, job: str, round: int, member: str, payload: Bytes
) -> None:
    """Raises `Refused` unless these bytes are an update of this member for this round of this job. `job` and
    `member` are lower-case hex."""
    form = update_form(schema, encoding)
    offset = check_frame(form, job, round, member, payload)
    form.encoding.check(form.layout, range_bits, memoryview(payload)[offset:], 0)


def check_part(
    schema: Schema, encoding: str, range_bits: int, job: str, round: int, member: str, start: int, part: Bytes
) -> None:
    """What `check_payload` says of the bytes from `start`, a multiple of 8, in a payload of the right length."""
    form = update_form(schema, encoding)
    header = form.header(job, round, member)
    if not holds_header(header, start, part):
        raise Refused("WRONG_HEADER")
    values = memoryview(part)[max(0, len(header) - start) :]
    form.encoding.check(form.layout, range_bits, values, max(0, start - len(header)))


def encode_update(
    schema: Schema,
    encoding: str,
    range_bits: int,
    job: str,
    round: int,
    member: str,
    delta: Mapping[str, NDArray[Any]],
) -> bytes:
    """The payload of an update. `delta` names exactly the averaged tensors; values are rounded to F32 and
    made canonical. A value beyond the range is refused here as the chain would refuse it."""
    form = update_form(schema, encoding)
    return form.header(job, round, member) + b"".join(encoded(form, range_bits, delta))


def encoded(form: UpdateForm, range_bits: int, delta: Mapping[str, NDArray[Any]]) -> Iterator[Bytes]:
    """What follows the header, in pieces, so that a large update need not be in memory as a whole. Each tensor is
    looked up once and let go before the next."""
    return form.encoding.encode(form.layout, range_bits, averaged(form.layout, delta))


def decode_update(
    schema: Schema, encoding: str, job: str, round: int, member: str, payload: Bytes
) -> dict[str, NDArray[np.float32]]:
    """What the validators will add up, tensor by tensor: for the client's error feedback and for auditors."""
    form = update_form(schema, encoding)
    offset = check_frame(form, job, round, member, payload)
    flat = form.encoding.decode(form.layout, payload, offset)
    return {each.name: flat[each.start : each.stop].reshape(each.shape) for each in form.layout.segments}


def flatten(layout: Layout, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The canonical flat vector of the averaged tensors."""
    flat = np.empty(layout.parameters, np.float32)
    for each, array in zip(layout.segments, averaged(layout, tensors), strict=True):
        flat[each.start : each.stop] = floats.canonical(array.ravel())
    return flat


def averaged(layout: Layout, tensors: Mapping[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The averaged tensors in flat order. Shapes must be equal: nothing is broadcast."""
    expected = {each.name for each in layout.segments}
    if tensors.keys() != expected:
        wrong = sorted(expected ^ tensors.keys())
        raise ValueError(f"exactly the job's averaged tensors are needed; missing or unknown: {', '.join(wrong)}")
    for each in layout.segments:
        array = np.asarray(tensors[each.name])
        if array.shape != each.shape:
            raise ValueError(f"tensor {each.name!r} must have the shape {each.shape}, not {array.shape}")
        if array.dtype.kind not in "fiub":
            raise ValueError(f"tensor {each.name!r} must hold real numbers, not {array.dtype}")
        yield array
