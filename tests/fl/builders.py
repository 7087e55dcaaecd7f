"""A chain in a dict: a genesis with validators and members, actors who sign, and blocks that are executed.

`Ledger` keeps what a node would keep; a test adds blocks to it and looks at the receipts, events and records
that come out. Nothing in here is random, and no clock is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import zip_longest
from typing import Any

import numpy as np

from chain.block import Item, ItemKind
from chain.certificate import Result, Validator
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.genesis import Genesis, GenesisMember, Params, SetChange, check_genesis
from chain.keys import SigningKey
from chain.log import PAGE_LEVEL, leaf_digest, node_over
from chain.transaction import Transaction, account_id, sign_transaction
from chain.unixfs import cid_of
from fl.check import Checked, check_transaction
from fl.execution import AggregationTask, BlockInput, BlockOutcome, NewModel
from fl.jobrules import FEDAVG, SYNCHRONOUS, VISIBLE_TO_VALIDATORS, rules_hash, zero_model, zero_model_cid
from fl.jobs import CreateJob, JoinJob, job_id
from fl.machine import execute_block, genesis_state
from fl.records import Account, Event, Job, JobRules, Member, Receipt, Round
from fl.rounds import SubmitUpdate
from fl.state import account_key, job_key, member_key, read_record, round_key, rules_key, rules_of
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.transactions import KIND_OF_BODY, read_all
from fl.updates import form_of, schema_of
from fl.weights import EQUAL

GENESIS_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
SHARE_PPM = 300_000
"""Of a job in topk that does not say otherwise."""

SCHEMA = Schema((TensorSpec("weight", "F32", (3, 2), AVERAGED), TensorSpec("bias", "F32", (3,), AVERAGED)))


def signing_key(name: str) -> SigningKey:
    return SigningKey.from_seed(sha256(name.encode()).digest())


@dataclass
class Actor:
    """Somebody with an account; signs with the next nonce unless told another."""

    name: str
    chain_id: bytes
    key: SigningKey
    account: bytes
    nonce: int = 0

    def transaction(
        self,
        body: object,
        *,
        nonce: int | None = None,
        valid_until_ms: int = GENESIS_MS + HOUR_MS,
        key: SigningKey | None = None,
        chain_id: bytes | None = None,
    ) -> Transaction:
        if nonce is None:
            nonce, self.nonce = self.nonce, self.nonce + 1
        return sign_transaction(
            key or self.key,
            chain_id or self.chain_id,
            self.account,
            nonce,
            valid_until_ms,
            KIND_OF_BODY[type(body)],
            encode(body),
        )

    def sign(self, body: object, **changes: Any) -> bytes:
        return encode(self.transaction(body, **changes))


def actor(name: str, chain_id: bytes) -> Actor:
    key = signing_key(name)
    return Actor(name, chain_id, key, account_id(key.public))


def validator(index: int, generation: str = "") -> Validator:
    name = f"org-{index:03}"
    return Validator(
        name=name,
        consensus_key=signing_key(f"{generation}consensus/{index}").public,
        link_key=signing_key(f"{generation}link/{index}").public,
        operator_key=signing_key(f"{generation}operator/{index}").public,
        beacon_commit=sha256(b"s0/%d" % index).digest(),
        address=f"{name}.example:7000",
        rpc=f"https://{name}.example",
    )


def make_genesis(
    validators: int = 4,
    trainers: int = 4,
    *,
    admission: str = "registrars",
    params: Params | None = None,
    set_changes: tuple[SetChange, ...] = (),
    organisations: Sequence[str] = (),
) -> Genesis:
    """Members: one creator called "creator", and trainers "trainer-000" and on, the first of them in organisations if
    these are given; the registrar is no member."""
    people = [GenesisMember("creator", signing_key("creator").public, ("creator",))]
    for name, organisation in zip_longest(trainer_names(trainers), organisations, fillvalue=""):
        people.append(GenesisMember(name, signing_key(name).public, ("trainer",), organisation))
    genesis = Genesis(
        version=1,
        name="test",
        time_ms=GENESIS_MS,
        params=params or Params(),
        validators=tuple(validator(index) for index in range(validators)),
        set_changes=set_changes,
        registrars=(signing_key("registrar").public,),
        admission=admission,
        members=tuple(people),
    )
    check_genesis(genesis)
    return genesis


def trainer_names(count: int) -> list[str]:
    return [f"trainer-{index:03}" for index in range(count)]


@dataclass
class Ledger:
    genesis: Genesis
    state: dict[bytes, bytes]
    height: int = 0
    time_ms: int = GENESIS_MS
    epoch: int = 0
    logs: dict[bytes, list[bytes]] = field(default_factory=dict)
    nodes: dict[tuple[bytes, int, int], bytes] = field(default_factory=dict)
    """Those from a page's up."""
    models: dict[bytes, bytes] = field(default_factory=dict)
    receipts: list[Receipt] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    aggregations: list[AggregationTask] = field(default_factory=list)
    outcomes: list[BlockOutcome] = field(default_factory=list)

    @cached_property
    def chain_id(self) -> bytes:
        return self.genesis.chain_id

    @property
    def f(self) -> int:
        return self.genesis.validator_set.f

    def read(self, key: bytes) -> bytes | None:
        return self.state.get(key)

    def leaves(self, log: bytes, start: int, stop: int) -> list[bytes]:
        found = self.logs.get(log, [])[start:stop]
        if len(found) != stop - start:
            raise LookupError(log)
        return found

    def node(self, log: bytes, level: int, index: int) -> bytes:
        if level >= PAGE_LEVEL:
            return self.nodes[log, level, index]
        return node_over([leaf_digest(leaf) for leaf in self.leaves(log, index << level, index + 1 << level)])

    def actor(self, name: str) -> Actor:
        return actor(name, self.chain_id)

    def input(
        self,
        *transactions: bytes,
        items: Iterable[Item] = (),
        batches: tuple[tuple[bytes, ...], ...] | None = None,
        after_ms: int = 100,
        proposer: int | None = None,
        within_window: bool = True,
    ) -> BlockInput:
        """The next block. Proposers take turns unless one is named."""
        height = self.height + 1
        contents = batches if batches is not None else ((transactions,) if transactions else ())
        return BlockInput(
            chain_id=self.chain_id,
            params=self.genesis.params,
            height=height,
            digest=sha256(b"block/%d" % height).digest(),
            time_ms=self.time_ms + after_ms,
            epoch=self.epoch,
            proposer=height % self.genesis.validator_set.n if proposer is None else proposer,
            f=self.f,
            within_window=within_window,
            beacon=sha256(b"beacon/%d" % height).digest(),
            batches=tuple(
                (sha256(b"batch/%d/%d" % (height, at)).digest(), read_all(each, self.genesis.params))
                for at, each in enumerate(contents)
            ),
            items=tuple(items),
        )

    def block(self, *transactions: bytes, **changes: Any) -> BlockOutcome:
        return self.execute(self.input(*transactions, **changes))

    def execute(self, block: BlockInput) -> BlockOutcome:
        outcome = execute_block(self.state.get, block)
        for key, value in outcome.writes.items():
            if value is None:
                del self.state[key]
            else:
                self.state[key] = value
        self.height, self.time_ms = block.height, block.time_ms
        self.models.update((each.cid, model_bytes(each)) for each in outcome.models if each.inline or each.zeros)
        for growth in outcome.logs:
            known = self.logs.setdefault(growth.log, [])
            # A test may begin in the middle.
            known.extend([b""] * (growth.first - len(known)))
            assert growth.first == len(known)
            known.extend(growth.leaves)
            self.nodes.update({(growth.log, level, index): node for level, index, node in growth.nodes})
        self.receipts += [decode(Receipt, data, len(data)) for data in outcome.receipts]
        self.events += [decode(Event, data, len(data)) for data in outcome.events]
        self.aggregations += outcome.aggregations
        self.outcomes.append(outcome)
        return outcome

    def blocks(self, count: int, **changes: Any) -> None:
        for _ in range(count):
            self.block(**changes)

    def status_of(self, *transactions: bytes, **changes: Any) -> str | None:
        """What became of the last of these in a block of their own; None where it left no receipt."""
        before = len(self.receipts)
        self.block(*transactions, **changes)
        made = self.receipts[before:]
        index = len(transactions) - 1
        return next((receipt.status for receipt in made if receipt.index == index), None)

    def check(self, data: bytes) -> Checked:
        return check_transaction(data, self.chain_id, self.genesis.params, lambda job: rules_of(self.state.get, job))

    def account(self, account: bytes) -> Account | None:
        return read_record(self.state.get, Account, account_key(account))

    def member(self, account: bytes) -> Member | None:
        return read_record(self.state.get, Member, member_key(account))

    def job(self, job: bytes) -> Job:
        found = read_record(self.state.get, Job, job_key(job))
        assert found is not None
        return found

    def rules(self, job: bytes) -> JobRules:
        found = read_record(self.state.get, JobRules, rules_key(job))
        assert found is not None
        return found

    def round(self, job: bytes, number: int | None = None) -> Round:
        number = self.job(job).round if number is None else number
        found = read_record(self.state.get, Round, round_key(job, number))
        assert found is not None
        return found

    def event_kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def model_bytes(model: NewModel) -> bytes:
    return model.inline or zero_model(model.zeros) if model.zeros else model.inline


