"""Error feedback: what a lossy encoding leaves out of one update is owed to the next.

    owed to the next round  =  owed to this one + delta − what this one's payload means

Without it, what is too small for an encoding is never told at all; with it, everything is told in the end. What is owed
is a flat F32 vector on disk, one for each job and group of tensors:

    <round>.owed          to the next round, since this one took an update
    <round>-<cid>.left    owed after this round, if it takes the update `cid`
    <round>-<cid>.told    that update's payload

An update counts once its receipt proves it (`accepted`): then its `.left` becomes what is owed. Of one that was
refused, or never sent, all is owed again when another round is answered; but not if its own round took another one. A
round that is answered once more starts from what was owed before it. So no round's training is told twice. Whoever
comes here has no update in flight: before a round is answered, what was sent of earlier answers is proven, or has left
the outbox.

Every step is a whole file that takes its place by its name, so a crash is before it or after it. Little more than a
chunk of the vector is in memory, whatever the size of the model.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.cid import cid_text
from fl.client.errors import BadFile
from fl.client.keyfile import sync_directory
from fl.client.transfer.blobfile import mapped
from fl.tensors import floats
from fl.tensors.bf16 import BF16
from fl.tensors.encodings import Averaged, UpdateForm
from fl.tensors.f16 import F16
from fl.tensors.layout import Bytes
from fl.tensors.q8 import Q8
from fl.tensors.topk import TopK

FED_BACK = frozenset({BF16.name, F16.name, Q8.name, TopK.name})
"""Encodings that leave something out."""

_CHUNK = 1 << 18
_TILES = 16
"""Decoded together."""
_OWED, _LEFT, _TOLD = ".owed", ".left", ".told"


class Feedback:
    """Of one job and group. The directory need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def accepted(self, round: int, cid: bytes) -> None:
        """The round took this update. May be said again."""
        attempt = self._directory / f"{round}-{cid_text(cid)}"
        left = attempt.with_suffix(_LEFT)
        if left.exists():
            before = self._owed()
            now = self._directory / f"{round}{_OWED}"
            os.replace(left, now)
            sync_directory(self._directory)
            if before is not None and before != now:
                before.unlink()
            attempt.with_suffix(_TOLD).unlink(missing_ok=True)

    def forget(self) -> None:
        """The job is over."""
        if self._directory.exists():
            for path in self._directory.iterdir():
                path.unlink(missing_ok=True)
            self._directory.rmdir()

    def owing(self, form: UpdateForm, range_bits: int, round: int, delta: Mapping[str, NDArray[Any]]) -> Owing:
        """What this round is to be told: this change, and what is owed. Raises `Refused` for a change that the chain
        would refuse."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._settle(form, round)
            owed = _vector(form, self._owed())
            return Owing(self._directory, form, range_bits, round, Averaged(form.layout, delta), owed)
        except OSError as error:
            raise _unwritable(self._directory, error) from error

    def _settle(self, form: UpdateForm, round: int) -> None:
        """What earlier answers left behind has not been accepted."""
        owed = self._owed() or self._directory / f"0{_OWED}"
        for left in self._directory.glob(f"*{_LEFT}"):
            if _round(left) not in (round, _round(owed)):
                self._give_back(form, left, owed)
            left.unlink()
        for path in self._directory.iterdir():
            if path != owed:
                path.unlink()

    def _give_back(self, form: UpdateForm, left: Path, owed: Path) -> None:
        flat, told = _vector(form, left), mapped(left.with_suffix(_TOLD))
        with _Writing(self._directory) as file:
            for start, decoded in _decoded(form, told):
                file.append(flat[start : start + decoded.size] + decoded)
            file.keep(owed)

    def _owed(self) -> Path | None:
        """A crash may have left an older one beside it."""
        return max(self._directory.glob(f"*{_OWED}"), key=_round, default=None)


class Owing(Mapping[str, NDArray[np.float32]]):
    """What a round is to be told, tensor by tensor, and at last what its payload leaves of that. What is owed may be
    more than a payload holds: then the rest stays owed. Used in a `with` statement."""

    def __init__(
        self,
        directory: Path,
        form: UpdateForm,
        range_bits: int,
        round: int,
        delta: Averaged,
        owed: NDArray[np.float32],
    ) -> None:
        self._directory = directory
        self._form = form
        self._round = round
        self._most = np.float32(2.0**range_bits)
        self._segments = {each.name: each for each in form.layout.segments}
        self._file = _Writing(directory)
        try:
            for start, change in _pieces(delta):
                floats.check_range(change, range_bits)
                self._file.append(owed[start : start + change.size].astype(np.float64) + change)
            self._flat = self._file.read()
        except BaseException:
            self._file.close()
            raise
        self._beyond = floats.largest(self._flat) > floats.range_bits_as_f32(range_bits)

    def __enter__(self) -> Owing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        each = self._segments[name]
        part = self._flat[each.start : each.stop].reshape(each.shape)
        return np.clip(part, -self._most, self._most) if self._beyond else part

    def __iter__(self) -> Iterator[str]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    def told(self, cid: bytes, payload: Bytes | Path) -> None:
        """The round is told this: a payload, or the file that holds it. Durable when it returns."""
        attempt = self._directory / f"{self._round}-{cid_text(cid)}"
        told = attempt.with_suffix(_TOLD)
        try:
            if isinstance(payload, Path):
                os.link(payload, told)
            else:
                _write(told, payload)
            for start, decoded in _decoded(self._form, mapped(told)):
                self._file.put(start, self._flat[start : start + decoded.size] - decoded)
            self._file.keep(attempt.with_suffix(_LEFT))
        except OSError as error:
            raise _unwritable(self._directory, error) from error


class _Writing:
    """A vector in a file that has no name until it is whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f".{secrets.token_hex(8)}"
        self._file = open(self._path, "x+b")  # noqa: SIM115

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(floats.canonical(values).data)

    def put(self, start: int, values: NDArray[Any]) -> None:
        self._file.seek(4 * start)
        self.append(values)

    def read(self) -> NDArray[np.float32]:
        """All that was written so far; what is put later shows as well."""
        self._file.flush()
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), np.float32)

    def keep(self, path: Path) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._path, path)
        sync_directory(self._directory)

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _write(path: Path, data: Bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _pieces(tensors: Averaged) -> Iterator[tuple[int, NDArray[np.float32]]]:
    place = 0
    for tensor in tensors:
        values = tensor.ravel()
        for start in range(0, values.size, _CHUNK):
            yield place + start, floats.canonical(values[start : start + _CHUNK])
        place += values.size


def _decoded(form: UpdateForm, payload: Bytes) -> Iterator[tuple[int, NDArray[np.float32]]]:
    edges, offset = form.layout.edges, len(payload) - form.data_bytes
    for first in range(0, edges.size - 1, _TILES):
        last = min(first + _TILES, edges.size - 1)
        yield int(edges[first]), form.encoding.decode(payload, offset, first, last)


def _round(path: Path) -> int:
    return int(path.stem.partition("-")[0])


def _vector(form: UpdateForm, path: Path | None) -> NDArray[np.float32]:
    if path is None:
        return np.broadcast_to(np.float32(0), (form.layout.parameters,))
    blob = mapped(path)
    if len(blob) != 4 * form.layout.parameters:
        raise BadFile("BAD_FEEDBACK", f"{path} is damaged.", "Delete its directory; what is owed to the job is lost.")
    return np.frombuffer(blob, np.float32)


def _unwritable(directory: Path, error: OSError) -> BadFile:
    return BadFile("UNWRITABLE", f"{directory} takes no more: {error.strerror}.", "Make room, or use another home.")
