"""What an evaluator is asked: to measure the model of a round on data of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from chain.cid import cid_text
from fl.client.jobdraft import ConfigValue, config_value
from fl.client.measures import examples_of, metric_values
from fl.client.receipt import Receipt
from fl.evaluation import SubmitEvaluation
from fl.jobrules import config_at
from fl.records import Evaluation

if TYPE_CHECKING:
    from fl.client.job import AsyncJob

_MOVED_ON = frozenset({"LATE", "DUPLICATE"})
"""Refusals of an answer that end an evaluation for the evaluator and nothing else."""


class AsyncEvaluation:
    """A model to measure. `model` maps tensor names to arrays of your own."""

    def __init__(self, job: AsyncJob, asked: Evaluation, model: dict[str, NDArray[Any]]) -> None:
        self._job = job
        self._asked = asked
        self.receipt: Receipt | None = None
        self.round = asked.round
        self.model = model
        self.metrics = job.rules.evaluation.metrics
        self.config: dict[str, ConfigValue] = {
            name: config_value(entry) for name, entry in config_at(job.rules, asked.round).items()
        }

    @property
    def model_cid(self) -> str:
        return cid_text(self._asked.model)

    async def submit(self, *, metrics: Mapping[str, float], examples: int) -> Receipt:
        """Submit what was measured, and on how many examples; returns the proven receipt.

        The receipt's status is "ok", or LATE when the evaluation ended meanwhile, or DUPLICATE when this account has
        answered it already. Every other refusal raises RefusedByChain."""
        body = SubmitEvaluation(
            job=bytes.fromhex(self._job.id),
            round=self.round,
            model=self._asked.model,
            examples=examples_of(examples),
            values=metric_values(self.metrics, metrics),
        )
        self.receipt = await self._job.network.send(body, allow=_MOVED_ON, patience_s=math.inf)
        return self.receipt
