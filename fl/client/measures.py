"""Numbers as a client has them, and as the chain does: in millionths, with marks for what is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fl.client.errors import BadInput
from fl.records import METRIC_MARKS, METRIC_MINUS_INFINITY, METRIC_NAN, METRIC_PLUS_INFINITY

MICRO = 1_000_000


def examples_of(examples: int) -> int:
    if isinstance(examples, bool) or int(examples) != examples:
        raise BadInput("BAD_EXAMPLES", f"{examples!r} is no number of examples.", "Give an integer.")
    return int(examples)


def metric_values(names: Sequence[str], given: Mapping[str, float]) -> tuple[int, ...]:
    """In millionths and in the job's order; what is not a number has its mark."""
    if given.keys() != set(names):
        raise BadInput(
            "BAD_METRICS",
            f"The job names the metrics {', '.join(names) or 'none'}; given were {', '.join(given) or 'none'}.",
            "Give exactly the metrics that the job names.",
        )
    return tuple(metric_micro(given[name]) for name in names)


def metric_micro(number: float) -> int:
    """A metric as the chain holds it."""
    value = float(number)
    if math.isnan(value):
        return METRIC_NAN
    if math.isinf(value):
        return METRIC_PLUS_INFINITY if value > 0 else METRIC_MINUS_INFINITY
    scaled = round(value * MICRO)
    limit = METRIC_PLUS_INFINITY - 1
    return max(min(scaled, limit), METRIC_MINUS_INFINITY + 1)


def metric_value(micro: int) -> float:
    """A metric as a number again."""
    if micro in METRIC_MARKS:
        return math.nan if micro == METRIC_NAN else math.copysign(math.inf, micro)
    return micro / MICRO
