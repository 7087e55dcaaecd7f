from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.varint import VarintError, read_varint, to_varint


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_a_number_is_read_back_and_its_end_found(value: int, rest: bytes) -> None:
    written = to_varint(value)
    assert read_varint(written + rest, 0) == (value, len(written))
    for cut in range(len(written)):
        with pytest.raises(VarintError):
            read_varint(written[:cut], 0)


@given(st.binary(max_size=12))
def test_whatever_is_read_has_one_form(data: bytes) -> None:
    try:
        value, end = read_varint(data, 0)
    except VarintError:
        return
    assert to_varint(value) == data[:end]


def test_only_64_bits_are_written() -> None:
    for wrong in (-1, 2**64):
        with pytest.raises(VarintError):
            to_varint(wrong)
