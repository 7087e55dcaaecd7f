"""Trainers of large updates: clients of the SDK, all in one process beside the one that measures.

Each round every trainer puts its update as a blob and submits it. Trainer i's update is the values from i on, so no two
are alike. There are two sorts:

- Those who train do all that a client does: each fetches the model, verified, encodes its update, keeps it on its disk
  and sends it from there.
- Those who have prepared encode their values once, ahead. A round changes the header of such an update and nothing
  else, so in a round they hash what they send, sign it and send it, and one of them looks for all when a round opens.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accounts import some_values
from benchmarks.child import Child
from chain.cid import parse_cid
from cli.localnets import LocalNetwork
from fl.blobs import BlobKind
from fl.client.job import AsyncJob
from fl.client.network import AsyncNetwork, connect_async
from fl.client.wakeup import Wakeup
from fl.records import JobStatus, Phase, Round
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of

TRAINERS = "all trainers"
_LOOK_S = 1.0
_PATIENCE_S = 120.0


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
    prepared: bool = False

    def home(self, place: int) -> Path:
        return self.directory / "homes" / f"{self.job}-{place}"

    def values(self) -> NDArray[np.float32]:
        """Of which each trainer has a stretch."""
        return some_values(self.parameters + self.trainers, seed=7)


def _run(told: Connection, plan: Plan) -> None:
    asyncio.run(_send_prepared(plan) if plan.prepared else _train(plan))
    told.send("over")


async def _connected(plan: Plan, net: LocalNetwork, place: int) -> AsyncNetwork:
    return await connect_async(net.network_file, net.key_file(net.trainers[plan.first + place]), home=plan.home(place))


async def _train(plan: Plan) -> None:
    """Until the job is over."""
    submitting = asyncio.Semaphore(plan.at_once)
    net = LocalNetwork.open(plan.directory)
    values = plan.values()

    async def one(place: int) -> None:
        async with await _connected(plan, net, place) as network:
            job = await network.job(plan.job)
            await job.join()
            async for task in job.tasks():
                async with submitting:
                    await asyncio.sleep(plan.pause_s)
                    await task.submit(delta={"w": values[place : place + plan.parameters]}, examples=10 + place)

    await asyncio.gather(*(one(place) for place in range(plan.trainers)))


async def _send_prepared(plan: Plan) -> None:
    """Until the job is over."""
    net, values = LocalNetwork.open(plan.directory), plan.values()
    async with AsyncExitStack() as stack:
        senders = []
        for place in range(plan.trainers):
            network = await stack.enter_async_context(await _connected(plan, net, place))
            senders.append(_Prepared(network, await network.job(plan.job), 10 + place))
            await asyncio.to_thread(senders[-1].prepare, values[place : place + plan.parameters])
        del values
        for each in senders:
            await each.job.join()
        watching = senders[0]
        wakeup = Wakeup(watching.network.nodes, watching.job.id)
        stack.push_async_callback(wakeup.close)
        submitting = asyncio.Semaphore(plan.at_once)

        async def one(sender: _Prepared, opened: Round) -> None:
            async with submitting:
                await asyncio.sleep(plan.pause_s)
                await sender.send(opened)

        done = 0
        while True:
            seen, standing = wakeup.seen(), await watching.job.standing()
            if standing.job.status in (JobStatus.FINISHED, JobStatus.STOPPED):
                return
            opened = standing.round
            if opened is None or opened.number == done or opened.phase != Phase.COLLECTING:
                await wakeup.wait(seen, _LOOK_S)
                continue
            done = opened.number
            await asyncio.gather(*(one(each, opened) for each in senders))


class _Prepared:
    """A trainer with its update in a file, of which nothing but the header is still to be made."""

    def __init__(self, network: AsyncNetwork, job: AsyncJob, examples: int) -> None:
        self.network = network
        self.job = job
        self._examples = examples
        self._form = form_of(job.rules, 0)
        self._path = network.home / "prepared"
        self._header_bytes = 0

    def prepare(self, values: NDArray[np.float32]) -> None:
        place = self._place(1)
        self._path.write_bytes(encode_update(self._form, place, {"w": values}))
        self._header_bytes = len(self._form.header(place))

    async def send(self, opened: Round) -> None:
        await asyncio.to_thread(self._head, self._form.header(self._place(opened.number)))
        put = await self.network.blobs.put(self._path, BlobKind.UPDATE)
        await self.network.send(
            SubmitUpdate(
                job=bytes.fromhex(self.job.id),
                round=opened.number,
                base=opened.base,
                examples=self._examples,
                metrics=(),
                group=0,
                cid=parse_cid(put.cid),
                payload=b"",
            ),
            patience_s=_PATIENCE_S,
        )

    def _head(self, header: bytes) -> None:
        if len(header) != self._header_bytes:
            # The round's number has a digit more.
            self._path.write_bytes(header + self._path.read_bytes()[self._header_bytes :])
            self._header_bytes = len(header)
            return
        with open(self._path, "r+b") as file:
            file.write(header)

    def _place(self, number: int) -> Place:
        return Place(bytes.fromhex(self.job.id), number, self.network.sender.account)


class Trainers(Child):
    """From the side of whoever measures."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(TRAINERS, _run, plan)