def ledger(validators: int = 4, trainers: int = 4, **changes: Any) -> Ledger:
    genesis = make_genesis(validators, trainers, **changes)
    return Ledger(genesis, genesis_state(genesis))


def make_rules(**changes: Any) -> JobRules:
    rules = JobRules(
        name="digits",
        schema=SCHEMA,
        initial=b"",
        mode=SYNCHRONOUS,
        rule=FEDAVG,
        encoding="f32",
        range_bits=8,
        weights=EQUAL,
        cap=1,
        target=4,
        minimum=2,
        maximum=16,
        deadline_ms=10_000,
        grace_ms=2_000,
        rounds=3,
        max_failed=3,
        privacy=VISIBLE_TO_VALIDATORS,
        metrics=("loss",),
        config=(),
        app="",
        app_digest=b"",
    )
    if changes.get("encoding") == "topk":
        rules = replace(rules, share_ppm=SHARE_PPM)
    rules = replace(rules, **changes)
    return rules if rules.initial else replace(rules, initial=zero_model_cid(rules.schema))


@dataclass
class Running:
    """A job with its people, its first round open unless asked otherwise."""

    ledger: Ledger
    job: bytes
    creator: Actor
    trainers: list[Actor]

    @property
    def round(self) -> Round:
        return self.ledger.round(self.job)

    def body(self, trainer: Actor, *, value: float = 0.5, **changes: Any) -> SubmitUpdate:
        """An update that the chain accepts, every value of it the same, but for the changes. With an empty payload it
        names the blob instead."""
        rules, state = self.ledger.rules(self.job), self.ledger.job(self.job)
        round, group = changes.get("round", state.round), changes.get("group", 0)
        changed = [spec for spec in schema_of(rules, group).tensors if spec.role == AVERAGED]
        delta = {spec.name: np.full(spec.shape, value, np.float32) for spec in changed}
        payload = encode_update(form_of(rules, group), Place(self.job, round, trainer.account), delta)
        given: dict[str, Any] = {
            "job": self.job,
            "round": round,
            "base": state.model,
            "examples": 10,
            "metrics": (1_000_000,) * len(rules.metrics),
            "group": group,
            "cid": cid_of(changes.get("payload") or payload),
            "payload": payload,
        }
        return SubmitUpdate(**{**given, **changes})

    def update(self, trainer: Actor, **changes: Any) -> bytes:
        return trainer.sign(self.body(trainer, **changes))

    def submit(self, *trainers: Actor, **block: Any) -> BlockOutcome:
        """A block with one update of each."""
        return self.ledger.block(*(self.update(each) for each in trainers), **block)

    def freeze(self) -> AggregationTask:
        """Everybody answers the open round; its aggregation is due."""
        self.submit(*self.trainers)
        return self.ledger.aggregations[-1]

    def finish_round(self) -> bytes:
        """Everybody answers, and a result is certified; returns the new model's CID."""
        task = self.freeze()
        model = raw_cid(b"model/%d" % task.round)
        self.ledger.block(items=[result_item(task, model)])
        return model


