"""What can be wrong between a job's arrays and a framework's model, in the same words for every framework."""

from __future__ import annotations

from fl.client.errors import BadInput
from fl.errors import Refused
from fl.tensors.layout import AVERAGED, Schema, TensorSpec, check_schema

_NO_LIMIT = 1 << 62


def missing_package(name: str, extra: str) -> BadInput:
    return BadInput("MISSING_PACKAGE", f"This needs {name}, which is not installed.", f"pip install 'quorate[{extra}]'")


def unknown_tensor(name: str, owner: str) -> BadInput:
    return BadInput("UNKNOWN_TENSOR", f"{owner} has no tensor {name!r}.", "Use the model that the job was made with.")


def missing_tensor(name: str, todo: str) -> BadInput:
    return BadInput("MISSING_TENSOR", f"The tensor {name!r} is missing.", todo)


def wrong_shape(name: str, given: tuple[int, ...], own: tuple[int, ...]) -> BadInput:
    return BadInput(
        "WRONG_SHAPE",
        f"The tensor {name!r} has the shape {given}, and in this model it has {own}.",
        "Use the model that the job was made with.",
    )


def check_name(name: str, shape: tuple[int, ...]) -> None:
    """Raises BadInput for a tensor that no job can hold."""
    try:
        check_schema(Schema((TensorSpec(name, "F32", shape, AVERAGED),)), _NO_LIMIT)
    except Refused as refused:
        raise BadInput("BAD_MODEL", f"No job can hold the tensor {name!r}: {refused.sentence}", "Rename it.") from None
