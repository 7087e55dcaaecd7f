"""The play: trainers begin when a round opens, answer when they are ready, and blocks come when something happens.

Trainers are not held in memory: a trainer's data and work exist while it answers, one at a time, in the order of their
virtual times. What remains of each is what a lossy encoding has left out of its updates, and owes to the next ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chain.block import Item
from chain.unixfs import cid_of
from fl.client.feedback import FED_BACK
from fl.client.jobdraft import ConfigValue, Draft, config_value
from fl.cohort import has_answered, read_seats
from fl.datasets import RegisterDataset, dataset_id
from fl.errors import Refused
from fl.evaluation import SubmitEvaluation
from fl.evaluators import UNDER_WAY
from fl.execution import OK
from fl.jobrules import config_at, rules_hash
from fl.jobs import CreateJob, JoinJob, job_id
from fl.records import (
    Answered,
    Candidates,
    Evaluation,
    EvaluationPhase,
    Evaluators,
    Job,
    JobStatus,
    Joined,
    Phase,
    Role,
    Round,
)
from fl.rounds import CheckIn, SubmitUpdate
from fl.simulation.chain import BLOCK_MS, Chain, member
from fl.simulation.closing import aggregated
from fl.simulation.conditions import Conditions, Draw, fails, takes_ms
from fl.state import (
    answered_key,
    candidates_key,
    evaluation_cohort_key,
    evaluation_key,
    job_key,
    joined_key,
    round_key,
)
from fl.tensors.encodings import Place, decode_update, encode_update
from fl.tensors.model import parse_model
from fl.updates import form_of
from fl.weights import DATASET

Model = Mapping[str, NDArray[Any]]
Config = Mapping[str, ConfigValue]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a trainer submits: the change of the averaged tensors, metrics in millionths in the job's order."""

    delta: Model
    examples: int
    metrics: tuple[int, ...]
    group: int = 0
    """Of tensors, among those that the job names."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluator submits: in millionths, in the order of the metrics that the evaluation names."""

    examples: int
    values: tuple[int, ...]


