"""Arrays in files of the kinds that people have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.errors import BadFile, BadInput, QuorateError


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Of an .npz or a .safetensors file."""
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.numpy import load_file
            except ImportError:
                raise BadInput(
                    "NO_SAFETENSORS", f"{path} needs the safetensors package.", "Install it, or give an .npz file."
                ) from None
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except QuorateError:
        raise
    except Exception as error:
        # Each of the two libraries has errors of many kinds for a file that is none of its own.
        raise BadFile(
            "BAD_ARRAYS", f"{path} cannot be read: {error}.", "Give an .npz or a .safetensors file."
        ) from error
