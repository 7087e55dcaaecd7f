"""Whether this thread computes with denormal numbers.

A library built with -Ofast tells the processor to flush them to zero, for the thread that loads it and those that it
begins. Hardly anything here notices, but a float64 just below 2^−126 may then become 0 where it should become 2^−126.
"""

from __future__ import annotations

import numpy as np


class FlushedDenormals(ArithmeticError):
    """This machine, as it is set, cannot take part in aggregation."""


def check_denormals() -> None:
    """Raises `FlushedDenormals`; for the thread that is to write F32."""
    # 2^-100 · 2^-40 and 2^-140 · 2^100: a denormal result, then a denormal operand.
    small = np.array([2.0**-100, 2.0**-140], np.float32) * np.array([2.0**-40, 2.0**100], np.float32)
    if small.view(np.uint32).tolist() != [0x00000200, 0x2B800000]:
        raise FlushedDenormals(
            "This process flushes denormal numbers to zero; a library built with -Ofast may have switched that on."
        )
