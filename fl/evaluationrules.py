"""What a job may ask of its evaluators, and by what its models may be compared."""

from __future__ import annotations

from fl.members import is_name
from fl.records import (
    MAX_EVALUATORS,
    MAX_SPAN_MS,
    METRIC_MARKS,
    EvaluationRules,
    Goal,
    JobRules,
    Statistic,
)


def evaluation_complaints(rules: JobRules) -> list[tuple[bool, str]]:
    return [*_of_evaluation(rules.evaluation), *_of_goal(rules, rules.goal)]


def _of_evaluation(asked: EvaluationRules) -> list[tuple[bool, str]]:
    if not asked.every:
        return [(asked != EvaluationRules(), "What is asked of evaluators needs `every`: after how many rounds.")]
    among = asked.cohort or MAX_EVALUATORS
    return [
        (not 1 <= asked.minimum <= among, f"The minimum of an evaluation is 1 to {among}."),
        (asked.cohort > MAX_EVALUATORS, f"The cohort of an evaluation is 0 (all) to {MAX_EVALUATORS}."),
        (not 1 <= asked.deadline_ms <= MAX_SPAN_MS, f"The deadline of an evaluation is 1 to {MAX_SPAN_MS} ms."),
        (asked.statistic not in list(Statistic), f"The statistic is one of {', '.join(Statistic)}."),
        (not asked.metrics, "An evaluation names what is measured: at least one metric."),
        (len(set(asked.metrics)) != len(asked.metrics), "Each metric of an evaluation is named once."),
        (not all(map(is_name, asked.metrics)), "A metric's name is letters, digits, dot, dash, underscore."),
    ]


def _of_goal(rules: JobRules, goal: Goal) -> list[tuple[bool, str]]:
    if not goal.metric:
        return [(goal != Goal(), "A goal names its metric.")]
    named = (*rules.evaluation.metrics, *rules.metrics)
    return [
        (
            goal.metric not in named,
            f"The goal's metric is one that the job names: {', '.join(named) or 'it has none'}.",
        ),
        (goal.value in METRIC_MARKS, "The goal's value is a number."),
        (bool(goal.value) and not goal.stop, "The goal's value is where the job stops, and it does not stop there."),
    ]