class Cast(Protocol):
    """Who trains and who evaluates. The same arguments must give the same answer."""

    def holds(self, trainer: int) -> int:
        """How many examples its data set has."""

    def train(self, trainer: int, round: int, model: Model, config: Config) -> Answer: ...

    def evaluate(self, evaluator: int, round: int, model: Model) -> Measured: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A round that is over, and the evaluation of its model with it: their records, and what became of those who did
    not count."""

    record: Round
    evaluation: Evaluation | None
    failed: int
    """Trainers that began and never answered."""
    late: int
    """Trainers for whose answers the round did not wait."""
    refused: Mapping[str, int]
    """Answers by the code that they were refused with."""


@dataclass(frozen=True, slots=True)
class Played:
    job: Job
    model: bytes
    rounds: tuple[Seen, ...]
    seconds: float
    """Virtual ones."""


@dataclass(order=True, slots=True)
class _Due:
    """Something that a member does at a time; of several at one time, what was begun first."""

    at_ms: int
    number: int
    act: Callable[[], None] = field(compare=False)
    model: bytes = field(compare=False)
    """It works on this one."""


@dataclass(frozen=True, slots=True)
class _Answering:
    """An update on its way: for which round, of which trainer and group, and what its encoding has left out."""

    round: int
    of: tuple[int, int]
    left: Model


@dataclass(slots=True)
class _Tally:
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Play:
    def __init__(
        self,
        draft: Draft,
        cast: Cast,
        trainers: int,
        conditions: Conditions,
        tell: Callable[[Seen, bytes], None] = lambda seen, model: None,
    ) -> None:
        """`tell` hears of each round that is over, with the model that the job had then."""
        self._rules = draft.rules
        self._cast = cast
        self._conditions = conditions
        self._tell = tell
        evaluators = conditions.evaluators if draft.rules.evaluation.every else 0
        self._creator = member("creator")
        self._trainers = [member(f"trainer-{number}") for number in range(trainers)]
        self._evaluators = [member(f"evaluator-{number}") for number in range(evaluators)]
        everybody = [(self._creator, Role.CREATOR), *((each, Role.TRAINER) for each in self._trainers)]
        everybody += [(each, Role.EVALUATOR) for each in self._evaluators]
        self._chain = Chain(((each, (role.value,)) for each, role in everybody), conditions.seed)
        self._items: list[Item] = []
        self._due: list[_Due] = []
        self._pushed = 0
        self._busy: set[int] = set()
        self._answering: dict[bytes, _Answering] = {}
        """By their transactions."""
        self._owed: dict[tuple[int, int], Model] = {}
        """By trainer and group, what a lossy encoding has left out so far."""
        self._sent: dict[bytes, bytes] = {}
        """Updates by their CIDs, until their round is closed."""
        self._held: list[tuple[bytes, Callable[[], None]]] = []
        """Bases and answers that wait for the next buffer of a job without rounds."""
        self._tallies: defaultdict[int, _Tally] = defaultdict(_Tally)
        self._seen: list[Seen] = []
        self._begun = (0, 0)
        self._evaluated = 0
        self._job = self._created(draft)

    def run(self) -> Played:
        """Until the job is over, or paused, or nothing can happen any more."""
        began_ms = self._chain.time_ms
        accepted = rules_hash(self._rules)
        for each in self._evaluators:
            self._chain.send(each, JoinJob(self._job, accepted, Role.EVALUATOR.value))
        datasets = self._registered() if self._rules.weights == DATASET else [b""] * len(self._trainers)
        for each, dataset in zip(self._trainers, datasets, strict=True):
            self._chain.send(each, JoinJob(self._job, accepted, dataset=dataset))
        self._block(began_ms)
        while self._state.status in (JobStatus.WAITING, JobStatus.RUNNING) and (at_ms := self._next_ms()) is not None:
            while self._due and self._due[0].at_ms <= at_ms:
                heappop(self._due).act()
            self._block(at_ms)
        job = self._state
        seconds = (self._chain.time_ms - began_ms) / 1000
        return Played(job, self._chain.blobs[job.model], tuple(self._seen), seconds)

    # Blocks

    def _created(self, draft: Draft) -> bytes:
        inline = draft.model if len(draft.model) <= self._chain.params.inline_bytes else b""
        created = self._chain.send(self._creator, CreateJob(draft.rules, inline), draft.model)
        if draft.model:
            self._chain.blobs[draft.rules.initial] = draft.model
        self._chain.block(self._chain.time_ms)
        return job_id(created)

    def _registered(self) -> list[bytes]:
        """The data sets of all trainers, by which their updates weigh."""
        sent = []
        for number, each in enumerate(self._trainers):
            examples = self._cast.holds(number)
            entry = RegisterDataset("own", b"", 0, False, "", "", "", examples)
            sent.append(dataset_id(self._chain.send(each, entry)))
        self._block(self._chain.time_ms)
        return sent

    @property
    def _state(self) -> Job:
        found = self._chain.record(Job, job_key(self._job))
        assert found is not None
        return found

    def _next_ms(self) -> int | None:
        """When the next block is due: as soon as there is something for it."""
        soonest = self._chain.time_ms + BLOCK_MS
        wanted = self._chain.wants_block_at()
        times = [self._due[0].at_ms] if self._due else []
        times += [] if wanted is None else [wanted]
        times += [soonest] if self._items else []
        return max(soonest, min(times)) if times else None

    def _block(self, at_ms: int) -> None:
        items, self._items = self._items, []
        outcome, receipts = self._chain.block(at_ms, items)
        for receipt in receipts:
            answering = self._answering.pop(receipt.tx_id, None)
            if answering is None:
                continue
            if receipt.status == OK:
                self._owed[answering.of] = answering.left
            elif receipt.status != "LATE":
                self._tallies[answering.round].refused[receipt.status] += 1
        self._follow()
        for task in outcome.aggregations:
            self._items.append(aggregated(self._chain, task, self._rules, self._sent))

    def _follow(self) -> None:
        """Tells of rounds that are over, and has everybody begin what is open."""
        job = self._state
        for number in range(len(self._seen) + 1, job.round + 1):
            record, evaluation = self._round(number), self._evaluation(number)
            if record.phase < Phase.CLOSED or (evaluation is not None and evaluation.phase in UNDER_WAY):
                break
            self._over(record, evaluation)
        if job.round:
            self._begin(self._round(job.round))
        current = self._evaluation(job.evaluation)
        if current is not None and current.round > self._evaluated and current.phase == EvaluationPhase.OPEN:
            self._evaluated = current.round
            self._begin_evaluation(current)
        self._forget(job)

    def _round(self, number: int) -> Round:
        found = self._chain.record(Round, round_key(self._job, number))
        assert found is not None
        return found

    def _evaluation(self, number: int) -> Evaluation | None:
        return self._chain.record(Evaluation, evaluation_key(self._job, number))

    def _over(self, record: Round, evaluation: Evaluation | None) -> None:
        tally = self._tallies.pop(record.number, _Tally())
        missing = record.cohort - record.updates.size - tally.failed - tally.refused.total()
        late = 0 if self._rules.discounts else max(0, missing)
        model = self._chain.blobs[record.model or record.base]
        self._seen.append(Seen(record, evaluation, tally.failed, late, tally.refused))
        self._tell(self._seen[-1], model)

    def _forget(self, job: Job) -> None:
        """What nobody will ask for: older models, records of rounds."""
        named = {job.model, job.optimizer, job.best, *(each.model for each in self._due)}
        named.update(base for base, _ in self._held)
        for number in range(len(self._seen) + 1, job.round + 1):
            record = self._round(number)
            named |= {record.base, record.model}
        self._chain.blobs = {cid: blob for cid, blob in self._chain.blobs.items() if cid in named}

    def _push(self, after_ms: int, model: bytes, act: Callable[[], None]) -> None:
        self._pushed += 1
        heappush(self._due, _Due(self._chain.time_ms + after_ms, self._pushed, act, model))

    def _model(self, cid: bytes) -> Model:
        return parse_model(self._rules.schema, self._chain.blobs[cid])

    # Trainers

    def _begin(self, current: Round) -> None:
        """Once for a check-in, and once for the answers."""
        if current.phase not in (Phase.CHECK_IN, Phase.COLLECTING) or self._begun >= (current.number, current.phase):
            return
        self._begun = (current.number, current.phase)
        if current.phase == Phase.CHECK_IN:
            for trainer, sender in enumerate(self._trainers):
                if trainer not in self._busy:
                    self._chain.send(sender, CheckIn(self._job, current.number))
            return
        held, self._held = self._held, []
        for base, act in held:
            self._push(0, base, act)
        for trainer in range(len(self._trainers)):
            self._start(trainer, current)

    def _start(self, trainer: int, current: Round) -> None:
        """Unless it is not asked, or still works on an earlier round: a trainer does one thing at a time."""
        if trainer in self._busy or current.phase != Phase.COLLECTING or not self._is_asked(trainer, current):
            return
        if fails(self._conditions, trainer, current.number):
            self._tallies[current.number].failed += 1
            return
        self._busy.add(trainer)
        after_ms = takes_ms(self._conditions, Draw.TIME, trainer, current.number)
        self._push(after_ms, current.base, partial(self._answer, trainer, current.number, current.base))

    def _is_asked(self, trainer: int, current: Round) -> bool:
        joined = self._joined(trainer)
        listed = self._chain.record(Candidates, candidates_key(self._job))
        if joined.from_round > current.number:
            return False
        return listed is None or listed.round != current.number or bool(read_seats(listed.seats) >> joined.seat & 1)

    def _joined(self, trainer: int) -> Joined:
        found = self._chain.record(Joined, joined_key(self._job, self._trainers[trainer].account))
        assert found is not None
        return found

    def _answer(self, trainer: int, round: int, base: bytes) -> None:
        newest = self._round(self._state.round)
        if self._rules.discounts and self._waits_for_buffer(trainer, newest):
            self._held.append((base, partial(self._answer, trainer, round, base)))
            return
        self._busy.remove(trainer)
        if newest.number > round:
            self._start(trainer, newest)
            if not self._rules.discounts:
                # It would be refused as LATE, which needs none of the work.
                return
        if newest.phase != Phase.COLLECTING:
            return
        config = {name: config_value(entry) for name, entry in config_at(self._rules, round).items()}
        answer = self._cast.train(trainer, round, self._model(base), config)
        try:
            self._send_update(trainer, round, base, answer)
        except Refused as error:
            self._tallies[newest.number].refused[error.code] += 1

    def _waits_for_buffer(self, trainer: int, newest: Round) -> bool:
        """A buffer takes one update of each member, and none while its model is made."""
        return newest.phase != Phase.COLLECTING or self._has_answered(trainer, newest)

    def _has_answered(self, trainer: int, current: Round) -> bool:
        answered = self._chain.record(Answered, answered_key(self._job))
        return has_answered(answered, current.number, self._joined(trainer))

    def _send_update(self, trainer: int, round: int, base: bytes, answer: Answer) -> None:
        sender, form = self._trainers[trainer], form_of(self._rules, answer.group)
        place = Place(self._job, round, sender.account)
        owed = self._owed.get((trainer, answer.group), {})
        delta = {name: answer.delta[name] + owed.get(name, 0) for name in answer.delta}
        payload = encode_update(form, place, delta)
        cid, inline = cid_of(payload), len(payload) <= self._chain.params.inline_bytes
        body = SubmitUpdate(
            job=self._job,
            round=round,
            base=base,
            examples=answer.examples,
            metrics=answer.metrics,
            group=answer.group,
            cid=cid,
            payload=payload if inline else b"",
        )
        left: Model = {}
        if self._rules.encoding in FED_BACK:
            told = decode_update(form, place, payload)
            left = {name: (delta[name] - told[name]).astype(np.float32) for name in told}
        sent = self._chain.send(sender, body, payload)
        self._answering[sent] = _Answering(self._state.round, (trainer, answer.group), left)
        self._sent[cid] = payload

    # Evaluators

    def _begin_evaluation(self, current: Evaluation) -> None:
        asked = self._chain.record(Evaluators, evaluation_cohort_key(self._job))
        cohort = set(asked.accounts) if asked else set()
        for number, each in enumerate(self._evaluators):
            if each.account in cohort:
                after_ms = takes_ms(self._conditions, Draw.EVALUATION, number, current.round)
                self._push(after_ms, current.model, partial(self._evaluate, number, current.round, current.model))

    def _evaluate(self, evaluator: int, round: int, model: bytes) -> None:
        current = self._evaluation(round)
        if current is None or current.phase != EvaluationPhase.OPEN:
            return
        measured = self._cast.evaluate(evaluator, round, self._model(model))
        body = SubmitEvaluation(self._job, round, model, measured.examples, measured.values)
        self._chain.send(self._evaluators[evaluator], body)
