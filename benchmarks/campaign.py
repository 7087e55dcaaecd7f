"""Small updates without end, from a process of its own.

Several jobs have the same trainers. As soon as one of them opens a round, every trainer's update for it is signed and
waits to be sent, while the updates of the other jobs' rounds are on their way: signing ahead as far as rounds allow,
for an update names the model that it starts from. Nobody ever waits for a round but when all of them are
closing at once, which is counted (`starved`).

    campaign process                 the one that measures
    jobs created, joined     ──▶     "ready"
    updates flow             ◀──     "go"
    all are executed, told   ◀──     "stop"
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from benchmarks.accounts import Account, InlineUpdates, rules_of, some_values
from chain.cid import parse_cid
from chain.codec import pack
from cli.localnets import LocalNetwork
from fl.client.errors import QuorateError, TimedOut
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob
from fl.records import MAX_ROUNDS

_PREPARED_S = 600.0
_DRAINED_S = 120.0
_TIMEOUT = aiohttp.ClientTimeout(total=60)
_OTHER_NODE_S = 0.2
_STREAM_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """`together` transactions are one request, of which `at_once` are on their way to each node."""

    directory: Path
    name: str
    jobs: int
    trainers: int
    parameters: int
    together: int = 64
    at_once: int = 4


@dataclass(frozen=True, slots=True)
class Answered:
    """A request whose transactions were all executed: when that was told, and how long after it was sent."""

    at_s: float
    seconds: float
    count: int


@dataclass(slots=True)
class Outcome:
    jobs: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    """Ids of updates that were answered with the receipt "ok"."""
    refused: dict[str, int] = field(default_factory=dict)
    """Codes of receipts that were not."""
    answers: list[Answered] = field(default_factory=list)
    starved: list[tuple[float, float]] = field(default_factory=list)
    """When a request could have been sent and no update was there: from, and for how many seconds."""
    again: int = 0
    """Requests that had to be sent again: a node had no room, or did not answer."""
    lanes: int = 0
    """Requests that can be on their way at a time."""
    update_bytes: int = 0
    joins_a_second: float = 0.0


class Campaign:
    def __init__(self, plan: Plan, session: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._session = session
        net = LocalNetwork.open(plan.directory)
        self._nodes = [member.rpc for member in net.members.values()]
        self._creator = Account.resumed(net, "creator")
        self._trainers = [Account.of(net, name) for name in net.trainers[: plan.trainers]]
        self._ready: asyncio.Queue[Sequence[bytes]] = asyncio.Queue()
        self._under_way = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._signing: set[asyncio.Task[None]] = set()
        self._over = False
        self.outcome = Outcome()

    async def prepare(self) -> None:
        plan = self._plan
        made: dict[bytes, InlineUpdates] = {}
        values = some_values(plan.parameters)
        for number in range(plan.jobs):
            rules = rules_of(f"{plan.name}-{number}", plan.parameters, plan.trainers, MAX_ROUNDS)
            [answer] = await self._executed(0, [self._creator.sign(CreateJob(rules, b""))])
            job = bytes.fromhex(answer["receipt"]["job"])
            made[job] = InlineUpdates(job, rules, values)
        self.outcome.jobs = [job.hex() for job in made]
        self._updates = made
        began = time.monotonic()
        joins = [
            trainer.sign(JoinJob(job, rules_hash(each.rules)))
            for job, each in made.items()
            for trainer in self._trainers
        ]
        await self._send_all(joins)
        self.outcome.joins_a_second = round(len(joins) / (time.monotonic() - began), 1)
        self._tasks.append(asyncio.create_task(self._follow()))

    async def _send_all(self, transactions: Sequence[bytes]) -> None:
        places = range(0, len(transactions), self._plan.together)
        waiting = [transactions[start : start + self._plan.together] for start in places]

        async def lane(node: int) -> None:
            while waiting:
                await self._executed(node, waiting.pop())

        lanes = [lane(node) for node in range(len(self._nodes)) for _ in range(self._plan.at_once)]
        await asyncio.gather(*lanes)

    def go(self) -> None:
        lanes = [self._lane(node) for node in range(len(self._nodes)) for _ in range(self._plan.at_once)]
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

    def check(self) -> None:
        """Raises what ended a task that should go on."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    # Rounds

    async def _follow(self) -> None:
        """Every round of our jobs that opens; the stream is taken up again where it broke off, at another node."""
        index, node = 0, 0
        while True:
            url = f"{self._nodes[node % len(self._nodes)]}/v1/events/ws?kinds=round_opened&from_index={index}"
            with suppress(aiohttp.ClientError, OSError):
                async with self._session.ws_connect(url) as stream:
                    async for message in stream:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            event = json.loads(message.data)
                            index = event["index"] + 1
                            self._opened(event)
            node += 1
            await asyncio.sleep(_STREAM_AGAIN_S)

    def _opened(self, event: dict[str, Any]) -> None:
        updates = self._updates.get(bytes.fromhex(event["job"]))
        if updates is not None:
            task = asyncio.create_task(self._sign(updates, event["round"], parse_cid(event["subject"])))
            self._signing.add(task)
            task.add_done_callback(self._signing.discard)

    async def _sign(self, updates: InlineUpdates, round_: int, base: bytes) -> None:
        for start in range(0, len(self._trainers), self._plan.together):
            members = self._trainers[start : start + self._plan.together]
            signed = [updates.signed(member, round_, base) for member in members]
            self.outcome.update_bytes = len(signed[0])
            self._ready.put_nowait(signed)
            # So that answers are read in between.
            await asyncio.sleep(0)

    # Sending

    async def _lane(self, node: int) -> None:
        while not self._over:
            wanted = time.monotonic()
            transactions = await self._ready.get()
            began = time.monotonic()
            if began - wanted > 0.001:
                self.outcome.starved.append((wanted, began - wanted))
            self._under_way += 1
            try:
                await self._count(node, transactions, began)
            finally:
                self._under_way -= 1

    async def _count(self, node: int, transactions: Sequence[bytes], began: float) -> None:
        for answer in await self._executed(node, transactions):
            status = answer["receipt"]["status"]
            if status == "ok":
                self.outcome.acknowledged.append(answer["id"])
            else:
                self.outcome.refused[status] = self.outcome.refused.get(status, 0) + 1
        ended = time.monotonic()
        self.outcome.answers.append(Answered(ended, ended - began, len(transactions)))

    async def _executed(self, node: int, transactions: Sequence[bytes]) -> list[dict[str, Any]]:
        """Once each is executed; a node that has no room, or that does not answer, costs a while."""
        data, headers = pack(tuple(transactions)), {"Content-Type": "application/msgpack"}
        while True:
            url = f"{self._nodes[node % len(self._nodes)]}/v1/transactions?wait=executed"
            try:
                async with self._session.post(url, data=data, headers=headers) as reply:
                    content = await reply.json(content_type=None)
                    status = reply.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                self.outcome.again += 1
                node += 1
                await asyncio.sleep(_OTHER_NODE_S)
                continue
            pause = _pause_s(status, content)
            if pause is None:
                return list(content["answers"])
            self.outcome.again += 1
            await asyncio.sleep(pause)


