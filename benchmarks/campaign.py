"""Small updates without end, from a process of its own.

Several jobs have the same trainers. As soon as one of them opens a round, every trainer's update for it is signed and
waits to be sent, while the updates of the other jobs' rounds are on their way: signing ahead as far as rounds allow,
for an update names the model that it starts from. Nobody ever waits for a round but when all of them are
closing at once, which is counted (`starved`).

    campaign process                 the one that measures
    jobs created, joined     ──▶     their ids
    updates flow             ◀──     "go"
    all are executed         ◀──     "stop"
    what became of them      ──▶     Outcome
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.accounts import Account, InlineUpdates, rules_of, some_values
from benchmarks.child import Child
from benchmarks.probes import create, join
from benchmarks.submitting import Submitting, Updates, streamed
from chain.cid import parse_cid
from cli.localnets import LocalNetwork
from fl.client.errors import QuorateError
from fl.client.ingest import UNANSWERED, Ingest
from fl.execution import OK
from fl.records import MAX_ROUNDS

LOAD = "load generator"
DRAWN = 512
"""Of all acknowledged updates, so many ids are kept, drawn evenly."""

_PREPARED_S = 600.0
_DRAINED_S = 120.0
_KINDS = "round_opened,round_aggregating,round_failed"
_STREAM_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """`together` updates are sent at a time and waited for, `at_once` times for each node."""

    directory: Path
    name: str
    jobs: int
    trainers: int
    parameters: int
    together: int = 64
    at_once: int = 4
    streamed: bool = True
    """Else each is an HTTP request."""
    a_second: float = 0.0
    """Updates sent; 0: as many as go."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request whose transactions were all executed: when that was told, and how long after it was sent."""

    at_s: float
    seconds: float
    count: int


@dataclass(slots=True)
class Outcome:
    jobs: list[str] = field(default_factory=list)
    acknowledged: int = 0
    """Updates that were answered with the receipt "ok"."""
    drawn: list[str] = field(default_factory=list)
    """Ids of some of them."""
    refused: dict[str, int] = field(default_factory=dict)
    """Codes of receipts that were not."""
    answers: list[Answered] = field(default_factory=list)
    starved: list[tuple[float, float]] = field(default_factory=list)
    """When a request could have been sent and no update was there: from, and for how many seconds."""
    turnovers_ms: list[float] = field(default_factory=list)
    """Of every round, from its last update to the next one's first moment, by the time of blocks."""
    again: int = 0
    """Requests that had to be sent again: a node had no room, or did not answer."""
    lanes: int = 0
    """Requests that can be on their way at a time."""
    update_bytes: int = 0
    joins_a_second: float = 0.0


