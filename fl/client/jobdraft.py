"""A job as its creator thinks of it, turned into the rules that go on chain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.unixfs import cid_of
from fl.client.errors import BadInput
from fl.errors import Refused
from fl.jobrules import EXAMPLES, FEDAVG, SYNCHRONOUS, zero_model_cid
from fl.records import ConfigEntry, ConfigType, JobRules
from fl.tensors.grid import DEFAULT_RANGE_BITS
from fl.tensors.layout import AVERAGED, FROZEN, Schema, TensorSpec
from fl.tensors.model import build_model
from fl.tensors.q8 import Q8

Arrays = Mapping[str, NDArray[Any]]
ConfigValue = int | float | str
Config = Mapping[str, ConfigValue | Mapping[int, ConfigValue]]
"""A value for all rounds, or by the round that each value holds from."""

DEFAULT_CAP = 1 << 14
"""Examples beyond this weigh no more."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A job's rules and the model that it starts from, which is empty if it is all zeros."""

    rules: JobRules
    model: bytes


def draft_job(
    name: str,
    model: Arrays,
    *,
    rounds: int,
    target: int,
    privacy: str,
    minimum: int | None = None,
    maximum: int | None = None,
    deadline_s: float = 3600.0,
    grace_s: float = 60.0,
    max_failed: int = 3,
    weights: str = EXAMPLES,
    cap: int | None = None,
    encoding: str = Q8.name,
    range_bits: int = DEFAULT_RANGE_BITS,
    frozen: Sequence[str] = (),
    metrics: Sequence[str] = (),
    config: Config | None = None,
    app: str = "",
    app_digest: bytes = b"",
) -> Draft:
    """What creates this job. Averaged tensors become float32, `frozen` ones keep their bytes."""
    unknown = set(frozen) - model.keys()
    if unknown:
        raise BadInput("UNKNOWN_TENSOR", f"The model has no tensor {', '.join(sorted(unknown))}.", "Check `frozen`.")
    schema = Schema(tuple(_spec(each, np.asarray(array), each in frozen) for each, array in model.items()))
    try:
        blob = build_model(schema, {each: np.asarray(array) for each, array in model.items()})
    except Refused as refused:
        raise BadInput(refused.code, refused.sentence, "Give finite numbers that float32 can hold.") from None
    except ValueError as error:
        raise BadInput("BAD_MODEL", f"The model cannot be written: {error}.", "Check its tensors.") from None
    initial = cid_of(blob)
    rules = JobRules(
        name=name,
        schema=schema,
        initial=initial,
        mode=SYNCHRONOUS,
        rule=FEDAVG,
        encoding=encoding,
        range_bits=range_bits,
        weights=weights,
        cap=(DEFAULT_CAP if weights == EXAMPLES else 1) if cap is None else cap,
        target=target,
        minimum=target if minimum is None else minimum,
        maximum=max(target, 1024) if maximum is None else maximum,
        deadline_ms=round(deadline_s * 1000),
        grace_ms=round(grace_s * 1000),
        rounds=rounds,
        max_failed=max_failed,
        privacy=privacy,
        metrics=tuple(metrics),
        config=_entries(config or {}),
        app=app,
        app_digest=app_digest,
    )
    # Zeros need no bytes, however many there are.
    return Draft(rules, b"" if initial == zero_model_cid(schema) else blob)


def _spec(name: str, array: NDArray[Any], frozen: bool) -> TensorSpec:
    if not frozen:
        return TensorSpec(name, "F32", array.shape, AVERAGED)
    kind = _FROZEN_DTYPES.get(array.dtype.str)
    if kind is None:
        raise BadInput("BAD_MODEL", f"The frozen tensor {name!r} is of the dtype {array.dtype}.", "Convert it first.")
    return TensorSpec(name, kind, array.shape, FROZEN)


_FROZEN_DTYPES = {
    "|b1": "BOOL",
    "|u1": "U8",
    "|i1": "I8",
    "<i2": "I16",
    "<u2": "U16",
    "<f2": "F16",
    "<i4": "I32",
    "<u4": "U32",
    "<f4": "F32",
    "<f8": "F64",
    "<i8": "I64",
    "<u8": "U64",
}


def _entries(config: Config) -> tuple[ConfigEntry, ...]:
    entries = []
    for name, value in config.items():
        by_round = value if isinstance(value, Mapping) else {0: value}
        entries += [ConfigEntry(name, start, *_typed(name, each)) for start, each in by_round.items()]
    return tuple(sorted(entries, key=lambda entry: (entry.name, entry.from_round)))


def _typed(name: str, value: ConfigValue) -> tuple[str, str]:
    if isinstance(value, str):
        return ConfigType.STRING.value, value
    if isinstance(value, int) and not isinstance(value, bool):
        return ConfigType.INTEGER.value, str(value)
    if isinstance(value, float) and math.isfinite(value):
        text = format(Decimal(repr(value)), "f")
        return ConfigType.DECIMAL.value, text if "." in text else text + ".0"
    raise BadInput("BAD_CONFIG", f"The config value {name} is {value!r}.", "Give an integer, a finite float or text.")


def config_value(entry: ConfigEntry) -> ConfigValue:
    if entry.type == ConfigType.INTEGER:
        return int(entry.value)
    if entry.type == ConfigType.DECIMAL:
        return float(entry.value)
    return entry.value
