"""Small updates one after another, each from a member of its own: how long one takes from being sent to executed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from benchmarks.accounts import Account, InlineUpdates, rules_of, some_values
from chain.codec import pack
from cli.localnets import LocalNetwork
from fl.client.errors import QuorateError
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob

PARAMETERS = 1_000
PAUSE_S = 0.02
_TIMEOUT = aiohttp.ClientTimeout(total=60)
_TOGETHER = 64
_AGAIN_S = 0.2


class Probes:
    """Of some trainers, who do nothing else, in jobs of their own."""

    def __init__(self, net: LocalNetwork, session: aiohttp.ClientSession, trainers: Sequence[str]) -> None:
        self._nodes = [member.rpc for member in net.members.values()]
        self._session = session
        self._creator = Account.resumed(net, "creator")
        self._trainers = [Account.of(net, name) for name in trainers]

    async def prepare(self, name: str) -> InlineUpdates:
        """A job in which each of them can be measured once."""
        rules = rules_of(name, PARAMETERS, len(self._trainers))
        [made] = await self._executed(0, [self._creator.sign(CreateJob(rules, b""))])
        job = bytes.fromhex(made["receipt"]["job"])
        joins = [trainer.sign(JoinJob(job, rules_hash(rules))) for trainer in self._trainers]
        for start in range(0, len(joins), _TOGETHER):
            await self._executed(0, joins[start : start + _TOGETHER])
        return InlineUpdates(job, rules, some_values(PARAMETERS))

    async def latencies_ms(self, updates: InlineUpdates, over: Callable[[], bool] = lambda: False) -> list[float]:
        """Until all were measured, or it is over."""
        found = []
        for place, trainer in enumerate(self._trainers):
            if over():
                break
            signed = updates.signed(trainer, 1, updates.rules.initial)
            began = time.perf_counter()
            await self._executed(place, [signed])
            found.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE_S)
        return found

    async def _executed(self, place: int, transactions: Sequence[bytes]) -> list[dict[str, Any]]:
        url = f"{self._nodes[place % len(self._nodes)]}/v1/transactions?wait=executed"
        while True:
            headers = {"Content-Type": "application/msgpack"}
            async with self._session.post(url, data=pack(tuple(transactions)), headers=headers) as reply:
                content = await reply.json(content_type=None)
            if reply.status == 200 and all("receipt" in each for each in content["answers"]):
                return list(content["answers"])
            if reply.status not in (200, 202, 409, 429, 503):
                raise QuorateError("PROBE_REFUSED", f"A node answered {reply.status}: {content}.", "Look at its log.")
            await asyncio.sleep(_AGAIN_S)


async def at_rest_ms(net: LocalNetwork, trainers: Sequence[str], name: str = "rest") -> list[float]:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        probes = Probes(net, session, trainers)
        return await probes.latencies_ms(await probes.prepare(name))
