"""A job of several rounds, with a server optimiser, topk, a drawn cohort and evaluators, on validators that all die."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from chain.cid import cid_text
from cli.localnets import LocalNetwork, Plan
from fl.client.job import AsyncJob
from fl.client.network import AsyncNetwork, connect_async
from fl.records import JobStatus
from tests.node.load import HANG_S, check_no_divergence, settle
from tests.node.networks import kill_data, local_network, start_all
from tests.node.test_data_plane import digest_to_come

PARAMETERS = 40_000
"""Too many for a transaction to carry: model, moments and updates are blobs."""
ROUNDS = 6
GOAL = np.linspace(-0.5, 0.5, PARAMETERS, dtype=np.float32)


async def connected(network: LocalNetwork, account: str) -> AsyncNetwork:
    home = network.directory / "homes" / account
    return await connect_async(network.network_file, network.key_file(account), home=home)


async def create(network: LocalNetwork) -> None:
    creator = await connected(network, "creator")
    await creator.create_job(
        "restarted",
        {"w": np.zeros(PARAMETERS, np.float32)},
        rounds=ROUNDS,
        target=2,
        minimum=1,
        deadline_s=60,
        grace_s=30,
        privacy="visible-to-validators",
        encoding="topk",
        share=0.5,
        rule="fedadam",
        settings={"learning_rate": 0.1, "tau": 0.001},
        cohort={"size": 2},
        evaluation={"every": 2, "minimum": 1, "deadline_s": 60, "before_next": True, "metrics": ["distance"]},
        goal={"metric": "distance", "larger": False},
    )
    await creator.close()


async def train(network: LocalNetwork, account: str) -> None:
    member = await connected(network, account)
    job = await member.job("restarted")
    await job.join()
    async for task in job.tasks():
        await task.submit(delta={"w": 0.3 * (GOAL - task.model["w"])}, examples=10)
    await member.close()


async def evaluate(network: LocalNetwork, account: str) -> None:
    member = await connected(network, account)
    job = await member.job("restarted")
    await job.join(role="evaluator")
    async for asked in job.evaluations():
        distance = float(np.abs(GOAL - asked.model["w"]).mean())
        await asked.submit(metrics={"distance": distance}, examples=1)
    await member.close()


async def kill_all_between(network: LocalNetwork, job: AsyncJob) -> None:
    while (await job.status()).completed < 2:
        await asyncio.sleep(0.1)
    for name in network.members:
        await asyncio.to_thread(kill_data, network, name)
        await asyncio.to_thread(network.kill, name)
    await asyncio.to_thread(start_all, network)


async def whole_job(network: LocalNetwork) -> None:
    await create(network)
    reader = await connected(network, "creator")
    job = await reader.job("restarted")
    work = [train(network, each) for each in network.trainers]
    work += [evaluate(network, each) for each in ["evaluator-0"]]
    await asyncio.gather(kill_all_between(network, job), *work)
    status = await job.status()
    assert status.status == JobStatus.FINISHED and status.completed == ROUNDS
    assert status.best_round % 2 == 0 and 0 < status.best_value < 250_000
    await reader.close()
    for cid in map(cid_text, {status.model, status.best}):
        assert len({digest_to_come(network, name, cid) for name in network.members}) == 1


@pytest.mark.slow
def test_a_job_survives_the_death_of_all_validators() -> None:
    with local_network(Plan(validators=4, trainers=4, evaluators=1)) as network:
        asyncio.run(asyncio.wait_for(whole_job(network), 4 * HANG_S))
        settle(network)
        check_no_divergence(network)
