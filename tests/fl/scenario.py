"""Long random plays of a whole chain, hostile and ordinary blocks mixed, reproduced by their seed.

After every block the totals are checked against what a reader counts from the receipts alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256
from typing import Any

from chain.block import Evidence, Item, ItemKind, Ready
from chain.codec import decode, encode
from chain.log import Frontier
from chain.unixfs import cid_of
from fl.accounts import RotateKey, rotation
from fl.datasets import RegisterDataset, WithdrawDataset
from fl.evaluation import SubmitEvaluation
from fl.execution import OK
from fl.jobs import CreateJob, JoinJob, LeaveJob, ResumeJob, StopJob, job_id
from fl.machine import wants_block_at
from fl.members import RegisterMember, RevokeMember
from fl.metrics import better
from fl.records import (
    METRIC_MARKS,
    Evaluation,
    EvaluationPhase,
    EvaluationRules,
    Evaluators,
    Goal,
    Job,
    JobStatus,
    Kind,
    Meta,
    Phase,
    Receipt,
    Role,
    Round,
    Statistic,
)
from fl.rounds import SubmitUpdate, entries_of
from fl.state import (
    DATASETS,
    EVENTS,
    META,
    RECEIPTS,
    evaluation_of,
    evaluators_key,
    job_key,
    joined_key,
    open_jobs,
    read_record,
)
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

TRAINERS = 6


class Play:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.ledger = ledger(validators=self.draw.choice((1, 4, 7)), trainers=TRAINERS, admission="open")
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
        data = self.honest() if shape < 0.75 else self.hostile()
        self.old.append(data)
        if shape > 0.95:
            at = draw.randrange(len(data))
            return data[:at] + draw.randbytes(1) + data[at + 1 :]
        return data

    def valid_until_ms(self) -> int:
        far = 2 * 86_400_000 if self.draw.random() < 0.03 else 0
        return self.ledger.time_ms + far + self.draw.choice((0, 10_000, 100_000, 100_000, 100_000))

    def sign(self, who: Actor, body: object, **changes: Any) -> bytes:
        return who.sign(body, valid_until_ms=self.valid_until_ms(), **changes)

    def honest(self) -> bytes:
        draw, state = self.draw, self.ledger.state
        known = [job for job in self.jobs if job_key(job) in state][-3:]
        if not known or draw.random() < 0.02:
            return self.creation()
        job, who = draw.choice(known), draw.choice(self.trainers)
        status = self.ledger.job(job)
        if (status.evaluation and draw.random() < 0.4) or draw.random() < 0.1:
            return self.evaluator(job, status)
        if status.status == JobStatus.PAUSED:
            return self.sign(self.creator, ResumeJob(job))
        if joined_key(job, who.account) not in state:
            return self.sign(who, JoinJob(job, status.rules_hash))
        if draw.random() < 0.02:
            return self.sign(self.registrar, draw.choice((StopJob(job), RevokeMember(self.trainers[-1].account))))
        if draw.random() < 0.02:
            return self.sign(who, LeaveJob(job))
        if draw.random() < 0.05:
            return self.sign(
                who, draw.choice((self.dataset(), WithdrawDataset(draw.choice([*self.datasets, bytes(32)]))))
            )
        if draw.random() < 0.05:
            name = f"newcomer-{draw.randrange(3)}"
            return self.sign(self.registrar, RegisterMember(name, signing_key(name).public, ("trainer",)))
        body = Running(self.ledger, job, self.creator, self.trainers).body(
            who, round=max(1, status.round), value=draw.choice((0.0, 0.5, -2.0)), examples=draw.randint(1, 99)
        )
        if draw.random() < 0.1:
            wrong = ({"examples": 2**63 - 1}, {"examples": -1}, {"metrics": ()}, {"base": bytes(36)})
            body = replace(body, **draw.choice(wrong))
        return self.sign(who, body)

    def evaluator(self, job: bytes, status: Job) -> bytes:
        draw, who = self.draw, self.draw.choice(self.evaluators)
        listed = read_record(self.ledger.state.get, Evaluators, evaluators_key(job))
        if listed is None or who.account not in listed.accounts:
            return self.sign(who, JoinJob(job, status.rules_hash, role=Role.EVALUATOR.value))
        if draw.random() < 0.05:
            return self.sign(who, LeaveJob(job, Role.EVALUATOR.value))
        asked = evaluation_of(self.ledger.state.get, job, status.evaluation)
        model = status.model if asked is None or draw.random() < 0.05 else asked.model
        values = (draw.choice((*METRIC_MARKS, 1, 2, 3, -4)),)
        return self.sign(who, SubmitEvaluation(job, max(1, status.evaluation), model, draw.randint(1, 99), values))

    def dataset(self) -> RegisterDataset:
        cid = cid_of(self.draw.randbytes(9))
        return RegisterDataset(f"data-{self.draw.randrange(3)}", cid, 9, self.draw.random() < 0.5, "", "", "CC0-1.0")

    def creation(self) -> bytes:
        draw = self.draw
        rules = make_rules(
            name=f"job-{len(self.jobs) % 5}",
            target=draw.randint(2, 4),
            minimum=2,
            max_failed=draw.randint(1, 4),
            rounds=draw.randint(1, 4),
            weights="examples",
            cap=draw.choice((1, 50, 2**20)),
            maximum=draw.choice((4, 5, 100)),
            deadline_ms=draw.choice((1, 3_000, 20_000)),
            grace_ms=draw.choice((0, 2_000, 60_000)),
            evaluation=self.evaluation(),
        )
        if rules.evaluation.every:
            stop = draw.random() < 0.3
            rules = replace(rules, goal=Goal("accuracy", draw.random() < 0.5, stop, 3 if stop else 0))
        data = self.sign(self.creator, CreateJob(rules, b""))
        self.jobs.append(job_id(self.ledger.check(data).id))
        return data

    def evaluation(self) -> EvaluationRules:
        draw = self.draw
        if draw.random() < 0.3:
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
            RegisterMember(f"m{draw.randrange(4)}", new.public, draw.choice(((), ("trainer",), ("king",)))),
            RegisterDataset("d", bytes(36), number, draw.random() < 0.5, "", "x" * 4096, ""),
            WithdrawDataset(job),
            RevokeMember(draw.choice(self.people).account) if draw.random() < 0.1 else RevokeMember(bytes(32)),
            StopJob(job) if draw.random() < 0.3 else RotateKey(new.public, bytes(64)),
            ResumeJob(job),
            LeaveJob(job, draw.choice(("trainer", "evaluator", "king"))),
            JoinJob(job, bytes(32), role=draw.choice(("trainer", "evaluator", "king"))),
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
            return result_item(draw.choice(self.ledger.aggregations[-2:]), code=code, **changes)
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
        parts += [*outcome.receipts, *outcome.events, repr(outcome.nodes).encode(), repr(outcome.rows).encode()]
        parts.append(repr(outcome.aggregations).encode())
    return sha256(b"\x00".join(parts)).hexdigest()


def check_totals(chain: Ledger) -> None:
    state = chain.state
    _check_logs(chain)
    accepted: dict[tuple[bytes, int], list[Receipt]] = {}
    measured: dict[tuple[bytes, int], list[Receipt]] = {}
    seen: set[tuple[bytes, int]] = set()
    for receipt in chain.receipts:
        assert (receipt.sender, receipt.nonce) not in seen, "a nonce was executed twice"
        seen.add((receipt.sender, receipt.nonce))
        assert receipt.status not in ("FAULT", "EXPIRED", "NONCE_USED", "NONCE_FAR", "WRONG_KEY")
        if receipt.kind in (Kind.SUBMIT_UPDATE, Kind.SUBMIT_EVALUATION) and receipt.status == OK:
            answers = accepted if receipt.kind == Kind.SUBMIT_UPDATE else measured
            answers.setdefault((receipt.job, receipt.round), []).append(receipt)
    for key in state:
        if key.startswith(b"round/"):
            job, number = key[6:38], int.from_bytes(key[38:], "big")
            _check_round(chain, job, number, accepted.pop((job, number), []))
        elif key.startswith(b"evaluation/"):
            job, number = key[11:43], int.from_bytes(key[43:], "big")
            _check_evaluation(chain, job, number, measured.pop((job, number), []))
        elif key.startswith(b"job/"):
            _check_job(chain, key[4:])
    assert not accepted, "an update was accepted into no round"
    assert not measured, "an answer was accepted into no evaluation"
    due = wants_block_at(state.get)
    assert due is None or due >= 0
    listed = [each.job for each in open_jobs(state.get).jobs]
    assert listed == sorted(set(listed))


def _check_logs(chain: Ledger) -> None:
    meta = read_record(chain.state.get, Meta, META)
    assert meta is not None and meta.executed + meta.refused == len(chain.receipts)
    for name, count in ((RECEIPTS, len(chain.receipts)), (EVENTS, len(chain.events))):
        frontier = read_record(chain.state.get, Frontier, name)
        assert (frontier.size if frontier else 0) == count


def _check_round(chain: Ledger, job: bytes, number: int, accepted: list[Receipt]) -> None:
    current, rules = chain.round(job, number), chain.rules(job)
    assert current.updates.size == len(accepted) <= min(rules.maximum, 2**17)
    assert current.weight == sum(receipt.weight for receipt in accepted)
    assert len({receipt.sender for receipt in accepted}) == len(accepted), "a member answered twice"
    assert all(1 <= receipt.weight <= rules.cap for receipt in accepted)
    entries = list(entries_of(chain.read, job, number, current.updates.size))
    assert [entry.tx_id for entry in entries] == [receipt.tx_id for receipt in accepted]
    assert [entry.weight for entry in entries] == [receipt.weight for receipt in accepted]
    if current.phase in (Phase.AGGREGATING, Phase.CLOSED):
        assert current.updates.size >= rules.minimum
    if current.phase in (Phase.COLLECTING, Phase.AGGREGATING):
        assert chain.job(job).status == JobStatus.RUNNING and chain.job(job).round == number


def _check_evaluation(chain: Ledger, job: bytes, number: int, accepted: list[Receipt]) -> None:
    found, rules, known = evaluation_of(chain.state.get, job, number), chain.rules(job), chain.job(job)
    assert found is not None and found.model == chain.round(job, number).model
    assert found.answers.size == len(accepted) == len({receipt.sender for receipt in accepted})
    if found.phase in (EvaluationPhase.DRAWING, EvaluationPhase.OPEN):
        assert known.evaluation == number and known.status not in (JobStatus.FINISHED, JobStatus.STOPPED)
        held = [key for key in chain.state if key.startswith(b"answer/" + job)]
        assert len(held) == len(accepted) < max(1, found.cohort)
    elif found.phase == EvaluationPhase.CLOSED:
        assert len(accepted) >= rules.evaluation.minimum and len(found.values) == 1
        value = found.values[0]
        assert value in METRIC_MARKS or value == known.best_value or better(rules.goal, known.best_value, value)
    else:
        assert found.code and not found.values


def _check_job(chain: Ledger, job: bytes) -> None:
    known, rules = chain.job(job), chain.rules(job)
    assert known.members == sum(key.startswith(b"joined/" + job) for key in chain.state)
    listed = read_record(chain.state.get, Evaluators, evaluators_key(job))
    assert known.evaluators == (len(listed.accounts) if listed else 0)
    rounds = [chain.round(job, number) for number in range(1, known.round + 1)]
    closed = [each for each in rounds if each.phase == Phase.CLOSED]
    assert known.completed == len(closed) <= rules.rounds
    assert known.model == (closed[-1].model if closed else rules.initial)
    opened = {each.job for each in open_jobs(chain.state.get).jobs}
    assert (job in opened) == (known.status not in (JobStatus.FINISHED, JobStatus.STOPPED))


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
