"""The rules that look at all updates of a round at once."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import decode
from fl import aggregation as aggregation_module
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.errors import Refused
from fl.jobrules import grid_of
from fl.records import JobRules, TensorGroup
from fl.rules import RULES, check_rule, rule_of
from fl.rules.bulyan import selected
from fl.rules.krum import MOST_COMPARED, neighbours_of, scores_by
from fl.rules.rule import AtOnce, Work, written_settings
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord
from fl.tensors.encodings import Place, decode_update
from fl.tensors.layout import AVERAGED
from fl.tensors.model import build_model, parse_model
from fl.updates import form_of
from tests.fl.builders import make_rules
from tests.fl.numbers import comparing, oracle, oracles
from tests.fl.numbers.averaging import LOG_ROOT, averaged, update_of
from tests.fl.numbers.builders import SMALL, WIDE, bits_of, flat_schema, random_model
from tests.fl.numbers.comparing import CASES, ENCODINGS, Case, some_updates

EVERY = pytest.mark.parametrize("name", CASES)
BOTH = pytest.mark.parametrize("encoding", ENCODINGS)


def values_of(rules: AggregationRules, update: Update) -> list[Fraction]:
    """Of the averaged tensors, by name as in the flat vector."""
    form, place = form_of(rules.rules, 0), Place(rules.job, rules.round, update.member)
    delta = decode_update(form, place, update.payload)
    return [oracle.from_bits(bits) for name in sorted(delta) for bits in bits_of(delta[name])]


def averaged_values(model: bytes) -> list[int]:
    parsed = parse_model(SMALL, model)
    names = sorted(each.name for each in SMALL.tensors if each.role == AVERAGED)
    return [bits for name in names for bits in bits_of(parsed[name])]


def expected_values(case: Case, rules: AggregationRules, updates: Sequence[Update], base: bytes) -> list[int]:
    rows = [values_of(rules, update) for update in updates]
    means = case.expected(rows, grid_of(rules.rules).unweighted_bits)
    new = [
        oracle.applied(oracle.from_bits(bits), *mean) for bits, mean in zip(averaged_values(base), means, strict=True)
    ]
    return [oracle.to_bits(each) for each in new if each is not None]


def record_of(blob: bytes) -> ClosingRecord:
    return decode(ClosingRecord, blob, MAX_CLOSING_BYTES)


@BOTH
@EVERY
def test_the_new_model_equals_the_oracle_bit_for_bit(name: str, encoding: str) -> None:
    case = CASES[name]
    for count in case.counts:
        for range_bits, scale in ((8, 1.0), (24, 40.0)):
            rules = case.rules(SMALL, encoding, range_bits=range_bits)
            updates = some_updates(rules, count)
            base = build_model(SMALL, random_model(SMALL, int(scale)))
            made = averaged(rules, updates, base, at_once=3)
            assert made.outcome.ok
            assert averaged_values(made.model) == expected_values(case, rules, updates, base)


@EVERY
def test_the_closing_record_tells_denominator_and_scores(name: str) -> None:
    case = CASES[name]
    count = case.counts[-1]
    rules = case.rules(SMALL, "f32")
    updates = some_updates(rules, count)
    made = averaged(rules, updates, build_model(SMALL, random_model(SMALL, 1)))
    record = record_of(made.outcome.record)
    rows = [values_of(rules, update) for update in updates]
    bits = grid_of(rules.rules).unweighted_bits
    assert record.rule == case.rule and record.denominators == (case.expected(rows, bits)[0][1],)
    scores = [int.from_bytes(each, "big") for each in record.scores]
    if case.scored:
        faulty = case.settings["faulty"]
        assert scores == [
            sum(sorted(oracles.squared_distance(row, other, bits) for other in rows)[1 : count - faulty - 1])
            for row in rows
        ]
    else:
        assert scores == []


@EVERY
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_order_of_arrival_leaves_no_trace(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    rules = case.rules(SMALL, data.draw(st.sampled_from(ENCODINGS)))
    updates = some_updates(rules, case.counts[-1])
    base = build_model(SMALL, random_model(SMALL, 2))
    order = data.draw(st.permutations(updates))
    assert averaged(rules, order, base, at_once=data.draw(st.integers(1, 5))) == averaged(rules, updates, base)


@BOTH
@EVERY
def test_neither_threads_nor_tiles_leave_a_trace(monkeypatch: pytest.MonkeyPatch, name: str, encoding: str) -> None:
    case = CASES[name]
    rules = case.rules(WIDE, encoding)
    updates = some_updates(rules, case.counts[-1])
    base = build_model(WIDE, random_model(WIDE, 3))
    alone = averaged(rules, updates, base)
    seen: list[int] = []
    for threads, width in ((1, 16384), (2, 5000), (4, 1024), (4, 999)):
        monkeypatch.setattr(aggregation_module, "_NARROWEST", width)
        monkeypatch.setattr(aggregation_module, "_WIDEST", width)
        with ThreadPoolExecutor(threads) as pool:

            def spread(pieces: Sequence[Work], pool: ThreadPoolExecutor = pool) -> Iterable[int]:
                seen.append(len(pieces))
                return list(pool.map(lambda piece: piece(), reversed(pieces)))

            assert averaged(rules, updates, base, spread=spread) == alone
    assert max(seen) > 60


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
def test_of_equally_good_updates_the_first_in_the_log_is_taken(name: str) -> None:
    case = CASES[name]
    count = case.counts[-1]
    rules = case.rules(flat_schema(4), "f32")
    # Mirror images: their scores are equal, and what is chosen tells which came first.
    draw = np.random.default_rng(5)
    half = draw.standard_normal((count // 2, 4)).astype(np.float32)
    deltas = [*half, *-half, *np.zeros((count % 2, 4), np.float32)]
    base = build_model(flat_schema(4), {"w": np.zeros(4, np.float32)})
    for seed in range(4):
        order = random.Random(seed).sample(range(count), count)
        updates = [update_of(rules, index, 1, {"w": deltas[each]}) for index, each in enumerate(order)]
        rows = [values_of(rules, update) for update in updates]
        bits = grid_of(rules.rules).unweighted_bits
        means = [oracle.applied(Fraction(0), *mean) for mean in case.expected(rows, bits)]
        made = averaged(rules, updates, base)
        assert bits_of(parse_model(flat_schema(4), made.model)["w"]) == [
            oracle.to_bits(each) for each in means if each is not None
        ]


@BOTH
def test_copies_do_not_matter_more_than_what_they_copy(encoding: str) -> None:
    for name, case in CASES.items():
        rules = case.rules(SMALL, encoding)
        one = update_of(rules, 0, 1, {each.name: np.full(each.shape, 0.5) for each in SMALL.tensors[:3:2]})
        form = form_of(rules.rules, 0)
        delta = decode_update(form, Place(rules.job, rules.round, one.member), one.payload)
        updates = [update_of(rules, index, 1, delta) for index in range(case.counts[-1])]
        base = build_model(SMALL, random_model(SMALL, 4))
        made = averaged(rules, updates, base)
        assert averaged_values(made.model) == expected_values(case, rules, updates, base), name
        assert {int.from_bytes(each, "big") for each in record_of(made.outcome.record).scores} <= {0}


@BOTH
@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("median", {}),
        ("trimmed_mean", {"share": 20}),
        ("krum", {"faulty": 2}),
        ("multi_krum", {"faulty": 2, "chosen": 6}),
        ("bulyan", {"faulty": 2}),
    ],
)
@pytest.mark.parametrize("attack", [1.0, -1.0, 1e-3])
def test_two_of_eleven_do_not_move_the_model_beyond_what_the_honest_ones_say(
    encoding: str, rule: str, given: dict[str, int], attack: float
) -> None:
    rules = Case(rule, given, (), lambda rows, bits: []).rules(flat_schema(300), encoding)
    draw = np.random.default_rng(6)
    honest = (draw.standard_normal((9, 300)) + 2.0).astype(np.float32)
    deltas = [np.full(300, attack * 255, np.float32), *honest, np.full(300, -attack * 254, np.float32)]
    updates = [update_of(rules, index, 1, {"w": delta}) for index, delta in enumerate(deltas)]
    base = build_model(flat_schema(300), {"w": np.zeros(300, np.float32)})
    new = parse_model(flat_schema(300), averaged(rules, updates, base).model)["w"]
    decoded = [np.array(values_of(rules, update), np.float64) for update in updates[1:-1]]
    assert (new >= np.min(decoded, axis=0) - 1e-6).all() and (new <= np.max(decoded, axis=0) + 1e-6).all()


@settings(max_examples=150, deadline=None)
@given(count=st.integers(3, 24), highest=st.sampled_from((1, 3, 50, 2**110)), data=st.data())
def test_choosing_one_after_the_other_equals_scoring_anew_each_time(
    count: int, highest: int, data: st.DataObject
) -> None:
    faulty = data.draw(st.integers(0, (count - 3) // 4))
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    rows = [[0] * count for _ in range(count)]
    for a in range(count):
        for b in range(a):
            rows[a][b] = rows[b][a] = draw.randint(0, highest)
    remaining = list(range(count))
    expected = []
    for _ in range(count - 2 * faulty):
        counted = max(1, len(remaining) - faulty - 2)
        scores = {a: sum(sorted(rows[a][b] for b in remaining if b != a)[:counted]) for a in remaining}
        expected.append(min(remaining, key=lambda each: (scores[each], each)))
        remaining.remove(expected[-1])
    assert selected(rows, scores_by(rows, faulty), faulty) == expected


def test_neighbours_are_ordered_by_distance_and_place() -> None:
    assert neighbours_of([[0, 5, 0, 2], [5, 0, 2, 2], [0, 2, 0, 7], [2, 2, 7, 0]]) == [
        [2, 3, 1],
        [2, 3, 0],
        [0, 1, 3],
        [0, 1, 2],
    ]


GOOD: dict[str, dict[str, Any]] = {
    "median": {},
    "trimmed_mean": {"share": 10},
    "krum": {"faulty": 3},
    "multi_krum": {"faulty": 3, "chosen": 6},
    "bulyan": {"faulty": 3},
}
FEWEST = {"median": 1, "trimmed_mean": 10, "krum": 9, "multi_krum": 9, "bulyan": 15}


def job(rule: str, given: dict[str, Any] | None = None, **changes: Any) -> JobRules:
    chosen = written_settings(rule_of(rule), GOOD[rule] if given is None else given)
    sizes = {"minimum": 20, "target": 20, "maximum": 100}
    return make_rules(rule=rule, settings=chosen, **(sizes | changes))


def refusal_of(rules: JobRules) -> str:
    with pytest.raises(Refused) as refused:
        check_rule(rules)
    assert refused.value.code == "BAD_RULES"
    return str(refused.value)


def test_every_rule_that_compares_updates_is_tried_here() -> None:
    assert GOOD.keys() == {case.rule for case in CASES.values()} <= RULES.keys()
    assert all(isinstance(rule_of(name), AtOnce) for name in GOOD)


@pytest.mark.parametrize("rule", GOOD)
def test_a_round_with_fewer_updates_than_a_rule_needs_is_prevented(rule: str) -> None:
    fewest = rule_of(rule).fewest({"of": 100} | GOOD[rule])
    assert fewest == FEWEST[rule]
    check_rule(job(rule, minimum=fewest))
    if fewest > 1:
        assert f"at least {fewest}" in refusal_of(job(rule, minimum=fewest - 1))


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "bulyan"])
def test_fewer_updates_than_promised_are_an_error_and_no_model(rule: str) -> None:
    case = Case(rule, GOOD[rule], (), lambda rows, bits: [])
    rules = case.rules(SMALL, "f32")
    for count in (1, 2, FEWEST[rule] - 1):
        aggregation = Aggregation(rules)
        aggregation.add(*some_updates(rules, count))
        with pytest.raises(ValueError, match=f"at least {FEWEST[rule]} updates"):
            aggregation.finish(LOG_ROOT, build_model(SMALL, random_model(SMALL, 1)))


def test_multi_krum_chooses_no_more_than_must_be_faultless() -> None:
    check_rule(job("multi_krum", {"faulty": 3, "chosen": 17}))
    assert "at least 21" in refusal_of(job("multi_krum", {"faulty": 3, "chosen": 18}))


@pytest.mark.parametrize(("share", "of"), [(50, 100), (51, 100), (1, 2), (1, 1), (3, 1)])
def test_a_trimmed_mean_keeps_something(share: int, of: int) -> None:
    assert "less than half" in refusal_of(job("trimmed_mean", {"share": share, "of": of}))
    check_rule(job("trimmed_mean", {"share": 49, "of": 99}))


@pytest.mark.parametrize(
    ("share", "of", "fewest"), [(0, 100, 1), (30, 100, 4), (1, 3, 3), (2, 7, 4), (1, 10**6, 10**6)]
)
def test_a_trimmed_mean_of_the_fewest_leaves_one_out(share: int, of: int, fewest: int) -> None:
    assert rule_of("trimmed_mean").fewest({"share": share, "of": of}) == fewest
    assert fewest * share // of == min(share, 1) and (fewest - 1) * share // of == 0


@pytest.mark.parametrize(("share", "count", "cut"), [(29, 100, 29), (57, 100, 57), (35, 100, 35), (10, 30, 3)])
def test_a_share_is_not_rounded_down_by_a_binary_fraction(share: int, count: int, cut: int) -> None:
    """0.29 · 100 is less than 29 in float64."""
    of = 200 if share > 50 else 100
    count = count * of // 100
    rules = Case("trimmed_mean", {"share": share, "of": of}, (), lambda rows, bits: []).rules(
        flat_schema(1), "f32", updates=count
    )
    updates = [update_of(rules, index, 1, {"w": np.full(1, index, np.float32)}) for index in range(count)]
    made = averaged(rules, updates, build_model(flat_schema(1), {"w": np.zeros(1, np.float32)}))
    assert record_of(made.outcome.record).denominators == (count - 2 * cut << grid_of(rules.rules).unweighted_bits,)


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("median", {"share": 1}),
        ("trimmed_mean", {"share": 20, "faulty": 1}),
        ("trimmed_mean", {"share": -1}),
        ("trimmed_mean", {"share": 0.2}),
        ("trimmed_mean", {"share": 20, "of": 0}),
        ("krum", {"faulty": 511}),
        ("multi_krum", {"faulty": 1, "chosen": 0}),
        ("multi_krum", {"faulty": 1, "chosen": 1025}),
        ("bulyan", {"faulty": 256}),
    ],
)
def test_settings_beyond_their_limits_are_refused(rule: str, given: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        written_settings(rule_of(rule), given)
    assert refused.value.code == "BAD_RULES"


@pytest.mark.parametrize(("rule", "missing"), [("trimmed_mean", "share"), ("krum", "faulty"), ("multi_krum", "chosen")])
def test_what_only_the_job_can_know_has_no_default(rule: str, missing: str) -> None:
    given = {name: value for name, value in GOOD[rule].items() if name != missing}
    assert missing in refusal_of(job(rule, given))


@pytest.mark.parametrize("rule", GOOD)
def test_what_does_not_go_with_a_rule_is_refused(rule: str) -> None:
    halves = (TensorGroup("a", ("layer.bias",)), TensorGroup("b", ("layer.weight",)))
    assert "weights must be equal" in refusal_of(job(rule, cap=100, weights="examples"))
    assert "no groups" in refusal_of(job(rule, groups=halves))
    assert "encodings" in refusal_of(job(rule, encoding="topk"))
    assert "at most" in refusal_of(job(rule, maximum=5000))
    for encoding in ("f32", "f16", "bf16", "q8"):
        check_rule(job(rule, encoding=encoding))
    without_rounds = job(rule, discounts=(1024, 724))
    if rule in ("median", "trimmed_mean"):
        check_rule(without_rounds)
    else:
        assert "must have rounds" in refusal_of(without_rounds)
        assert f"at most {MOST_COMPARED}" in refusal_of(job(rule, maximum=MOST_COMPARED + 1))


@pytest.mark.parametrize("name", ["median", "krum", "bulyan"])
def test_memory_follows_from_the_number_of_updates_and_not_from_the_size_of_the_model(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case, width, count = CASES[name], 4096, 11
    monkeypatch.setattr(aggregation_module, "_WIDEST", width)
    peaks = []
    for parameters in (300_000, 600_000):
        schema = flat_schema(parameters)
        rules = case.rules(schema, "q8")
        updates = some_updates(rules, count)
        base = build_model(schema, random_model(schema, 1))
        averaged(rules, updates, base)
        aggregation = Aggregation(rules)
        aggregation.add(*updates)
        tracemalloc.start()
        aggregation.finish(LOG_ROOT, base)
        peaks.append(tracemalloc.get_traced_memory()[1] - 8 * parameters)
        tracemalloc.stop()
    assert max(peaks) < 4 * count * width + 200 * count**2 + 150_000
    assert abs(peaks[1] - peaks[0]) < 20_000


@pytest.mark.parametrize("most", [3, 40])
def test_distances_are_exact_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Each thread has limbs of its own, and they are added."""
    monkeypatch.setattr(aggregation_module, "_NARROWEST", 1000)
    monkeypatch.setattr(aggregation_module, "_WIDEST", 1000)
    schema = flat_schema(40_000)
    rules = CASES["krum"].rules(schema, "f32", range_bits=24)
    ends = [np.full(40_000, sign * 2.0**24, np.float32) for sign in (1, -1, 1, -1, 1, -1, 1)]
    updates = [update_of(rules, index, 1, {"w": each}) for index, each in enumerate(ends)]
    base = build_model(schema, {"w": np.zeros(40_000)})
    barrier = Barrier(most)

    def spread(pieces: Sequence[Work]) -> Iterable[int]:
        def waiting(piece: Work) -> int:
            # So many that are at work at a time.
            barrier.wait(60)
            return piece()

        with ThreadPoolExecutor(most) as pool:
            whole = len(pieces) // most * most
            return [*pool.map(waiting, pieces[:whole]), *(piece() for piece in pieces[whole:])]

    record = record_of(averaged(rules, updates, base, spread=spread).outcome.record)
    apart = 40_000 * 2**102
    assert [int.from_bytes(each, "big") for each in record.scores] == [0, apart, 0, apart, 0, apart, 0]


def test_the_page_on_aggregation_tells_every_rule_its_settings_and_what_it_needs() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "aggregation.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    listed = {cells[0].strip("`"): cells[1] for cells in reversed(rows) if len(cells) == 3 and "," not in cells[0]}
    assert listed.keys() == RULES.keys()
    for name, rule in RULES.items():
        told = re.findall(r"`(\w+)`(?: \(([^)]+)\))?", listed[name])
        assert sorted(setting for setting, _ in told) == sorted(each.name for each in rule.settings), name
        defaults = {each.name: each.default for each in rule.settings}
        assert all((float(value) if value else None) == defaults[setting] for setting, value in told), name
    most = {cells[0].strip("`"): int(cells[2]) for cells in rows if len(cells) == 4}
    assert most == {name: rule_of(name).most for name in GOOD}


def test_plain_python_gives_the_same_bytes_as_compiled_kernels() -> None:
    root = Path(__file__).resolve().parents[3]
    other = "1" if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0" else "0"
    run = subprocess.run(
        [sys.executable, "-m", comparing.__name__],
        cwd=root,
        env=os.environ | {"NUMBA_DISABLE_JIT": other},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == comparing.digests()
