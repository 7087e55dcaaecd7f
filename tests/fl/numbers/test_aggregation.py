from __future__ import annotations

import mmap
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.cid import LEAF_BYTES, is_raw, raw_cid
from chain.codec import decode
from chain.unixfs import Hasher, cid_of, manifest_cid
from fl import aggregation as aggregation_module
from fl import closing as closing_module
from fl.aggregation import Aggregation, Work
from fl.errors import Refused
from fl.jobrules import grid_of
from fl.kernels import KERNEL_VERSION
from fl.kernels.payloads import PAYLOADS
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord
from fl.tensors.encodings import Place, decode_update
from fl.tensors.layout import AVERAGED, FROZEN, Schema, TensorSpec
from fl.tensors.model import build_model, check_model, model_form, parse_model
from tests.fl.numbers.averaging import (
    LOG_ROOT,
    averaged,
    closed,
    member_of,
    rules_of,
    update_of,
    updates_of,
    with_payload,
)
from tests.fl.numbers.builders import (
    JOB,
    ROUND,
    SMALL,
    WIDE,
    bits_of,
    flat_schema,
    form_of,
    oracle_average,
    random_model,
    random_schema,
)

EACH = pytest.mark.parametrize("encoding", sorted(PAYLOADS))


@EACH
@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_new_model_equals_the_oracle_bit_for_bit(encoding: str, count: int) -> None:
    rules = rules_of(SMALL, encoding)
    updates = updates_of(rules, count)
    base = build_model(SMALL, random_model(SMALL, 1))
    made = averaged(rules, updates, base, at_once=3)
    assert made.outcome.ok and made.outcome.code == ""
    check_model(SMALL, made.model)
    old, new = parse_model(SMALL, base), parse_model(SMALL, made.model)
    form = form_of(SMALL, encoding)
    deltas = [(each.weight, decode_update(form, Place(JOB, ROUND, each.member), each.payload)) for each in updates]
    for spec in SMALL.tensors:
        if spec.role == AVERAGED:
            pairs = [(weight, delta[spec.name]) for weight, delta in deltas]
            expected = oracle_average(old[spec.name], pairs, grid_of(rules.rules).weighted_bits)
            assert bits_of(new[spec.name]) == expected
        elif spec.role == FROZEN:
            assert new[spec.name].tobytes() == old[spec.name].tobytes()


def test_eight_trainers_move_the_model_to_their_weighted_mean() -> None:
    rules = rules_of(flat_schema(3), "f32", cap=100, updates=8)
    base = build_model(flat_schema(3), {"w": np.array([1.0, -2.0, 0.5])})
    weights = (10, 20, 30, 40, 50, 60, 70, 80)
    updates = [
        update_of(rules, index, weight, {"w": np.array([0.25 * index, -0.5, 2.0 * (-1) ** index])})
        for index, weight in enumerate(weights)
    ]
    made = averaged(rules, updates, base)
    # Σ w·i = 1680, Σ w = 360, Σ w·(−1)^i = −40
    expected = [1.0 + 0.25 * 1680 / 360, -2.5, 0.5 - 2 * 40 / 360]
    assert parse_model(flat_schema(3), made.model)["w"].tolist() == np.array(expected, np.float32).tolist()


@EACH
@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(9)), at_once=st.integers(1, 9))
def test_neither_order_nor_grouping_leaves_a_trace(encoding: str, order: list[int], at_once: int) -> None:
    rules = rules_of(SMALL, encoding)
    updates = updates_of(rules, 9)
    base = build_model(SMALL, random_model(SMALL, 2))
    assert averaged(rules, [updates[i] for i in order], base, at_once=at_once) == averaged(rules, updates, base)


@EACH
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_leave_no_trace(monkeypatch: pytest.MonkeyPatch, encoding: str, threads: int) -> None:
    rules = rules_of(WIDE, encoding)
    updates = updates_of(rules, 7)
    base = build_model(WIDE, random_model(WIDE, 3))
    alone = averaged(rules, updates, base)
    seen: list[int] = []
    with ThreadPoolExecutor(threads) as pool:

        def spread(pieces: Sequence[Work]) -> Iterable[int]:
            seen.append(len(pieces))
            return list(pool.map(lambda piece: piece(), reversed(pieces)))

        monkeypatch.setattr(aggregation_module, "SPAN_TILES", 1)
        assert averaged(rules, updates, base, spread=spread, at_once=4) == alone
    assert max(seen) >= 4


def test_the_closing_record_says_how_the_model_came_about() -> None:
    rules = rules_of(SMALL, "q8")
    updates = updates_of(rules, 5)
    base = build_model(SMALL, random_model(SMALL, 4))
    made = averaged(rules, updates[::-1], base)
    record = decode(ClosingRecord, made.outcome.record, MAX_CLOSING_BYTES)
    assert record == ClosingRecord(
        version=2,
        rule="fedavg",
        kernel_version=KERNEL_VERSION,
        job=rules.job,
        round=ROUND,
        log_root=LOG_ROOT,
        ok=True,
        code="",
        base=raw_cid(base),
        model=raw_cid(made.model),
        optimizer=b"",
        denominators=(sum(each.weight for each in updates) << grid_of(rules.rules).weighted_bits,),
        weights=tuple(each.weight for each in updates),
        scores=(),
        copies=(),
    )
    assert made.outcome.model_cid == raw_cid(made.model)
    assert made.outcome.record_cid == raw_cid(made.outcome.record)