def result_item(task: AggregationTask, model: bytes = b"", code: str = "", **changes: Any) -> Item:
    """With a model the round is ok, with a code it failed."""
    result = Result(
        job=task.job,
        round=task.round,
        log_root=task.log_root,
        kernel_version=task.kernel_version,
        ok=not code,
        code=code,
        model=b"" if code else model or raw_cid(b"model"),
        optimizer=b"",
        record=raw_cid(b"record"),
    )
    return Item(ItemKind.RESULT, encode(replace(result, **changes)))


def created_job(chain: Ledger, creator: Actor, rules: JobRules, model: bytes = b"") -> bytes:
    """A block that creates the job; its id."""
    data = creator.sign(CreateJob(rules, model))
    checked = chain.check(data)
    assert chain.status_of(data) == "ok"
    return job_id(checked.reading.id)


def running_job(chain: Ledger | None = None, trainers: int = 4, **rules: Any) -> Running:
    """A chain whose trainers have all joined a job in one block, at whose end its first round opened. `trainers`
    must reach the job's target."""
    chain = chain or ledger(trainers=trainers)
    creator = chain.actor("creator")
    job = created_job(chain, creator, make_rules(**rules))
    people = [chain.actor(name) for name in trainer_names(trainers)]
    accepted = rules_hash(chain.rules(job))
    chain.block(*(each.sign(JoinJob(job, accepted)) for each in people))
    return Running(chain, job, creator, people)
