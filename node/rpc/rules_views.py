"""What a job's rules look like in JSON."""

from __future__ import annotations

from typing import TypedDict

from fl.records import EvaluationRules, Goal, JobRules
from fl.rules import rule_of
from fl.rules.rule import settings_of
from node.rpc.schema import I64, U64, CidText, Hex
from node.rpc.views import cid_or_none, hex_or_none


class TensorView(TypedDict):
    name: str
    dtype: str
    shape: list[int]
    role: str


class ConfigView(TypedDict):
    name: str
    from_round: U64
    type: str
    value: str


class SettingView(TypedDict):
    """As the rule reads it, its defaults included: an integer, or the shortest decimal of a float64."""

    name: str
    value: str


class GroupView(TypedDict):
    """Tensors that an update may change alone."""

    name: str
    tensors: list[str]


class CohortView(TypedDict):
    """`size` is 0 where everyone who has joined is asked; else so many are drawn, and `over_ppm` millionths more. With
    `check_in_ms`, they are drawn among those who check in within it."""

    size: int
    over_ppm: int
    check_in_ms: U64


class EvaluationRulesView(TypedDict):
    """`every` is 0 where evaluators are never asked; `cohort` is 0 where all of them are."""

    every: int
    cohort: int
    minimum: int
    deadline_ms: U64
    before_next: bool
    statistic: str
    metrics: list[str]


class GoalView(TypedDict):
    """`stop_at` is in millionths, and null where the job does not stop by its metric."""

    metric: str
    larger: bool
    stop_at: I64 | None


class RulesView(TypedDict):
    """What a member accepts by joining. `discounts` are what an update weighs in a job without rounds, in 1/1024, by
    how many buffers old its base is; `organisation_cap` is 0 where organisations have none."""

    name: str
    tensors: list[TensorView]
    initial: CidText | Hex | None
    mode: str
    rule: str
    settings: list[SettingView]
    encoding: str
    share_ppm: int
    range_bits: int
    groups: list[GroupView]
    weights: str
    cap: int
    organisation_cap: int
    discounts: list[int]
    cohort: CohortView
    target: int
    minimum: int
    maximum: int
    deadline_ms: U64
    grace_ms: U64
    rounds: int
    max_failed: int
    privacy: str
    metrics: list[str]
    config: list[ConfigView]
    app: str
    app_digest: Hex | None
    evaluation: EvaluationRulesView
    goal: GoalView | None


def rules_view(rules: JobRules) -> RulesView:
    return RulesView(
        name=rules.name,
        tensors=[
            TensorView(name=spec.name, dtype=spec.dtype, shape=list(spec.shape), role=spec.role)
            for spec in rules.schema.tensors
        ],
        initial=cid_or_none(rules.initial),
        mode=rules.mode,
        rule=rules.rule,
        settings=[
            SettingView(name=name, value=repr(value))
            for name, value in sorted(settings_of(rule_of(rules.rule), rules.settings).items())
        ],
        encoding=rules.encoding,
        share_ppm=rules.share_ppm,
        range_bits=rules.range_bits,
        groups=[GroupView(name=each.name, tensors=list(each.tensors)) for each in rules.groups],
        weights=rules.weights,
        cap=rules.cap,
        organisation_cap=rules.organisation_cap,
        discounts=list(rules.discounts),
        cohort=CohortView(size=rules.cohort.size, over_ppm=rules.cohort.over_ppm, check_in_ms=rules.cohort.check_in_ms),
        target=rules.target,
        minimum=rules.minimum,
        maximum=rules.maximum,
        deadline_ms=rules.deadline_ms,
        grace_ms=rules.grace_ms,
        rounds=rules.rounds,
        max_failed=rules.max_failed,
        privacy=rules.privacy,
        metrics=list(rules.metrics),
        config=[
            ConfigView(name=entry.name, from_round=entry.from_round, type=entry.type, value=entry.value)
            for entry in rules.config
        ],
        app=rules.app,
        app_digest=hex_or_none(rules.app_digest),
        evaluation=_evaluation_rules_view(rules.evaluation),
        goal=_goal_view(rules.goal) if rules.goal.metric else None,
    )


def _evaluation_rules_view(asked: EvaluationRules) -> EvaluationRulesView:
    return EvaluationRulesView(
        every=asked.every,
        cohort=asked.cohort,
        minimum=asked.minimum,
        deadline_ms=asked.deadline_ms,
        before_next=asked.before_next,
        statistic=asked.statistic,
        metrics=list(asked.metrics),
    )


def _goal_view(goal: Goal) -> GoalView:
    return GoalView(metric=goal.metric, larger=goal.larger, stop_at=goal.value if goal.stop else None)
