"""Updates as payloads: the table of encodings, and what is done with each.

An update is the *change* of every averaged tensor against the round's model. Its payload is a safetensors
file whose header names job, round and member, so a payload made for another place is not even well-formed;
after the header come the encoded values and nothing else. `check_payload` is a pure function of bytes and
immutable job rules: every validator gives the same verdict. It is the same whether a payload is looked at whole or
in parts (`check_part`) and at their joints, since no value lies across the border of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chain.frozen import record
from fl.errors import Refused
from fl.tensors import floats
from fl.tensors.bf16 import BF16
from fl.tensors.coding import Coding
from fl.tensors.f16 import F16
from fl.tensors.f32 import F32
from fl.tensors.layout import (
    Bytes,
    Layout,
    Rows,
    Schema,
    StoredTensor,
    header_bytes,
    header_entries,
    holds_header,
    layout_of,
    placed_in_order,
)
from fl.tensors.q8 import Q8
from fl.tensors.ring32 import Ring32
from fl.tensors.topk import TopK


class Encoding(Protocol):
    """One way to write the flat vector of a layout. `offset` is where the header ends; every value of 4 bytes lies at
    a multiple of 4 from there."""

    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors of the payload, in any order."""

    def check(self, part: Bytes, start: int) -> None:
        """Raises `Refused` unless what these bytes decode to is finite and within ±2^R. They stand at `start` behind
        the header, a multiple of 4, and end with a whole value."""

    def check_joints(self, payload: Bytes, offset: int, part_bytes: int) -> None:
        """What no part alone shows: raises `Refused` for a payload whose parts of this size, a multiple of 8, are all
        good, and which is not. Little of the payload is looked at."""

    def all_good(self, payloads: Sequence[bytes], offset: int) -> bool:
        """True only if `check` and `check_joints` refuse none of these payloads of the right length."""

    def encode(self, tensors: Iterable[NDArray[Any]]) -> Iterator[Bytes]:
        """The bytes after the header, in pieces, of the averaged tensors in flat order, which can be gone through more
        than once. Values are made canonical; one beyond ±2^R raises `Refused`, after pieces that are then to be thrown
        away."""

    def decode(self, payload: Bytes, offset: int, first: int, last: int) -> NDArray[np.float32]:
        """Tiles `first` to `last` of the flat vector that these bytes mean."""


MEMBER_BYTES = 32

ENCODINGS: dict[str, Callable[[Layout, Coding], Encoding]] = {
    each.name: each for each in (F32, F16, BF16, Q8, TopK, Ring32)
}


@record
class Place:
    """What an update is for, as its header says: it is one of no other job, round or member."""

    job: bytes
    round: int
    member: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before the values of a round's updates, around the member that it names, and how long they are."""

    before: bytes
    after: bytes
    size_bytes: int

    @property
    def offset(self) -> int:
        """Of the values."""
        return len(self.before) + len(_NOBODY) + len(self.after)

    def header(self, member: bytes) -> bytes:
        return self.before + member.hex().encode() + self.after


_NOBODY = bytes(MEMBER_BYTES).hex()


@dataclass(frozen=True, slots=True, eq=False)
class UpdateForm:
    """What a schema and an encoding imply for every update of a job."""

    encoding: Encoding
    layout: Layout
    entries: str
    data_bytes: int

    def header(self, place: Place) -> bytes:
        return frame_of(self, place.job, place.round).header(place.member)

    def size_bytes(self, place: Place) -> int:
        return frame_of(self, place.job, place.round).size_bytes


@lru_cache(maxsize=64)
def frame_of(form: UpdateForm, job: bytes, round: int) -> Frame:
    header = header_bytes("update", f"{job.hex()}/{round}/{_NOBODY}", form.entries)
    before, name, after = header.partition(f'/{_NOBODY}"'.encode())
    return Frame(before + name[:1], name[-1:] + after, len(header) + form.data_bytes)


@lru_cache(maxsize=64)
def update_form(schema: Schema, coding: Coding) -> UpdateForm:
    """`schema` with the tensors that the update changes as its averaged ones."""
    if coding.encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise Refused("NOT_SUPPORTED", f"The encoding {coding.encoding!r} is unknown; known are {known}.")
    layout = layout_of(schema)
    encoding = ENCODINGS[coding.encoding](layout, coding)
    placed = placed_in_order(encoding.stored())
    return UpdateForm(encoding, layout, header_entries(placed), placed[-1].stop)


def check_frame(form: UpdateForm, place: Place, payload: Bytes) -> int:
    """The offset of the values, in a payload with exactly the implied header and length."""
    header = form.header(place)
    if payload[: len(header)] != header:
        raise Refused("WRONG_HEADER")
    missing = len(header) + form.data_bytes - len(payload)
    if missing < 0:
        raise Refused("OVERSIZE", f"{-missing} bytes follow the update's values.")
    if missing > 0:
        raise Refused("WRONG_HEADER", f"The header promises {missing} bytes more than the payload holds.")
    return len(header)


