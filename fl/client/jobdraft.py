"""A job as its creator thinks of it, turned into the rules that go on chain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.codec import CodecError, encode
from chain.unixfs import cid_of
from fl.client.errors import BadInput
from fl.client.measures import MICRO
from fl.errors import Refused
from fl.jobrules import FEDAVG, SYNCHRONOUS, zero_model_cid
from fl.records import (
    CohortRules,
    ConfigEntry,
    ConfigType,
    EvaluationRules,
    Goal,
    JobRules,
    Statistic,
    TensorGroup,
)
from fl.rules import rule_of
from fl.rules.rule import Settings, written_settings
from fl.tensors.grid import DEFAULT_RANGE_BITS
from fl.tensors.layout import AVERAGED, FROZEN, LOCAL, Schema, TensorSpec
from fl.tensors.model import build_model
from fl.tensors.q8 import Q8
from fl.weights import EQUAL, EXAMPLES

Arrays = Mapping[str, NDArray[Any]]
ConfigValue = int | float | str
Config = Mapping[str, ConfigValue | Mapping[int, ConfigValue]]
"""A value for all rounds, or by the round that each value holds from."""

Table = Mapping[str, Any]
"""As a table of a job file: names and values, of which none is ignored."""

DEFAULT_CAP = 1 << 14
"""Examples beyond this weigh no more."""

STALENESS = 8
"""Versions that the base of an update may be behind in a job without rounds, unless it says otherwise."""


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
    minimum: int | float | None = None,
    maximum: int | None = None,
    deadline_s: float = 3600.0,
    grace_s: float = 60.0,
    max_failed: int = 3,
    mode: str = SYNCHRONOUS,
    staleness: int | None = None,
    rule: str = FEDAVG,
    settings: Settings | None = None,
    weights: str | None = None,
    cap: int | None = None,
    organisation_cap: int = 0,
    encoding: str = Q8.name,
    range_bits: int = DEFAULT_RANGE_BITS,
    share: float = 0.0,
    groups: Mapping[str, Sequence[str]] | None = None,
    frozen: Sequence[str] = (),
    local: Sequence[str] = (),
    metrics: Sequence[str] = (),
    config: Config | None = None,
    cohort: Table | None = None,
    evaluation: Table | None = None,
    goal: Table | None = None,
    app: str = "",
    app_digest: bytes = b"",
) -> Draft:
    """What creates this job. Averaged tensors become float32, `frozen` ones keep their bytes, `local` ones stay where
    they are.

    `minimum` may be a share of the target, as in 0.8. `settings` are the rule's. Without `weights` updates weigh their
    examples, if the rule knows weights. `share` is that of the values which an update in topk holds. `staleness` is how
    many versions old the base of an update may be in a job whose mode is async. `cohort`, `evaluation` and `goal` have
    the fields of the records of these names, in seconds, shares and plain numbers: `size`, `over`, `check_in_s`;
    `every`, `cohort`, `minimum`, `deadline_s`, `before_next`, `statistic`, `metrics`; `metric`, `larger`, `stop_at`.
    """
    schema = _schema(model, frozen, local)
    try:
        kept = {each: np.asarray(array) for each, array in model.items() if each not in set(local)}
        blob = build_model(schema, kept)
    except Refused as refused:
        raise BadInput(refused.code, refused.sentence, "Give finite numbers that float32 can hold.") from None
    except ValueError as error:
        raise BadInput("BAD_MODEL", f"The model cannot be written: {error}.", "Check its tensors.") from None
    initial = cid_of(blob)
    try:
        found = rule_of(rule)
        written = written_settings(found, settings or {})
    except Refused as refused:
        raise BadInput(refused.code, refused.sentence, "Check the rule and its settings.") from None
    weights = weights or (EXAMPLES if found.weighted else EQUAL)
    rules = JobRules(
        name=name,
        schema=schema,
        initial=initial,
        mode=mode,
        rule=rule,
        encoding=encoding,
        range_bits=range_bits,
        weights=weights,
        cap=(1 if weights == EQUAL else DEFAULT_CAP) if cap is None else cap,
        target=target,
        minimum=_minimum(minimum, target),
        maximum=max(target, 1024) if maximum is None else maximum,
        deadline_ms=_ms(deadline_s),
        grace_ms=_ms(grace_s),
        rounds=rounds,
        max_failed=max_failed,
        privacy=privacy,
        metrics=tuple(metrics),
        config=_entries(config or {}),
        app=app,
        app_digest=app_digest,
        settings=written,
        share_ppm=_ppm(share),
        groups=tuple(TensorGroup(each, tuple(sorted(tensors))) for each, tensors in (groups or {}).items()),
        organisation_cap=organisation_cap,
        discounts=_discounts(mode, staleness),
        cohort=_cohort(cohort or {}),
        evaluation=_evaluation(evaluation or {}),
        goal=_goal(goal or {}),
    )
    try:
        encode(rules)
    except CodecError as error:
        raise BadInput("BAD_RULES", f"The rules cannot be written: {error}.", "Check this value.") from None
    # Zeros need no bytes, however many there are.
    return Draft(rules, b"" if initial == zero_model_cid(schema) else blob)


def _schema(model: Arrays, frozen: Sequence[str], local: Sequence[str]) -> Schema:
    unknown = {*frozen, *local} - model.keys()
    if unknown:
        raise BadInput(
            "UNKNOWN_TENSOR", f"The model has no tensor {', '.join(sorted(unknown))}.", "Check `frozen` and `local`."
        )
    roles = dict.fromkeys(frozen, FROZEN) | dict.fromkeys(local, LOCAL)
    return Schema(tuple(_spec(each, np.asarray(array), roles.get(each, AVERAGED)) for each, array in model.items()))


def _minimum(given: int | float | None, target: int) -> int:
    """A float is a share of the target, rounded up."""
    if given is None:
        return target
    if isinstance(given, int):
        return given
    if not 0 < given <= 1:
        raise BadInput("BAD_RULES", f"The minimum {given} is no share of the target.", "Give 0.8, or a number as 8.")
    return max(1, math.ceil(Decimal(repr(given)) * target))


def _ms(seconds: float) -> int:
    return _times(1000, seconds)


def _ppm(share: float) -> int:
    return _times(1_000_000, share)


def _times(scale: int, number: float) -> int:
    if not math.isfinite(number):
        raise BadInput("BAD_RULES", f"{number} is no span of time, no share and no metric.", "Give a finite number.")
    return round(number * scale)


def _discounts(mode: str, staleness: int | None) -> tuple[int, ...]:
    """An update weighs the less the older its base: as 1 / sqrt(1 + versions), in 1/1024."""
    if mode == SYNCHRONOUS:
        if staleness is not None:
            raise BadInput("BAD_RULES", "Only a job whose mode is async knows staleness.", "Leave it out.")
        return ()
    return tuple(math.isqrt(2**20 // (1 + old)) for old in range((STALENESS if staleness is None else staleness) + 1))


def _cohort(given: Table) -> CohortRules:
    check_table("cohort", given, {"size": int, "over": float, "check_in_s": float})
    return CohortRules(given.get("size", 0), _ppm(given.get("over", 0.0)), _ms(given.get("check_in_s", 0.0)))


def _evaluation(given: Table) -> EvaluationRules:
    if not given:
        return EvaluationRules()
    known = {"every": int, "cohort": int, "minimum": int, "deadline_s": float, "before_next": bool}
    check_table("evaluation", given, known | {"statistic": str, "metrics": list})
    return EvaluationRules(
        every=given.get("every", 1),
        cohort=given.get("cohort", 0),
        minimum=given.get("minimum", 1),
        deadline_ms=_ms(given.get("deadline_s", 600.0)),
        before_next=given.get("before_next", False),
        statistic=given.get("statistic", Statistic.MEDIAN.value),
        metrics=tuple(given.get("metrics", ())),
    )


def _goal(given: Table) -> Goal:
    check_table("goal", given, {"metric": str, "larger": bool, "stop_at": float})
    if not given:
        return Goal()
    stop_at = given.get("stop_at")
    value = 0 if stop_at is None else _times(MICRO, stop_at)
    return Goal(given.get("metric", ""), given.get("larger", True), stop_at is not None, value)


def check_table(name: str, given: Mapping[str, Any], known: Mapping[str, type]) -> None:
    """Raises BadInput for a key that is not known, with the one that was probably meant, and for a value of another
    type. A float may be written as an integer."""
    place = f" in [{name}]" if name else ""
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            advice = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(known)}."
            raise BadInput("UNKNOWN_KEY", f"There is no '{key}'{place}.", advice)
        wanted = known[key]
        if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
            continue
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            continue
        raise BadInput("WRONG_TYPE", f"'{key}'{place} is {value!r}.", f"Give {_KIND[wanted]}.")


_KIND = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a table"}


def _spec(name: str, array: NDArray[Any], role: str) -> TensorSpec:
    if role == AVERAGED:
        return TensorSpec(name, "F32", array.shape, AVERAGED)
    kind = _FROZEN_DTYPES.get(array.dtype.str)
    if kind is None:
        raise BadInput("BAD_MODEL", f"The {role} tensor {name!r} is of the dtype {array.dtype}.", "Convert it first.")
    return TensorSpec(name, kind, array.shape, role)


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
