"""The compiled inner loops: exact sums of updates, and the model that follows from them.

Enters: read-only arrays over payloads, weights as grid factors, ranges of tiles. Leaves: int64 sums and F32
values that are the same bytes on every processor. `sums`, `norms` and `reading` know the encodings, `order`,
`distances` and `moments` what rules do with values, and every rule ends in `apply`; `golden` holds the vectors that a
node checks before it signs a result.

Each loop is elementwise integer arithmetic or IEEE-754 + − × ÷ in a fixed order; the compiler may neither
reorder nor contract, and threads belong to the caller. Compiling is slow once and cached on disk after that,
so nothing compiles on import: `golden.check_golden` compiles everything. A client meets this room where it looks up
a job's rule, and needs no compiler for that.
"""

from fl.kernels.apply import apply_mean
from fl.kernels.sums import FUSED, sum_bf16, sum_f16, sum_f32, sum_q8, sum_topk

KERNEL_VERSION = 1
"""Of the formulas, a consensus parameter: nodes of different versions would compute different bytes."""

__all__ = [
    "FUSED",
    "KERNEL_VERSION",
    "apply_mean",
    "sum_bf16",
    "sum_f16",
    "sum_f32",
    "sum_q8",
    "sum_topk",
]
