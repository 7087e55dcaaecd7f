from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl.errors import Refused
from fl.tensors.model import build_model, check_model, model_form, parse_model
from tests.fl.numbers.builders import SMALL, WIDE, bits_of, random_model


def test_a_model_is_parsed_as_it_was_built() -> None:
    model = random_model(SMALL, 1)
    blob = build_model(SMALL, model)
    check_model(SMALL, blob)
    parsed = parse_model(SMALL, blob)
    assert list(parsed) == ["layer.weight", "steps", "layer.bias", "layer.frozen", "embedding"]
    assert bits_of(parsed["layer.weight"]) == bits_of(np.asarray(model["layer.weight"]))
    assert parsed["embedding"].tobytes() == model["embedding"]
    assert parsed["embedding"].dtype == np.uint16 and parsed["steps"].shape == ()
    assert build_model(SMALL, parsed) == blob


def test_building_makes_averaged_tensors_canonical_and_leaves_frozen_ones_alone() -> None:
    odd = np.array([-0.0, 1e-40, 3.0], np.float32)
    model = random_model(SMALL, 2) | {"layer.frozen": odd, "layer.bias": np.array([-0.0, 1e-40, -1e-39, 2, 3])}
    blob = build_model(SMALL, model)
    check_model(SMALL, blob)
    parsed = parse_model(SMALL, blob)
    assert bits_of(parsed["layer.bias"]) == [0, 0, 0, 0x40000000, 0x40400000]
    assert bits_of(parsed["layer.frozen"]) == bits_of(odd)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFFC00000, 0x80000000, 0x00000001, 0x807FFFFF])
def test_a_model_that_is_not_canonical_is_refused(bits: int) -> None:
    blob = build_model(WIDE, random_model(WIDE, 3))
    form = model_form(WIDE)
    assert len(form.runs) > 1
    for run in form.runs:
        for place in (run.offset, run.offset + 4 * (run.stop - run.start) - 4):
            changed = blob[:place] + bits.to_bytes(4, "little") + blob[place + 4 :]
            with pytest.raises(Refused) as refusal:
                check_model(WIDE, changed)
            assert refusal.value.code == "BAD_MODEL"


def test_only_exactly_the_implied_bytes_are_a_model() -> None:
    blob = build_model(SMALL, random_model(SMALL, 4))
    for wrong in (b"", blob[:-1], blob + b"\0", b"\1" + blob[1:], blob.replace(b'"pt"', b'"tf"')):
        with pytest.raises(Refused) as refusal:
            check_model(SMALL, wrong)
        assert refusal.value.code == "BAD_MODEL"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding", bytes(11)),
        ("embedding", np.zeros((2, 3), np.float32)),
        ("embedding", np.zeros((3, 2), np.uint16)),
        ("steps", np.zeros((), np.int32)),
        ("layer.bias", np.zeros((5, 1))),
        ("running", np.zeros(5)),
        ("nonsense", np.zeros(5)),
        ("steps", None),
        ("layer.bias", None),
    ],
)
def test_a_model_takes_exactly_the_tensors_of_its_schema(name: str, value: Any) -> None:
    model = random_model(SMALL, 5)
    if value is None:
        del model[name]
    else:
        model[name] = value
    with pytest.raises(ValueError, match=name):
        build_model(SMALL, model)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_model_that_is_not_finite_is_not_built(value: float) -> None:
    with pytest.raises(Refused) as refusal:
        build_model(SMALL, random_model(SMALL, 6) | {"layer.bias": np.array([0, 0, value, 0, 0])})
    assert refusal.value.code == "BAD_MODEL"
