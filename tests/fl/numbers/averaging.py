"""Rounds that several tests average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.unixfs import cid_of
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Closing, Spread, Update, in_turn
from fl.errors import Refused
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import Bytes, Schema
from fl.updates import form_of, groups_of, schema_of
from tests.fl.builders import make_rules
from tests.fl.numbers.builders import JOB, ROUND, random_tensors

LOG_ROOT = bytes(32)


def rules_of(
    schema: Schema, encoding: str, range_bits: int = 8, cap: int = 1000, updates: int = 128, **others: Any
) -> AggregationRules:
    rules = make_rules(
        schema=schema,
        encoding=encoding,
        range_bits=range_bits,
        weights="equal" if cap == 1 else "examples",
        cap=cap,
        minimum=1,
        target=1,
        maximum=updates,
        **others,
    )
    return AggregationRules(JOB, ROUND, rules, 1)


def member_of(index: int) -> bytes:
    return bytes([index % 256]) * 32


def update_of(
    rules: AggregationRules, index: int, weight: int, delta: Mapping[str, NDArray[Any]], group: int = 0
) -> Update:
    form = form_of(rules.rules, group)
    place = Place(rules.job, rules.round, member_of(index))
    payload = encode_update(form, place, delta)
    return with_payload(index, weight, payload, len(form.header(place)), group)


def with_payload(index: int, weight: int, payload: Bytes, offset: int, group: int = 0) -> Update:
    return Update(index, ROUND, member_of(index), weight, group, payload, payload_fingerprint(payload, offset))


def updates_of(rules: AggregationRules, count: int, scale: float = 1.0) -> list[Update]:
    """Over the groups of the job in turn."""
    draw = np.random.default_rng(99)
    weights = draw.integers(1, rules.rules.cap + 1, count)
    made = []
    for index in range(count):
        group = index % groups_of(rules.rules)
        delta = random_tensors(schema_of(rules.rules, group), index, scale)
        made.append(update_of(rules, index, int(weights[index]), delta, group))
    return made


@dataclass(frozen=True)
class Averaged:
    outcome: AggregationOutcome
    model: bytes
    """Empty if the round failed."""
    moments: bytes
    """Empty if the rule has none."""


def closed(closing: Closing, base: Bytes) -> Averaged:
    """As a node does it: what was written of a model that leaves the range is discarded."""
    base_cid = cid_of(base)
    moments = None
    try:
        if (chunks := closing.moments()) is not None:
            moments = b"".join(chunks)
        model = b"".join(closing.model(moments))
    except Refused as refused:
        return Averaged(closing.failed(refused.code, base_cid), b"", b"")
    optimizer_cid = b"" if moments is None else cid_of(moments)
    return Averaged(closing.closed(cid_of(model), base_cid, optimizer_cid), model, moments or b"")


def averaged(
    rules: AggregationRules,
    updates: Sequence[Update],
    base: Bytes,
    spread: Spread = in_turn,
    at_once: int = 1,
    moments: Bytes | None = None,
) -> Averaged:
    aggregation = Aggregation(rules, spread)
    for start in range(0, len(updates), at_once):
        aggregation.add(*updates[start : start + at_once])
    return closed(aggregation.finish(LOG_ROOT, base, moments), base)
