"""Arrays in files of the kinds that people have, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fl.client.errors import BadFile
from fl.client.tensorfile import is_number, open_tensors, whole


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Of an .npz or a .safetensors file. Values in bfloat16 are float32 from here on."""
    with open_tensors(path) as file:
        for tensor in file.tensors.values():
            if not is_number(tensor):
                what = f"The tensor {tensor.name!r} of {path} is of the dtype {tensor.dtype}."
                raise BadFile("BAD_ARRAYS", what, "Convert it to another one first.")
        return {name: whole(file, name) for name in file.tensors}