def test_a_model_that_leaves_the_range_of_f32_fails_the_round() -> None:
    rules = rules_of(SMALL, "f32")
    base = build_model(SMALL, random_model(SMALL, 5))
    broken = base.replace(parse_model(SMALL, base)["layer.bias"].tobytes(), np.full(5, np.inf, np.float32).tobytes())
    assert broken != base
    outcome = averaged(rules, updates_of(rules, 3), broken).outcome
    assert (outcome.ok, outcome.code, outcome.model_cid) == (False, "MODEL_RANGE", b"")
    record = decode(ClosingRecord, outcome.record, MAX_CLOSING_BYTES)
    assert (record.ok, record.code, record.model) == (False, "MODEL_RANGE", b"")
    assert outcome.record_cid == raw_cid(outcome.record)


def test_a_payload_made_for_another_place_is_refused_and_leaves_no_trace() -> None:
    rules = rules_of(SMALL, "f32")
    updates = updates_of(rules, 4)
    base = build_model(SMALL, random_model(SMALL, 6))
    aggregation = Aggregation(rules)
    foreign = replace(updates[3], member=member_of(9))
    with pytest.raises(Refused) as refusal:
        aggregation.add(*updates[:3], foreign)
    assert refusal.value.code == "WRONG_HEADER" and aggregation.count == 0
    aggregation.add(*updates)
    assert closed(aggregation.finish(LOG_ROOT, base), base) == averaged(rules, updates, base)


@EACH
@pytest.mark.parametrize("count", [1, 4])
def test_a_value_beyond_the_proven_bound_spoils_the_sums_loudly(encoding: str, count: int) -> None:
    narrow, wide = rules_of(WIDE, encoding, range_bits=2), rules_of(WIDE, encoding, range_bits=12)
    updates = [*updates_of(narrow, count - 1, 0.01), *updates_of(wide, count, 20.0)[count - 1 :]]
    aggregation = Aggregation(narrow)
    with pytest.raises(Refused) as refusal:
        aggregation.add(*updates)
    assert refusal.value.code == "OUT_OF_RANGE"
    with pytest.raises(ValueError, match="spoilt"):
        aggregation.finish(LOG_ROOT, build_model(WIDE, random_model(WIDE, 7)))
    with pytest.raises(ValueError, match="spoilt"):
        aggregation.add()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight": 0}, "weight"),
        ({"weight": -1}, "weight"),
        ({"weight": 1001}, "weight"),
        ({"index": 0}, "twice"),
        ({"group": 1}, "group"),
        ({"group": -1}, "group"),
    ],
)
def test_an_entry_that_the_log_cannot_hold_is_an_error(change: dict[str, Any], match: str) -> None:
    rules = rules_of(SMALL, "f32")
    updates = updates_of(rules, 2)
    aggregation = Aggregation(rules)
    aggregation.add(updates[0])
    with pytest.raises(ValueError, match=match):
        aggregation.add(replace(updates[1], **change))
    assert aggregation.count == 1


def test_a_round_closes_over_its_whole_log_only() -> None:
    rules = rules_of(SMALL, "f32", updates=3)
    updates = updates_of(rules, 4)
    base = build_model(SMALL, random_model(SMALL, 8))
    aggregation = Aggregation(rules)
    with pytest.raises(ValueError, match="at least one"):
        aggregation.finish(LOG_ROOT, base)
    aggregation.add(updates[1])
    with pytest.raises(ValueError, match="every entry"):
        aggregation.finish(LOG_ROOT, base)
    aggregation.add(updates[2], updates[0])
    assert closed(aggregation.finish(LOG_ROOT, base), base).outcome.ok
    with pytest.raises(ValueError, match="more updates"):
        aggregation.add(updates[3])
    with pytest.raises(Refused):
        aggregation.finish(LOG_ROOT, base[:-1])


def test_averaging_from_buffers_of_any_kind_and_place_gives_the_same() -> None:
    for encoding in PAYLOADS:
        rules = rules_of(SMALL, encoding)
        updates = updates_of(rules, 3)
        base = build_model(SMALL, random_model(SMALL, 9))
        moved = [replace(each, payload=memoryview(bytearray(3) + each.payload)[3:]) for each in updates]
        assert averaged(rules, moved, memoryview(b"\0" + base)[1:]) == averaged(rules, updates, base)


MIXED = Schema(
    (
        TensorSpec("a", "F32", (70_001,), AVERAGED),
        TensorSpec("a.frozen", "F32", (3,), FROZEN),
        TensorSpec("b", "F32", (300_000,), AVERAGED),
        TensorSpec("b.frozen", "F32", (200_001,), FROZEN),
        TensorSpec("c", "F32", (5,), AVERAGED),
        TensorSpec("counts", "I64", (60_000,), FROZEN),
        TensorSpec("mask", "BOOL", (7,), FROZEN),
    )
)
"""More than two leaves; frozen tensors before, between and after the averaged ones."""


