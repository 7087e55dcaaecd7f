"""A job with trainers that answer each round through some node, whatever happens to it."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import numpy as np

from chain.cid import raw_cid
from chain.codec import decode
from fl.jobs import CreateJob, JoinJob
from fl.records import Entry, Job, JobStatus, Phase
from fl.rounds import SubmitUpdate
from fl.rules import rules_hash
from fl.state import entry_key, job_of, round_of, rules_of
from fl.tensors.encodings import decode_update, encode_update
from fl.tensors.model import build_model, parse_model
from fl.transactions import read_body, read_transaction
from node.admission import Busy, Status
from node.node import Node
from node.ports import PortError
from tests.fl.builders import make_rules, trainer_names
from tests.simulation.cluster import Cluster


class Training:
    def __init__(self, cluster: Cluster, trainers: int = 4, **rules: object) -> None:
        self.cluster = cluster
        self.names = trainer_names(trainers)
        self.rules = make_rules(**{"target": trainers, "minimum": 2, "weights": "examples", "cap": 100, **rules})
        self.id = b""
        self._tasks: list[asyncio.Task[None]] = []

    async def create(self) -> None:
        self.id = await self._certainly("creator", CreateJob(self.rules, b""))
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
                    answers = await self.cluster.submit(place, data, wait=Status.EXECUTED, within=5)
                except (PortError, AssertionError, Busy):
                    answers = []
                for answer in answers:
                    found = answer.standing.receipt if answer.standing is not None else None
                    node = self.cluster.hosts[place].node
                    if answer.id is not None and node is not None:
                        found = node.admission.standing(answer.id).receipt
                    if found is not None:
                        return found.job
            await asyncio.sleep(0.2)

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
        account = self.cluster.actor(name).account.hex()
        source = np.random.default_rng([number, place])
        delta = {spec.name: source.normal(0, 0.1, spec.shape).astype(np.float32) for spec in self.rules.schema.tensors}
        rules = self.rules
        payload = encode_update(rules.schema, rules.encoding, rules.range_bits, self.id.hex(), number, account, delta)
        examples = 10 + place * 7
        return SubmitUpdate(self.id, number, base, examples, (1_000_000,), raw_cid(payload), payload)

    def expected_model(self, node: Node, number: int) -> bytes:
        """The CID of round `number`'s model by exact fractions, from the updates that the round's log names."""
        rules = rules_of(node.store.state, self.id)
        current = round_of(node.store.state, self.id, number)
        assert rules is not None and current is not None
        base_bytes = node.blobs.get(current.base)
        assert base_bytes is not None
        base = parse_model(rules.schema, base_bytes)
        totals = {name: [Fraction(0)] * value.size for name, value in base.items()}
        weight = 0
        bits = min(50, 62 - (rules.maximum - 1).bit_length()) - rules.range_bits - (rules.cap - 1).bit_length()
        for position in range(current.updates.size):
            data = node.store.beside(entry_key(self.id, number, position))
            assert data is not None
            entry = decode(Entry, data, 1024)
            batch = node.batches.read(entry.batch)
            assert batch is not None
            tx = read_transaction(batch.batch.transactions[entry.index], self.cluster.genesis.params)
            _, body = read_body(tx)
            assert isinstance(body, SubmitUpdate)
            update = decode_update(
                rules.schema, rules.encoding, self.id.hex(), number, entry.member.hex(), body.payload
            )
            weight += entry.weight
            for tensor, values in update.items():
                for place, value in enumerate(values.reshape(-1).tolist()):
                    totals[tensor][place] += round(Fraction(value) * entry.weight * 2**bits)
        new = {}
        for tensor, values in base.items():
            flat = [
                np.float32(float(Fraction(old)) + float(total) / float(weight * 2**bits))
                for old, total in zip(values.reshape(-1).tolist(), totals[tensor], strict=True)
            ]
            new[tensor] = np.array(flat, np.float32).reshape(values.shape)
        return raw_cid(build_model(rules.schema, new))
