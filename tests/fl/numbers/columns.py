"""Values that several tests sort and compare, as F32 bits: drawn with ties, and those where code goes wrong first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.tensors.floats import range_bits_as_f32

SIGN = 0x80000000
COUNTS = (1, 2, 3, 4, 5, 7, 8, 33)
NASTY = (0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x3F800000, 0xBF800000)
"""Zeros, denormals, the smallest normal number and ones."""


def bits_of_columns(count: int, width: int, range_bits: int) -> st.SearchStrategy[list[list[int]]]:
    """`count` rows of `width` within ±2^R, few enough different ones in a case that many are equal."""
    limit = range_bits_as_f32(range_bits)
    magnitude = st.one_of(
        st.integers(0, limit),
        st.integers(limit - 2**25, limit),
        st.just(limit),
        st.sampled_from([each & ~SIGN for each in NASTY if each & ~SIGN <= limit]),
    )
    one = magnitude.flatmap(lambda bits: st.sampled_from((bits, bits | SIGN)))
    pools = st.lists(one, min_size=1, max_size=10)
    return pools.flatmap(
        lambda pool: st.lists(
            st.lists(st.sampled_from(pool), min_size=width, max_size=width), min_size=count, max_size=count
        )
    )


def random_bits(draw: random.Random, width: int, range_bits: int) -> list[int]:
    limit = range_bits_as_f32(range_bits)
    magnitudes = [
        draw.choice((draw.randint(0, limit), draw.randint(limit - 5, limit), draw.choice(NASTY))) for _ in range(width)
    ]
    return [each | draw.choice((0, SIGN)) for each in magnitudes]


def rows_of(rows: Sequence[Sequence[int]]) -> NDArray[Any]:
    return np.array(rows, np.uint32).view(np.float32)
