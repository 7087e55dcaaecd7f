"""Every rule through the whole aggregation: equal to its oracle bit for bit, whatever happens around it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import decode
from fl.rules import RULES
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord
from fl.tensors.model import build_model, check_model
from tests.fl.numbers.averaging import averaged
from tests.fl.numbers.builders import SMALL, random_model
from tests.fl.numbers.expected import expected_of, found_in
from tests.fl.numbers.jobs import COUNT, GIVEN, GROUPS, combinations, drawn, job_of

EVERY_RULE = pytest.mark.parametrize("rule", sorted(RULES))


def test_no_rule_is_left_out() -> None:
    assert GIVEN.keys() == RULES.keys()


@pytest.mark.parametrize(("rule", "encoding", "grouped"), list(combinations()))
def test_three_rounds_equal_the_oracle_bit_for_bit(rule: str, encoding: str, grouped: bool) -> None:
    rules = job_of(rule, encoding, groups=GROUPS if grouped else ())
    model, moments = build_model(SMALL, random_model(SMALL, 1)), b""
    for step in (1, 2, 3):
        rules = replace(rules, step=step)
        updates = drawn(rules, COUNT, 100 * step)
        made = averaged(rules, updates, model, at_once=4, moments=moments or None)
        expected = expected_of(rules, updates, model, moments)
        assert made.outcome.ok
        assert found_in(rules, made.model, made.moments) == (expected.model, expected.moments)
        record = decode(ClosingRecord, made.outcome.record, MAX_CLOSING_BYTES)
        assert record.denominators == expected.denominators and record.rule == rule
        assert bool(record.optimizer) == bool(RULES[rule].moments) == bool(made.moments)
        check_model(SMALL, made.model)
        model, moments = made.model, made.moments
