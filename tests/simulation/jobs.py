"""A job with trainers that answer each round through some node, whatever happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chain.unixfs import cid_of
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.blobs import BlobKind
from fl.cohort import read_seats
from fl.evaluation import SubmitEvaluation
from fl.jobrules import FEDAVG, rules_hash, zero_model
from fl.jobs import CreateJob, JoinJob
from fl.members import RegisterMember
from fl.records import Candidates, Entry, EvaluationPhase, Job, JobStatus, Joined, Phase, Receipt, Round
from fl.rounds import CheckIn, SubmitUpdate, entries_of
from fl.state import candidates_key, evaluation_of, job_of, joined_key, read_record, round_of
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place, decode_update, encode_update
from fl.tensors.model import build_model, parse_model
from fl.updates import form_of, groups_of
from node.admission import Answer, Busy, Status
from node.node import Node
from node.ports import PortError
from tests.fl.builders import make_rules, signing_key, trainer_names
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Crash

EVALUATORS = ("evaluator-a", "evaluator-b")


class Training:
    """`blobs`: so many of ten updates go into the entry node's blob store, and their transactions only name them."""

    def __init__(self, cluster: Cluster, trainers: int = 4, blobs: int = 0, **rules: object) -> None:
        self.cluster = cluster
        self.names = trainer_names(trainers)
        self.blobs = blobs
        self.rules = make_rules(**{"target": trainers, "minimum": 2, "weights": "examples", "cap": 100, **rules})
        self.id = b""
        self.payloads: dict[bytes, bytes] = {}
        """All updates that were ever made, by CID."""
        self._blobs: dict[bytes, bytes] = {self.rules.initial: zero_model(self.rules.schema)}
        """Models and moments that the rounds must have, as far as they were worked out."""
        self.evaluators = EVALUATORS if self.rules.evaluation.every else ()
        self._tasks: list[asyncio.Task[None]] = []

    async def create(self) -> None:
        self.id = await self._certainly("creator", CreateJob(self.rules, b""))
        await self.begin()

    async def begin(self) -> None:
        """All train, once the job is there."""
        self._tasks = [asyncio.ensure_future(each) for each in self.work()]

    def work(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What each member does from now on."""
        yield from (self._train(name, place) for place, name in enumerate(self.names))
        yield from (self._evaluate(name, place) for place, name in enumerate(self.evaluators))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _certainly(self, name: str, body: object) -> bytes:
        """Submit the same bytes to one node after the other until the transaction is executed; its job or id."""
        data = self.cluster.sign(name, body)
        place = self.cluster.chance.randrange(len(self.cluster.hosts))
        while True:
            place = (place + 1) % len(self.cluster.hosts)
            if self.cluster.hosts[place].up:
                try:
                    await self._put(place, name, body)
                    answers = await self.cluster.submit(place, data, wait=Status.EXECUTED, within=5)
                    receipt = self._receipt(place, answers)
                except (PortError, AssertionError, Busy, Crash):
                    # To a client a machine that lost its power is a connection that broke.
                    receipt = None
                if receipt is not None:
                    return receipt.job
            await asyncio.sleep(0.2)

    def _receipt(self, place: int, answers: list[Answer]) -> Receipt | None:
        node = self.cluster.hosts[place].node
        standings = [node.admission.standing(each.id) for each in answers if each.id is not None and node is not None]
        return next((each.receipt for each in standings if each.receipt is not None), None)

    async def _put(self, place: int, name: str, body: object) -> None:
        """The blob that the transaction names goes where it is submitted."""
        if isinstance(body, SubmitUpdate) and not body.payload:
            account = self.cluster.actor(name).account
            await self.cluster.hosts[place].data.put(self.payloads[body.cid], BlobKind.UPDATE, account)

    def job(self, node: Node) -> Job:
        found = job_of(node.store.state, self.id)
        assert found is not None
        return found

    def finished(self) -> bool:
        nodes = self.cluster.running()
        jobs = [job_of(node.store.state, self.id) for node in nodes]
        return bool(nodes) and all(job is not None and job.status == JobStatus.FINISHED for job in jobs)

    async def _train(self, name: str, place: int) -> None:
        cluster = self.cluster
        await self._certainly(name, JoinJob(self.id, rules_hash(self.rules)))
        answered = checked_in = 0
        while True:
            await asyncio.sleep(0.1)
            nodes = cluster.running()
            node = nodes[place % len(nodes)] if nodes else None
            job = job_of(node.store.state, self.id) if node is not None else None
            if node is None or job is None or job.round <= answered:
                continue
            if job.status == JobStatus.FINISHED:
                return
            current = round_of(node.store.state, self.id, job.round)
            if current is None:
                continue
            if current.phase == Phase.CHECK_IN and checked_in < current.number:
                await self._certainly(name, CheckIn(self.id, current.number))
                checked_in = current.number
            if current.phase == Phase.COLLECTING:
                if self._is_asked(node, name, current):
                    await self._certainly(name, self.update(name, current.number, current.base, place))
                answered = current.number

    def _is_asked(self, node: Node, name: str, current: Round) -> bool:
        read = node.store.state
        joined = read_record(read, Joined, joined_key(self.id, self.cluster.actor(name).account))
        listed = read_record(read, Candidates, candidates_key(self.id))
        if listed is None or joined is None or listed.round != current.number:
            return True
        return bool(read_seats(listed.seats) >> joined.seat & 1)

    async def _evaluate(self, name: str, place: int) -> None:
        await self._certainly("registrar", RegisterMember(name, signing_key(name).public, ("evaluator",)))
        await self._certainly(name, JoinJob(self.id, rules_hash(self.rules), role="evaluator"))
        answered = 0
        while True:
            await asyncio.sleep(0.1)
            nodes = self.cluster.running()
            node = nodes[place % len(nodes)] if nodes else None
            job = job_of(node.store.state, self.id) if node is not None else None
            if node is None or job is None:
                continue
            if job.status == JobStatus.FINISHED:
                return
            asked = evaluation_of(node.store.state, self.id, job.evaluation) if job.evaluation > answered else None
            if asked is not None and asked.phase == EvaluationPhase.OPEN:
                await self._certainly(
                    name, SubmitEvaluation(self.id, asked.round, asked.model, 10, (asked.round + place,))
                )
                answered = asked.round

    def update(self, name: str, number: int, base: bytes, place: int) -> SubmitUpdate:
        """Numbers that differ by trainer and round, and repeat when the same is asked again."""
        account, rules = self.cluster.actor(name).account, self.rules
        source, group = np.random.default_rng([number, place]), place % groups_of(rules)
        form = form_of(rules, group)
        delta = {each.name: source.normal(0, 0.1, each.shape).astype(np.float32) for each in form.layout.segments}
        payload = encode_update(form, Place(self.id, number, account), delta)
        examples = 10 + place * 7
        cid = cid_of(payload)
        self.payloads[cid] = payload
        named = (3 * number + 7 * place) % 10 < self.blobs
        return SubmitUpdate(self.id, number, base, examples, (1_000_000,), group, cid, b"" if named else payload)

    # What must come of it

    def round(self, node: Node, number: int) -> Round | None:
        return round_of(node.store.state, self.id, number)

    def expected_model(self, node: Node, number: int) -> bytes:
        """The CID of round `number`'s model, from the updates that its log names and those models that the rounds
        before it must have had: rounds are asked about in their order."""
        current = self.round(node, number)
        assert current is not None
        entries = list(entries_of(node.store.leaves, self.id, number, current.updates.size))
        plain = self.rules.rule == FEDAVG and not self.rules.groups
        model = self._mean(current, entries) if plain else self._made_again(node, current, entries)
        cid = cid_of(model)
        self._blobs[cid] = model
        return cid

    def _made_again(self, node: Node, current: Round, entries: list[Entry]) -> bytes:
        """By the product itself, on one thread and from the last update to the first."""
        rules, updates = self.rules, []
        for index, entry in enumerate(entries):
            form, payload = form_of(rules, entry.group), self.payloads[entry.cid]
            mark = payload_fingerprint(payload, len(form.header(Place(self.id, entry.round, entry.member))))
            updates.append(Update(index, entry.round, entry.member, entry.weight, entry.group, payload, mark))
        sums = Aggregation(AggregationRules(self.id, current.number, rules, current.version + 1))
        for update in reversed(updates):
            sums.add(update)
        before = [self.round(node, number) for number in range(1, current.number)]
        kept = next((each.optimizer for each in reversed(before) if each is not None and each.optimizer), b"")
        closing = sums.finish(current.updates.root(), self._blobs[current.base], self._blobs[kept] if kept else None)
        written = closing.moments()
        moments = None if written is None else b"".join(written)
        if moments is not None:
            self._blobs[cid_of(moments)] = moments
        return b"".join(closing.model(moments))

    def _mean(self, current: Round, entries: list[Entry]) -> bytes:
        rules = self.rules
        base = parse_model(rules.schema, self._blobs[current.base])
        sums: dict[str, NDArray[np.int64]] = {name: np.zeros(value.size, np.int64) for name, value in base.items()}
        weight = 0
        bits = min(50, 62 - (rules.maximum - 1).bit_length()) - rules.range_bits - (rules.cap - 1).bit_length()
        for entry in entries:
            place = Place(self.id, entry.round, entry.member)
            update = decode_update(form_of(rules, entry.group), place, self.payloads[entry.cid])
            weight += entry.weight
            for tensor, values in update.items():
                # Exact: 24 bits of a value times 7 of a weight, and the power of two moves the exponent alone.
                scaled = values.reshape(-1).astype(np.float64) * entry.weight * 2.0**bits
                sums[tensor] += np.rint(scaled).astype(np.int64)
        means = {name: total.astype(np.float64) / float(weight * 2**bits) for name, total in sums.items()}
        new = {
            name: (old.reshape(-1) + means[name]).astype(np.float32).reshape(old.shape) for name, old in base.items()
        }
        return build_model(rules.schema, new)
