"""What a client of Flower's keeps between rounds: the records of its `context.state`, and its local tensors.

One file, replaced as a whole after each call of the app, so that a crash leaves the state before it or after it.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from fl.client.errors import BadFile, BadInput
from fl.client.keyfile import sync_directory

_FILE = "flower.state"


@dataclass(frozen=True, slots=True)
class Kept:
    """`state` is a RecordDict."""

    state: Any
    local: dict[str, NDArray[Any]] = field(default_factory=dict)


class Memory:
    """In `directory`, or without one in this process alone."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._packed: bytes | None = None

    def read(self) -> Kept:
        from flwr.app import RecordDict

        packed = self._packed
        if self._directory is not None:
            try:
                packed = (self._directory / _FILE).read_bytes()
            except FileNotFoundError:
                packed = None
            except OSError as error:
                raise self._unusable(f"cannot be read: {error.strerror}") from error
        if packed is None:
            return Kept(RecordDict())
        try:
            state, local = msgpack.unpackb(packed)
            return Kept(
                RecordDict({name: _record(kind, items) for name, kind, items in state}),
                {name: _array(*parts).numpy() for name, parts in local.items()},
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise self._unusable(f"is damaged: {str(error).rstrip('.')}") from None

    def write(self, kept: Kept) -> None:
        from flwr.app import Array

        try:
            packed = msgpack.packb(
                (
                    [(name, type(record).__name__, _items(record)) for name, record in kept.state.items()],
                    {name: _parts(Array(np.asarray(array))) for name, array in kept.local.items()},
                )
            )
        except (ValueError, OverflowError, TypeError) as error:
            raise BadInput(
                "BAD_APP", f"The app's state cannot be kept: {error}.", "Put smaller values into context.state."
            ) from None
        if self._directory is None:
            self._packed = packed
            return
        temporary = self._directory / f".{_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(packed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._directory / _FILE)
        except OSError as error:
            raise self._unusable(f"takes no more: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(self._directory)

    def _unusable(self, what: str) -> BadFile:
        path = self._directory / _FILE if self._directory is not None else Path(_FILE)
        return BadFile("BAD_STATE", f"{path} {what}.", "Delete it to begin anew; what the app has kept is lost.")


def _items(record: Any) -> list[tuple[str, Any]]:
    from flwr.app import ArrayRecord

    if isinstance(record, ArrayRecord):
        return [(key, _parts(array)) for key, array in record.items()]
    return [(key, list(value) if isinstance(value, list | tuple) else value) for key, value in record.items()]


def _record(kind: str, items: list[Any]) -> Any:
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

    if kind == ArrayRecord.__name__:
        return ArrayRecord({key: _array(*parts) for key, parts in items})
    return {ConfigRecord.__name__: ConfigRecord, MetricRecord.__name__: MetricRecord}[kind](dict(items))


def _parts(array: Any) -> tuple[str, list[int], str, bytes]:
    return array.dtype, list(array.shape), array.stype, array.data


def _array(dtype: str, shape: list[int], stype: str, data: bytes) -> Any:
    from flwr.app import Array

    return Array(dtype, tuple(shape), stype, data)
