"""Squared norms of encoded updates: those of the values that are read from them, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.kernels.distances import LIMBS, exact
from fl.kernels.golden import GoldenMismatch, check_golden, norms
from fl.kernels.payloads import PAYLOADS, Payloads
from fl.tensors.encodings import encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from tests.fl.numbers import oracle, oracles
from tests.fl.numbers.builders import PLACE, form_of, random_tensors

EACH = pytest.mark.parametrize("encoding", sorted(PAYLOADS))
WIDE = Schema(
    tuple(TensorSpec(f"t{i}", "F32", (size,), AVERAGED) for i, size in enumerate((5, 20_000, 1, 17_300, 4096)))
)


def payloads_of(encoding: str, schema: Schema, seed: int, range_bits: int) -> tuple[Payloads, int]:
    form = form_of(schema, encoding, range_bits)
    payload = encode_update(form, PLACE, random_tensors(schema, seed))
    return PAYLOADS[encoding](form, [(payload, len(form.header(PLACE)))]), form.layout.tiles.size - 1


def norm_of(payloads: Payloads, first: int, last: int, bits: int) -> int:
    limbs = np.zeros(LIMBS, np.int64)
    payloads.add_norm(limbs, 0, first, last, 2.0**bits)
    return exact(limbs.reshape(1, -1))[0]


@EACH
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 100), bits=st.sampled_from((17, 42)))
def test_a_norm_is_that_of_the_values_that_are_read(encoding: str, seed: int, bits: int) -> None:
    payloads, tiles = payloads_of(encoding, WIDE, seed, 8)
    values = np.empty(sum(each.shape[0] for each in WIDE.tensors), np.float32)
    payloads.read(0, 0, values)
    # |y| ≤ 2^50, so numpy's product of two of them would not fit.
    expected = sum(int(each) ** 2 for each in np.rint(values * 2.0**bits))
    assert norm_of(payloads, 0, tiles, bits) == expected
    parts = [norm_of(payloads, tile, tile + 1, bits) for tile in range(tiles)]
    assert sum(parts) == expected and tiles == 3


@EACH
def test_values_beyond_the_range_give_nothing_negative(encoding: str) -> None:
    schema = Schema((TensorSpec("w", "F32", (5000,), AVERAGED),))
    form = form_of(schema, encoding, 8)
    broken = bytearray(encode_update(form, PLACE, random_tensors(schema, 1)))
    start = len(form.header(PLACE))
    for filled in (b"\xff", b"\x7f", b"\x80"):
        broken[start:] = filled * (len(broken) - start)
        payloads = PAYLOADS[encoding](form, [(bytes(broken), start)])
        assert norm_of(payloads, 0, 1, 42) >= 0


def test_golden_vectors_agree_with_the_oracle() -> None:
    for encoding, values, norm in (
        ("f16", norms._F16, norms._F16_NORM),
        ("bf16", norms._BF16, norms._BF16_NORM),
    ):
        assert oracles.squared_norm([oracle.half_value(encoding, each) for each in values], norms._BITS) == norm
    for bits, norm in norms._Q8_NORMS:
        scale = oracle.from_bits(bits)
        row = [oracle.q8_value(step, scale) for step in norms._STEPS]
        assert oracles.squared_norm(row, norms._BITS) == norm


def without_the_rest(limbs: Any, *given: Any) -> None:
    limbs[1] += 1


@pytest.mark.parametrize("name", ["add_norm_half", "add_norm_q8"])
def test_golden_vectors_catch_a_norm_that_is_another(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(norms, name, without_the_rest)
    with pytest.raises(GoldenMismatch, match=name):
        check_golden()
