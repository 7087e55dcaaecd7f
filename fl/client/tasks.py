"""What a trainer is asked: to change the model of a round, and to say by how much."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chain.cid import cid_text
from fl.client.errors import BadInput
from fl.client.jobdraft import Arrays, ConfigValue, config_value
from fl.client.receipt import Receipt
from fl.jobrules import config_at
from fl.records import Role, Round
from fl.updates import form_of

if TYPE_CHECKING:
    from fl.client.job import AsyncJob

_BETWEEN_BUFFERS = "BUFFER_CLOSED"
_MOVED_ON = frozenset({"LATE", "DUPLICATE", "TOO_STALE", "JOB_CLOSED", _BETWEEN_BUFFERS})
"""Refusals of an update that end a round for the trainer and nothing else, or not even that."""


class Difference(Mapping[str, NDArray[Any]]):
    """What training has changed, tensor by tensor as it is asked for: never all of it at once."""

    def __init__(self, trained: Arrays, base: Arrays) -> None:
        self._trained = trained
        self._base = base

    def __getitem__(self, name: str) -> NDArray[Any]:
        # Of two float32 the nearest float32 to their difference: what is sent. Of anything finer, in float64.
        trained, base = self._trained[name], self._base[name]
        exact = np.float32 if trained.dtype == np.float32 else np.float64
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            change: NDArray[Any] = np.subtract(trained, base, dtype=exact)
        return change

    def __iter__(self) -> Iterator[str]:
        return iter(self._trained)

    def __len__(self) -> int:
        return len(self._trained)


class AsyncTask:
    """A round to answer. `model` maps tensor names to arrays of your own; change them as you like."""

    def __init__(
        self, job: AsyncJob, round: Round, base: dict[str, NDArray[Any]], model: dict[str, NDArray[Any]]
    ) -> None:
        self._job = job
        self._round = round
        self._base = base
        self.receipt: Receipt | None = None
        self.round = round.number
        self.model = model
        self.config: dict[str, ConfigValue] = {
            name: config_value(entry) for name, entry in config_at(job.rules, round.number).items()
        }

    @property
    def model_cid(self) -> str:
        return cid_text(self._round.base)

    async def submit(
        self,
        *,
        weights: Arrays | None = None,
        delta: Arrays | None = None,
        examples: int,
        metrics: Mapping[str, float] | None = None,
        group: str | None = None,
        feedback: bool = True,
    ) -> Receipt:
        """Submit the trained `weights`, or their difference to the model as `delta`; returns the proven receipt. In a
        job that names groups of tensors, an update changes the `group` that it names and nothing else. With a lossy
        encoding, what it left out of earlier updates is added to this one, unless `feedback` is false.

        The receipt's status is "ok", or LATE when the round closed meanwhile, JOB_CLOSED when the job ended with it,
        TOO_STALE when a job without rounds has moved too far, DUPLICATE when this account has answered already. Every
        other refusal raises RefusedByChain."""
        if (weights is None) == (delta is None):
            raise BadInput("ONE_OF_TWO", "Give exactly one of `weights` and `delta`.", "See help(task.submit).")
        number = self._job.group_number(group)
        await self._job.admit(Role.TRAINER.value)
        change = delta if delta is not None else self._difference(weights or {}, number)
        await self._job.settled()
        body = await asyncio.to_thread(
            self._job.update, self._round, change, examples, metrics or {}, number, feedback=feedback
        )
        # A long outage must not end a long training: the update waits for the network to come back.
        while True:
            self.receipt = await self._job.network.send(body, allow=_MOVED_ON, patience_s=math.inf)
            if self.receipt.status != _BETWEEN_BUFFERS:
                return self.receipt
            await self._job.buffer_open()

    def _difference(self, weights: Arrays, group: int) -> Difference:
        unknown = weights.keys() - self._base.keys()
        if unknown:
            raise BadInput(
                "UNKNOWN_TENSOR", f"The model has no tensor {', '.join(sorted(unknown))}.", "Give those of task.model."
            )
        trained = {}
        for name in (each.name for each in form_of(self._job.rules, group).layout.segments):
            if name not in weights:
                raise BadInput(
                    "MISSING_TENSOR",
                    f"The tensor {name!r} is missing.",
                    "Give every averaged tensor, or all of the group.",
                )
            trained[name], base = np.asarray(weights[name]), self._base[name]
            if (shape := trained[name].shape) != base.shape:
                raise BadInput(
                    "WRONG_SHAPE",
                    f"The tensor {name!r} has the shape {shape}, not {base.shape}.",
                    "Give it as task.model has it.",
                )
        return Difference(trained, self._base)
