"""Golden vectors: a node whose kernels do not give these signs no result.

They hold what goes wrong first on another processor, compiler or library: ties, the ends of every range, the last bit
of a product, denormals and negative zeros. Every kernel has some, in a file for each kind of them. A library built with
-Ofast may have told the processor to flush denormals for the whole thread; that is looked for as well.
"""

from __future__ import annotations

from fl.kernels.denormals import check_denormals
from fl.kernels.golden import halves, moments, norms, order, reading, sums, topk, toward_zero
from fl.kernels.golden.compare import GoldenMismatch

__all__ = ["GoldenMismatch", "check_golden"]


def check_golden() -> None:
    """Raises `GoldenMismatch`. Compiles every kernel on the way, so the first call may take seconds."""
    check_denormals()
    sums.check()
    toward_zero.check()
    halves.check()
    topk.check()
    reading.check()
    order.check()
    norms.check()
    moments.check()
    # Compiling has loaded libraries.
    check_denormals()
