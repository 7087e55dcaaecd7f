"""What a job may ask for, what goes with what, and that each refusal says why."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.genesis import Params
from fl.errors import Refused
from fl.jobrules import check_rules, grid_of
from fl.phases import phase_after, phases_of
from fl.records import CohortRules, ConfigEntry, JobRules, RuleSetting, TensorGroup
from fl.tensors.encodings import ENCODINGS
from fl.tensors.grid import MAX_UPDATES
from fl.tensors.layout import AVERAGED, Schema, TensorSpec, layout_of
from fl.weights import weight_of
from tests.fl.builders import SCHEMA, make_rules

DISCOUNTS = tuple(isqrt(2**20 // (1 + age)) for age in range(4))
HALVES = (TensorGroup("head", ("bias",)), TensorGroup("trunk", ("weight",)))


def refusal(rules: JobRules) -> Refused | None:
    try:
        check_rules(rules, Params())
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "a job"}, "BAD_NAME"),
        ({"rule": "by-vote"}, "NOT_SUPPORTED"),
        ({"mode": "whenever"}, "NOT_SUPPORTED"),
        ({"encoding": "json"}, "NOT_SUPPORTED"),
        ({"privacy": "none"}, "NOT_SUPPORTED"),
        ({"weights": "by-luck"}, "NOT_SUPPORTED"),
        ({"privacy": "secagg"}, "PRIVACY_NOT_OFFERED"),
        ({"privacy": "secagg", "encoding": "ring32"}, "PRIVACY_NOT_OFFERED"),
        ({"privacy": "sealed"}, "PRIVACY_NOT_OFFERED"),
        ({"encoding": "ring32"}, "PRIVACY_NOT_OFFERED"),
        ({"weights": "equal", "cap": 2}, "BAD_RULES"),
        ({"organisation_cap": 8}, "BAD_RULES"),
        ({"share_ppm": 1}, "BAD_RULES"),
        ({"encoding": "topk", "share_ppm": 10**6 + 1}, "BAD_RULES"),
        ({"cohort": CohortRules(check_in_ms=2**40)}, "BAD_RULES"),
        ({"cohort": CohortRules(over_ppm=1)}, "BAD_RULES"),
        ({"cohort": CohortRules(size=3)}, "BAD_RULES"),
        ({"cohort": CohortRules(size=MAX_UPDATES, over_ppm=1)}, "BAD_RULES"),
        ({"mode": "async"}, "BAD_RULES"),
        ({"discounts": DISCOUNTS}, "BAD_RULES"),
        ({"mode": "async", "discounts": (1024, 0)}, "BAD_RULES"),
        ({"mode": "async", "discounts": (1025,)}, "BAD_RULES"),
        ({"mode": "async", "discounts": (512, 1024)}, "BAD_RULES"),
        ({"mode": "async", "discounts": DISCOUNTS, "cohort": CohortRules(size=4)}, "BAD_RULES"),
        ({"mode": "async", "discounts": DISCOUNTS, "cohort": CohortRules(check_in_ms=1)}, "BAD_RULES"),
        ({"groups": HALVES[:1]}, "BAD_GROUPS"),
        ({"groups": HALVES[::-1]}, "BAD_GROUPS"),
        ({"groups": (*HALVES, TensorGroup("whole", ("bias", "weight")))}, "BAD_GROUPS"),
        ({"groups": (*HALVES, TensorGroup("x", ("unknown",)))}, "BAD_GROUPS"),
        ({"groups": (TensorGroup("all", ("weight", "bias")),)}, "BAD_GROUPS"),
        ({"groups": (TensorGroup("all", ("bias", "bias", "weight")),)}, "BAD_GROUPS"),
        ({"groups": (TensorGroup("my head", ("bias",)), HALVES[1])}, "BAD_GROUPS"),
        ({"weights": "examples", "cap": 2**20 + 1}, "BAD_RULES"),
        ({"weights": "examples", "cap": 0}, "BAD_RULES"),
        ({"range_bits": 25}, "BAD_RULES"),
        ({"maximum": 2**17 + 1}, "BAD_RULES"),
        ({"minimum": 0}, "BAD_RULES"),
        ({"minimum": 5}, "BAD_RULES"),
        ({"target": 17}, "BAD_RULES"),
        ({"deadline_ms": 0}, "BAD_RULES"),
        ({"grace_ms": 2**40}, "BAD_RULES"),
        ({"rounds": 0}, "BAD_RULES"),
        ({"max_failed": 0}, "BAD_RULES"),
        ({"metrics": ("loss", "loss")}, "BAD_RULES"),
        ({"metrics": ("the loss",)}, "BAD_RULES"),
        ({"app_digest": b"short"}, "BAD_RULES"),
        ({"config": (ConfigEntry("lr", 1, "float", "1"),)}, "BAD_CONFIG"),
        ({"config": (ConfigEntry("lr", 1, "integer", "007"),)}, "BAD_CONFIG"),
        ({"config": (ConfigEntry("lr", 1, "integer", str(2**63)),)}, "BAD_CONFIG"),
        ({"config": (ConfigEntry("lr", 1, "decimal", "0.1"), ConfigEntry("lr", 1, "decimal", "0.2"))}, "BAD_CONFIG"),
        ({"config": (ConfigEntry("z", 1, "string", ""), ConfigEntry("a", 1, "string", ""))}, "BAD_CONFIG"),
        ({"schema": Schema((TensorSpec("w", "F32", (2**27 + 1,), "averaged"),)), "initial": bytes(36)}, "BAD_SCHEMA"),
    ],
)
def test_rules_out_of_their_limits_are_refused(changes: dict[str, object], code: str) -> None:
    refused = refusal(make_rules(**changes))
    assert refused is not None and (refused.code, len(refused.sentence) > 20) == (code, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort": CohortRules(size=3, over_ppm=300_000), "target": 4},
        {"cohort": CohortRules(check_in_ms=5_000)},
        {"cohort": CohortRules(size=4, check_in_ms=5_000)},
        {"mode": "async", "discounts": DISCOUNTS},
        {"mode": "async", "discounts": DISCOUNTS, "cap": 1024},
        {
            "mode": "async",
            "discounts": DISCOUNTS,
            "weights": "examples",
            "cap": 2**20,
            "encoding": "topk",
            "share_ppm": 9,
        },
        {"groups": HALVES, "encoding": "q8"},
        {"groups": (TensorGroup("all", ("bias", "weight")),)},
        {"organisation_cap": 100, "cap": 50},
        {"organisation_cap": 100, "cap": 50, "weights": "dataset"},
    ],
)
def test_what_goes_together_is_taken(changes: dict[str, object]) -> None:
    assert refusal(make_rules(**changes)) is None


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "async", "discounts": DISCOUNTS},
        {"weights": "examples", "cap": 100},
        {"encoding": "topk", "share_ppm": 1_000},
        {"groups": HALVES},
        {"minimum": 1},
    ],
)
def test_rules_that_compare_updates_go_with_enough_whole_ones_of_one_model(
    name: str, changes: dict[str, object]
) -> None:
    chosen = (RuleSetting("chosen", 2),) if name == "multi_krum" else ()
    rules = make_rules(rule=name, minimum=16, target=16, settings=(*chosen, RuleSetting("faulty", 3)))
    assert refusal(rules) is None
    refused = refusal(replace(rules, **changes))
    assert refused is not None and refused.code == "BAD_RULES" and name in refused.sentence


def test_an_averaged_tensor_must_be_in_a_group_and_a_frozen_one_must_not() -> None:
    frozen = TensorSpec("steps", "I64", (), "frozen")
    schema = Schema((*SCHEMA.tensors, frozen))
    assert refusal(make_rules(schema=schema, groups=HALVES)) is None
    refused = refusal(make_rules(schema=schema, groups=(*HALVES, TensorGroup("x", ("steps",)))))
    assert refused is not None and "steps" in refused.sentence


# Phases


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "COLLECTING AGGREGATING"),
        ({"cohort": CohortRules(size=4)}, "DRAWING COLLECTING AGGREGATING"),
        ({"cohort": CohortRules(check_in_ms=1)}, "CHECK_IN COLLECTING AGGREGATING"),
        ({"cohort": CohortRules(4, 0, 1)}, "CHECK_IN DRAWING COLLECTING AGGREGATING"),
        ({"privacy": "sealed"}, "COLLECTING REVEALING AGGREGATING"),
        ({"privacy": "secagg"}, "KEYS SHARES COLLECTING UNMASKING AGGREGATING"),
    ],
)
def test_a_round_goes_through_the_phases_that_its_job_asks_for(changes: dict[str, object], expected: str) -> None:
    rules = make_rules(**changes)
    phases = phases_of(rules)
    assert [each.name for each in phases] == expected.split()
    assert [phase_after(rules, each) for each in phases[:-1]] == list(phases[1:])


# Weights


@settings(deadline=None)
@given(
    st.sampled_from(["equal", "examples", "dataset"]),
    st.integers(1, 2**20),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 1024), max_size=65),
    st.integers(1, 2**32),
    st.integers(0, 2**32),
    st.integers(1, MAX_UPDATES),
    st.integers(0, 64),
)
def test_no_weight_is_above_the_cap_and_no_organisations_above_its_own(
    basis: str, cap: int, together: int, discounts: list[int], examples: int, declared: int, colleagues: int, age: int
) -> None:
    discounts.sort(reverse=True)
    rules = make_rules(weights=basis, cap=cap, organisation_cap=together, discounts=tuple(discounts))
    age = min(age, max(0, len(discounts) - 1))
    weight = weight_of(rules, examples, declared, colleagues, age)
    assert 0 <= weight <= cap
    if together:
        assert weight * colleagues <= together
    fresh = weight_of(replace(rules, discounts=()), examples, declared, colleagues, 0)
    assert weight == (max(1, fresh * discounts[age] >> 10) if discounts and fresh else fresh)


def test_a_round_of_the_heaviest_updates_fits_its_record() -> None:
    """Weights, examples and metrics are unsigned, 64 bits wide; sums of products are of 128 bits."""
    rules = make_rules(weights="examples", cap=2**20, maximum=MAX_UPDATES)
    assert MAX_UPDATES * weight_of(rules, 2**32, 0, 1, 0) == 2**37
    assert MAX_UPDATES * 2**32 < 2**64
    assert MAX_UPDATES * 2**32 * 2**63 < 2**127
    assert grid_of(rules).denominator(2**37) <= 2**62


@pytest.mark.parametrize("encoding", sorted(ENCODINGS.keys() - {"ring32"}))
def test_rules_are_checked_without_making_what_grows_with_the_model(encoding: str) -> None:
    schema = Schema((TensorSpec(f"largest.{encoding}", "F32", (2**27,), AVERAGED),))
    check_rules(make_rules(schema=schema, encoding=encoding), Params())
    assert "_cuts" not in vars(layout_of(schema))
