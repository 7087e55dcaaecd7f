"""Local tensors: those that a job leaves with each trainer. What the app gave back last is kept in one file, which is
replaced as a whole. Counters begin with zeros; what floats begin with only the site can say, in that file."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.errors import BadFile, BadInput
from fl.tensors.layout import LOCAL, Schema, numpy_dtype

_MOST_BYTES = 64 * 1024 * 1024
"""Of local tensors of which nothing is here yet."""


class LocalTensors:
    def __init__(self, schema: Schema, path: Path) -> None:
        self._names = [each.name for each in schema.tensors]
        self._specs = [each for each in schema.tensors if each.role == LOCAL]
        self._path = path

    def beside(self, model: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The model with them, in the schema's order."""
        kept = self._read() if self._specs else {}
        own = {each.name: kept.get(each.name) for each in self._specs}
        for each in self._specs:
            found, dtype = own[each.name], numpy_dtype(each.dtype)
            if found is not None and found.shape == each.shape and found.dtype == dtype:
                continue
            if dtype.kind == "f":
                raise BadInput(
                    "NO_LOCAL_TENSOR",
                    f"The job leaves {each.name} to its trainers, and nothing says what it begins with.",
                    f"Write it into {self._path} with numpy.savez.",
                )
            self._check_size()
            own[each.name] = np.zeros(each.shape, dtype)
        whole = {**model, **{name: array for name, array in own.items() if array is not None}}
        return {name: whole[name] for name in self._names if name in whole}

    def _check_size(self) -> None:
        """A chain bounds what it keeps, and local tensors are not kept by it: a creator may write any shape."""
        size = sum(math.prod(each.shape) * numpy_dtype(each.dtype).itemsize for each in self._specs)
        if size > _MOST_BYTES:
            raise BadInput(
                "LOCAL_TOO_LARGE",
                f"The job leaves {size} bytes of tensors to its trainers, and {_MOST_BYTES} are made here at most.",
                f"Do not train in it, or write what they begin with into {self._path} with numpy.savez.",
            )

    def keep(self, given: Mapping[str, NDArray[Any]]) -> None:
        """Those that the app gave back in their own shape and dtype."""
        fitting = {
            each.name: given[each.name]
            for each in self._specs
            if each.name in given
            and given[each.name].shape == each.shape
            and given[each.name].dtype == numpy_dtype(each.dtype)
        }
        if not fitting:
            return
        whole: dict[str, Any] = {**self._read(), **fitting}
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **whole)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            raise BadFile("UNWRITABLE", f"{self._path} cannot be written: {error.strerror}.", "Make room.") from error

    def _read(self) -> dict[str, NDArray[Any]]:
        try:
            with np.load(self._path, allow_pickle=False) as kept:
                return dict(kept)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BadFile("BAD_STATE", f"{self._path} is damaged: {error}.", "Delete it to begin anew.") from None
