"""Every rule through the whole aggregation: equal to its oracle bit for bit, whatever happens around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import decode
from fl import aggregation as aggregation_module
from fl.aggregation import Aggregation, Update, Work
from fl.errors import Refused
from fl.jobrules import grid_of
from fl.rules import RULES
from fl.rules.rule import settings_of, written_settings
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord
from fl.tensors.floats import INFINITY_BITS
from fl.tensors.model import build_model, check_model, parse_model
from fl.tensors.moments import moment_form
from tests.fl.numbers.averaging import LOG_ROOT, Averaged, averaged, rules_of, update_of
from tests.fl.numbers.builders import ROUND, SMALL, WIDE, flat_schema, random_model, random_tensors
from tests.fl.numbers.expected import expected_of, found_in
from tests.fl.numbers.jobs import COUNT, GIVEN, GROUPS, WIDE_GROUPS, combinations, drawn, job_of

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


@pytest.mark.parametrize(("rule", "encoding", "grouped"), list(combinations()))
def test_sums_equal_the_oracle_to_the_last_step(rule: str, encoding: str, grouped: bool) -> None:
    """A step of the grid is mostly less than a model shows."""
    rules = job_of(rule, encoding, groups=GROUPS if grouped else ())
    base = build_model(SMALL, random_model(SMALL, 1))
    updates = drawn(rules, COUNT, 300)
    aggregation = Aggregation(rules)
    aggregation.add(*updates)
    found = aggregation.finish(LOG_ROOT, base).found
    assert tuple(each.sums.tolist() for each in found.means) == expected_of(rules, updates, base).totals


@EVERY_RULE
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(COUNT)), at_once=st.integers(1, COUNT))
def test_neither_the_order_of_arrival_nor_grouping_leaves_a_trace(rule: str, order: list[int], at_once: int) -> None:
    rules = job_of(rule, "q8")
    updates = drawn(rules, COUNT, 7)
    base = build_model(SMALL, random_model(SMALL, 2))
    assert averaged(rules, [updates[each] for each in order], base, at_once=at_once) == averaged(rules, updates, base)


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"bulyan"}))
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(COUNT)))
def test_the_order_in_the_log_moves_nothing_but_scores(rule: str, order: list[int]) -> None:
    """Of updates that the rule does not find equally good: Bulyan finds so the last two, each other's nearest."""
    rules = job_of(rule, "f32")
    updates = drawn(rules, COUNT, 8)
    base = build_model(SMALL, random_model(SMALL, 2))
    moved = averaged(rules, [replace(updates[each], index=place) for place, each in enumerate(order)], base)
    made = averaged(rules, updates, base)
    assert (moved.model, moved.moments) == (made.model, made.moments)
    before, after = record_of(made), record_of(moved)
    assert before.denominators == after.denominators
    assert after.weights == tuple(before.weights[each] for each in order)
    assert after.scores == tuple(before.scores[each] for each in order if before.scores)


def record_of(made: Averaged) -> ClosingRecord:
    return decode(ClosingRecord, made.outcome.record, MAX_CLOSING_BYTES)


