"""Trainers of large updates: clients of the SDK, all in one process beside the one that measures.

Each round every trainer fetches the model, verified, puts its update as a blob, and submits it. Trainer i's update is
the values from i on, so no two are alike.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.accounts import some_values
from benchmarks.child import Child
from cli.localnets import LocalNetwork
from fl.client.network import connect_async

TRAINERS = "all trainers"


@dataclass(frozen=True, slots=True)
class Plan:
    """`at_once` updates are sent at a time; a trainer rests for `pause_s` before each."""

    directory: Path
    job: str
    trainers: int
    parameters: int
    at_once: int
    pause_s: float = 0.0
    first: int = 0
    """Of the network's trainers, who are the first: others may be at work elsewhere."""


def _run(told: Connection, plan: Plan) -> None:
    asyncio.run(_train(plan))
    told.send("over")


async def _train(plan: Plan) -> None:
    """Until the job is over."""
    submitting = asyncio.Semaphore(plan.at_once)
    net = LocalNetwork.open(plan.directory)
    values = some_values(plan.parameters + plan.trainers, seed=7)

    async def one(place: int) -> None:
        home = plan.directory / "homes" / f"{plan.job}-{place}"
        async with await connect_async(
            net.network_file, net.key_file(net.trainers[plan.first + place]), home=home
        ) as network:
            job = await network.job(plan.job)
            await job.join()
            async for task in job.tasks():
                async with submitting:
                    await asyncio.sleep(plan.pause_s)
                    await task.submit(delta={"w": values[place : place + plan.parameters]}, examples=10 + place)

    await asyncio.gather(*(one(place) for place in range(plan.trainers)))


class Trainers(Child):
    """From the side of whoever measures."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(TRAINERS, _run, plan)
