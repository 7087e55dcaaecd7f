"""Rounds of the rules that compare updates, and a script: it prints the digests of what they give.

python -m tests.fl.numbers.comparing
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fl.aggregation import AggregationRules, Update
from fl.kernels.golden import check_golden
from fl.kernels.payloads import PAYLOADS
from fl.rules import rule_of
from fl.rules.rule import DENSE, written_settings
from fl.tensors.layout import Schema
from fl.tensors.model import build_model
from tests.fl.numbers import oracles
from tests.fl.numbers.averaging import averaged, rules_of, updates_of
from tests.fl.numbers.builders import SMALL, flat_schema, random_model

ENCODINGS = sorted(DENSE & PAYLOADS.keys())
LONG = flat_schema(1100)
"""More than one strip of a kernel."""


@dataclass(frozen=True)
class Case:
    rule: str
    settings: dict[str, int]
    counts: tuple[int, ...]
    expected: Callable[[Sequence[oracles.Column], int], list[oracles.Mean]]
    """From the values of each update and G0: the sums and the denominator of each coordinate."""
    scored: bool = False

    def rules(self, schema: Schema, encoding: str, **others: Any) -> AggregationRules:
        settings = written_settings(rule_of(self.rule), self.settings)
        return rules_of(schema, encoding, cap=1, rule=self.rule, settings=settings, **others)


def by_column(
    rule: Callable[[oracles.Column, int], oracles.Mean],
) -> Callable[[Sequence[oracles.Column], int], list[oracles.Mean]]:
    return lambda rows, bits: [rule(column, bits) for column in zip(*rows, strict=True)]


def of_best(rows: Sequence[oracles.Column], faulty: int, chosen: int, bits: int) -> list[oracles.Mean]:
    kept = [rows[position] for position in oracles.best(rows, faulty, bits)[:chosen]]
    return [(sum(oracles.on_grid(column, bits)), chosen * 2**bits) for column in zip(*kept, strict=True)]


CASES = {
    "median": Case("median", {}, (1, 2, 3, 8, 9), by_column(oracles.median)),
    "trimmed fifth": Case(
        "trimmed_mean",
        {"share": 20},
        (5, 9, 10),
        by_column(lambda column, bits: oracles.trimmed_mean(column, Fraction(1, 5), bits)),
    ),
    "trimmed third": Case(
        "trimmed_mean",
        {"share": 1, "of": 3},
        (3, 8, 9),
        by_column(lambda column, bits: oracles.trimmed_mean(column, Fraction(1, 3), bits)),
    ),
    "untrimmed": Case(
        "trimmed_mean",
        {"share": 0},
        (1, 7),
        by_column(lambda column, bits: oracles.trimmed_mean(column, Fraction(0), bits)),
    ),
    "krum": Case("krum", {"faulty": 2}, (7, 10), lambda rows, bits: of_best(rows, 2, 1, bits), True),
    "krum of the faultless": Case("krum", {"faulty": 0}, (3, 4), lambda rows, bits: of_best(rows, 0, 1, bits), True),
    "multi_krum": Case(
        "multi_krum", {"faulty": 2, "chosen": 5}, (7, 11), lambda rows, bits: of_best(rows, 2, 5, bits), True
    ),
    "bulyan": Case("bulyan", {"faulty": 2}, (11, 13), lambda rows, bits: oracles.bulyan(rows, 2, bits), True),
    "bulyan of the faultless": Case(
        "bulyan", {"faulty": 0}, (3, 5), lambda rows, bits: oracles.bulyan(rows, 0, bits), True
    ),
}


def some_updates(rules: AggregationRules, count: int) -> list[Update]:
    """The last as large as may be."""
    return [*updates_of(rules, count - 1), *updates_of(rules, count, 5.0)[count - 1 :]]


def digests() -> list[str]:
    lines = []
    for name, case in CASES.items():
        for encoding in ENCODINGS:
            for shape, schema, count in (("small", SMALL, case.counts[-1]), ("long", LONG, case.counts[0])):
                rules = case.rules(schema, encoding)
                base = build_model(schema, random_model(schema, 1))
                made = averaged(rules, some_updates(rules, count), base)
                model, record = (hashlib.sha256(blob).hexdigest() for blob in (made.model, made.outcome.record))
                lines.append(f"{name} {encoding} {shape} {model} {record}")
    return lines


if __name__ == "__main__":
    check_golden()
    print("\n".join(digests()))
