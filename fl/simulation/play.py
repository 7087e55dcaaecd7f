"""The play: trainers begin when a round opens, answer when they are ready, and blocks come when something happens.

Nobody is held in memory but as a number: a trainer's data and work exist while it answers, one at a time, in the order
of their virtual times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

from numpy.typing import NDArray

from chain.block import Item
from chain.unixfs import cid_of
from fl.client.jobdraft import ConfigValue, Draft, config_value
from fl.errors import Refused
from fl.execution import OK
from fl.jobrules import config_at, rules_hash
from fl.jobs import CreateJob, JoinJob, job_id
from fl.records import Job, JobStatus, Phase, Role, Round
from fl.rounds import SubmitUpdate
from fl.simulation.chain import BLOCK_MS, Chain, Member, member
from fl.simulation.closing import Sent, aggregated
from fl.simulation.conditions import Conditions, fails, takes_ms
from fl.state import job_key, round_key
from fl.tensors.encodings import Place, encode_update
from fl.tensors.model import parse_model
from fl.updates import form_of

Model = Mapping[str, NDArray[Any]]
Config = Mapping[str, ConfigValue]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a trainer submits: the change of the averaged tensors, metrics in millionths in the job's order."""

    delta: Model
    examples: int
    metrics: tuple[int, ...]


class Cast(Protocol):
    """Who trains. The same arguments must give the same answer."""

    def train(self, trainer: int, round: int, model: Model, config: Config) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A round that is over: its record, what became of those who did not count, and its model."""

    record: Round
    failed: int
    """Trainers that began and never answered."""
    refused: Mapping[str, int]
    """Answers by the code that they were refused with."""
    seconds: float
    """Virtual ones, from the round's opening to its end."""
    model: bytes


@dataclass(frozen=True, slots=True)
class Played:
    job: Job
    model: bytes
    rounds: tuple[Seen, ...]
    seconds: float
    """Virtual ones."""


@dataclass(order=True, slots=True)
class _Due:
    """Something that a member does at a time."""

    at_ms: int
    number: int
    trainer: int
    round: int
    base: bytes


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
        tell: Callable[[Seen], None] = lambda seen: None,
    ) -> None:
        self._rules = draft.rules
        self._cast = cast
        self._conditions = conditions
        self._tell = tell
        self._creator = member("creator")
        self._trainers = [member(f"trainer-{number}") for number in range(trainers)]
        roles = [(self._creator, (Role.CREATOR.value,)), *((each, (Role.TRAINER.value,)) for each in self._trainers)]
        self._chain = Chain(roles, conditions.seed)
        self._items: list[Item] = []
        self._due: list[_Due] = []
        self._pushed = 0
        self._answering: dict[bytes, int] = {}
        self._sent: dict[bytes, Sent] = {}
        self._tallies: dict[int, _Tally] = {}
        self._seen: list[Seen] = []
        self._begun = 0
        self._job = self._created(draft)

    def run(self) -> Played:
        """Until the job is over, or paused, or nothing can happen any more."""
        began_ms = self._chain.time_ms
        for each in self._trainers:
            self._chain.send(each, JoinJob(self._job, rules_hash(self._rules)))
        self._block(began_ms)
        while self._state.status in (JobStatus.WAITING, JobStatus.RUNNING) and (at_ms := self._next_ms()) is not None:
            while self._due and self._due[0].at_ms <= at_ms:
                self._answer(heappop(self._due))
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
            number = self._answering.pop(receipt.tx_id, None)
            if number is not None and receipt.status != OK:
                self._tally(number).refused[receipt.status] += 1
        for task in outcome.aggregations:
            self._items.append(aggregated(self._chain, task, self._state, self._rules, self._sent))
            self._sent.clear()
            self._chain.forget_rows()
        self._follow()

    def _follow(self) -> None:
        """Tells of rounds that are over, and has everybody begin the one that is open."""
        job = self._state
        for number in range(len(self._seen) + 1, job.round + 1):
            record = self._round(number)
            if record.phase < Phase.CLOSED:
                break
            self._over(job, record)
        if job.round > self._begun:
            self._begun = job.round
            self._begin(self._round(job.round))

    def _round(self, number: int) -> Round:
        found = self._chain.record(Round, round_key(self._job, number))
        assert found is not None
        return found

    def _tally(self, round: int) -> _Tally:
        return self._tallies.setdefault(round, _Tally())

    def _over(self, job: Job, record: Round) -> None:
        tally = self._tallies.pop(record.number, _Tally())
        model = self._chain.blobs[record.model or record.base]
        seconds = (record.ended_ms - record.opened_ms) / 1000
        self._seen.append(Seen(record, tally.failed, tally.refused, seconds, model))
        self._tell(self._seen[-1])
        if record.model:
            del self._chain.blobs[record.base]

    # Trainers

    def _begin(self, current: Round) -> None:
        for trainer in range(len(self._trainers)):
            if fails(self._conditions, trainer, current.number):
                self._tally(current.number).failed += 1
                continue
            self._pushed += 1
            at_ms = self._chain.time_ms + takes_ms(self._conditions, trainer, current.number)
            heappush(self._due, _Due(at_ms, self._pushed, trainer, current.number, current.base))

    def _answer(self, due: _Due) -> None:
        tally = self._tally(due.round)
        current = self._round(due.round)
        if current.phase != Phase.COLLECTING:
            # What it would be refused with, without the work.
            tally.refused["LATE"] += 1
            return
        sender, rules = self._trainers[due.trainer], self._rules
        model = {name: array.copy() for name, array in parse_model(rules.schema, self._chain.blobs[due.base]).items()}
        config = {name: config_value(entry) for name, entry in config_at(rules, due.round).items()}
        answer = self._cast.train(due.trainer, due.round, model, config)
        try:
            payload = encode_update(form_of(rules, 0), Place(self._job, due.round, sender.account), answer.delta)
            self._send_update(sender, due, answer, payload)
        except Refused as refused:
            tally.refused[refused.code] += 1

    def _send_update(self, sender: Member, due: _Due, answer: Answer, payload: bytes) -> None:
        cid, inline = cid_of(payload), len(payload) <= self._chain.params.inline_bytes
        body = SubmitUpdate(
            job=self._job,
            round=due.round,
            base=due.base,
            examples=answer.examples,
            metrics=answer.metrics,
            group=0,
            cid=cid,
            payload=payload if inline else b"",
        )
        sent = self._chain.send(sender, body, payload)
        self._answering[sent] = due.round
        self._sent[cid] = Sent(due.round, payload)
