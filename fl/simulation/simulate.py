"""A job file, simulated: its app trains on its data, divided among so many trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.cid import cid_text
from fl.client.apps import App, Holdings, answered_group, holdings, named_metrics
from fl.client.errors import BadInput, RefusedByChain
from fl.client.jobdraft import config_value
from fl.client.jobfile import JobFile
from fl.client.measures import metric_values
from fl.client.report import RoundReport, report_of
from fl.client.setting import Setting, app_at
from fl.client.tasks import Difference
from fl.errors import Refused
from fl.jobrules import config_at
from fl.records import JobRules, JobStatus
from fl.simulation.conditions import Draw, source
from fl.simulation.play import Answer, Config, Measured, Model, Play, Seen
from fl.tensors.model import parse_model

MOST_TRAINERS = 10_000
_ACCOUNT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Simulated:
    """`model` is the file of `cid`, the last model; `seconds` are virtual ones."""

    rules: JobRules
    status: str
    rounds: tuple[RoundReport, ...]
    cid: str
    model: bytes
    seconds: float

    def tensors(self) -> dict[str, NDArray[Any]]:
        return parse_model(self.rules.schema, self.model)


class AppCast:
    """The app's trainers and evaluators, each with what it holds."""

    def __init__(self, app: App, held: Holdings, rules: JobRules, evaluators: int, seed: int) -> None:
        self._app = app
        self._held = held
        self._rules = rules
        self._shares = held.shares(evaluators)
        self._seed = seed

    def holds(self, trainer: int) -> int:
        return len(self._held.parts[trainer])

    def train(self, trainer: int, round: int, model: Model, config: Config) -> Answer:
        own = {name: array.copy() for name, array in model.items()}
        chance = source(self._seed, Draw.TRAINING, trainer, round)
        acting = app_at(self._app, self._setting(trainer, round, config))
        weights, examples, metrics = acting.train(own, self._held.parts[trainer], config, chance)
        group, given = answered_group(self._rules, weights)
        trained = {name: np.asarray(array) for name, array in given.items()}
        return Answer(Difference(trained, model), examples, _values(self._rules.metrics, metrics), group)

    def evaluate(self, evaluator: int, round: int, model: Model) -> Measured:
        config = {name: config_value(entry) for name, entry in config_at(self._rules, round).items()}
        acting = app_at(self._app, self._setting(evaluator, round, config))
        examples, metrics = acting.evaluate(model, self._shares[evaluator])
        return Measured(examples, _values(self._rules.evaluation.metrics, metrics))

    def examine(self, model: bytes) -> dict[str, float]:
        """What the app finds on all that is held out."""
        acting = app_at(self._app, self._setting(0, 0, {}))
        _, metrics = acting.evaluate(parse_model(self._rules.schema, model), self._held.held_out)
        return dict(metrics)

    def _setting(self, number: int, round: int, config: Config) -> Setting:
        """By its number: if nothing is held out, the first evaluator has the part of the first trainer, and is it."""
        account = number.to_bytes(_ACCOUNT_BYTES)
        return Setting(bytes(_ACCOUNT_BYTES), account, self._rules, round, config, None)


def simulate(
    job: JobFile,
    trainers: int,
    *,
    app: App | None = None,
    seed: int | None = None,
    tell: Callable[[RoundReport], None] = lambda report: None,
) -> Simulated:
    """Runs the job with so many trainers; `tell` hears of each round as it is over. `app` takes the place of the one
    that the file names. The same file, number and seed give the same models."""
    if not 1 <= trainers <= MOST_TRAINERS:
        raise BadInput("BAD_SIZE", f"{trainers} trainers?", f"A simulation has 1 to {MOST_TRAINERS}.")
    conditions = job.conditions if seed is None else replace(job.conditions, seed=seed)
    draft = job.draft(trainers)
    acting = app or job.load_app().app
    held = holdings(acting, trainers, job.partition)
    cast = AppCast(acting, held, draft.rules, conditions.evaluators, conditions.seed)
    reports: list[RoundReport] = []

    def seen(each: Seen, model: bytes) -> None:
        told = report_of(
            draft.rules,
            each.record,
            each.evaluation,
            held_out=cast.examine(model),
            failed=each.failed,
            late=each.late,
            refused=dict(each.refused),
        )
        reports.append(told)
        tell(told)

    try:
        played = Play(draft, cast, trainers, conditions, seen).run()
    except Refused as refused:
        raise RefusedByChain.of(refused.code, refused.sentence) from None
    status = JobStatus(played.job.status).name.lower()
    return Simulated(draft.rules, status, tuple(reports), cid_text(played.job.model), played.model, played.seconds)


def _values(names: tuple[str, ...], metrics: Mapping[str, float]) -> tuple[int, ...]:
    return metric_values(names, named_metrics(names, metrics))
