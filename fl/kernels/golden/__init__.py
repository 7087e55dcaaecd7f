"""Golden vectors: a node whose kernels do not give these signs no result.

They hold what goes wrong first on another processor, compiler or library: ties, the ends of every range, the last bit
of a product, denormals and negative zeros. Every kernel has some, in a file for each kind of them. A library built with
-Ofast may have told the processor to flush denormals for the whole thread; that is looked for as well.
"""

from __future__ import annotations

import numpy as np

from fl.kernels.golden import order, reading, sums
from fl.kernels.golden.compare import GoldenMismatch

__all__ = ["GoldenMismatch", "check_golden"]


def check_golden() -> None:
    """Raises `GoldenMismatch`. Compiles every kernel on the way, so the first call may take seconds."""
    _check_denormals()
    sums.check()
    reading.check()
    order.check()


def _check_denormals() -> None:
    # 2^-100 · 2^-40 and 2^-140 · 2^100: a denormal result, then a denormal operand.
    small = np.array([2.0**-100, 2.0**-140], np.float32) * np.array([2.0**-40, 2.0**100], np.float32)
    if small.view(np.uint32).tolist() != [0x00000200, 0x2B800000]:
        raise GoldenMismatch(
            "This process flushes denormal numbers to zero; a library built with -Ofast may have switched that on."
        )
