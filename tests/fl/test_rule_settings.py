"""What a job may ask of its rule: settings within their limits, and nothing that does not go together."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from chain.codec import encode
from fl.errors import Refused
from fl.records import RuleSetting, TensorGroup
from fl.rules import RULES, check_rule, rule_of
from fl.rules.rule import Settings, settings_of, written_settings
from fl.tensors.closing import (
    CLOSING_VERSION,
    MAX_CLOSING_BYTES,
    MAX_GROUPS,
    MAX_SCORED,
    SCORE_BYTES,
    ClosingRecord,
    score_bytes,
)
from fl.tensors.grid import MAX_UPDATES, MAX_WEIGHT_CAP
from tests.fl.builders import make_rules
from tests.fl.numbers.jobs import GIVEN


def real(value: float) -> int:
    return int.from_bytes(struct.pack(">d", value), "big")


def refused(**changes: Any) -> str:
    with pytest.raises(Refused) as refusal:
        check_rule(make_rules(**changes))
    assert refusal.value.code in ("BAD_RULES", "NOT_SUPPORTED")
    return str(refusal.value)


@pytest.mark.parametrize("name", sorted(RULES))
def test_settings_are_read_as_they_were_written(name: str) -> None:
    rule = RULES[name]
    assert [each.name for each in rule.settings] == sorted(each.name for each in rule.settings)
    assert list(rule.moments) == sorted(rule.moments)
    written = written_settings(rule, GIVEN[name])
    read = settings_of(rule, written)
    assert {**{each.name: each.default for each in rule.settings}, **GIVEN[name]} == read
    check_rule(make_rules(rule=name, settings=written, target=12, minimum=11, maximum=16))


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_setting_has_limits_that_hold(name: str) -> None:
    rule = RULES[name]
    for setting in rule.settings:
        for inside in (setting.low, setting.high):
            assert setting.read(setting.written(inside).value) == inside
        for outside in (setting.low - 1, setting.high + 1):
            with pytest.raises(Refused, match="BAD_RULES"):
                setting.written(outside)


@pytest.mark.parametrize("bits", [real(float("nan")), real(float("inf")), real(-0.5), real(1.0), 2**64 - 1])
def test_a_real_setting_is_a_number_within_its_limits(bits: int) -> None:
    assert "momentum" in refused(rule="fedavgm", settings=(RuleSetting("momentum", bits),))


@pytest.mark.parametrize("given", [{"momentum": float("nan")}, {"momentum": float("inf")}, {"speed": 1}])
def test_a_setting_that_cannot_be_read_is_not_written(given: Settings) -> None:
    with pytest.raises(Refused, match="BAD_RULES"):
        written_settings(RULES["fedavgm"], given)
    for wrong in (1.0, True, -1, 2**64):
        with pytest.raises(Refused, match="BAD_RULES"):
            written_settings(RULES["krum"], {"faulty": wrong})


def test_both_zeros_are_written_alike() -> None:
    rule = RULES["fedavgm"]
    assert written_settings(rule, {"momentum": -0.0}) == written_settings(rule, {"momentum": 0.0})


def test_settings_are_known_sorted_and_complete() -> None:
    rate, momentum = RuleSetting("learning_rate", real(1.0)), RuleSetting("momentum", real(0.5))
    check_rule(make_rules(rule="fedavgm", settings=(rate, momentum)))
    assert "sorted" in refused(rule="fedavgm", settings=(momentum, rate))
    assert "once" in refused(rule="fedavgm", settings=(rate, rate))
    assert "no setting 'momentum'" in refused(rule="fedavg", settings=(momentum,))
    assert "needs the setting norm" in refused(rule="clipped_mean")


def test_what_does_not_go_together_is_refused() -> None:
    groups = (TensorGroup("all", tuple(each.name for each in make_rules().schema.tensors)),)
    assert "offered" in refused(rule="best")
    assert "encodings" in refused(rule="median", encoding="topk")
    assert "weights" in refused(rule="median", weights="examples", cap=10)
    assert "groups" in refused(rule="median", groups=groups)
    assert "rounds" in refused(rule="krum", discounts=(1024,), settings=(RuleSetting("faulty", 0),), minimum=3)
    assert "at most" in refused(rule="median", maximum=5000)
    assert "minimum" in refused(rule="krum", settings=(RuleSetting("faulty", 2),), minimum=6, target=7)
    assert "step of the grid" in refused(
        rule="clipped_mean", settings=written_settings(RULES["clipped_mean"], {"norm": 2.0**-40}), range_bits=24
    )


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="'mean'"):
        rule_of("mean")


def test_the_largest_closing_record_fits_its_bound() -> None:
    half = MAX_UPDATES // 2
    record = ClosingRecord(
        version=CLOSING_VERSION,
        rule="r" * 32,
        kernel_version=2**16 - 1,
        job=bytes(32),
        round=2**64 - 1,
        log_root=bytes(32),
        ok=False,
        code="C" * 32,
        base=bytes(36),
        model=bytes(36),
        optimizer=bytes(36),
        denominators=(2**64 - 1,) * MAX_GROUPS,
        weights=(MAX_WEIGHT_CAP,) * MAX_UPDATES,
        scores=(score_bytes(2 ** (8 * SCORE_BYTES) - 1),) * MAX_SCORED,
        copies=tuple((each, each + half) for each in range(half)),
    )
    assert MAX_CLOSING_BYTES - 200_000 < len(encode(record)) <= MAX_CLOSING_BYTES
    assert len(encode(replace(record, copies=(tuple(range(MAX_UPDATES)),)))) <= MAX_CLOSING_BYTES


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_that_gives_scores_takes_no_more_updates_than_the_record_holds(rule: str) -> None:
    assert RULES[rule].most <= (MAX_SCORED if RULES[rule].all_at_once else MAX_UPDATES)