class Campaign:
    def __init__(self, plan: Plan, net: LocalNetwork, submitting: Submitting, streams: Ingest | None) -> None:
        self._plan = plan
        self._send = submitting.fates if streams is None else lambda node, each: streamed(streams, each)
        self._net = net
        self._submitting = submitting
        self._trainers = [Account.of(net, name) for name in net.trainers[: plan.trainers]]
        self._updates: dict[str, InlineUpdates] = {}
        self._ready: asyncio.Queue[Updates] = asyncio.Queue()
        self._under_way = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._signing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._over = False
        self._draw = random.Random(1)
        self._due = 0.0
        self._complete: dict[str, int] = {}
        self.outcome = Outcome()

    async def prepare(self) -> None:
        plan = self._plan
        values, joined = some_values(plan.parameters), 0.0
        for number in range(plan.jobs):
            rules = rules_of(f"{plan.name}-{number}", plan.parameters, plan.trainers, MAX_ROUNDS)
            job = await create(self._net, self._submitting, rules)
            began = time.monotonic()
            await join(self._submitting, job, rules, self._trainers)
            joined += time.monotonic() - began
            self._updates[job] = InlineUpdates(bytes.fromhex(job), rules, values)
        self.outcome.jobs = list(self._updates)
        self.outcome.joins_a_second = round(plan.jobs * len(self._trainers) / joined, 1)
        self._tasks.append(asyncio.create_task(self._follow()))

    def go(self) -> None:
        lanes = [self._lane(node) for node in range(len(self._submitting.nodes)) for _ in range(self._plan.at_once)]
        self.outcome.lanes = len(lanes)
        self._tasks += [asyncio.create_task(lane) for lane in lanes]

    async def stop(self) -> None:
        """What is on its way is executed; what is signed beyond that is never sent."""
        self._over = True
        ends = time.monotonic() + _DRAINED_S
        while self._under_way and time.monotonic() < ends:
            await asyncio.sleep(0.02)
        for task in (*self._tasks, *self._signing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._signing, return_exceptions=True)

    async def or_failure(self, other: Coroutine[Any, Any, object]) -> object:
        """What comes of it; raises what ends a task that should go on."""
        waiting = asyncio.ensure_future(other)
        try:
            await asyncio.wait((waiting, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
            return await waiting
        finally:
            waiting.cancel()

    # Rounds

    async def _follow(self) -> None:
        """Every round of our jobs that opens; the stream is taken up again where it broke off, at another node."""
        index, node = 0, 0
        while True:
            url = self._submitting.url(node, f"/v1/events/ws?kinds={_KINDS}&from_index={index}")
            with suppress(aiohttp.ClientError, OSError):
                async with self._submitting.session.ws_connect(url) as stream:
                    async for message in stream:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            event = json.loads(message.data)
                            index = event["index"] + 1
                            self._heard(event)
            node += 1
            await asyncio.sleep(_STREAM_AGAIN_S)

    def _heard(self, event: dict[str, Any]) -> None:
        job, updates = event["job"], self._updates.get(event["job"])
        if updates is None:
            return
        if event["kind"] == "round_failed":
            raise QuorateError("ROUND_FAILED", f"Round {event['round']} failed: {event['code']}.", "Look at the logs.")
        if event["kind"] == "round_aggregating":
            self._complete[job] = event["time_ms"]
        else:
            if job in self._complete:
                self.outcome.turnovers_ms.append(event["time_ms"] - self._complete[job])
            task = asyncio.create_task(self._sign(updates, event["round"], parse_cid(event["subject"])))
            self._signing.add(task)
            task.add_done_callback(self._signing.discard)

    async def _sign(self, updates: InlineUpdates, round_: int, base: bytes) -> None:
        # One round after the other, lest all of them fill up, and close, at the same time.
        async with self._turn:
            for start in range(0, len(self._trainers), self._plan.together):
                members = self._trainers[start : start + self._plan.together]
                signed = [updates.signed(member, round_, base) for member in members]
                self.outcome.update_bytes = len(signed[0])
                self._ready.put_nowait(Updates(signed, updates.job, round_))
                # So that answers are read in between.
                await asyncio.sleep(0)

    # Sending

    async def _lane(self, node: int) -> None:
        while not self._over:
            updates = await self._next()
            began = time.monotonic()
            if self._plan.a_second:
                began = await self._in_turn(len(updates.transactions))
            self._under_way += 1
            try:
                await self._count(node, updates, began)
            finally:
                self._under_way -= 1

    async def _next(self) -> Updates:
        wanted = time.monotonic()
        try:
            return await self._ready.get()
        finally:
            # Also if it never comes.
            self.outcome.starved.append((wanted, time.monotonic() - wanted))

    async def _in_turn(self, count: int) -> float:
        """When it is the turn of so many updates, at the plan's pace."""
        due = max(self._due, time.monotonic())
        self._due = due + count / self._plan.a_second
        await asyncio.sleep(due - time.monotonic())
        return due

    async def _count(self, node: int, updates: Updates, began: float) -> None:
        for identity, status in await self._send(node, updates):
            if status == OK:
                self._acknowledged(identity)
            else:
                self.outcome.refused[status] = self.outcome.refused.get(status, 0) + 1
        ended = time.monotonic()
        self.outcome.answers.append(Answered(ended, ended - began, len(updates.transactions)))

    def _acknowledged(self, identity: bytes) -> None:
        self.outcome.acknowledged += 1
        if len(self.outcome.drawn) < DRAWN:
            self.outcome.drawn.append(identity.hex())
        elif (place := int(self._draw.random() * self.outcome.acknowledged)) < DRAWN:
            self.outcome.drawn[place] = identity.hex()


async def _serve(told: Connection, plan: Plan) -> None:
    net = LocalNetwork.open(plan.directory)
    async with AsyncExitStack() as stack:
        submitting = await stack.enter_async_context(Submitting(net))
        # As many streams to each node as carry all that is to be on its way there.
        nodes = submitting.nodes * ceil(plan.together * plan.at_once / UNANSWERED)
        streams = await stack.enter_async_context(Ingest(nodes)) if plan.streamed else None
        campaign = Campaign(plan, net, submitting, streams)
        await campaign.prepare()
        told.send(campaign.outcome.jobs)
        while await campaign.or_failure(_heard(told)) != "stop":
            campaign.go()
        await campaign.stop()
        campaign.outcome.again = submitting.again
        told.send(campaign.outcome)


async def _heard(told: Connection) -> object:
    """What whoever measures says next."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(told.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(told.fileno())
    return told.recv()


def _run(told: Connection, plan: Plan) -> None:
    asyncio.run(_serve(told, plan))


class Generator(Child):
    """The campaign's process, from the side of whoever measures."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(LOAD, _run, plan)
        self.jobs: list[str] = []

    def __enter__(self) -> Generator:
        super().__enter__()
        try:
            self.jobs = self.hear(_PREPARED_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def go(self) -> None:
        self.tell("go")

    def stop(self) -> Outcome:
        self.tell("stop")
        outcome: Outcome = self.hear(2 * _DRAINED_S)
        return outcome
