"""A job of every rule, with settings under which a small round means something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fl.aggregation import AggregationRules, Update
from fl.records import TensorGroup
from fl.rules import RULES
from fl.rules.rule import Settings, written_settings
from fl.tensors.layout import Schema
from fl.updates import groups_of, schema_of
from tests.fl.numbers.averaging import rules_of, update_of
from tests.fl.numbers.builders import SMALL, random_tensors

GIVEN: Mapping[str, Settings] = {
    "fedavg": {},
    "fedavgm": {"momentum": 0.7, "learning_rate": 0.9},
    "fedadagrad": {"beta_1": 0.1},
    "fedadam": {},
    "fedyogi": {},
    "clipped_mean": {"norm": 1.5},
    "median": {},
    "trimmed_mean": {"share": 1, "of": 5},
    "krum": {"faulty": 2},
    "multi_krum": {"faulty": 2, "chosen": 3},
    "bulyan": {"faulty": 1},
}
COUNT = 9
GROUPS = (TensorGroup("bias", ("layer.bias",)), TensorGroup("weight", ("layer.weight",)))
WIDE_GROUPS = (TensorGroup("outer", ("a", "c/2", "d")), TensorGroup("inner", ("b", "c/1")))


def job_of(
    rule: str,
    encoding: str,
    schema: Schema = SMALL,
    groups: Sequence[TensorGroup] = (),
    cap: int = 1000,
    range_bits: int = 8,
    updates: int = 128,
) -> AggregationRules:
    made = RULES[rule]
    return rules_of(
        schema,
        encoding,
        range_bits,
        cap if made.weighted else 1,
        updates,
        rule=rule,
        settings=written_settings(made, GIVEN[rule]),
        groups=tuple(groups),
        share_ppm=200_000 if encoding == "topk" else 0,
    )


def combinations() -> Iterable[tuple[str, str, bool]]:
    for name, rule in sorted(RULES.items()):
        for encoding in sorted(rule.encodings):
            yield name, encoding, False
            if rule.groups:
                yield name, encoding, True


def drawn(rules: AggregationRules, count: int, seed: int) -> list[Update]:
    """Over the groups of the job in turn."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(count):
        group = index % groups_of(rules.rules)
        delta = random_tensors(schema_of(rules.rules, group), seed + index, 0.5)
        made.append(update_of(rules, index, int(draw.integers(1, rules.rules.cap + 1)), delta, group))
    return made