def _pause_s(status: int, content: dict[str, Any]) -> float | None:
    """None if all are executed; else how long to wait before the same is sent again."""
    if status in (429, 503):
        return 0.2
    if status not in (200, 202):
        raise QuorateError("LOAD_REFUSED", f"A node answered {status} {content.get('code')}.", "Look at its log.")
    refused = [answer for answer in content["answers"] if "code" in answer]
    if not refused:
        return None if status == 200 else 0.0
    if refused[0]["code"] not in ("RATE_LIMITED", "BUSY"):
        raise QuorateError("LOAD_REFUSED", f"A node refused an update: {refused[0]}.", "Look at its log.")
    return float(refused[0].get("retry_after", 0.2))


async def _serve(told: Connection, plan: Plan) -> None:
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session:
        campaign = Campaign(plan, session)
        await campaign.prepare()
        told.send(None)
        while await loop.run_in_executor(None, told.recv) != "stop":
            campaign.go()
        campaign.check()
        await campaign.stop()
        told.send(campaign.outcome)


def _run(told: Connection, plan: Plan) -> None:
    # Linux shares the processors among sessions: whoever measures shall not share with the load.
    os.setsid()
    try:
        asyncio.run(_serve(told, plan))
    except BaseException as error:
        told.send(error if isinstance(error, QuorateError) else RuntimeError(f"{type(error).__name__}: {error}"))


class Generator:
    """The campaign's process, from the side of whoever measures."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, plan))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Generator:
        self._process.start()
        try:
            self._heard(_PREPARED_S)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def go(self) -> None:
        self._ours.send("go")

    def stop(self) -> Outcome:
        self._ours.send("stop")
        outcome: Outcome = self._heard(2 * _DRAINED_S)
        self._process.join(10)
        return outcome

    def _heard(self, within_s: float) -> Any:
        if not self._ours.poll(within_s):
            raise TimedOut("LOAD_STUCK", f"The load generator said nothing for {within_s:g} s.", "Look at the logs.")
        said = self._ours.recv()
        if isinstance(said, BaseException):
            raise said
        return said
