"""Metrics of a round and of an evaluation: int64 in millionths, reported by each member, and one number for all.

NaN and the infinities have marks. A marked value is counted but enters no mean and no median, so that one client whose
loss diverged does not hide the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from fl.records import (
    METRIC_MARKS,
    METRIC_NAN,
    Answer,
    Goal,
    Job,
    JobRules,
    MetricSum,
    Phase,
    Round,
    Statistic,
)

_WIDE_BYTES = 16
NO_SUM = MetricSum(bytes(_WIDE_BYTES), 0, 0)


def with_values(sums: tuple[MetricSum, ...], answers: Sequence[tuple[tuple[int, ...], int]]) -> tuple[MetricSum, ...]:
    """With these members' values and examples. At most 2^17 updates of at most 2^32 examples: 112 bits hold the sum of
    products."""
    examples = [of for _, of in answers]
    return tuple([_with_values(each, [values[at] for values, _ in answers], examples) for at, each in enumerate(sums)])


def _with_values(sum_: MetricSum, values: list[int], examples: list[int]) -> MetricSum:
    given = len(values)
    if not METRIC_MARKS.isdisjoint(values):
        places = [place for place, value in enumerate(values) if value not in METRIC_MARKS]
        values, examples = [values[place] for place in places], [examples[place] for place in places]
    total = int.from_bytes(sum_.total, "big", signed=True) + sum(map(mul, values, examples))
    marked = sum_.marked + given - len(values)
    return MetricSum(total.to_bytes(_WIDE_BYTES, "big", signed=True), sum_.examples + sum(examples), marked)


def mean(sum_: MetricSum) -> int:
    """Rounded to nearest, ties to even; NaN's mark when no update gave a number."""
    if sum_.examples == 0:
        return METRIC_NAN
    total = int.from_bytes(sum_.total, "big", signed=True)
    quotient, rest = divmod(total, sum_.examples)
    if 2 * rest > sum_.examples or (2 * rest == sum_.examples and quotient & 1):
        quotient += 1
    return quotient


def lower_median(values: Sequence[int]) -> int:
    """Always a value that somebody gave; NaN's mark when nobody gave a number."""
    numbers = sorted(value for value in values if value not in METRIC_MARKS)
    return numbers[(len(numbers) - 1) // 2] if numbers else METRIC_NAN


def measured(statistic: str, metrics: int, answers: Sequence[Answer]) -> tuple[int, ...]:
    """One value for each metric."""
    if statistic == Statistic.MEDIAN:
        return tuple(lower_median([each.values[place] for each in answers]) for place in range(metrics))
    sums = with_values((NO_SUM,) * metrics, [(each.values, each.examples) for each in answers])
    return tuple(map(mean, sums))


def marked(metrics: int, answers: Sequence[Answer]) -> tuple[int, ...]:
    """Of each metric, how many answers gave no number."""
    return tuple(sum(each.values[place] in METRIC_MARKS for each in answers) for place in range(metrics))


# The goal


def better(goal: Goal, value: int, than: int) -> bool:
    return value > than if goal.larger else value < than


def _reached(goal: Goal, value: int) -> bool:
    return value not in METRIC_MARKS and (value == goal.value or better(goal, value, goal.value))


def is_trained_to_goal(rules: JobRules, closed: Round) -> bool:
    """Whether the job stops because of what its trainers reported; it does not if evaluators measure the metric."""
    goal = rules.goal
    if not goal.stop or goal.metric in rules.evaluation.metrics or closed.phase != Phase.CLOSED:
        return False
    return _reached(goal, closed.means[rules.metrics.index(goal.metric)])


def is_measured_to_goal(rules: JobRules, job: Job) -> bool:
    """Whether the job stops because of its best model."""
    return rules.goal.stop and bool(job.best) and _reached(rules.goal, job.best_value)


def is_over(rules: JobRules, job: Job, newest: Round | None) -> bool:
    """Whether the job needs no further round."""
    if job.completed >= rules.rounds or is_measured_to_goal(rules, job):
        return True
    return newest is not None and is_trained_to_goal(rules, newest)
