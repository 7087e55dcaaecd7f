"""The gateway between a chain and its SuperNode: what becomes of rounds whose answers are wrong, missing or late."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.localnets import free_port
from fl.client.errors import BadInput
from fl.client.flowergate import wire
from fl.client.flowergate.fab import build
from fl.client.flowergate.forms import Records
from fl.client.flowergate.parcels import ArraysRecord, MetricsRecord
from fl.client.flowergate.serve import Place, Serving, serve
from fl.client.job import AsyncJob
from fl.client.network import AsyncNetwork, connect_async
from fl.records import ConfigEntry, ConfigType
from tests.fl.builders import make_rules
from tests.fl.client.chainlet import Running, running
from tests.flower.supernode import Refused, SuperNode

APP = Path(__file__).parents[2] / "examples" / "flower"
SERVING = Serving(build(APP), Records.MESSAGE, hold_s=0.05)
Act = Callable[[SuperNode, wire.Metadata], Any]


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


def trained(job: AsyncJob, value: float) -> dict[str, Any]:
    return {each.name: np.full(each.shape, value, np.float32) for each in job.rules.schema.tensors}


class Site:
    """A member with a gateway and a SuperNode, which treats each message as it was told to."""

    def __init__(self, network: AsyncNetwork, job: AsyncJob) -> None:
        self.network = network
        self.job = job
        self.said: list[str] = []
        self.late: list[int] = []

    async def play(self, *acts: Act) -> None:
        """Until the job is over or there is nothing more to do."""
        place = Place("127.0.0.1", free_port())
        serving = asyncio.create_task(
            serve(self.job, SERVING, place, trains=True, evaluates=False, say=self.said.append)
        )
        async with SuperNode(f"http://127.0.0.1:{place.port}") as node:
            await until(lambda: bool(self.said))
            await node.start()
            for act in acts:
                while (found := await node.pull()) is None:
                    pass
                await act(node, found[0])
            await serving

    def good(self, value: float = 1.0, examples: int = 5) -> Act:
        async def act(node: SuperNode, metadata: wire.Metadata) -> None:
            metrics = MetricsRecord({"num-examples": examples, "loss": 0.5})
            await node.send(node.reply_to(metadata, {"a": ArraysRecord(trained(self.job, value)), "m": metrics}))

        return act

    def failing(self) -> Act:
        async def act(node: SuperNode, metadata: wire.Metadata) -> None:
            reply = node.reply_to(metadata, {})
            failed = wire.Message(reply.metadata, error=wire.Failure(2, "no such ward"))
            asked = wire.PushMessages(node.node, (failed,), (wire.Tree(reply.named),))
            await node.call("push-messages", asked, wire.PushedMessages)

        return act

    def overtaken(self, other: AsyncNetwork) -> Act:
        """Another member ends the round first."""

        async def act(node: SuperNode, metadata: wire.Metadata) -> None:
            await answer(other)
            await until(lambda: any("over before" in line for line in self.said))
            try:
                await self.good()(node, metadata)
            except Refused as refused:
                self.late.append(refused.status)

        return act


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.01)


async def answer(network: AsyncNetwork) -> None:
    job = await network.job("digits")
    async with asyncio.timeout(60), contextlib.aclosing(job.tasks()) as tasks:
        task = await anext(tasks)
        await task.submit(weights=trained(job, 2.0), examples=5, metrics={"loss": 1.0})


@contextlib.asynccontextmanager
async def another(chain: Running) -> AsyncIterator[AsyncNetwork]:
    """A member who may answer from the second round on."""
    async with await connect_async(**chain.settings("trainer-001", home="other")) as network:
        await (await network.job("digits")).join()
        yield network


@contextlib.asynccontextmanager
async def site(chain: Running, name: str = "trainer-000") -> AsyncIterator[Site]:
    async with await connect_async(**chain.settings(name, home=name)) as network:
        job = await network.job("digits")
        await job.join()
        yield Site(network, job)


def rounds_of(lines: Sequence[str]) -> list[str]:
    return [line.partition(" at height")[0] for line in lines[1:]]


async def test_every_round_is_answered_by_the_supernode(chain: Running, tmp_path: Path) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, weights="examples", cap=100))
    async with site(chain) as here:
        await here.play(here.good(1.0), here.good(2.0), here.good(3.0))
        assert rounds_of(here.said) == [f"round {number}: loss 0.5000, ok" for number in (1, 2, 3)]
        assert all(np.allclose(array, 3.0) for array in (await here.job.model()).values())
        assert not list((here.network.home / "flower").iterdir()), "nothing is left in the spool"


async def test_a_wrong_answer_is_asked_for_again(
    chain: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "quorate.flower")
    chain.create(make_rules(target=1, minimum=1, maximum=1, rounds=2, weights="examples", cap=100))
    async with site(chain) as here:
        await here.play(here.good(float("nan")), here.failing(), here.good(), here.good(1e9), here.good())
        assert rounds_of(here.said) == ["round 1: loss 0.5000, ok", "round 2: loss 0.5000, ok"]
    tries = [record.getMessage() for record in caplog.records if ", try " in record.getMessage()]
    assert [line.partition(":")[0] for line in tries] == [
        "round 1, try 1 of 3",
        "round 1, try 2 of 3",
        "round 2, try 1 of 3",
    ]
    assert "no such ward" in tries[1]


async def test_after_three_wrong_answers_the_round_is_skipped_and_the_next_one_is_played(
    chain: Running, tmp_path: Path
) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, weights="examples", cap=100))
    async with site(chain) as here, another(chain) as other:

        async def skipped(node: SuperNode, metadata: wire.Metadata) -> None:
            await here.failing()(node, metadata)
            await until(lambda: any("skipped" in line for line in here.said))
            await answer(other)

        await here.play(here.good(), here.failing(), here.failing(), skipped, here.good())
        assert rounds_of(here.said) == [
            "round 1: loss 0.5000, ok",
            "round 2: skipped, since the app gave no answer that can be used",
            "round 3: loss 0.5000, ok",
        ]


async def test_a_round_that_is_over_before_the_answer_is_given_up_and_the_answer_turned_away(
    chain: Running, tmp_path: Path
) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, weights="examples", cap=100))
    async with site(chain) as here, another(chain) as other:
        await here.play(here.good(), here.overtaken(other), here.good())
        assert rounds_of(here.said) == [
            "round 1: loss 0.5000, ok",
            "round 2: over before the SuperNode's answer",
            "round 3: loss 0.5000, ok",
        ]
        assert here.late == [403]


async def test_metrics_that_the_job_names_have_to_be_there(chain: Running, tmp_path: Path) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, rounds=1, metrics=("accuracy",)))
    async with site(chain) as here:
        playing = asyncio.create_task(here.play(here.good(), here.good(), here.good()))
        await until(lambda: any("skipped" in line for line in here.said))
        playing.cancel()
        await asyncio.wait({playing})


async def test_a_job_for_other_code_is_not_served(chain: Running, tmp_path: Path) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, app="flower:wards.client:app", app_digest=bytes(32)))
    async with site(chain) as here:
        with pytest.raises(BadInput) as refused:
            await serve(here.job, SERVING, Place("127.0.0.1", 1), trains=True, evaluates=False, say=print)
        assert refused.value.code == "WRONG_APP"


async def test_a_setting_that_the_app_does_not_know_is_refused_here_since_it_would_end_the_supernode(
    chain: Running, tmp_path: Path
) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, config=(ConfigEntry("lr", 1, ConfigType.DECIMAL, "0.1"),)))
    serving = Serving(SERVING.bundle, Records.MESSAGE, {"no-such-setting": 1})
    async with site(chain) as here:
        with pytest.raises(BadInput) as refused:
            await serve(here.job, serving, Place("127.0.0.1", 1), trains=True, evaluates=False, say=print)
        assert refused.value.code == "UNKNOWN_KEY"


def test_another_app_or_configuration_is_another_run_of_the_same_series() -> None:
    plain, other = SERVING.run("ab"), Serving(SERVING.bundle, Records.MESSAGE, {"local-epochs": 1}).run("ab")
    assert plain.run_id != other.run_id and plain.series_id == other.series_id
    assert plain == SERVING.run("ab") and plain.run_id != SERVING.run("cd").run_id
