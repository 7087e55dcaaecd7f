"""Rounds of a chainlet that members have answered, for those who look at them afterwards."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from chain.cid import raw_cid
from chain.codec import encode
from chain.unixfs import cid_of
from fl.audit.checks import log_of
from fl.blobs import BlobKind
from fl.jobrules import rules_hash
from fl.jobs import JoinJob
from fl.members import RegisterMember
from fl.records import Entry, Round
from fl.rounds import SubmitUpdate, entries_of
from fl.rules import RULES
from fl.rules.rule import written_settings
from fl.state import round_key, updates_log
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.updates import form_of, schema_of
from tests.fl.builders import Actor, make_rules, signing_key
from tests.fl.client.chainlet import Running

LARGE = Schema((TensorSpec("weight", "F32", (700, 512), AVERAGED),))
"""1.4 MB an update: two leaves."""
INLINE_BYTES = 32 * 1024


def settings(rule: str, **given: int | float) -> dict[str, Any]:
    """A job's rule, as its rules hold it."""
    return {"rule": rule, "settings": written_settings(RULES[rule], given)}


class Trained:
    """A job on a chainlet, with everybody in it."""

    def __init__(self, running: Running, trainers: int = 4, **rules: Any) -> None:
        self.running = running
        self.chain = running.chain
        given: dict[str, Any] = {"target": trainers, "minimum": 2, "weights": "examples", "cap": 100}
        self.job = running.create(make_rules(**{**given, **rules}))
        self.rules = self.chain.ledger.rules(self.job)
        self.people = [self.chain.ledger.actor(f"trainer-{number:03}") for number in range(trainers)]
        for each in self.people:
            each.nonce = sum(receipt.sender == each.account for receipt in self.chain.ledger.receipts)
        accepted = rules_hash(self.rules)
        self.block(*(self.sign(each, JoinJob(self.job, accepted)) for each in self.people))

    def block(self, *transactions: bytes) -> None:
        self.running.do(self.chain.block, *transactions)

    def sign(self, by: Actor, body: object, **changes: Any) -> bytes:
        return by.sign(body, valid_until_ms=time.time_ns() // 1_000_000 + 60_000, **changes)

    @property
    def round(self) -> Round:
        """The newest."""
        return self.chain.ledger.round(self.job)

    def body(self, place: int, *, of: int | None = None, group: int = 0, **changes: Any) -> SubmitUpdate:
        """An update unlike any other; a large one is spread as a blob. `of` is the round that it answers, if not the
        newest."""
        current, member = self.round if of is None else self.chain.ledger.round(self.job, of), self.people[place]
        source = np.random.default_rng([self.round.number, place])
        delta = {
            each.name: source.normal(0, 0.1, each.shape).astype(np.float32)
            for each in schema_of(self.rules, group).tensors
            if each.role == AVERAGED
        }
        payload = encode_update(form_of(self.rules, group), Place(self.job, current.number, member.account), delta)
        inline = len(payload) <= INLINE_BYTES
        if not inline:
            self.running.do(self.chain.spread, payload, BlobKind.UPDATE, member.account)
        body = SubmitUpdate(
            job=self.job,
            round=current.number,
            base=current.base,
            examples=10 * (place + 1),
            metrics=(1_000_000 * place,),
            group=group,
            cid=raw_cid(payload) if inline else cid_of(payload),
            payload=payload if inline else b"",
        )
        return replace(body, **changes)

    def answer(self, place: int, **changes: Any) -> bytes:
        return self.sign(self.people[place], self.body(place, **changes))

    def train(self, instead: dict[int, bytes] | None = None) -> int:
        """Everybody answers the open round, in a block of two batches; its number."""
        number, given = self.round.number, instead or {}
        transactions = tuple(given.get(place) or self.answer(place) for place in range(len(self.people)))
        half = len(transactions) // 2
        batches = tuple(each for each in (transactions[:half], transactions[half:]) if each)
        self.running.do(self.chain.block, batches=batches)
        return number

    def entries(self, number: int) -> list[Entry]:
        size = self.chain.ledger.round(self.job, number).updates.size
        return list(entries_of(self.chain.ledger.leaves, self.job, number, size))

    def lie(self, number: int, **changes: Any) -> None:
        """A quorum certifies another record of the round."""
        record = self.chain.ledger.round(self.job, number)
        self.running.do(self.chain.certify, {round_key(self.job, number): replace(record, **changes)})

    def lie_of_entries(self, number: int, entries: list[Entry]) -> None:
        """A quorum certifies another log of the round."""
        leaves = [encode(each) for each in entries]
        self.chain.ledger.logs[updates_log(self.job, number)] = leaves
        weights = (sum(each.weight for each in entries),)
        self.lie(number, updates=log_of(leaves), weights=weights)

    def auditor(self) -> None:
        """A member who may read every update: `signing_key("auditor")`."""
        registrar = self.chain.ledger.actor("registrar")
        self.block(self.sign(registrar, RegisterMember("auditor", signing_key("auditor").public, ("auditor",))))
        assert self.chain.ledger.receipts[-1].status == "ok"
