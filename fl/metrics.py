"""Metrics of a round: int64 in millionths, reported with each update and averaged by examples.

NaN and the infinities have marks. A marked value is counted but enters no mean, so that one client whose loss
diverged does not hide the others'.
"""

from __future__ import annotations

from fl.records import METRIC_MARKS, METRIC_NAN, MetricSum

_WIDE_BYTES = 16
NO_SUM = MetricSum(bytes(_WIDE_BYTES), 0, 0)


def with_values(sums: tuple[MetricSum, ...], values: tuple[int, ...], examples: int) -> tuple[MetricSum, ...]:
    """At most 2^17 updates of at most 2^32 examples: 112 bits hold the sum of products."""
    return tuple(_with_value(each, value, examples) for each, value in zip(sums, values, strict=True))


def _with_value(sum_: MetricSum, value: int, examples: int) -> MetricSum:
    if value in METRIC_MARKS:
        return MetricSum(sum_.total, sum_.examples, sum_.marked + 1)
    total = int.from_bytes(sum_.total, "big", signed=True) + value * examples
    return MetricSum(total.to_bytes(_WIDE_BYTES, "big", signed=True), sum_.examples + examples, sum_.marked)


def mean(sum_: MetricSum) -> int:
    """Rounded to nearest, ties to even; NaN's mark when no update gave a number."""
    if sum_.examples == 0:
        return METRIC_NAN
    total = int.from_bytes(sum_.total, "big", signed=True)
    quotient, rest = divmod(total, sum_.examples)
    if 2 * rest > sum_.examples or (2 * rest == sum_.examples and quotient & 1):
        quotient += 1
    return quotient
