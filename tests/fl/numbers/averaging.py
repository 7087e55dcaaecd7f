"""Rounds that several tests average, and a script: it prints the digests of what they give.

python -m tests.fl.numbers.averaging
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chain.unixfs import cid_of
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Closing, Spread, Update, in_turn
from fl.errors import Refused
from fl.kernels.golden import check_golden
from fl.tensors.encodings import Place, encode_update
from fl.tensors.grid import Grid
from fl.tensors.layout import Bytes, Schema
from fl.tensors.model import build_model
from tests.fl.numbers.builders import JOB, ROUND, SMALL, WIDE, form_of, random_model, random_tensors

LOG_ROOT = bytes(32)


def rules_of(
    schema: Schema, encoding: str, range_bits: int = 8, cap: int = 1000, updates: int = 128
) -> AggregationRules:
    return AggregationRules(JOB, ROUND, schema, encoding, Grid(range_bits, cap, updates))


def member_of(index: int) -> bytes:
    return bytes([index % 256]) * 32


def updates_of(rules: AggregationRules, count: int, scale: float = 1.0) -> list[Update]:
    draw = np.random.default_rng(99)
    form = form_of(rules.schema, rules.encoding, rules.grid.range_bits)
    weights = draw.integers(1, rules.grid.weight_cap + 1, count)
    return [
        Update(
            index,
            member_of(index),
            int(weights[index]),
            encode_update(
                form,
                Place(rules.job, rules.round, member_of(index)),
                random_tensors(rules.schema, index, scale),
            ),
        )
        for index in range(count)
    ]


@dataclass(frozen=True)
class Averaged:
    outcome: AggregationOutcome
    model: bytes
    """Empty if the round failed."""


def closed(closing: Closing, base: Bytes) -> Averaged:
    """As a node does it: what was written of a model that leaves the range is discarded."""
    base_cid = cid_of(base)
    try:
        model = b"".join(closing.model())
    except Refused as refused:
        return Averaged(closing.failed(refused.code, base_cid), b"")
    return Averaged(closing.closed(cid_of(model), base_cid), model)


def averaged(
    rules: AggregationRules, updates: Sequence[Update], base: Bytes, spread: Spread = in_turn, at_once: int = 1
) -> Averaged:
    aggregation = Aggregation(rules, spread)
    for start in range(0, len(updates), at_once):
        aggregation.add(*updates[start : start + at_once])
    return closed(aggregation.finish(LOG_ROOT, base), base)


def digests() -> list[str]:
    lines = []
    for name, schema in (("small", SMALL), ("wide", WIDE)):
        for encoding in ("f32", "q8"):
            rules = rules_of(schema, encoding)
            base = build_model(schema, random_model(schema, 1))
            made = averaged(rules, updates_of(rules, 6), base, at_once=5)
            assert made.outcome.ok
            model, record = (hashlib.sha256(blob).hexdigest() for blob in (made.model, made.outcome.record))
            lines.append(f"{name} {encoding} {model} {record}")
    return lines


if __name__ == "__main__":
    check_golden()
    print("\n".join(digests()))
