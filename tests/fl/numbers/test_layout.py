from __future__ import annotations

import random

import numpy as np
import pytest
from safetensors.numpy import load

from chain.codec import decode, encode
from fl.errors import Refused
from fl.tensors.encodings import ENCODINGS, check_payload, encode_update
from fl.tensors.layout import (
    AVERAGED,
    BLOCK,
    FROZEN,
    LOCAL,
    TILE,
    Schema,
    TensorSpec,
    check_schema,
    layout_of,
)
from fl.tensors.model import build_model, check_model, parse_model
from tests.fl.numbers.builders import (
    JOB,
    MEMBER,
    PLACE,
    ROUND,
    SMALL,
    WIDE,
    flat_schema,
    form_of,
    package_bytes,
    random_model,
    random_schema,
    random_tensors,
)

SCHEMAS = [random_schema(random.Random(seed)) for seed in range(300)]


def test_model_blobs_are_the_bytes_that_the_package_writes() -> None:
    for seed, schema in enumerate(SCHEMAS):
        check_schema(schema, 2**27)
        model = random_model(schema, seed)
        blob = build_model(schema, model)
        check_model(schema, blob)
        parsed = parse_model(schema, blob)
        expected = package_bytes(
            {
                spec.name: (spec.dtype, spec.shape, parsed[spec.name].tobytes())
                for spec in schema.tensors
                if spec.role != LOCAL
            },
            {"format": "pt"},
        )
        assert blob == expected, schema


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_update_payloads_are_the_bytes_that_the_package_writes(encoding: str) -> None:
    for seed, schema in enumerate(SCHEMAS):
        form = form_of(schema, encoding)
        payload = encode_update(form, PLACE, random_tensors(schema, seed))
        check_payload(form, PLACE, payload)
        assert len(payload) == form.size_bytes(PLACE)
        data = payload[len(payload) - form.data_bytes :]
        at = 0
        tensors = {}
        for stored in sorted(form.encoding.stored(), key=lambda each: (each.dtype != "F32", each.name)):
            tensors[stored.name] = (stored.dtype, stored.shape, data[at : at + stored.size_bytes])
            at += stored.size_bytes
        expected = package_bytes(tensors, {"update": f"{JOB.hex()}/{ROUND}/{MEMBER.hex()}"})
        assert payload == expected, schema


def test_the_package_reads_back_what_was_written() -> None:
    blob = build_model(WIDE, random_model(WIDE, 3))
    ours = parse_model(WIDE, blob)
    theirs = load(blob)
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        assert np.array_equal(theirs[name].view(np.uint32), array.view(np.uint32)), name


def test_a_schema_survives_the_codec() -> None:
    for schema in (SMALL, WIDE, *SCHEMAS[:20]):
        data = encode(schema)
        assert decode(Schema, data, len(data)) == schema


def test_blocks_and_tiles_cover_the_flat_vector_without_crossing_a_tensor() -> None:
    for schema in (SMALL, WIDE, flat_schema(1), flat_schema(TILE), flat_schema(3 * TILE + 1), *SCHEMAS):
        layout = layout_of(schema)
        widths = np.diff(layout.blocks)
        assert layout.blocks[0] == 0 and layout.blocks[-1] == layout.parameters
        assert widths.min() >= 1 and widths.max() <= BLOCK
        assert {each.stop for each in layout.segments} <= set(layout.blocks.tolist())
        assert layout.tiles[0] == 0 and layout.tiles[-1] == layout.blocks.size - 1
        assert np.array_equal(layout.blocks[layout.tiles], layout.edges)
        assert (np.diff(layout.edges)[:-1] >= TILE).all() and (np.diff(layout.edges) > 0).all()
        assert [each.name for each in layout.segments] == sorted(each.name for each in layout.segments)


def with_spec(**changes: object) -> Schema:
    fields: dict[str, object] = {"name": "x", "dtype": "F32", "shape": (2,), "role": AVERAGED} | changes
    return Schema((TensorSpec("w", "F32", (4,), AVERAGED), TensorSpec(**fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "schema",
    [
        Schema(()),
        Schema((TensorSpec("w", "F32", (4,), FROZEN),)),
        with_spec(name=""),
        with_spec(name="a" * 201),
        with_spec(name="a#scale"),
        with_spec(name="a b"),
        with_spec(name="a\n"),
        with_spec(name='a"'),
        with_spec(name="é"),
        with_spec(name="٣"),
        with_spec(name="__metadata__"),
        with_spec(name="w"),
        with_spec(dtype="F16"),
        with_spec(dtype="f32"),
        with_spec(dtype="F128", role=FROZEN),
        with_spec(role="trained"),
        with_spec(shape=(0,)),
        with_spec(shape=(2**32,)),
        with_spec(shape=(1,) * 9),
        with_spec(shape=(1000, 1000)),
        with_spec(shape=(2**31, 2**31, 2**31, 2**31)),
    ],
)
def test_a_malformed_schema_is_refused(schema: Schema) -> None:
    with pytest.raises(Refused) as refusal:
        check_schema(schema, 100_000)
    assert refusal.value.code == "BAD_SCHEMA"


def test_local_tensors_do_not_count_as_parameters() -> None:
    check_schema(with_spec(shape=(1000, 1000), role=LOCAL), 4)
    with pytest.raises(Refused):
        check_schema(with_spec(shape=(1,), role=FROZEN), 4)
