from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import numpy as np
import pytest

from fl.client.errors import BadInput, QuorateError, RefusedByChain, Unreachable
from fl.client.measures import metric_value, metric_values
from fl.client.network import AsyncNetwork, connect_async
from fl.client.sync import Job, Network, connect
from fl.records import ConfigEntry, JobStatus
from tests.fl.builders import make_rules
from tests.fl.client.chainlet import Running

Shapes = dict[str, Any]


def ones(model: dict[str, Any], value: float = 1.0) -> dict[str, Any]:
    return {name: np.full(array.shape, value, np.float32) for name, array in model.items()}


def train(network: Network, answered: list[int], value: float = 1.0) -> None:
    job = network.job("digits")
    job.join()
    for task in job.tasks():
        trained = {name: array + value for name, array in task.model.items()}
        task.submit(weights=trained, examples=10, metrics={"loss": 0.5})
        answered.append(task.round)


def test_trainers_train_a_job_to_its_end(chain: Running) -> None:
    chain.create(make_rules(target=2, minimum=2, weights="examples", cap=100))
    answered: list[list[int]] = [[], []]
    networks = [connect(**chain.settings(f"trainer-{index:03}", home=f"home{index}")) for index in range(2)]
    threads = [
        threading.Thread(target=train, args=(network, rounds, 1.0 + 2 * index))
        for index, (network, rounds) in enumerate(zip(networks, answered, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answered == [[1, 2, 3], [1, 2, 3]]
    job = networks[0].job("digits")
    assert job.status().status == JobStatus.FINISHED
    # Deltas of 1 and 3 weigh the same: each round adds 2.
    for number in range(4):
        for array in job.model(number).values():
            assert np.allclose(array, 2.0 * number)
    first = job.round(1)
    assert first is not None and [metric_value(each) for each in first.means] == [0.5]
    for network in networks:
        assert [each.status for each in network.receipts()] == ["ok"] * 4
        network.close()


def test_whoever_joins_with_a_data_set_weighs_what_it_says_to_hold(chain: Running) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, weights="dataset", cap=100))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        with pytest.raises(RefusedByChain) as refused:
            job.join()
        assert refused.value.code == "UNKNOWN_DATASET"
        network.datasets.register("trials", examples=70)
        job.join(dataset="trials")
        task = next(iter(job.tasks()))
        assert task.submit(delta=ones(task.model), examples=3, metrics={"loss": 1}).weight == 70


@pytest.fixture
def joined(chain: Running) -> Any:
    """A job that one trainer keeps going, and the trainer in it."""
    chain.create(make_rules(target=1, minimum=1, maximum=1))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join(job.rules_hash)
        yield network, job


def test_a_loop_that_is_started_anew_goes_on_where_the_last_one_ended(joined: tuple[Network, Job]) -> None:
    _, job = joined
    for expected in (1, 2, 3):
        task = next(iter(job.tasks()))
        assert task.round == expected
        assert task.submit(delta=ones(task.model), examples=1, metrics={"loss": 1}).accepted
    assert list(job.tasks()) == []


def test_a_round_that_was_not_answered_is_offered_to_the_next_loop_but_not_twice_by_one(
    joined: tuple[Network, Job],
) -> None:
    _, job = joined
    loop = job.tasks()
    first = next(loop)
    again = next(job.tasks())
    assert again.round == first.round == 1
    again.submit(delta=ones(again.model), examples=1, metrics={"loss": 1})
    assert next(loop).round == 2


def test_an_update_in_flight_when_the_program_died_is_sent_again_and_not_trained_twice(
    chain: Running, joined: tuple[Network, Job]
) -> None:
    network, job = joined

    async def lose() -> None:
        async with await connect_async(**chain.settings()) as dying:
            task = await anext((await dying.job("digits")).tasks())
            sending = asyncio.create_task(task.submit(delta=ones(task.model), examples=1, metrics={"loss": 1}))
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
    assert next(job.tasks()).round == 2
    assert sorted(each.round for each in network.receipts() if each.nonce > 0) == [1]
    assert len({data for face in chain.faces for data in face.submitted}) == 1


def test_an_update_that_comes_too_late_has_a_receipt_that_says_so(joined: tuple[Network, Job]) -> None:
    _, job = joined
    late, quick = next(job.tasks()), next(job.tasks())
    quick.submit(delta=ones(quick.model), examples=1, metrics={"loss": 1})
    second = next(job.tasks())
    second.submit(delta=ones(second.model), examples=1, metrics={"loss": 1})
    receipt = late.submit(delta=ones(late.model), examples=1, metrics={"loss": 1})
    assert receipt.status == "LATE" and not receipt.accepted
    assert late.receipt == receipt


def test_weights_and_their_difference_say_the_same(joined: tuple[Network, Job]) -> None:
    _, job = joined
    task = next(job.tasks())
    task.submit(weights={name: array + 0.25 for name, array in task.model.items()}, examples=1, metrics={"loss": 1})
    for array in job.model().values():
        assert np.allclose(array, 0.25)
    task = next(job.tasks())
    task.submit(delta=ones(task.model, 0.25), examples=1, metrics={"loss": 1})
    for array in job.model().values():
        assert np.allclose(array, 0.5)


def test_training_in_place_changes_nothing_but_the_task(joined: tuple[Network, Job]) -> None:
    _, job = joined
    task = next(job.tasks())
    for array in task.model.values():
        array += 0.5
    task.submit(weights=task.model, examples=1, metrics={"loss": 1})
    for array in job.model().values():
        assert np.allclose(array, 0.5)


def test_an_outage_longer_than_any_patience_does_not_end_a_loop(chain: Running, joined: tuple[Network, Job]) -> None:
    _, job = joined
    answered = []

    def set_down(down: bool) -> None:
        for face in chain.faces:
            face.down = down

    with connect(**chain.settings(patience_s=0.1)) as network:
        for task in network.job(job.id).tasks():
            set_down(True)
            over = threading.Timer(0.5, set_down, [False])
            over.start()
            task.submit(delta=ones(task.model), examples=1, metrics={"loss": 1})
            over.join()
            answered.append(task.round)
    assert answered == [1, 2, 3]


def test_a_job_is_paused_and_resumed_by_its_creator_alone(chain: Running) -> None:
    chain.create(make_rules(target=2, minimum=2))
    with connect(**chain.settings("creator", home="creator")) as creator, connect(**chain.settings()) as trainer:
        trainer.job("digits").join()
        with pytest.raises(RefusedByChain) as refused:
            trainer.job("digits").pause()
        assert refused.value.code == "UNAUTHORISED"
        job = creator.job("digits")
        assert job.pause().status == "ok" and job.status().status == JobStatus.PAUSED
        assert job.resume().status == "ok" and job.status().status == JobStatus.WAITING


def test_what_is_sent_once_is_given_up_in_an_outage_and_kept(chain: Running, joined: tuple[Network, Job]) -> None:
    network, job = joined
    for face in chain.faces:
        face.down = True
    with pytest.raises(Unreachable):
        job.leave()
    for face in chain.faces:
        face.down = False
    assert [receipt.status for receipt in network.resume()] == ["ok"]


BAD_SUBMISSIONS: list[tuple[str, dict[str, Any]]] = [
    ("ONE_OF_TWO", {}),
    ("ONE_OF_TWO", {"weights": {}, "delta": {}}),
    ("MISSING_TENSOR", {"weights": {}}),
    ("UNKNOWN_TENSOR", {"weights": {"nothing": np.zeros(1)}}),
    ("WRONG_SHAPE", {"weights": {"weight": np.zeros(1), "bias": np.zeros(3)}}),
    ("BAD_UPDATE", {"delta": {"weight": np.zeros((3, 2))}}),
    ("NON_FINITE", {"delta": {"weight": np.full((3, 2), np.nan), "bias": np.zeros(3)}}),
    ("OUT_OF_RANGE", {"delta": {"weight": np.full((3, 2), 300.0), "bias": np.zeros(3)}}),
    ("BAD_METRICS", {"delta": {"weight": np.zeros((3, 2)), "bias": np.zeros(3)}, "metrics": {"accuracy": 1.0}}),
    ("BAD_EXAMPLES", {"delta": {"weight": np.zeros((3, 2)), "bias": np.zeros(3)}, "examples": 0}),
    ("BAD_EXAMPLES", {"delta": {"weight": np.zeros((3, 2)), "bias": np.zeros(3)}, "examples": 1.5}),
]


@pytest.mark.parametrize(("code", "given"), BAD_SUBMISSIONS)
def test_a_submission_that_cannot_be_meant_is_refused_before_it_is_sent(
    chain: Running, joined: tuple[Network, Job], code: str, given: dict[str, Any]
) -> None:
    _, job = joined
    for face in chain.faces:
        face.submitted.clear()
    task = next(job.tasks())
    with pytest.raises(QuorateError) as caught:
        task.submit(**{"examples": 1, "metrics": {"loss": 1.0}, **given})
    assert caught.value.code == code
    assert not any(face.submitted for face in chain.faces)


def test_tasks_without_joining_say_what_to_do(chain: Running) -> None:
    chain.create(make_rules(target=1, minimum=1))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        with pytest.raises(RefusedByChain) as caught:
            next(job.tasks())
        assert caught.value.code == "NOT_JOINED" and "Join the job" in caught.value.todo


def test_rules_that_were_not_agreed_on_are_not_joined(chain: Running) -> None:
    chain.create(make_rules())
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        with pytest.raises(RefusedByChain) as caught:
            job.join("00" * 32)
        assert caught.value.code == "WRONG_RULES"
        assert network.receipts() == []
        receipt = job.join()
        assert receipt is not None and receipt.accepted
        assert job.join() is None


def test_config_holds_from_its_round_on_in_its_type(chain: Running) -> None:
    config = (
        ConfigEntry("epochs", 0, "integer", "3"),
        ConfigEntry("lr", 0, "decimal", "0.5"),
        ConfigEntry("lr", 2, "decimal", "0.25"),
        ConfigEntry("note", 0, "string", "hello"),
    )
    chain.create(make_rules(target=1, minimum=1, maximum=1, config=config))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join()
        seen = []
        for task in job.tasks():
            seen.append(task.config)
            task.submit(delta=ones(task.model), examples=1, metrics={"loss": 1})
    assert seen == [{"epochs": 3, "lr": rate, "note": "hello"} for rate in (0.5, 0.25, 0.25)]


def test_a_created_job_is_what_was_asked_for(chain: Running) -> None:
    start = {"weight": np.arange(6.0).reshape(3, 2), "bias": np.array([1.0, -0.0, 1e-42])}
    with connect(**chain.settings("creator")) as network:
        job = network.create_job(
            "mine",
            start,
            rounds=2,
            target=3,
            privacy="visible-to-validators",
            metrics=["loss"],
            config={"lr": {0: 1e-05, 5: 2.0}, "epochs": 4},
        )
        assert job.rules.encoding == "q8" and job.rules.minimum == 3
        assert [(each.name, each.from_round, each.type, each.value) for each in job.rules.config] == [
            ("epochs", 0, "integer", "4"),
            ("lr", 0, "decimal", "0.00001"),
            ("lr", 5, "decimal", "2.0"),
        ]
        model = job.model()
        assert np.array_equal(model["weight"], start["weight"])
        assert np.array_equal(model["bias"], [1.0, 0.0, 0.0])
        with pytest.raises(RefusedByChain) as caught:
            network.create_job("mine", start, rounds=2, target=3, privacy="visible-to-validators")
        assert caught.value.code == "NAME_TAKEN"
        with pytest.raises(BadInput):
            network.create_job("x", {"w": np.array([np.nan])}, rounds=1, target=1, privacy="visible-to-validators")
        with pytest.raises(RefusedByChain) as caught:
            network.create_job("x", start, rounds=1, target=1, privacy="none")
        assert caught.value.code == "NOT_SUPPORTED"


def test_a_model_of_zeros_may_be_larger_than_a_transaction(chain: Running) -> None:
    with connect(**chain.settings("creator")) as network:
        rules: dict[str, Any] = {"rounds": 1, "target": 1, "privacy": "visible-to-validators"}
        job = network.create_job("large", {"w": np.zeros((300, 100))}, **rules)
        assert job.model()["w"].shape == (300, 100)


async def test_the_plain_face_works_inside_a_running_event_loop(chain: Running) -> None:
    chain.create(make_rules())
    with connect(**chain.settings()) as network:
        assert network.job("digits").status().round == 0


async def test_the_async_face_runs_several_accounts_on_one_loop(chain: Running) -> None:
    chain.create(make_rules(target=3, minimum=3, rounds=2))

    async def one(index: int) -> list[int]:
        network: AsyncNetwork
        async with await connect_async(**chain.settings(f"trainer-{index:03}", home=f"h{index}")) as network:
            job = await network.job("digits")
            await job.join()
            rounds = []
            async for task in job.tasks():
                await task.submit(delta=ones(task.model), examples=5, metrics={"loss": math.nan})
                rounds.append(task.round)
            return rounds

    assert await asyncio.gather(*(one(index) for index in range(3))) == [[1, 2]] * 3


def test_metrics_are_millionths_with_marks() -> None:
    values = [0.25, -1.5, math.nan, math.inf, -math.inf]
    names = [f"m{index}" for index in range(len(values))]
    micro = metric_values(names, dict(zip(names, values, strict=True)))
    assert micro[:2] == (250_000, -1_500_000)
    back = [metric_value(each) for each in micro]
    assert back[:2] == values[:2] and math.isnan(back[2]) and back[3:] == values[3:]
    assert abs(metric_value(metric_values(["x"], {"x": 1e300})[0])) < math.inf
