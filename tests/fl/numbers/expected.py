"""What a round of any rule must come to, by the oracles: from the bytes of its updates, of its base and its moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from safetensors import deserialize

from fl.aggregation import AggregationRules, Update
from fl.jobrules import grid_of
from fl.rules import rule_of
from fl.rules.rule import settings_of
from fl.tensors.encodings import Place, decode_update
from fl.tensors.layout import AVERAGED
from fl.updates import form_of, groups_of, schema_of
from tests.fl.numbers import oracle, oracles, oracles_moments

Values = dict[str, list[int]]
"""Bits by the name of a tensor."""
Row = list[Fraction]


@dataclass(frozen=True)
class Expected:
    model: Values
    moments: Values
    denominators: tuple[int, ...]
    totals: tuple[list[int], ...]
    """A of each group that some update changes."""


def expected_of(rules: AggregationRules, updates: Sequence[Update], base: bytes, moments: bytes = b"") -> Expected:
    """Averaged tensors, and `moment#tensor`."""
    model = _read(base, _averaged(rules))
    names = rule_of(rules.rules.rule).moments
    old = {f"{name}#{tensor}": [0] * len(bits) for name in names for tensor, bits in model.items()}
    if moments:
        old |= _read(moments, set(old))
    new_model, new_moments, denominators, sums = dict(model), dict(old), [], []
    for group in range(groups_of(rules.rules)):
        tensors = sorted(each.name for each in schema_of(rules.rules, group).tensors if each.role == AVERAGED)
        own = sorted((each for each in updates if each.group == group), key=lambda each: each.index)
        if not own:
            denominators.append(0)
            continue
        rows = [_row(rules, update, tensors) for update in own]
        totals, denominator = _sums(rules, rows, [each.weight for each in own])
        denominators.append(denominator)
        sums.append(totals)
        means = [oracles_moments.mean_of(total, denominator) for total in totals]
        for moment in names:
            before = _flat(old, [f"{moment}#{tensor}" for tensor in tensors])
            after = [_advanced(rules, moment, *each) for each in zip(before, means, strict=True)]
            _put(new_moments, [f"{moment}#{tensor}" for tensor in tensors], after)
        columns = [_flat(new_moments, [f"{moment}#{tensor}" for tensor in tensors]) for moment in names]
        moved = [
            _moved(rules, value, mean, kept)
            for value, mean, kept in zip(
                _flat(model, tensors), means, list(zip(*columns, strict=True)) or [()] * len(means), strict=True
            )
        ]
        _put(new_model, tensors, moved)
    return Expected(new_model, new_moments, tuple(denominators), tuple(sums))


def found_in(rules: AggregationRules, model: bytes, moments: bytes) -> tuple[Values, Values]:
    """The same, of what the product made."""
    names = {f"{moment}#{tensor}" for moment in rule_of(rules.rules.rule).moments for tensor in _averaged(rules)}
    return _read(model, _averaged(rules)), _read(moments, names) if moments else {}


def _read(blob: bytes, names: set[str]) -> Values:
    """By the safetensors package."""
    tensors = {name: tensor for name, tensor in deserialize(blob) if name in names}  # type: ignore[no-untyped-call]
    assert tensors.keys() == names and all(each["dtype"] == "F32" for each in tensors.values())
    return {name: np.frombuffer(each["data"], np.uint32).tolist() for name, each in tensors.items()}


def _averaged(rules: AggregationRules) -> set[str]:
    return {each.name for each in rules.rules.schema.tensors if each.role == AVERAGED}


def _row(rules: AggregationRules, update: Update, tensors: Sequence[str]) -> Row:
    place = Place(rules.job, update.round, update.member)
    decoded = decode_update(form_of(rules.rules, update.group), place, update.payload)
    return [oracle.from_bits(bits) for tensor in tensors for bits in decoded[tensor].view(np.uint32).ravel().tolist()]


def _flat(values: Mapping[str, list[int]], names: Sequence[str]) -> Row:
    return [oracle.from_bits(bits) for name in names for bits in values[name]]


def _put(values: Values, names: Sequence[str], row: Sequence[Fraction | None]) -> None:
    assert all(each is not None for each in row), "a case that stays within the range of F32"
    bits = [oracle.to_bits(each) for each in row if each is not None]
    for name in names:
        size = len(values[name])
        values[name], bits = bits[:size], bits[size:]
    assert not bits


def _settings(rules: AggregationRules) -> Mapping[str, Any]:
    return settings_of(rule_of(rules.rules.rule), rules.rules.settings)


def _sums(rules: AggregationRules, rows: Sequence[Row], weights: Sequence[int]) -> tuple[list[int], int]:
    grid, settings = grid_of(rules.rules), _settings(rules)
    bits = oracle.step_bits(grid.range_bits, 1, grid.max_updates)
    weighted = oracle.step_bits(grid.range_bits, grid.weight_cap, grid.max_updates)
    columns = list(zip(*rows, strict=True))
    match rules.rules.rule:
        case "median":
            return _same([oracles.median(column, bits) for column in columns])
        case "trimmed_mean":
            share = Fraction(settings["share"], settings["of"])
            return _same([oracles.trimmed_mean(column, share, bits) for column in columns])
        case "bulyan":
            return _same(oracles.bulyan(rows, settings["faulty"], bits))
        case "krum" | "multi_krum":
            chosen = oracles.best(rows, settings["faulty"], bits)[: settings.get("chosen", 1)]
            summed = [sum(oracle.steps(column[each], 1, bits) for each in chosen) for column in columns]
            return summed, len(chosen) << bits
        case "clipped_mean":
            norm = Fraction(settings["norm"])
            clipped = [
                oracles_moments.clipped(row, weight, norm, bits, weighted)
                for row, weight in zip(rows, weights, strict=True)
            ]
            return [sum(column) for column in zip(*clipped, strict=True)], sum(weights) << weighted
    totals = [
        sum(oracle.steps(value, weight, weighted) for value, weight in zip(column, weights, strict=True))
        for column in columns
    ]
    return totals, sum(weights) << weighted


def _same(means: Sequence[oracles.Mean]) -> tuple[list[int], int]:
    (denominator,) = {denominator for _, denominator in means}
    return [total for total, _ in means], denominator


def _advanced(rules: AggregationRules, moment: str, old: Fraction, mean: Fraction) -> Fraction | None:
    settings, one = _settings(rules), Fraction(1)
    match rules.rules.rule, moment:
        case "fedavgm", _:
            return oracles_moments.blend(old, mean, Fraction(settings["momentum"]), one)
        case _, "m":
            beta = Fraction(settings["beta_1"])
            return oracles_moments.blend(old, mean, beta, oracle.double(one - beta))
        case "fedadagrad", _:
            return oracles_moments.blend_squares(old, mean, one, one)
        case "fedadam", _:
            beta = Fraction(settings["beta_2"])
            return oracles_moments.blend_squares(old, mean, beta, oracle.double(one - beta))
    return oracles_moments.approach_squares(old, mean, oracle.double(one - Fraction(settings["beta_2"])))


def _moved(rules: AggregationRules, old: Fraction, mean: Fraction, kept: Sequence[Fraction]) -> Fraction | None:
    if not kept:
        return oracles_moments.stored(oracle.double(old + mean))
    settings = {name: Fraction(value) for name, value in _settings(rules).items()}
    rate = settings["learning_rate"]
    if rules.rules.rule == "fedavgm":
        return oracles_moments.move(old, kept[0], rate)
    if rules.rules.rule == "fedadam":
        rate = oracles_moments.adam_rate(rate, settings["beta_1"], settings["beta_2"], rules.step)
    return oracles_moments.move_scaled(old, kept[0], kept[1], rate, settings["tau"])
