"""Long random plays of a whole chain, hostile and ordinary blocks mixed, reproduced by their seed; after every block
`tests.fl.invariants` is asked whether it all still holds."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any

from chain.block import Evidence, Item, ItemKind, Ready
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.transaction import tx_id
from chain.unixfs import cid_of
from fl.accounts import RotateKey, rotation
from fl.datasets import RegisterDataset, WithdrawDataset
from fl.evaluation import SubmitEvaluation
from fl.execution import OK
from fl.jobrules import ASYNCHRONOUS
from fl.jobs import CreateJob, JoinJob, LeaveJob, PauseJob, ResumeJob, StopJob, job_id
from fl.members import RegisterMember, RevokeMember
from fl.records import (
    METRIC_MARKS,
    CohortRules,
    Dataset,
    Evaluation,
    EvaluationRules,
    Evaluators,
    Goal,
    Job,
    JobRules,
    JobStatus,
    Joined,
    Kind,
    Phase,
    Role,
    Round,
    Statistic,
    TensorGroup,
)
from fl.rounds import CheckIn, SubmitUpdate
from fl.rules import rule_of
from fl.state import DATASETS, dataset_key, evaluation_of, evaluators_key, job_key, joined_key, open_jobs, read_record
from fl.updates import groups_of
from fl.weights import DATASET, EQUAL, EXAMPLES
from tests.fl.builders import (
    Actor,
    Ledger,
    Running,
    ledger,
    make_rules,
    result_item,
    signing_key,
    trainer_names,
)
from tests.fl.invariants import check_totals

TRAINERS = 6
HALVES = (TensorGroup("head", ("bias",)), TensorGroup("trunk", ("weight",)))


class Play:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        validators = self.draw.choice((1, 4, 7))
        self.ledger = ledger(validators, TRAINERS, admission="open", organisations=("north", "north", "north", "south"))
        self.trainers = [self.ledger.actor(name) for name in trainer_names(TRAINERS)]
        self.creator, self.registrar = self.ledger.actor("creator"), self.ledger.actor("registrar")
        self.evaluators = [self.ledger.actor(f"evaluator-{index}") for index in range(3)]
        roles = (Role.EVALUATOR.value,)
        named = [RegisterMember(each.name, each.key.public, roles) for each in self.evaluators]
        self.ledger.block(*(self.registrar.sign(body) for body in named))
        self.people = [*self.trainers, *self.evaluators, self.creator, self.registrar]
        self.people += [self.ledger.actor("newcomer-0"), self.ledger.actor("stranger")]
        self.jobs: list[bytes] = []
        self.datasets: list[bytes] = []
        self.old: list[bytes] = []

    def block(self) -> None:
        draw = self.draw
        batches = tuple(tuple(self.transaction() for _ in range(draw.randint(1, 8))) for _ in range(draw.randint(0, 3)))
        if draw.random() < 0.01:
            self.ledger.epoch += 1
        self.ledger.block(
            batches=batches,
            items=[self.item() for _ in range(draw.choice((0, 0, 1, 2)))],
            after_ms=draw.choice((0, 50, 50, 100, 100, 100, 500, 1_000, 3_000, 40_000)),
            proposer=draw.randrange(self.ledger.genesis.validator_set.n),
            within_window=draw.random() < 0.9,
        )
        self.datasets = [key[len(DATASETS) :] for key in self.ledger.state if key.startswith(DATASETS)]
        check_totals(self.ledger)

    def transaction(self) -> bytes:
        draw = self.draw
        shape = draw.random()
        if shape < 0.05:
            return draw.randbytes(draw.choice((0, 1, 40, 400)))
        if shape < 0.12 and self.old:
            return draw.choice(self.old)
        data = self.honest() if shape < 0.8 else self.hostile()
        self.old.append(data)
        if shape > 0.95:
            at = draw.randrange(len(data))
            return data[:at] + draw.randbytes(1) + data[at + 1 :]
        return data

    def valid_until_ms(self) -> int:
        far = 2 * 86_400_000 if self.draw.random() < 0.03 else 0
        return self.ledger.time_ms + far + self.draw.choice((0, 10_000, 100_000, 100_000, 100_000))

    def sign(self, who: Actor, body: object) -> bytes:
        tx = who.transaction(body, valid_until_ms=self.valid_until_ms())
        if isinstance(body, CreateJob):
            self.jobs.append(job_id(tx_id(tx)))
        return encode(tx)

    def honest(self) -> bytes:
        who, body = self.ordinary()
        if self.draw.random() < 0.15:
            body = self.mutated(body)
        return self.sign(who, body)

    def ordinary(self) -> tuple[Actor, object]:
        """What somebody would do next, mostly."""
        draw, state = self.draw, self.ledger.state
        known = [job for job in self.jobs if job_key(job) in state]
        going = [each.job for each in open_jobs(state.get).jobs]
        if not going or draw.random() < 0.03:
            return self.creator, CreateJob(self.rules(), b"")
        job, who = draw.choice(going if draw.random() < 0.97 else known), draw.choice(self.trainers)
        status, rules = self.ledger.job(job), self.ledger.rules(job)
        if (status.evaluation and draw.random() < 0.4) or draw.random() < 0.1:
            return self.evaluator(job, status)
        if status.status == JobStatus.PAUSED:
            return self.creator, PauseJob(job) if draw.random() < 0.2 else ResumeJob(job)
        if draw.random() < 0.02:
            return self.registrar, draw.choice((StopJob(job), PauseJob(job), RevokeMember(self.trainers[-1].account)))
        if draw.random() < 0.08:
            return who, draw.choice((self.dataset(), WithdrawDataset(draw.choice([*self.datasets, bytes(32)]))))
        if draw.random() < 0.05:
            name = f"newcomer-{draw.randrange(3)}"
            return self.registrar, RegisterMember(name, signing_key(name).public, ("trainer",), "south")
        joined = read_record(state.get, Joined, joined_key(job, who.account))
        if joined is None:
            owned = self.datasets_of(who)
            if rules.weights == DATASET and not owned:
                return who, self.dataset()
            named = draw.choice([*owned, *self.datasets, bytes(32)][:2]) if rules.weights == DATASET else b""
            return who, JoinJob(job, status.rules_hash, dataset=named)
        if draw.random() < 0.03:
            return who, LeaveJob(job)
        newest = status.round and self.ledger.round(job)
        asked = newest and newest.phase == Phase.CHECK_IN and joined.checked_in < newest.number
        if asked or draw.random() < 0.03:
            return who, CheckIn(job, max(1, status.round))
        return who, self.update(job, who, status, rules)

    def update(self, job: bytes, who: Actor, status: Job, rules: JobRules) -> SubmitUpdate:
        draw = self.draw
        number, base = max(1, status.round), status.model
        if rules.discounts and status.round:
            number = draw.randint(max(1, status.round - 3), status.round)
            base = self.ledger.round(job, number).base
        return Running(self.ledger, job, self.creator, self.trainers).body(
            who,
            round=number,
            base=base,
            value=max(draw.choice((0.0, 0.5, -2.0)), -(2.0**rules.range_bits)),
            examples=draw.randint(1, 99),
            group=draw.randrange(groups_of(rules)),
        )

    def mutated(self, body: Any) -> object:
        """With one field as far off as its type allows."""
        telling = ("examples", "metrics", "group") if isinstance(body, SubmitUpdate) else ()
        name = self.draw.choice((*telling, *(each.name for each in fields(body))))
        value = getattr(body, name)
        if isinstance(value, bool):
            return replace(body, **{name: not value})
        if isinstance(value, int):
            most = 255 if name == "group" else 2**63 - 1
            return replace(body, **{name: self.draw.choice((0, 1, value + 1, most))})
        if isinstance(value, bytes):
            return replace(body, **{name: self.draw.choice((bytes(len(value)), bytes(reversed(value))))})
        if isinstance(value, JobRules):
            return replace(body, **{name: self.mutated_rules(value)})
        return replace(body, **{name: ()} if name in ("metrics", "values") else {})

    def mutated_rules(self, rules: JobRules) -> JobRules:
        draw = self.draw
        numbers = [each.name for each in fields(rules) if type(getattr(rules, each.name)) is int]
        if draw.random() < 0.7:
            return replace(rules, **{draw.choice(numbers): draw.choice((0, 1, 7, 200))})
        word = draw.choice(("mode", "rule", "encoding", "weights", "privacy"))
        words = ("async", "sync", "median", "topk", "ring32", "equal", "dataset", "secagg", "sealed")
        return replace(rules, **{word: draw.choice(words)})

    def evaluator(self, job: bytes, status: Job) -> tuple[Actor, object]:
        draw, who = self.draw, self.draw.choice(self.evaluators)
        listed = read_record(self.ledger.state.get, Evaluators, evaluators_key(job))
        if listed is None or who.account not in listed.accounts:
            return who, JoinJob(job, status.rules_hash, role=Role.EVALUATOR.value)
        if draw.random() < 0.05:
            return who, LeaveJob(job, Role.EVALUATOR.value)
        asked = evaluation_of(self.ledger.state.get, job, status.evaluation)
        model = status.model if asked is None or draw.random() < 0.05 else asked.model
        values = (draw.choice((*METRIC_MARKS, 1, 2, 3, -4)),)
        return who, SubmitEvaluation(job, max(1, status.evaluation), model, draw.randint(1, 99), values)

    def dataset(self) -> RegisterDataset:
        draw, cid = self.draw, cid_of(self.draw.randbytes(9))
        name, examples = f"data-{draw.randrange(3)}", draw.choice((0, 3, 70, 2**32))
        return RegisterDataset(name, cid, 9, draw.random() < 0.5, "", "", "CC0-1.0", examples)

    def datasets_of(self, who: Actor) -> list[bytes]:
        found = [(each, read_record(self.ledger.state.get, Dataset, dataset_key(each))) for each in self.datasets]
        return [each for each, data in found if data is not None and data.owner == who.account and data.examples]

    def rules(self) -> JobRules:
        draw = self.draw
        weights = draw.choice((EQUAL, EXAMPLES, EXAMPLES, DATASET))
        rules = make_rules(
            name=f"job-{len(self.jobs) % 5}",
            target=draw.randint(2, 4),
            minimum=draw.randint(1, 2),
            max_failed=draw.randint(1, 4),
            rounds=draw.randint(1, 6),
            weights=weights,
            cap=1 if weights == EQUAL else draw.choice((1, 50, 2**20)),
            maximum=draw.choice((4, 5, 100)),
            deadline_ms=draw.choice((1, 3_000, 20_000)),
            grace_ms=draw.choice((0, 2_000, 60_000)),
            groups=draw.choice(((), (), HALVES)),
            evaluation=self.evaluation(),
        )
        if rules.evaluation.every:
            stop = draw.random() < 0.3
            rules = replace(rules, goal=Goal("accuracy", draw.random() < 0.5, stop, 3 if stop else 0))
        if rules.cap > 1 and draw.random() < 0.5:
            rules = replace(rules, organisation_cap=draw.choice((2, 50, 2**21)))
        if draw.random() < 0.3:
            rules = replace(rules, rule="fedavgm")
        if draw.random() < 0.25:
            return replace(rules, mode=ASYNCHRONOUS, discounts=draw.choice(((1024,), (1024, 700, 1))))
        size, check_in_ms = draw.choice((0, 0, 3)), draw.choice((0, 0, 300, 3_000))
        cohort = CohortRules(size, draw.choice((0, 400_000)) if size else 0, check_in_ms)
        return replace(rules, cohort=cohort, target=min(rules.target, size or rules.target))

    def evaluation(self) -> EvaluationRules:
        draw = self.draw
        if draw.random() < 0.4:
            return EvaluationRules()
        return EvaluationRules(
            every=draw.randint(1, 2),
            cohort=draw.choice((0, 0, 2)),
            minimum=draw.randint(1, 2),
            deadline_ms=draw.choice((1, 3_000, 20_000)),
            before_next=draw.random() < 0.5,
            statistic=draw.choice(list(Statistic)).value,
            metrics=("accuracy",),
        )

    def hostile(self) -> bytes:
        """Well signed, but of any body by anybody: what only a vote by more than f could have let through."""
        draw = self.draw
        who = draw.choice(self.people[-2:] if draw.random() < 0.5 else self.people)
        job = draw.choice([*self.jobs, bytes(32)])
        new = signing_key(f"key/{draw.randrange(5)}")
        number = draw.choice((0, 1, 2, 3, 2**63, 2**64 - 1))
        signed = draw.choice((-(2**63), -1, 0, 1, 2**32, 2**63 - 1))
        bodies: list[object] = [
            rotation(who.key, self.ledger.chain_id, who.account),
            RegisterMember(f"m{draw.randrange(4)}", new.public, draw.choice(((), ("trainer",), ("king",))), "south"),
            RegisterMember(who.name, who.key.public, ("trainer",)),
            RegisterDataset("d", bytes(36), number, draw.random() < 0.5, "", "x" * 4096, ""),
            WithdrawDataset(job),
            RevokeMember(draw.choice(self.people).account) if draw.random() < 0.1 else RevokeMember(bytes(32)),
            StopJob(job) if draw.random() < 0.3 else RotateKey(new.public, bytes(64)),
            ResumeJob(job),
            PauseJob(job),
            CheckIn(job, number),
            LeaveJob(job, draw.choice(("trainer", "evaluator", "king"))),
            JoinJob(job, bytes(32), role=draw.choice(("trainer", "evaluator", "king")), dataset=bytes(32)),
            SubmitEvaluation(job, number, bytes(36), signed, (signed,) * draw.choice((0, 1, 16))),
            CreateJob(make_rules(initial=bytes(36), maximum=draw.choice((1, 2**32 - 1))), draw.randbytes(9)),
            SubmitUpdate(job, number, bytes(36), signed, (signed,) * draw.choice((0, 1, 16)), 1, bytes(36), b"x"),
            SubmitUpdate(job, number, bytes(36), signed, (), 0, bytes(36), b""),
        ]
        nonce = draw.choice((None, None, None, 0, 5, 300, 2**64 - 1))
        tx = who.transaction(draw.choice(bodies), nonce=nonce, valid_until_ms=self.valid_until_ms())
        if draw.random() < 0.1:
            tx = replace(tx, kind=draw.choice((*Kind, 0, 999)))
        if draw.random() < 0.05:
            tx = replace(tx, chain=bytes(32))
        if draw.random() < 0.05:
            tx = replace(tx, sender=draw.choice(self.people).account)
        return encode(tx)

    def item(self) -> Item:
        draw = self.draw
        kind = draw.random()
        if kind < 0.6 and self.ledger.aggregations:
            code = draw.choice(("", "", "", "MODEL_RANGE"))
            changes: dict[str, Any] = {}
            if draw.random() < 0.2:
                changes = draw.choice(({"model": bytes(36)}, {"round": 2**64 - 1}, {"log_root": bytes(32)}))
            task = draw.choice(self.ledger.aggregations[-2:])
            if not code and rule_of(self.ledger.rules(task.job).rule).moments:
                changes = {"optimizer": raw_cid(b"moments"), **changes}
            return result_item(task, code=code, **changes)
        if kind < 0.7:
            return Item(ItemKind.EVIDENCE, encode(Evidence(draw.randrange(4), draw.randrange(3), 9, "two-notarize")))
        if kind < 0.8:
            return Item(ItemKind.READY, encode(Ready(draw.choice((1, 2, 2**64 - 1)), bytes(32), bytes(33))))
        return Item(draw.randrange(256), draw.randbytes(draw.choice((0, 1, 60))))


def play(seed: int, blocks: int) -> Ledger:
    run = Play(seed)
    for _ in range(blocks):
        run.block()
    return run.ledger


def fingerprint(chain: Ledger) -> str:
    """Of everything that came out."""
    parts: list[bytes] = []
    for outcome in chain.outcomes:
        for key, value in outcome.writes.items():
            parts += [key, b"-" if value is None else value]
        parts += [*outcome.receipts, *outcome.events, repr(outcome.logs).encode()]
        parts.append(repr(outcome.aggregations).encode())
    return sha256(b"\x00".join(parts)).hexdigest()


def round_count(chain: Ledger, phase: Phase) -> int:
    return sum(
        decode(Round, value, 2**20).phase == phase for key, value in chain.state.items() if key.startswith(b"round/")
    )


def evaluation_phases(chain: Ledger) -> set[int]:
    return {
        decode(Evaluation, value, 2**20).phase for key, value in chain.state.items() if key.startswith(b"evaluation/")
    }


def executed_kinds(chain: Ledger) -> set[int]:
    return {receipt.kind for receipt in chain.receipts if receipt.status == OK}


def refused_codes(chain: Ledger) -> set[str]:
    return {receipt.status for receipt in chain.receipts} - {OK}
