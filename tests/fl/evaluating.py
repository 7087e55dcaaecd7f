"""A job with evaluators, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chain.cid import raw_cid
from fl.evaluation import SubmitEvaluation
from fl.evaluators import cohort_of
from fl.jobs import JoinJob
from fl.members import RegisterMember
from fl.records import Evaluation, EvaluationRules, Evaluators, Goal, Role
from fl.state import State, evaluation_key, evaluators_key, read_record
from tests.fl.builders import Actor, Ledger, Running, result_item, running_job

MICRO = 1_000_000
ACCURACY = Goal("accuracy", larger=True)


def asked(**changes: Any) -> EvaluationRules:
    """After every round, of all evaluators, beside the next round."""
    usual: dict[str, Any] = {"every": 1, "minimum": 2, "deadline_ms": 10_000, "metrics": ("accuracy",)}
    return EvaluationRules(**{**usual, **changes})


@dataclass
class Evaluated(Running):
    evaluators: list[Actor]

    @property
    def evaluation(self) -> Evaluation:
        """The newest."""
        return self.evaluation_of(self.ledger.job(self.job).evaluation)

    def evaluation_of(self, round: int) -> Evaluation:
        found = read_record(self.ledger.state.get, Evaluation, evaluation_key(self.job, round))
        assert found is not None
        return found

    def close_round(self) -> bytes:
        """All trainers answer the open round, and it gets a model of its own."""
        model = raw_cid(b"model/%d" % self.ledger.job(self.job).round)
        self.ledger.block(items=[result_item(self.freeze(), model)])
        return model

    def answer(self, who: Actor, *values: int, **changes: Any) -> bytes:
        """Of the newest evaluation; without values all are 1."""
        current = self.evaluation
        count = len(self.ledger.rules(self.job).evaluation.metrics)
        given: dict[str, Any] = {"round": current.round, "model": current.model, "examples": 100}
        given |= {"values": values or (MICRO,) * count}
        return who.sign(SubmitEvaluation(self.job, **{**given, **changes}))

    def measure(self, *values: int, **block: Any) -> None:
        """A block in which the first evaluators answer with one value each."""
        self.ledger.block(
            *(self.answer(who, value) for who, value in zip(self.evaluators, values, strict=False)), **block
        )

    @property
    def listed(self) -> tuple[bytes, ...]:
        found = read_record(self.ledger.state.get, Evaluators, evaluators_key(self.job))
        return found.accounts if found else ()

    @property
    def cohort(self) -> tuple[bytes, ...]:
        return cohort_of(State(self.ledger.state.get), self.job)


def registrar(chain: Ledger) -> Actor:
    """With the first nonce that it has not used."""
    person = chain.actor("registrar")
    known = chain.account(person.account)
    person.nonce = known.floor if known else 0
    return person


def people(chain: Ledger, count: int, roles: tuple[str, ...] = (Role.EVALUATOR,)) -> list[Actor]:
    """Registered, in no job yet."""
    signing = registrar(chain)
    known = [chain.actor(f"evaluator-{index:04}") for index in range(count)]
    chain.block(*(signing.sign(RegisterMember(each.name, each.key.public, roles)) for each in known))
    return known


def evaluated_job(evaluators: int = 3, chain: Ledger | None = None, **rules: Any) -> Evaluated:
    """Four trainers and so many evaluators have joined; the first round is open."""
    rules.setdefault("evaluation", asked())
    running = running_job(chain, **rules)
    known = people(running.ledger, evaluators)
    accepted = running.ledger.job(running.job).rules_hash
    running.ledger.block(*(each.sign(JoinJob(running.job, accepted, role=Role.EVALUATOR.value)) for each in known))
    made = Evaluated(running.ledger, running.job, running.creator, running.trainers, known)
    assert len(made.listed) == evaluators
    return made


def opened(**rules: object) -> Evaluated:
    """The model of round 1 is being evaluated by three, beside round 2."""
    job = evaluated_job(**rules)  # type: ignore[arg-type]
    job.close_round()
    return job
