"""Small updates as rows of one array: the same sums, records and refusals as of each alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chain.cid import LEAF_BYTES
from fl.aggregation import Aggregation, AggregationRules, Bundle, Update
from fl.errors import Refused
from fl.kernels.payloads import PAYLOADS, InRows
from fl.records import TensorGroup
from fl.rules import RULES
from fl.rules.rule import Streaming, written_settings
from fl.tensors.closing import payload_fingerprint, row_fingerprints
from fl.tensors.encodings import MEMBER_BYTES
from fl.tensors.model import build_model
from tests.fl.numbers.averaging import LOG_ROOT, averaged, closed, rules_of, updates_of
from tests.fl.numbers.builders import ROUND, SMALL, WIDE, form_of, random_model

EACH = pytest.mark.parametrize("encoding", sorted(PAYLOADS))
SETTINGS: dict[str, dict[str, int | float]] = {
    "bulyan": {"faulty": 1},
    "clipped_mean": {"norm": 0.5},
    "krum": {"faulty": 1},
    "multi_krum": {"faulty": 1, "chosen": 3},
    "trimmed_mean": {"share": 10},
}


def bundle_of(updates: list[Update], payloads: bytes = b"") -> Bundle:
    rows = np.frombuffer(payloads or b"".join(bytes(each.payload) for each in updates), np.uint8)
    return Bundle(
        [each.index for each in updates],
        ROUND,
        b"".join(each.member for each in updates),
        [each.weight for each in updates],
        updates[0].group,
        rows.reshape(len(updates), -1),
    )


@EACH
@pytest.mark.parametrize("sizes", [(9,), (1, 8), (4, 1, 4), (2, 7)])
def test_updates_in_rows_give_what_they_give_alone(encoding: str, sizes: tuple[int, ...]) -> None:
    for schema in (SMALL, WIDE):
        rules = rules_of(schema, encoding)
        updates = updates_of(rules, 9)[::-1]
        base = build_model(schema, random_model(schema, 1))
        aggregation, start = Aggregation(rules), 0
        for size in sizes:
            aggregation.add_rows(bundle_of(updates[start : start + size]))
            start += size
        assert aggregation.count == 9
        assert closed(aggregation.finish(LOG_ROOT, base), base) == averaged(rules, updates, base)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_takes_them(rule: str) -> None:
    of = RULES[rule]
    written = written_settings(of, SETTINGS.get(rule, {}))
    rules = rules_of(SMALL, "q8", cap=1000 if of.weighted else 1, rule=rule, settings=written)
    updates = updates_of(rules, 8)
    base = build_model(SMALL, random_model(SMALL, 2))
    aggregation = Aggregation(rules)
    aggregation.add_rows(bundle_of(updates[:5]))
    aggregation.add(*updates[5:])
    assert closed(aggregation.finish(LOG_ROOT, base), base) == averaged(rules, updates, base)


def test_rows_are_of_the_group_that_they_name() -> None:
    groups = (TensorGroup("first", ("layer.bias",)), TensorGroup("second", ("layer.weight",)))
    rules = rules_of(SMALL, "f32", groups=groups)
    updates = updates_of(rules, 6)
    base = build_model(SMALL, random_model(SMALL, 3))
    aggregation = Aggregation(rules)
    for group in (1, 0):
        aggregation.add_rows(bundle_of([each for each in updates if each.group == group]))
    assert closed(aggregation.finish(LOG_ROOT, base), base) == averaged(rules, updates, base)


@EACH
def test_rows_that_begin_anywhere_in_memory_give_the_same_sums(encoding: str) -> None:
    rules = rules_of(SMALL, encoding)
    form, updates = form_of(SMALL, encoding), updates_of(rules, 5)
    data = b"".join(bytes(each.payload) for each in updates)
    offset, found = len(data) // 5 - form.data_bytes, []
    for moved in range(4):
        rows = np.frombuffer(bytes(moved) + data, np.uint8)[moved:].reshape(5, -1)
        sums = np.zeros(form.layout.parameters, np.int64)
        PAYLOADS[encoding](form, InRows(rows, offset)).sum(sums, np.full(5, 2.0**20), 0, 1, False)
        found.append(sums.tolist())
    assert found[0] == found[1] == found[2] == found[3] and any(found[0])


def test_fingerprints_of_rows_are_those_of_payloads() -> None:
    draw = np.random.default_rng(4)
    for size in (20, 1_000, LEAF_BYTES):
        rows = draw.integers(0, 256, (3, size), np.uint8)
        assert row_fingerprints(rows, 12) == [payload_fingerprint(row.tobytes(), 12) for row in rows]
    with pytest.raises(AssertionError):
        row_fingerprints(np.zeros((1, LEAF_BYTES + 1), np.uint8), 12)


def refused(rules: AggregationRules, bundle: Bundle) -> str:
    aggregation = Aggregation(rules)
    with pytest.raises(Refused) as refusal:
        aggregation.add_rows(bundle)
    assert aggregation.count == 0
    return refusal.value.code


def test_a_row_made_for_another_place_is_refused_and_leaves_no_trace() -> None:
    rules = rules_of(SMALL, "q8")
    updates = updates_of(rules, 4)
    good = bundle_of(updates)
    for each in range(4):
        members = bytearray(good.members)
        members[each * MEMBER_BYTES + 31] ^= 1
        assert refused(rules, replace(good, members=bytes(members))) == "WRONG_HEADER"
    assert refused(rules, replace(good, round=ROUND + 1)) == "WRONG_HEADER"
    assert refused(replace(rules, job=bytes([7]) * 32), good) == "WRONG_HEADER"
    whole = b"".join(bytes(each.payload) + b"\0" for each in updates)
    assert refused(rules, bundle_of(updates, whole)) == "OVERSIZE"
    cut = b"".join(bytes(each.payload)[:-1] for each in updates)
    assert refused(rules, bundle_of(updates, cut)) == "WRONG_HEADER"
    header = b"".join(bytes(each.payload)[:5] for each in updates)
    assert refused(rules, bundle_of(updates, header)) == "WRONG_HEADER"


@EACH
def test_a_row_with_a_value_beyond_the_proven_bound_spoils_the_sums_loudly(encoding: str) -> None:
    narrow, wide = rules_of(SMALL, encoding, range_bits=2), rules_of(SMALL, encoding, range_bits=12)
    updates = [*updates_of(narrow, 3, 0.01), *updates_of(wide, 4, 40.0)[3:]]
    aggregation = Aggregation(narrow)
    with pytest.raises(Refused) as refusal:
        aggregation.add_rows(bundle_of(updates))
    assert refusal.value.code == "OUT_OF_RANGE"
    with pytest.raises(ValueError, match="spoilt"):
        aggregation.add_rows(bundle_of(updates[:1]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": [1, 0]}, "weight"),
        ({"weights": [1, 1001]}, "weight"),
        ({"indices": [1, 1]}, "twice"),
        ({"indices": [0, 1]}, "twice"),
        ({"group": 1}, "group"),
    ],
)
def test_rows_that_the_log_cannot_hold_are_an_error(change: dict[str, Any], match: str) -> None:
    rules = rules_of(SMALL, "f32", updates=3)
    updates = updates_of(rules, 4)
    aggregation = Aggregation(rules)
    aggregation.add(updates[0])
    with pytest.raises(ValueError, match=match):
        aggregation.add_rows(replace(bundle_of(updates[1:3]), **change))
    with pytest.raises(ValueError, match="more updates"):
        aggregation.add_rows(bundle_of(updates[1:]))
    assert aggregation.count == 1


def test_a_streaming_rule_holds_no_payload_of_them() -> None:
    rules = rules_of(SMALL, "q8")
    assert isinstance(RULES[rules.rules.rule], Streaming)
    aggregation = Aggregation(rules)
    aggregation.add_rows(bundle_of(updates_of(rules, 4)))
    assert not aggregation._held