@EACH
def test_a_model_of_several_leaves_comes_in_bounded_chunks_and_is_named_by_its_tree(encoding: str) -> None:
    rules = rules_of(MIXED, encoding)
    updates = updates_of(rules, 3)
    base = build_model(MIXED, random_model(MIXED, 10))
    aggregation = Aggregation(rules)
    aggregation.add(*updates)
    closing = aggregation.finish(LOG_ROOT, base)
    chunks = list(closing.model())
    model = b"".join(chunks)
    assert closing.size_bytes == len(model) == len(base)
    assert len(chunks) == 3 and max(map(len, chunks)) <= closing_module.CHUNK_BYTES
    hasher = Hasher()
    for chunk in chunks:
        hasher.update(chunk)
    outcome = closing.closed(manifest_cid(hasher.finish()), cid_of(base))
    assert outcome.model_cid == cid_of(model) and not is_raw(outcome.model_cid)
    check_model(MIXED, model)
    old, new = parse_model(MIXED, base), parse_model(MIXED, model)
    form = form_of(MIXED, encoding)
    places = [0, 1, 69_999, 70_000, 299_999, 123_456]
    for spec in MIXED.tensors:
        if spec.role == FROZEN:
            assert new[spec.name].tobytes() == old[spec.name].tobytes()
            continue
        at = [place for place in places if place < spec.shape[0]]
        deltas = [
            (each.weight, decode_update(form, Place(JOB, ROUND, each.member), each.payload)[spec.name])
            for each in updates
        ]
        pairs = [(weight, delta[at]) for weight, delta in deltas]
        assert bits_of(new[spec.name][at]) == oracle_average(
            old[spec.name][at], pairs, grid_of(rules.rules).weighted_bits
        )


@EACH
@pytest.mark.parametrize("chunk_bytes", [8, 24, 264, 4096 + 8])
def test_where_a_model_is_cut_into_chunks_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, encoding: str, chunk_bytes: int
) -> None:
    for schema in (SMALL, WIDE) if chunk_bytes > 100 else (SMALL,):
        rules = rules_of(schema, encoding)
        updates = updates_of(rules, 3)
        base = build_model(schema, random_model(schema, 11))
        with monkeypatch.context() as patch:
            whole = averaged(rules, updates, base)
            patch.setattr(closing_module, "CHUNK_BYTES", chunk_bytes)
            assert averaged(rules, updates, base) == whole


def test_every_run_of_a_model_begins_where_a_chunk_may_be_cut() -> None:
    for seed in range(100):
        form = model_form(random_schema(random.Random(seed)))
        assert all(run.offset % 4 == 0 for run in form.runs)
        assert [run.offset for run in form.runs] == sorted(run.offset for run in form.runs)
        assert len(form.header) % 8 == 0


def test_a_range_that_is_left_in_the_last_chunk_is_told_there_and_the_record_can_still_be_made() -> None:
    rules = rules_of(MIXED, "f32")
    base = bytearray(build_model(MIXED, random_model(MIXED, 12)))
    end = model_form(MIXED).runs[-1].end
    base[end - 4 : end] = np.float32(np.inf).tobytes()
    aggregation = Aggregation(rules)
    aggregation.add(*updates_of(rules, 2))
    closing = aggregation.finish(LOG_ROOT, bytes(base))
    chunks = closing.model()
    assert len(next(chunks)) + len(next(chunks)) == 2 * LEAF_BYTES
    with pytest.raises(Refused, match="MODEL_RANGE"):
        next(chunks)
    assert closing.failed("MODEL_RANGE", cid_of(base)).code == "MODEL_RANGE"


@EACH
def test_neither_sums_nor_chunks_take_more_memory_for_more_updates(encoding: str, tmp_path: Path) -> None:
    parameters = 600_000
    schema = flat_schema(parameters)
    rules = rules_of(schema, encoding)
    base = tmp_path / "base"
    base.write_bytes(build_model(schema, random_model(schema, 13)))
    payload = updates_of(rules, 1)[0].payload
    peaks = []
    for count in (4, 16):
        updates = []
        for index in range(count):
            path = tmp_path / str(index)
            header = form_of(schema, encoding).header(Place(JOB, ROUND, member_of(index)))
            path.write_bytes(header + payload[len(header) :])
            updates.append(with_payload(index, 1, mapped(path), len(header)))
        tracemalloc.start()
        aggregation = Aggregation(rules)
        aggregation.add(*updates)
        for _ in aggregation.finish(LOG_ROOT, mapped(base)).model():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    allowed = 8 * parameters + 2 * closing_module.CHUNK_BYTES + 100_000
    assert max(peaks) < allowed
    assert abs(peaks[1] - peaks[0]) < 50_000


def mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def test_the_members_side_needs_no_compiler() -> None:
    code = "import sys, fl.tensors.encodings, fl.tensors.model, fl.tensors.closing; print('numba' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100, check=True
    )
    assert run.stdout.strip() == "False"