@EVERY_RULE
@pytest.mark.parametrize("encoding", ["f32", "q8"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_neither_threads_nor_the_cut_into_tiles_leave_a_trace(
    monkeypatch: pytest.MonkeyPatch, rule: str, encoding: str, threads: int
) -> None:
    rules = job_of(rule, encoding, WIDE, WIDE_GROUPS if RULES[rule].groups else ())
    updates = drawn(rules, COUNT, 9)
    base = build_model(WIDE, random_model(WIDE, 3))
    alone = averaged(rules, updates, base)
    seen: list[int] = []
    with ThreadPoolExecutor(threads) as pool:

        def spread(pieces: Sequence[Work]) -> Iterable[int]:
            seen.append(len(pieces))
            return list(pool.map(lambda piece: piece(), reversed(pieces)))

        monkeypatch.setattr(aggregation_module, "SPAN_TILES", 1)
        monkeypatch.setattr(aggregation_module, "_WIDEST", 3_000)
        monkeypatch.setattr(aggregation_module, "_NARROWEST", 1_000)
        assert averaged(rules, updates, base, spread=spread, at_once=4) == alone
    assert max(seen) >= 2


WEIGHING = pytest.mark.parametrize("rule", sorted(name for name, rule in RULES.items() if rule.weighted))


@WEIGHING
@pytest.mark.parametrize("scale", [2, 3, 7, 10])
def test_weights_that_are_all_larger_weigh_the_same(rule: str, scale: int) -> None:
    """Of values that the grid holds, so that nothing is rounded before it is divided."""
    rules = job_of(rule, "f32")
    draw = np.random.default_rng(4)
    values = [
        {name: np.rint(delta * 256) / 4096 for name, delta in random_tensors(SMALL, 40 + index, 0.5).items()}
        for index in range(COUNT)
    ]
    weights = draw.integers(1, 101, COUNT)
    base = build_model(SMALL, random_model(SMALL, 2))

    def made_with(factor: int) -> Averaged:
        given = zip(weights, values, strict=True)
        return averaged(
            rules, [update_of(rules, i, factor * int(weight), delta) for i, (weight, delta) in enumerate(given)], base
        )

    one, other = made_with(1), made_with(scale)
    assert other.model == one.model and other.moments == one.moments
    assert record_of(other).denominators == tuple(scale * each for each in record_of(one).denominators)


@EVERY_RULE
@pytest.mark.parametrize("range_bits", [0, 8, 24])
@pytest.mark.parametrize("encoding", ["f32", "q8"])
def test_the_largest_values_and_weights_that_are_allowed_do_not_overflow(
    rule: str, range_bits: int, encoding: str
) -> None:
    made = RULES[rule]
    rules = job_of(rule, encoding, cap=2**20 if made.weighted else 1, range_bits=range_bits, updates=made.most)
    top = 2.0**range_bits
    rows = [np.full(5, sign * top) for sign in (1, 1, 1, -1, 1, 1, 1, -1, 1)]
    updates = [
        update_of(rules, index, rules.rules.cap, {"layer.bias": row, "layer.weight": np.tile(row, (3, 1)).T})
        for index, row in enumerate(rows)
    ]
    base = build_model(SMALL, random_model(SMALL, 2))
    moved = averaged(rules, updates, base)
    expected = expected_of(rules, updates, base)
    assert found_in(rules, moved.model, moved.moments) == (expected.model, expected.moments)


@EVERY_RULE
@pytest.mark.parametrize("encoding", ["f32", "q8"])
def test_a_refusal_does_not_depend_on_other_updates(rule: str, encoding: str) -> None:
    narrow = job_of(rule, encoding, range_bits=2)
    base = build_model(SMALL, random_model(SMALL, 2))
    loud = update_of(job_of(rule, encoding, range_bits=12), 4, 1, random_tensors(SMALL, 3, 400.0))
    foreign = replace(update_of(narrow, 4, 1, random_tensors(SMALL, 3, 0.01)), member=bytes(32))
    fewest = RULES[rule].fewest(settings_of(RULES[rule], narrow.rules.settings))
    for wrong, code in ((loud, "OUT_OF_RANGE"), (foreign, "WRONG_HEADER")):
        for scale in (0.0, 0.01, 0.1):
            for around in {max(0, fewest - 1), max(1, fewest - 1), COUNT - 1}:
                others = [
                    update_of(narrow, each if each < 4 else each + 1, 1, random_tensors(SMALL, each, scale))
                    for each in range(around)
                ]
                aggregation = Aggregation(narrow)
                with pytest.raises(Refused) as refusal:
                    for each in sorted([*others, replace(wrong, index=around if around < 4 else 4)], key=index_of):
                        aggregation.add(each)
                    aggregation.finish(LOG_ROOT, base)
                assert refusal.value.code == code


def index_of(update: Update) -> int:
    return update.index


@pytest.mark.parametrize("rule", sorted(name for name, rule in RULES.items() if rule.groups))
def test_a_group_that_nobody_changed_stays_as_it_is(rule: str) -> None:
    rules = job_of(rule, "q8", groups=GROUPS)
    base = build_model(SMALL, random_model(SMALL, 2))
    first = averaged(rules, drawn(rules, COUNT, 3), base)
    own = [update_of(rules, index, 5, {"layer.weight": np.full((5, 3), 0.25)}, 1) for index in range(3)]
    second = averaged(replace(rules, step=2), own, first.model, moments=first.moments or None)
    before, after = parse_model(SMALL, first.model), parse_model(SMALL, second.model)
    for name in before:
        assert (before[name].tobytes() == after[name].tobytes()) == (name != "layer.weight")
    old, new = (found_in(rules, each.model, each.moments)[1] for each in (first, second))
    for name in old:
        assert (old[name] == new[name]) == name.endswith("#layer.bias")
    assert record_of(second).denominators[0] == 0 < record_of(second).denominators[1]


def test_equal_values_are_said_to_be_copies() -> None:
    rules = job_of("fedavg", "f32", groups=GROUPS)
    weight = [{"layer.weight": np.full((5, 3), value)} for value in (0.25, 0.5, 0.25, 0.5, 0.25, 0.125)]
    updates = [update_of(rules, index, 1 + index, delta, 1) for index, delta in enumerate(weight)]
    updates.append(update_of(rules, 6, 1, {"layer.bias": np.full(5, 0.25)}, 0))
    base = build_model(SMALL, random_model(SMALL, 2))
    assert record_of(averaged(rules, updates, base)).copies == ((0, 2, 4), (1, 3))


@pytest.mark.parametrize("size", [1, 300_000, 262_144 + 100])
def test_a_fingerprint_is_of_the_values_alone(size: int) -> None:
    rules = job_of("fedavg", "f32", flat_schema(size))
    values = np.linspace(-1, 1, size)
    copy, other = values.copy(), values.copy()
    other[-1] += 0.5
    one, same, unlike = (
        update_of(rules, i, 1, {"w": each}).fingerprint for i, each in enumerate((values, copy, other))
    )
    assert one == same != unlike


@pytest.mark.parametrize(
    ("rule", "moment"), [("fedavgm", "m"), ("fedadam", "m"), ("fedyogi", "v"), ("fedadagrad", "v")]
)
@pytest.mark.parametrize("bits", [0x7F800000, 0xFFC00000, 0x7F7FFFFF])
def test_moments_that_leave_the_range_of_f32_fail_the_round(rule: str, moment: str, bits: int) -> None:
    """The largest finite one stays within, but may take the model beyond."""
    rules = job_of(rule, "f32")
    base = build_model(SMALL, random_model(SMALL, 2))
    moments = bytearray(averaged(rules, drawn(rules, COUNT, 3), base).moments)
    form = moment_form(SMALL, SMALL, RULES[rule].moments, moment)
    place = form.runs[0].offset + 4 * 3
    moments[place : place + 4] = bits.to_bytes(4, "little")
    made = averaged(rules, drawn(rules, COUNT, 5), base, moments=bytes(moments))
    if bits >= INFINITY_BITS:
        assert (made.outcome.ok, made.outcome.code) == (False, "MODEL_RANGE")
        assert not made.outcome.optimizer_cid and not made.outcome.model_cid
    else:
        assert made.outcome.ok or made.outcome.code == "MODEL_RANGE"


def test_the_moments_of_another_job_are_refused() -> None:
    rules = job_of("fedadam", "f32")
    base = build_model(SMALL, random_model(SMALL, 2))
    made = averaged(rules, drawn(rules, COUNT, 3), base)
    for wrong in (base, made.moments[:-4], b"\1" + made.moments[1:]):
        with pytest.raises(Refused) as refusal:
            averaged(rules, drawn(rules, COUNT, 3), base, moments=wrong)
        assert refusal.value.code == "BAD_MODEL"
    with pytest.raises(ValueError, match="no moments"):
        averaged(job_of("fedavg", "f32"), drawn(rules, COUNT, 3), base, moments=made.moments)


def test_an_update_in_a_job_without_rounds_names_the_version_that_it_came_from() -> None:
    rules = job_of("fedavg", "f32")
    late = update_of(replace(rules, round=ROUND - 2), 1, 3, random_tensors(SMALL, 1))
    updates = [update_of(rules, 0, 3, random_tensors(SMALL, 0)), replace(late, round=ROUND - 2)]
    base = build_model(SMALL, random_model(SMALL, 2))
    assert averaged(rules, updates, base).outcome.ok
    with pytest.raises(Refused, match="WRONG_HEADER"):
        averaged(rules, [updates[0], replace(late, round=ROUND)], base)


@pytest.mark.parametrize("encoding", ["f32", "bf16"])
def test_an_update_is_clipped_from_the_first_step_beyond_the_norm_on(encoding: str) -> None:
    """A hundred ones are 10·2^G0 long, and measured with 1 + √100 steps more."""
    schema, step = flat_schema(100), 2.0**-42
    for spare, clipped in ((11, False), (10, True)):
        norm = written_settings(RULES["clipped_mean"], {"norm": 10 + spare * step})
        rules = rules_of(schema, encoding, cap=1, rule="clipped_mean", settings=norm)
        assert grid_of(rules.rules).unweighted_bits == 42
        aggregation = Aggregation(rules)
        aggregation.add(update_of(rules, 0, 1, {"w": np.ones(100)}))
        (mean,) = aggregation.finish(LOG_ROOT, build_model(schema, {"w": np.zeros(100)})).found.means
        assert set((mean.sums < 2**42).tolist()) == {clipped}
