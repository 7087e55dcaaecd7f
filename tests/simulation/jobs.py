"""A job with trainers that answer each round through some node, whatever happens to it."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from chain.codec import decode
from chain.unixfs import cid_of
from fl.blobs import BlobKind
from fl.jobrules import rules_hash, zero_model
from fl.jobs import CreateJob, JoinJob
from fl.records import Entry, Job, JobStatus, Phase, Receipt, Round
from fl.rounds import SubmitUpdate
from fl.state import entry_key, job_of, round_of
from fl.tensors.encodings import Place, decode_update, encode_update
from fl.tensors.model import build_model, parse_model
from fl.updates import form_of
from node.admission import Answer, Busy, Status
from node.node import Node
from node.ports import PortError
from tests.fl.builders import make_rules, trainer_names
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Crash


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
        self._models: dict[bytes, bytes] = {self.rules.initial: zero_model(self.rules.schema)}
        """Those that the rounds must have, as far as they were worked out."""
        self._tasks: list[asyncio.Task[None]] = []

    async def create(self) -> None:
        self.id = await self._certainly("creator", CreateJob(self.rules, b""))
        await self.begin()

    async def begin(self) -> None:
        """All train, once the job is there."""
        self._tasks = [asyncio.ensure_future(self._train(name, place)) for place, name in enumerate(self.names)]

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
        answered = 0
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
            if current is None or current.phase != Phase.COLLECTING:
                continue
            await self._certainly(name, self.update(name, current.number, current.base, place))
            answered = current.number

    def update(self, name: str, number: int, base: bytes, place: int) -> SubmitUpdate:
        """Numbers that differ by trainer and round, and repeat when the same is asked again."""
        account = self.cluster.actor(name).account
        source = np.random.default_rng([number, place])
        delta = {spec.name: source.normal(0, 0.1, spec.shape).astype(np.float32) for spec in self.rules.schema.tensors}
        rules = self.rules
        payload = encode_update(form_of(rules, 0), Place(self.id, number, account), delta)
        examples = 10 + place * 7
        cid = cid_of(payload)
        self.payloads[cid] = payload
        named = (3 * number + 7 * place) % 10 < self.blobs
        return SubmitUpdate(self.id, number, base, examples, (1_000_000,), 0, cid, b"" if named else payload)

    # What must come of it

    def round(self, node: Node, number: int) -> Round | None:
        return round_of(node.store.state, self.id, number)

    def expected_model(self, node: Node, number: int) -> bytes:
        """The CID of round `number`'s model, from the updates that its log names and those models that the rounds
        before it must have had: rounds are asked about in their order."""
        rules, current = self.rules, self.round(node, number)
        assert current is not None
        base = parse_model(rules.schema, self._models[current.base])
        sums: dict[str, NDArray[np.int64]] = {name: np.zeros(value.size, np.int64) for name, value in base.items()}
        weight = 0
        bits = min(50, 62 - (rules.maximum - 1).bit_length()) - rules.range_bits - (rules.cap - 1).bit_length()
        for position in range(current.updates.size):
            data = node.store.beside(entry_key(self.id, number, position))
            assert data is not None
            entry = decode(Entry, data, 1024)
            payload = self.payloads[entry.cid]
            update = decode_update(form_of(rules, entry.group), Place(self.id, number, entry.member), payload)
            weight += entry.weight
            for tensor, values in update.items():
                # Exact: 24 bits of a value times 7 of a weight, and the power of two moves the exponent alone.
                scaled = values.reshape(-1).astype(np.float64) * entry.weight * 2.0**bits
                sums[tensor] += np.rint(scaled).astype(np.int64)
        means = {name: total.astype(np.float64) / float(weight * 2**bits) for name, total in sums.items()}
        new = {
            name: (old.reshape(-1) + means[name]).astype(np.float32).reshape(old.shape) for name, old in base.items()
        }
        model = build_model(rules.schema, new)
        cid = cid_of(model)
        self._models[cid] = model
        return cid