def check_frames(form: UpdateForm, job: bytes, round: int, members: bytes, rows: Rows) -> int:
    """The same of payloads in rows, for one job and round, each of the next of these members."""
    frame = frame_of(form, job, round)
    expected = np.empty((len(rows), frame.offset), np.uint8)
    expected[:] = np.frombuffer(frame.header(members[:MEMBER_BYTES]), np.uint8)
    names = np.frombuffer(members.hex().encode(), np.uint8).reshape(len(rows), -1)
    expected[:, len(frame.before) : len(frame.before) + names.shape[1]] = names
    if rows.shape[1] != frame.size_bytes or not np.array_equal(rows[:, : frame.offset], expected):
        for each, payload in enumerate(rows):
            member = members[each * MEMBER_BYTES : (each + 1) * MEMBER_BYTES]
            check_frame(form, Place(job, round, member), payload.data)
    return frame.offset


def check_payload(form: UpdateForm, place: Place, payload: Bytes) -> None:
    """Raises `Refused` unless these bytes are an update for this place."""
    offset = check_frame(form, place, payload)
    form.encoding.check(memoryview(payload)[offset:], 0)
    form.encoding.check_joints(payload, offset, len(payload))


def good_payloads(
    form: UpdateForm, job: bytes, round: int, members: Sequence[bytes], payloads: Sequence[bytes]
) -> bool:
    """True only if `check_payload` refuses none of these payloads of a round, which are looked at together."""
    frame = frame_of(form, job, round)
    before, after, offset = frame.before, frame.after, frame.offset
    headers = [before + member.hex().encode() + after for member in members]
    return (
        {*map(len, payloads)} == {frame.size_bytes}
        and headers == [payload[:offset] for payload in payloads]
        and form.encoding.all_good(payloads, offset)
    )


def check_part(form: UpdateForm, place: Place, start: int, part: Bytes) -> None:
    """What `check_payload` says of the bytes from `start`, a multiple of 8, in a payload of the right length."""
    header = form.header(place)
    if not holds_header(header, start, part):
        raise Refused("WRONG_HEADER")
    values = memoryview(part)[max(0, len(header) - start) :]
    form.encoding.check(values, max(0, start - len(header)))


def check_joints(form: UpdateForm, place: Place, payload: Bytes, part_bytes: int) -> None:
    """What `check_payload` says beyond that of a payload of the right length whose parts of `part_bytes`, a multiple of
    8, were all found good."""
    form.encoding.check_joints(payload, len(form.header(place)), part_bytes)


def encode_update(form: UpdateForm, place: Place, delta: Mapping[str, NDArray[Any]]) -> bytes:
    """The payload of an update. `delta` names exactly the averaged tensors; values are rounded to F32 and
    made canonical. A value beyond the range is refused here as the chain would refuse it."""
    return form.header(place) + b"".join(encoded(form, delta))


def encoded(form: UpdateForm, delta: Mapping[str, NDArray[Any]]) -> Iterator[Bytes]:
    """What follows the header, in pieces, so that a large update need not be in memory as a whole. Each tensor is
    looked up once and let go before the next."""
    return form.encoding.encode(Averaged(form.layout, delta))


def decode_update(form: UpdateForm, place: Place, payload: Bytes) -> dict[str, NDArray[np.float32]]:
    """What the validators will add up, tensor by tensor: for the client's error feedback and for auditors."""
    flat = form.encoding.decode(payload, check_frame(form, place, payload), 0, form.layout.tiles.size - 1)
    return {each.name: flat[each.start : each.stop].reshape(each.shape) for each in form.layout.segments}


def flatten(layout: Layout, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The canonical flat vector of the averaged tensors."""
    flat = np.empty(layout.parameters, np.float32)
    for each, array in zip(layout.segments, Averaged(layout, tensors), strict=True):
        flat[each.start : each.stop] = floats.canonical(array.ravel())
    return flat


class Averaged(Iterable[NDArray[Any]]):
    """The averaged tensors in flat order, as often as they are gone through. Shapes must be equal: nothing is
    broadcast."""

    def __init__(self, layout: Layout, tensors: Mapping[str, NDArray[Any]]) -> None:
        expected = {each.name for each in layout.segments}
        if tensors.keys() != expected:
            wrong = sorted(expected ^ tensors.keys())
            raise ValueError(f"exactly the job's averaged tensors are needed; missing or unknown: {', '.join(wrong)}")
        self._layout = layout
        self._tensors = tensors

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for each in self._layout.segments:
            array = np.asarray(self._tensors[each.name])
            if array.shape != each.shape:
                raise ValueError(f"tensor {each.name!r} must have the shape {each.shape}, not {array.shape}")
            if array.dtype.kind not in "fiub":
                raise ValueError(f"tensor {each.name!r} must hold real numbers, not {array.dtype}")
            yield array
