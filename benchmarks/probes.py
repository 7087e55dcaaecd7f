"""Small updates of members who do nothing else: how long one takes from being sent to executed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from benchmarks.accounts import Account, InlineUpdates, rules_of, some_values
from benchmarks.submitting import Submitting
from cli.localnets import LocalNetwork
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob
from fl.records import JobRules

PARAMETERS = 1_000
PAUSE_S = 0.02


async def create(net: LocalNetwork, submitting: Submitting, rules: JobRules) -> str:
    """The id of a new job."""
    creator = Account.resumed(net, "creator")
    [made] = await submitting.executed(0, [creator.sign(CreateJob(rules, b""))])
    return str(made["receipt"]["job"])


async def join(submitting: Submitting, job: str, rules: JobRules, members: Sequence[Account]) -> None:
    """The job has a round, at the first node, when this returns, if these are all whom it waits for."""
    accepted = JoinJob(bytes.fromhex(job), rules_hash(rules))
    await submitting.all_executed([member.sign(accepted) for member in members])


class Probes:
    """Of some members. In each job that is prepared, every one of them can be measured once."""

    def __init__(self, net: LocalNetwork, submitting: Submitting, members: Sequence[Account]) -> None:
        self._net = net
        self._submitting = submitting
        self._members = members
        self._sent = 0

    async def prepare(self, name: str) -> InlineUpdates:
        rules = rules_of(name, PARAMETERS, len(self._members))
        job = await create(self._net, self._submitting, rules)
        await join(self._submitting, job, rules, self._members)
        return InlineUpdates(bytes.fromhex(job), rules, some_values(PARAMETERS))

    async def one_by_one(self, updates: InlineUpdates, over: Callable[[], bool] = lambda: False) -> list[float]:
        """Milliseconds of each, until all were measured or it is over."""
        found = []
        for member in self._members:
            if over():
                break
            found.append(await self._measured(updates, member, time.perf_counter()))
            await asyncio.sleep(PAUSE_S)
        return found

    async def steadily(
        self, jobs: Sequence[InlineUpdates], every_s: float, tell: Callable[[float, float], None]
    ) -> None:
        """At a steady pace, whether or not the ones before have been answered, until all were measured: cancelled when
        enough was seen. Of each is told when it was due, and milliseconds from then on."""
        due = time.perf_counter()
        async with asyncio.TaskGroup() as sending:
            for updates in jobs:
                for member in self._members:
                    sending.create_task(self._tell(updates, member, due, tell))
                    due += every_s
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _tell(
        self, updates: InlineUpdates, member: Account, due: float, tell: Callable[[float, float], None]
    ) -> None:
        tell(due, await self._measured(updates, member, due))

    async def _measured(self, updates: InlineUpdates, member: Account, since: float) -> float:
        self._sent += 1
        await self._submitting.executed(self._sent, [updates.signed(member, 1, updates.rules.initial)])
        return (time.perf_counter() - since) * 1000


class Probing:
    """Series one by one, for whoever measures without an event loop of its own."""

    def __init__(self, net: LocalNetwork, trainers: Sequence[str]) -> None:
        self._net = net
        self._members = [Account.of(net, name) for name in trainers]
        self._prepared: dict[str, InlineUpdates] = {}

    def prepare(self, name: str) -> None:
        async def prepare() -> InlineUpdates:
            async with Submitting(self._net) as submitting:
                return await Probes(self._net, submitting, self._members).prepare(name)

        self._prepared[name] = asyncio.run(prepare())

    def series(self, name: str, over: Callable[[], bool] = lambda: False) -> list[float]:
        """In the job of this name, prepared if it was not."""
        if name not in self._prepared:
            self.prepare(name)

        async def measure() -> list[float]:
            async with Submitting(self._net) as submitting:
                return await Probes(self._net, submitting, self._members).one_by_one(self._prepared[name], over)

        return asyncio.run(measure())
