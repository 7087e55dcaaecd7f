"""An evaluator's side of a job: what it is asked, what it answers, and what a crash costs it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fl.client.errors import BadInput, RefusedByChain
from fl.client.network import connect_async
from fl.client.sync import Job, Network, connect
from fl.members import RegisterMember
from fl.records import EvaluationPhase, Goal, JobStatus, Role
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import Running
from tests.fl.evaluating import asked, registrar

MICRO = 1_000_000


def register(chain: Running, *names: str, roles: tuple[str, ...] = (Role.EVALUATOR,)) -> None:
    signing = registrar(chain.chain.ledger)
    valid_until_ms = time.time_ns() // 1_000_000 + 60_000
    bodies = [RegisterMember(name, signing_key(name).public, roles) for name in names]
    chain.do(chain.chain.block, *(signing.sign(body, valid_until_ms=valid_until_ms) for body in bodies))
    assert [each.status for each in chain.chain.ledger.receipts[-len(names) :]] == ["ok"] * len(names)


def train(network: Network, rounds: int = 1) -> None:
    job, tasks = network.job("digits"), network.job("digits").tasks()
    for _ in range(rounds):
        task = next(tasks)
        delta = {name: np.ones_like(array) for name, array in task.model.items()}
        assert task.submit(delta=delta, examples=1, metrics={"loss": 1}).accepted
    assert job.status().completed >= rounds


@pytest.fixture
def evaluated(chain: Running) -> Iterator[tuple[Network, Network, Job]]:
    """A job of one trainer and one evaluator, who has joined: the trainer's network, the evaluator's, and its job."""
    chain.create(
        make_rules(
            target=1,
            minimum=1,
            maximum=1,
            evaluation=asked(minimum=1, metrics=("accuracy", "loss")),
            goal=Goal("accuracy", larger=True),
        )
    )
    register(chain, "evaluator")
    settings = chain.settings("evaluator", home="evaluator")
    with connect(**chain.settings()) as trainer, connect(**settings) as evaluator:
        trainer.job("digits").join()
        job = evaluator.job("digits")
        assert job.join(role="evaluator") is not None
        yield trainer, evaluator, job


Evaluated = tuple[Network, Network, Job]


def test_each_round_s_model_is_measured_and_the_best_one_named(chain: Running, evaluated: Evaluated) -> None:
    trainer, evaluator, job = evaluated
    seen: list[tuple[int, float]] = []

    def evaluate() -> None:
        for each in job.evaluations():
            level = float(next(iter(each.model.values())).flat[0])
            seen.append((each.round, level))
            assert each.metrics == ("accuracy", "loss")
            accuracy = {1: 0.5, 2: 0.75, 3: math.nan}[each.round]
            assert each.submit(metrics={"loss": 2 * level, "accuracy": accuracy}, examples=10).accepted

    evaluating = threading.Thread(target=evaluate)
    evaluating.start()
    for number in (1, 2, 3):
        train(trainer, 1)
        while (found := job.evaluation(number)) is None or found.phase == EvaluationPhase.OPEN:
            time.sleep(0.02)
    evaluating.join(20)
    assert not evaluating.is_alive()
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]
    second, third = job.evaluation(2), job.evaluation(3)
    assert second is not None and second.values == (750_000, 4 * MICRO)
    assert third is not None and third.marked == (1, 0)
    status = job.status()
    assert (status.status, status.best_round, status.best_value) == (JobStatus.FINISHED, 2, 750_000)
    assert [each.status for each in evaluator.receipts()] == ["ok"] * 4
    reports = job.reports()
    assert [(each.round, each.metrics, each.updates) for each in reports] == [(n, {"loss": 1.0}, 1) for n in (1, 2, 3)]
    assert [each.evaluation["loss"] for each in reports] == [2, 4, 6]
    assert [each.round for each in job.reports(-5, 2)] == [1, 2] and job.reports(4) == []


def test_joining_twice_is_harmless_and_leaving_ends_what_is_asked(evaluated: Evaluated) -> None:
    trainer, _, job = evaluated
    assert job.join(role="evaluator") is None
    train(trainer)
    assert next(job.evaluations()).round == 1
    assert job.leave(role="evaluator").accepted
    with pytest.raises(RefusedByChain, match="does not evaluate") as refused:
        next(job.evaluations())
    assert refused.value.code == "NOT_JOINED"


def test_a_loop_that_is_started_anew_skips_what_was_answered(evaluated: Evaluated, chain: Running) -> None:
    trainer, _, job = evaluated
    register(chain, "another")
    with connect(**chain.settings("another", home="another")) as network:
        other = network.job("digits")
        other.join(role="evaluator")
        train(trainer)
        first = next(job.evaluations())
        assert next(job.evaluations()).round == 1, "it is asked again, for it has not answered"
        assert first.submit(metrics={"accuracy": 0.5, "loss": 1}, examples=3).accepted
        assert other.evaluation(1).phase == EvaluationPhase.OPEN  # type: ignore[union-attr]
        train(trainer)
        again = next(job.evaluations())
        assert again.round == 2, "the first one was answered"
        late = first.submit(metrics={"accuracy": 0.5, "loss": 1}, examples=3)
        assert (late.status, late.accepted) == ("LATE", False)
        assert again.submit(metrics={"accuracy": 0.5, "loss": 1}, examples=3).accepted
        assert again.submit(metrics={"accuracy": 0.5, "loss": 1}, examples=3).status == "DUPLICATE"


def test_an_answer_in_flight_when_the_program_died_is_sent_again_and_not_measured_twice(
    chain: Running, evaluated: Evaluated
) -> None:
    trainer, _, job = evaluated
    train(trainer)

    async def lose() -> None:
        async with await connect_async(**chain.settings("evaluator", home="evaluator")) as dying:
            each = await anext((await dying.job("digits")).evaluations())
            sending = asyncio.create_task(each.submit(metrics={"accuracy": 0.25, "loss": 1}, examples=1))
            while not any(face.submitted for face in chain.faces):
                await asyncio.sleep(0.01)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    for face in chain.faces:
        face.swallows = True
        face.submitted.clear()
    asyncio.run(lose())
    for face in chain.faces:
        face.swallows = False
    asking = job.evaluations()
    found: list[int] = []
    looking = threading.Thread(target=lambda: found.append(next(asking).round))
    looking.start()
    while (ended := job.evaluation(1)) is None or ended.phase == EvaluationPhase.OPEN:
        time.sleep(0.02)
    assert ended.values[0] == 250_000
    train(trainer)
    looking.join(20)
    assert found == [2]
    assert len({data for face in chain.faces for data in face.submitted}) == 2, "the answer, and one update"


def test_whoever_is_not_drawn_is_asked_nothing(chain: Running) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, rounds=1, evaluation=asked(minimum=1, cohort=1)))
    names = [f"evaluator-{index}" for index in range(3)]
    register(chain, *names)
    networks = [connect(**chain.settings(name, home=name)) for name in names]
    jobs = [network.job("digits") for network in networks]
    for job in jobs:
        job.join(role="evaluator")
    with connect(**chain.settings()) as trainer:
        trainer.job("digits").join()
        train(trainer)
        chain.do(chain.chain.block)
        (cohort,) = [value for key, value in chain.chain.ledger.state.items() if key.startswith(b"measuring/")]
        asked_of: list[str] = []

        def look(network: Network, job: Job) -> None:
            for each in job.evaluations():
                asked_of.append(network.account)
                each.submit(metrics={"accuracy": 1}, examples=1)

        threads = [threading.Thread(target=look, args=pair, daemon=True) for pair in zip(networks, jobs, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "the job is over once the one who was drawn has answered"
        assert len(asked_of) == 1 and bytes.fromhex(asked_of[0]) in cohort
        assert jobs[0].status().status == JobStatus.FINISHED
    for network in networks:
        network.close()


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("BAD_METRICS", {"metrics": {"accuracy": 1}, "examples": 1}),
        ("BAD_METRICS", {"metrics": {"accuracy": 1, "loss": 1, "f1": 1}, "examples": 1}),
        ("BAD_EXAMPLES", {"metrics": {"accuracy": 1, "loss": 1}, "examples": 1.5}),
    ],
)
def test_an_answer_that_cannot_be_meant_is_refused_before_it_is_sent(
    evaluated: Evaluated, code: str, given: dict[str, Any]
) -> None:
    trainer, _, job = evaluated
    train(trainer)
    each = next(job.evaluations())
    with pytest.raises(BadInput) as refused:
        each.submit(**given)
    assert refused.value.code == code
    with pytest.raises(RefusedByChain) as of_the_chain:
        each.submit(metrics={"accuracy": 1, "loss": 1}, examples=0)
    assert of_the_chain.value.code == "BAD_EXAMPLES"
    assert each.submit(metrics={"accuracy": 1, "loss": 1}, examples=1).accepted
