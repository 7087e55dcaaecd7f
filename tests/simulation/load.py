"""What clients do meanwhile: one job with its trainers, and small transactions of every sort, good and hopeless."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np

from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.hashing import Domain, digest
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from chain.unixfs import cid_of
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob, LeaveJob
from fl.members import RegisterMember
from fl.records import Phase, Role
from fl.rounds import SubmitUpdate
from fl.state import job_of, round_of
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.updates import form_of
from tests.fl.builders import make_rules, signing_key
from tests.simulation.arena import Arena
from tests.simulation.jobs import Training
from tests.simulation.loop import drawn_from
from tests.simulation.scenario import Scenario
from tests.simulation.variety import drawn_rules

REGISTRAR = "registrar"
LARGE_SHARE = 0.05
LARGE = Schema((TensorSpec("weight", "F32", (1200, 1000), AVERAGED),))
"""Updates of two leaves, models of five."""


class Job(Training):
    cluster: Arena

    async def create(self) -> None:
        self.id = await self._certainly("creator", CreateJob(self.rules, b""))
        self._tasks = [self.cluster.spawn(each) for each in self.work()]


class Load:
    def __init__(self, arena: Arena, scenario: Scenario) -> None:
        self.arena = arena
        self.chance = drawn_from(scenario.seed, "load")
        self.training = Job(
            arena,
            trainers=scenario.trainers,
            **{
                "rounds": 3,
                "deadline_ms": self.chance.choice((2_000, 5_000)),
                "grace_ms": self.chance.choice((200, 1_000)),
                "encoding": self.chance.choice(("f32", "q8")),
                **self._sort(scenario),
            },
        )
        self._gap_s = self.chance.choice((0.15, 0.4, 0.8))
        self._registered = 0
        self._tasks: list[asyncio.Task[None]] = []
        arena.bad_transaction = self.bad_transaction
        arena.bad_blob = self.bad_blob
        arena.books.payload_of = self.training.payloads.get
        arena.books.rules_of = lambda job: self.training.rules if job == self.training.id else None

    @staticmethod
    def _sort(scenario: Scenario) -> dict[str, Any]:
        """Updates of a few bytes, most of them inline, in jobs of every sort; of a few seeds, updates and models of
        several leaves."""
        chance = drawn_from(scenario.seed, "blobs")
        if chance.random() < LARGE_SHARE and scenario.n == 4:
            return {"blobs": 10, "schema": LARGE, "encoding": "q8", "rounds": 2}
        drawn = drawn_rules(drawn_from(scenario.seed, "variety"), scenario.trainers)
        return {"blobs": chance.choice((0, 0, 5, 10)), **drawn}

    def begin(self) -> None:
        self._spawn(self.training.create())
        self._spawn(self._small())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(self.arena.spawn(work))

    def end(self) -> None:
        """No more rounds and no more transactions; those under way are awaited by nobody."""
        self.training.stop()
        for task in self._tasks:
            task.cancel()

    async def _small(self) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / self._gap_s))
            data = self._one()
            count = 1 if self.chance.random() < 0.6 else self.chance.randint(2, 3)
            places = self.chance.sample(range(len(self.arena.hosts)), count)
            for place in places:
                if self.arena.hosts[place].up:
                    self._spawn(self._submit(place, data))

    async def _submit(self, place: int, data: bytes) -> None:
        answers = await self.arena.submit(place, data, within=4)
        for answer in answers:
            self.arena.findings.counts["transactions refused" if answer.id is None else "transactions taken"] += 1

    def _one(self) -> bytes:
        sort = self.chance.choices(
            ("register", "repeat nonce", "far nonce", "short-lived", "unauthorised", "membership"),
            (50, 12, 4, 12, 10, 12),
        )[0]
        registrar = self.arena.actor(REGISTRAR)
        if sort == "register":
            return self.arena.sign(REGISTRAR, self._registration())
        if sort == "repeat nonce":
            return self.arena.sign(
                REGISTRAR, self._registration(), nonce=self.chance.randrange(max(1, registrar.nonce))
            )
        if sort == "far nonce":
            return self.arena.sign(REGISTRAR, self._registration(), nonce=registrar.nonce + 10_000)
        if sort == "short-lived":
            until = self.arena.now_ms() + self.chance.choice((100, 400, 1_500))
            return self.arena.sign(REGISTRAR, self._registration(), valid_until_ms=until)
        if sort == "unauthorised":
            return self.arena.sign("creator", self._registration())
        trainer = self.chance.choice(self.training.names)
        if self.chance.random() < 0.5:
            return self.arena.sign(trainer, LeaveJob(self.training.id or bytes(32)))
        return self.arena.sign(trainer, JoinJob(self.training.id or bytes(32), rules_hash(self.training.rules)))

    def _registration(self) -> RegisterMember:
        self._registered += 1
        name = f"member-{self._registered}"
        return RegisterMember(name, signing_key(name).public, (Role.TRAINER.value,))

    def marker(self) -> bytes:
        """A transaction that belongs to nobody's plans: its account is its own."""
        return self.arena.sign("after-all", self._registration())

    def bad_transaction(self, chance: random.Random, *sorts: str) -> bytes:
        """Bytes that no honest validator may vote for: since they are bad (`signature`, `bytes`, `values`), or since
        nobody can tell yet (`unknown job`)."""
        sort = chance.choice(sorts)
        if sort == "bytes":
            return chance.randbytes(100)
        if sort == "signature":
            data = self.arena.actor(REGISTRAR).sign(
                self._registration(), nonce=0, valid_until_ms=self.arena.now_ms() + 60_000
            )
            tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
            forged = bytes([tx.signature[0] ^ 1]) + tx.signature[1:]
            return encode(replace(tx, nonce=tx.nonce + 100, signature=forged))
        trainer = self.arena.actor(self.training.names[0])
        job = self.training.id if sort == "values" and self.training.id else digest(Domain.JOB, chance.randbytes(8))
        rules = make_rules()
        delta = {spec.name: np.zeros(spec.shape, np.float32) for spec in rules.schema.tensors}
        payload = bytearray(encode_update(form_of(rules, 0), Place(job, 1, trainer.account), delta))
        payload[-4:] = np.array([np.nan], "<f4").tobytes()
        body = SubmitUpdate(job, 1, rules.initial, 10, (1_000_000,), 0, raw_cid(bytes(payload)), bytes(payload))
        return trainer.sign(body, nonce=200 + chance.randrange(50), valid_until_ms=self.arena.now_ms() + 600_000)

    def bad_blob(self, chance: random.Random) -> tuple[bytes, bytes, bytes] | None:
        """A transaction that is good as far as its own bytes go, the blob that it names, and whose that is: its header
        and its length are right, and it holds a value that is no number."""
        job, rules = self.training.id, self.training.rules
        if not job:
            return None
        trainer = self.arena.actor(chance.choice(self.training.names))
        form, place = form_of(rules, 0), Place(job, 1, trainer.account)
        delta = {each.name: np.zeros(each.shape, np.float32) for each in form.layout.segments}
        payload = bytearray(encode_update(form, place, delta))
        # The first value of f32, the first scale of q8.
        values = len(form.header(place))
        payload[values : values + 4] = np.array([np.nan], "<f4").tobytes()
        body = SubmitUpdate(job, 1, rules.initial, 10, (1_000_000,), 0, cid_of(bytes(payload)), b"")
        nonce = 200 + chance.randrange(50)
        signed = trainer.sign(body, nonce=nonce, valid_until_ms=self.arena.now_ms() + 600_000)
        return signed, bytes(payload), trainer.account

    # What became of the job

    def check_models(self) -> None:
        """Every closed round's model is the one that exact arithmetic gives."""
        nodes = [host.node for host in self.arena.staying() if host.node is not None and host.up]
        if not nodes or not self.training.id:
            return
        findings = self.arena.findings
        job = job_of(nodes[0].store.state, self.training.id)
        for number in range(1, (job.round if job is not None else 0) + 1):
            current = round_of(nodes[0].store.state, self.training.id, number)
            if current is None or current.phase != Phase.CLOSED:
                continue
            findings.counts["rounds closed"] += 1
            if current.model != self.training.expected_model(nodes[0], number):
                findings.report(f"the model of round {number} is not what its rule makes of its updates")
                return
