"""Moments as blobs: what a rule with a memory keeps beside the model, one F32 for each averaged value and moment.

The file is laid out as a model's is, with tensors named `moment#tensor`, so that each moment is one stretch in flat
order. A job's first round finds none: zeros.
"""

from __future__ import annotations

from functools import lru_cache

from fl.errors import Refused
from fl.tensors.layout import AVERAGED, FROZEN, Bytes, Schema, TensorSpec
from fl.tensors.model import ModelForm, model_form


@lru_cache(maxsize=64)
def moment_form(schema: Schema, own: Schema, moments: tuple[str, ...], moment: str) -> ModelForm:
    """The blob of all moments of a schema, with the runs of one of them: for the tensors that are averaged in `own`
    too, which is the schema as one group of its tensors sees it."""
    tensors = {each.name for each in own.tensors if each.role == AVERAGED}
    return model_form(
        Schema(
            tuple(
                TensorSpec(
                    f"{name}#{each.name}",
                    "F32",
                    each.shape,
                    AVERAGED if name == moment and each.name in tensors else FROZEN,
                )
                for name in moments
                for each in schema.tensors
                if each.role == AVERAGED
            )
        )
    )


def check_moments_frame(form: ModelForm, blob: Bytes) -> None:
    if len(blob) != form.size_bytes or blob[: len(form.header)] != form.header:
        raise Refused("BAD_MODEL", "The blob is not one of the moments that the job's rule and schema imply.")
