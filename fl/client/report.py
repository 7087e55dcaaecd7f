"""What became of a round, for people and for files: the same whether it was simulated or took place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from chain.cid import cid_text
from fl.client.measures import metric_value
from fl.records import Evaluation, EvaluationPhase, JobRules, Phase, Round


@dataclass(frozen=True, slots=True)
class RoundReport:
    """`metrics` are the trainers' means, `evaluation` what evaluators found, `held_out` what was measured here on data
    that nobody trains on. `failed` trainers never answered, `late` ones were not waited for; `refused` counts answers
    by the code they were refused with. All three are known only where the trainers are."""

    round: int
    state: str
    code: str
    cohort: int
    updates: int
    weight: int
    examples: int
    metrics: Mapping[str, float]
    evaluation: Mapping[str, float]
    model: str
    seconds: float
    height: int
    held_out: Mapping[str, float] = field(default_factory=dict)
    failed: int = 0
    late: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def report_of(rules: JobRules, record: Round, evaluation: Evaluation | None, **more: Any) -> RoundReport:
    """Of a round that is over."""
    closed = record.phase == Phase.CLOSED
    return RoundReport(
        round=record.number,
        state=Phase(record.phase).name.lower(),
        code=record.code,
        cohort=record.cohort,
        updates=record.updates.size,
        weight=sum(record.weights),
        examples=record.examples,
        metrics=_named(rules.metrics, record.means),
        evaluation=_measured(rules, evaluation),
        model=cid_text(record.model) if closed else "",
        seconds=(record.ended_ms - record.opened_ms) / 1000,
        height=record.ended_height,
        **more,
    )


def _measured(rules: JobRules, evaluation: Evaluation | None) -> dict[str, float]:
    if evaluation is None or evaluation.phase != EvaluationPhase.CLOSED:
        return {}
    return _named(rules.evaluation.metrics, evaluation.values)


def _named(names: tuple[str, ...], values: tuple[int, ...]) -> dict[str, float]:
    return {name: metric_value(value) for name, value in zip(names, values, strict=False)}
