"""What lossy encodings leave out, through whole rounds: the model and what is owed hold all that was ever trained."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.client.feedback import FED_BACK
from fl.client.network import connect_async
from fl.client.sync import Job, Network, Task, connect
from fl.tensors.layout import Schema, TensorSpec
from tests.fl.builders import make_rules
from tests.fl.client.chainlet import Running

LOSS = {"loss": 1.0}
LARGE = Schema((TensorSpec("w", "F32", (90_000,), "averaged"),))
"""Its updates do not fit into a transaction."""


def change(model: dict[str, Any], round: int) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(round)
    return {name: draw.standard_normal(array.shape).astype(np.float32) for name, array in model.items()}


def owed(path: Path) -> NDArray[np.float32]:
    (file,) = path.glob("*/*/feedback/*/0/*.owed")
    return np.fromfile(file, np.float32)


def flat(tensors: dict[str, Any]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)])


def answer(task: Task, **options: Any) -> NDArray[np.float64]:
    """What was trained, and now is either in the model or owed."""
    trained = change(task.model, task.round)
    assert task.submit(delta=trained, examples=1, metrics=LOSS, **options).accepted
    return flat(trained)


@pytest.fixture(params=sorted(FED_BACK))
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def joined(chain: Running, encoding: str) -> Iterator[tuple[Network, Job]]:
    chain.create(make_rules(target=1, minimum=1, maximum=1, rounds=4, encoding=encoding))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join()
        yield network, job


def assert_all_told(chain: Running, job: Job, trained: Any) -> None:
    assert np.allclose(flat(job.model()) + owed(chain.directory / "home"), trained, atol=2**-18, rtol=0)


def test_all_that_is_trained_is_in_the_model_or_owed_until_the_job_is_over(
    chain: Running, joined: tuple[Network, Job]
) -> None:
    _, job = joined
    trained = np.zeros(9)
    for task in job.tasks():
        if task.round > 1:
            assert_all_told(chain, job, trained)
        trained += answer(task)
    assert not list((chain.directory / "home").glob("*/*/feedback/*/0/*"))
    assert np.abs(flat(job.model()) - trained).max() > 0


def test_updates_that_are_blobs_are_fed_back_as_well(chain: Running, encoding: str) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, schema=LARGE, encoding=encoding, metrics=()))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join()
        trained = np.zeros(90_000)
        for task in job.tasks():
            if task.round == 3:
                break
            each = change(task.model, task.round)
            assert task.submit(delta=each, examples=1).accepted
            trained += flat(each)
        assert_all_told(chain, job, trained)


def test_what_came_too_late_is_told_by_the_next_round(chain: Running, joined: tuple[Network, Job]) -> None:
    _, job = joined
    with connect(**chain.settings("trainer-001", home="another")) as network:
        other = network.job("digits")
        other.join()
        trained = answer(next(job.tasks()))
        late, quick = next(job.tasks()), next(other.tasks())
        assert late.round == quick.round == 2
        quick.submit(
            delta={name: np.zeros_like(array) for name, array in quick.model.items()}, examples=1, metrics=LOSS
        )
        missed = change(late.model, 2)
        assert late.submit(delta=missed, examples=1, metrics=LOSS).status == "LATE"
        assert_all_told(chain, job, trained)
        trained += flat(missed) + answer(next(job.tasks()))
        assert_all_told(chain, job, trained)


def test_a_round_that_is_answered_twice_is_told_once(chain: Running, joined: tuple[Network, Job]) -> None:
    _, job = joined
    again, first = next(job.tasks()), next(job.tasks())
    trained = answer(first)
    assert again.submit(delta=change(again.model, 7), examples=1, metrics=LOSS).status == "DUPLICATE"
    trained += answer(next(job.tasks()))
    assert_all_told(chain, job, trained)


def test_an_update_whose_program_died_counts_once_it_is_proven(chain: Running, joined: tuple[Network, Job]) -> None:
    _, job = joined
    trained = answer(next(job.tasks()))

    async def lose() -> None:
        async with await connect_async(**chain.settings()) as dying:
            task = await anext((await dying.job("digits")).tasks())
            sending = asyncio.create_task(task.submit(delta=change(task.model, task.round), examples=1, metrics=LOSS))
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
    task = next(job.tasks())
    assert task.round == 3
    trained += flat(change(task.model, 2))
    assert_all_told(chain, job, trained)
    trained += answer(task)
    assert_all_told(chain, job, trained)


def test_without_feedback_what_is_left_out_is_gone(chain: Running, joined: tuple[Network, Job]) -> None:
    _, job = joined
    answer(next(job.tasks()), feedback=False)
    assert not list((chain.directory / "home").glob("*/*/feedback"))
