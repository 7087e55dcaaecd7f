"""Blobs named by transactions: what is demanded of them, and that bytes are judged alike inline, whole and in parts."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.cid import LEAF_BYTES, raw_cid
from chain.unixfs import cid_of
from fl.blobs import (
    BlobClaim,
    BlobKind,
    Demand,
    check_blob,
    check_joints,
    check_part,
    check_size,
    model_demand,
    update_demand,
)
from fl.errors import CODES, DecidedBy, PendingJob, Refused
from fl.records import JobRules
from fl.tensors.encodings import ENCODINGS, check_payload, encode_update
from fl.tensors.layout import AVERAGED, FROZEN, Schema, TensorSpec, numpy_dtype, placed_in_order
from fl.tensors.model import build_model, check_model, model_form
from tests.fl.builders import make_rules, running_job
from tests.fl.numbers.builders import (
    JOB,
    MEMBER,
    PLACE,
    ROUND,
    SMALL,
    WIDE,
    flat_schema,
    form_of,
    random_model,
    random_schema,
    random_tensors,
)

OFFERED = sorted(ENCODINGS.keys() - {"ring32"})
EACH = pytest.mark.parametrize("encoding", OFFERED)
ODD_BITS = (0x7F800000, 0xFFC00000, 0x7F800001, 0x43800001, 0xC3800001, 0x80000000, 0x00000001, 0x807FFFFF)
"""Infinity, NaN, a signalling one, just beyond ±2^8, −0 and denormals."""

LARGE = Schema(
    (
        TensorSpec("a", "F32", (300_001,), AVERAGED),
        TensorSpec("m", "F32", (3,), FROZEN),
        TensorSpec("steps", "I64", (), FROZEN),
        TensorSpec("z", "F32", (300_000,), AVERAGED),
    )
)
"""Three leaves as f32, with a border inside of either run."""


@cache
def rules_for(schema: Schema, encoding: str = "f32") -> JobRules:
    return make_rules(schema=schema, encoding=encoding, initial=cid_of(b""))


@cache
def payload_for(schema: Schema, encoding: str) -> bytes:
    return encode_update(form_of(schema, encoding), PLACE, random_tensors(schema, 1))


@cache
def model_for(schema: Schema) -> bytes:
    return build_model(schema, random_model(schema, 1))


def demand_of(rules: JobRules, size_bytes: int, kind: BlobKind) -> Demand:
    if kind is BlobKind.MODEL:
        return Demand(BlobClaim(bytes(36), size_bytes, kind, MEMBER, b"", 0, 0), rules)
    return Demand(BlobClaim(bytes(36), size_bytes, kind, MEMBER, JOB, ROUND, 0), rules)


def inline_code(demand: Demand, blob: bytes) -> str:
    rules = demand.rules
    assert rules is not None
    try:
        if demand.claim.kind == BlobKind.MODEL:
            check_model(rules.schema, blob)
        else:
            check_payload(form_of(rules.schema, rules.encoding, rules.range_bits), PLACE, blob)
    except Refused as refused:
        return refused.code
    return "ok"


def blob_code(demand: Demand, blob: bytes) -> str:
    try:
        check_blob(demand, memoryview(blob))
    except Refused as refused:
        return refused.code
    return "ok"


def part_codes(demand: Demand, blob: bytes, part_bytes: int) -> set[str]:
    """Of every part on its own, as they may come in any order, and of their joints."""
    codes = set()
    for start in range(0, len(blob), part_bytes):
        try:
            check_part(demand, start, memoryview(blob)[start : start + part_bytes])
        except Refused as refused:
            codes.add(refused.code)
    if not codes:
        try:
            check_joints(demand, memoryview(blob), part_bytes)
        except Refused as refused:
            codes.add(refused.code)
    return codes or {"ok"}


def spoilt(blob: bytes, place: int, data: bytes) -> bytes:
    return (blob[:place] + data + blob[place + len(data) :])[: len(blob)]


cuts = st.integers(1, 5000).map(lambda words: 8 * words)
cut_schemas = st.one_of(
    st.tuples(st.just(SMALL), cuts), st.tuples(st.just(WIDE), st.integers(64, 5000).map(lambda words: 8 * words))
)
"""Every length of a part there is, where there is little to cut; a hundred parts and more of what is large."""


@EACH
@settings(max_examples=150, deadline=None)
@given(cut_schema=cut_schemas, at=st.integers(0, 2**31), bits=st.sampled_from(ODD_BITS))
def test_one_odd_value_has_one_code_inline_whole_and_under_any_cut(
    encoding: str, cut_schema: tuple[Schema, int], at: int, bits: int
) -> None:
    schema, cut = cut_schema
    form = form_of(schema, encoding)
    update, model = payload_for(schema, encoding), model_for(schema)
    update = spoilt(
        update, len(update) - form.data_bytes + 4 * (at % (form.data_bytes // 4)), bits.to_bytes(4, "little")
    )
    run = model_form(schema).runs[at % len(model_form(schema).runs)]
    model = spoilt(model, run.offset + 4 * (at % (run.stop - run.start)), bits.to_bytes(4, "little"))
    for kind, blob in ((BlobKind.UPDATE, update), (BlobKind.MODEL, model)):
        demand = demand_of(rules_for(schema, encoding), len(blob), kind)
        code = inline_code(demand, blob)
        assert blob_code(demand, blob) == code
        assert part_codes(demand, blob, cut) - {"ok"} == {code} - {"ok"}


@EACH
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), at=st.integers(0, 2**31), cut=cuts)
def test_whatever_the_faults_parts_and_whole_agree_that_there_are_some(
    encoding: str, data: bytes, at: int, cut: int
) -> None:
    for kind, good in ((BlobKind.UPDATE, payload_for(SMALL, encoding)), (BlobKind.MODEL, model_for(SMALL))):
        blob = spoilt(good, at % len(good), data)
        demand = demand_of(rules_for(SMALL, encoding), len(good), kind)
        code = inline_code(demand, blob)
        assert blob_code(demand, blob) == code
        codes = part_codes(demand, blob, cut)
        assert code in codes
        assert (codes == {"ok"}) == (code == "ok")


@EACH
@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, 2**31), extra=st.binary(min_size=1, max_size=20))
def test_a_blob_of_another_size_has_the_code_of_an_inline_one(encoding: str, size: int, extra: bytes) -> None:
    for kind, good in ((BlobKind.UPDATE, payload_for(SMALL, encoding)), (BlobKind.MODEL, model_for(SMALL))):
        demand = demand_of(rules_for(SMALL, encoding), len(good), kind)
        for blob in (good[: size % len(good)], good + extra):
            code = inline_code(demand, blob)
            assert code != "ok" and blob_code(demand, blob) == code
            with pytest.raises(Refused, match=code):
                check_size(demand, len(blob))
        check_size(demand, len(good))


def test_a_part_that_reaches_beyond_the_claimed_size_is_refused() -> None:
    good = payload_for(SMALL, "f32")
    demand = demand_of(rules_for(SMALL), len(good), BlobKind.UPDATE)
    start = len(good) // 8 * 8
    with pytest.raises(Refused, match="OVERSIZE"):
        check_part(demand, start, good[start:] + bytes(8))
    with pytest.raises(ValueError, match="multiple of 8"):
        check_part(demand, 4, good[4:])


def test_no_value_lies_across_a_border_that_is_a_multiple_of_eight() -> None:
    for seed in range(300):
        schema = random_schema(random.Random(seed))
        form = model_form(schema)
        for run in form.runs:
            assert run.offset % 4 == 0
        for encoding in OFFERED:
            update = form_of(schema, encoding)
            assert len(update.header(PLACE)) % 8 == 0
            for each in placed_in_order(update.encoding.stored()):
                assert each.start % numpy_dtype(each.tensor.dtype).itemsize == 0, "the widest come first"


@pytest.mark.parametrize("kind", [BlobKind.UPDATE, BlobKind.MODEL])
@pytest.mark.parametrize("bits", [0x7F800000, 0x80000000])
def test_a_fault_is_found_in_the_leaf_that_holds_it_up_to_its_border(kind: BlobKind, bits: int) -> None:
    good = model_for(LARGE) if kind is BlobKind.MODEL else payload_for(LARGE, "f32")
    demand = demand_of(rules_for(LARGE), len(good), kind)
    assert part_codes(demand, good, LEAF_BYTES) == {"ok"} and len(good) > 2 * LEAF_BYTES
    for border in (LEAF_BYTES, 2 * LEAF_BYTES):
        for place in (border - 4, border):
            blob = spoilt(good, place, bits.to_bytes(4, "little"))
            code = inline_code(demand, blob)
            assert (code == "ok") == (kind is BlobKind.UPDATE and bits == 0x80000000)
            for start in range(0, len(blob), LEAF_BYTES):
                part = memoryview(blob)[start : start + LEAF_BYTES]
                bad = code != "ok" and start <= place < start + LEAF_BYTES
                if bad:
                    with pytest.raises(Refused, match=code):
                        check_part(demand, start, part)
                else:
                    check_part(demand, start, part)


def test_a_header_longer_than_a_part_is_compared_in_every_part_that_it_reaches_into() -> None:
    names = [f"tensor.{index:03}" for index in range(40)]
    schema = Schema(tuple(TensorSpec(name, "F32", (2,), AVERAGED) for name in names))
    for kind, good in ((BlobKind.UPDATE, payload_for(schema, "q8")), (BlobKind.MODEL, model_for(schema))):
        demand = demand_of(rules_for(schema, "q8"), len(good), kind)
        header = int.from_bytes(good[:8], "little") + 8
        assert header > 1024
        for place in range(0, header, 31):
            blob = spoilt(good, place, bytes([good[place] ^ 1]))
            start = place // 256 * 256
            with pytest.raises(Refused, match=r"WRONG_HEADER|BAD_MODEL"):
                check_part(demand, start, blob[start : start + 256])


@EACH
def test_judging_takes_little_memory_however_large_the_blob(encoding: str) -> None:
    schema = flat_schema(1_500_000)
    rules = rules_for(schema, encoding)
    flat = {"w": np.zeros(1_500_000, np.float32)}
    update = encode_update(form_of(schema, encoding), PLACE, flat)
    for kind, blob in ((BlobKind.UPDATE, update), (BlobKind.MODEL, build_model(schema, flat))):
        demand = demand_of(rules, len(blob), kind)
        check_blob(demand, blob)
        tracemalloc.start()
        check_blob(demand, memoryview(blob))
        for start in range(0, len(blob), LEAF_BYTES):
            check_part(demand, start, memoryview(blob)[start : start + LEAF_BYTES])
        check_joints(demand, memoryview(blob), LEAF_BYTES)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LEAF_BYTES


@EACH
def test_an_update_without_its_bytes_demands_the_blob_of_exactly_their_size(encoding: str) -> None:
    running = running_job(encoding=encoding)
    trainer = running.trainers[0]
    inline = running.body(trainer)
    checked = running.ledger.check(trainer.sign(replace(inline, payload=b"")))
    rules = running.ledger.rules(running.job)
    claim = BlobClaim(inline.cid, len(inline.payload), BlobKind.UPDATE, trainer.account, running.job, 1, 0)
    assert checked.demand == Demand(claim, rules)
    check_blob(checked.demand, inline.payload)
    assert running.ledger.check(trainer.sign(inline)).demand is None


def test_an_update_by_its_blob_is_accepted_into_the_log_under_its_cid() -> None:
    running = running_job()
    bodies = [running.body(each, payload=b"") for each in running.trainers]
    running.ledger.block(*(each.sign(body) for each, body in zip(running.trainers, bodies, strict=True)))
    assert [receipt.status for receipt in running.ledger.receipts[-4:]] == ["ok"] * 4
    assert running.ledger.aggregations[-1].size == 4


def test_a_blob_made_for_another_place_is_refused_by_its_header() -> None:
    running = running_job()
    mine, other = running.trainers[:2]
    stolen = running.body(other).payload
    demand = running.ledger.check(mine.sign(running.body(mine, payload=b"", cid=raw_cid(stolen)))).demand
    assert demand is not None
    for judge in (lambda: check_blob(demand, stolen), lambda: check_part(demand, 0, stolen)):
        with pytest.raises(Refused, match="WRONG_HEADER"):
            judge()


def test_what_is_said_beside_a_blob_is_judged_at_once() -> None:
    running = running_job()
    trainer = running.trainers[0]
    for changes, code in (
        ({"examples": 0}, "BAD_EXAMPLES"),
        ({"metrics": ()}, "BAD_METRICS"),
        ({"cid": bytes(36)}, "BAD_CID"),
        ({"cid": cid_of(bytes(2 * LEAF_BYTES))}, "BAD_CID"),
    ):
        with pytest.raises(Refused, match=code):
            running.ledger.check(trainer.sign(running.body(trainer, payload=b"", **changes)))
    with pytest.raises(PendingJob):
        running.ledger.check(trainer.sign(running.body(trainer, payload=b"", job=bytes(32))))


def test_a_blob_is_named_by_the_kind_of_cid_that_its_size_has() -> None:
    rules = make_rules(schema=LARGE)
    tree, raw = cid_of(bytes(LEAF_BYTES + 1)), raw_cid(b"")
    assert update_demand(tree, rules, PLACE, 0).claim.size_bytes == len(payload_for(LARGE, "f32"))
    assert model_demand(replace(rules, initial=tree), MEMBER).claim.size_bytes == len(model_for(LARGE))
    with pytest.raises(Refused, match="BAD_CID"):
        update_demand(raw, rules, PLACE, 0)
    with pytest.raises(Refused, match="BAD_CID"):
        model_demand(replace(rules, initial=raw), MEMBER)


def test_what_one_node_lacks_is_refused_without_a_trace() -> None:
    for code in ("BLOB_MISSING", "BLOB_FULL"):
        assert CODES[code].decided_by is DecidedBy.BYTES
        assert "node" in Refused(code).sentence
