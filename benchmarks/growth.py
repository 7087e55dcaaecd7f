"""How the chain grows with its validators: whole nodes in virtual time, far from one another.

    quorate bench growth [--set validators=25,50] [--set batches=0]

The code of the nodes is the real one; the network, the disks and the time are those of tests/simulation. Validators sit
in eight regions, every third next; a frame takes half of the round trip between two regions (`ROUND_TRIPS_MS`), give
or take 5 %. Links have no end of bandwidth, and steps take no time: what a validator would need of either is told.
Every validator gets so many transactions a second, of each of which a batch comes; with 0 of them only empty blocks are
ordered, one after the other.

- Block time: from one proposal to the next, as their leaders send them. Finality: from the proposal to the moment when
  a validator holds the block for final and durable, all validators and blocks.
- Messages and bytes are what a validator receives (it sends as many), for a block.
- Processor time is that of the core's steps on this machine, without signatures: every check of one signature is made
  once for all validators, and the checks that one validator would have made are counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any
from unittest.mock import patch

import chain.keys
from chain.genesis import Params
from consensus.lineage import Lineage
from consensus.messages import MESSAGES
from consensus.ordering.payload import Taken
from node.executor import FinalBlock
from node.node import Node
from node.ports import Channel, Peer
from tests.simulation.claims import membership
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate
from tests.simulation.network import Conditions

REGIONS = ("Virginia", "Oregon", "São Paulo", "Frankfurt", "Mumbai", "Singapore", "Tokyo", "Sydney")
ROUND_TRIPS_MS = (
    (1, 65, 115, 92, 190, 220, 150, 200),
    (65, 1, 175, 145, 220, 165, 98, 140),
    (115, 175, 1, 205, 300, 330, 255, 310),
    (92, 145, 205, 1, 125, 160, 225, 250),
    (190, 220, 300, 125, 1, 60, 130, 150),
    (220, 165, 330, 160, 60, 1, 70, 92),
    (150, 98, 255, 225, 130, 70, 1, 105),
    (200, 140, 310, 250, 150, 92, 105, 1),
)
"""Assumed; about what public clouds have between such regions."""
JITTER = 0.05
WARM_BLOCKS = 3
_MOST_S = 600.0
"""Of virtual time."""
_VERIFYING = ("chain.certificate", "chain.batch", "chain.transaction", "consensus.proposals")


def delay_ms(one: int, other: int) -> float:
    return ROUND_TRIPS_MS[3 * one % len(REGIONS)][3 * other % len(REGIONS)] / 2


@dataclass
class Checks:
    """Signatures, each looked at once."""

    known: dict[tuple[bytes, bytes, bytes], bool] = field(default_factory=dict)
    asked: int = 0

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        self.asked += 1
        what = (public, message, signature)
        found = self.known.get(what)
        if found is None:
            found = self.known[what] = chain.keys.verify(*what)
        return found

    @contextmanager
    def instead(self) -> Iterator[None]:
        patches = [patch(f"{module}.verify", self.verify) for module in _VERIFYING]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()


class Timed(Node):
    """Takes the processor time of its own steps."""

    step_s = 0.0
    steps = 0

    def feed(self, event: object) -> None:
        if self._stepping:
            super().feed(event)
            return
        began = time.process_time()
        super().feed(event)
        Timed.step_s += time.process_time() - began
        Timed.steps += 1


class Growing(Cluster):
    def __init__(self, n: int, params: Params, seed: int, always_pending: bool) -> None:
        super().__init__(genesis_of(n, params), seed)
        self.n = n
        self.proposed: dict[int, float] = {}
        """By view, when its leader sent its proposal."""
        self.views: dict[int, int] = {}
        """By height."""
        self.final: dict[int, list[float]] = defaultdict(list)
        """By height, when validators held it for final."""
        self.references: dict[int, int] = {}
        self.messages: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()
        self._always_pending = always_pending
        for host in self.hosts:
            host.kind = Timed
            host.started = self._started
            self.network.wrap(host.machine.name, self._sent)
        for one in range(n):
            for other in range(n):
                if one != other:
                    delay = delay_ms(one, other)
                    conditions = Conditions(delay * (1 - JITTER), 2 * JITTER * delay)
                    self.network.set_conditions(conditions, f"n{one}", f"n{other}")

    def _sent(self, peer: Peer, channel: Channel, frame: bytes) -> Iterable[tuple[Peer, Channel, bytes]]:
        self.messages[frame[0]] += 1
        self.bytes[frame[0]] += len(frame)
        return ((peer, channel, frame),)

    def _started(self, node: Node) -> None:
        inner, release = node.executor.submit, node._send

        def submit(final: FinalBlock) -> None:
            height = final.lineage.height
            self.final[height].append(asyncio.get_running_loop().time())
            self.views[height] = final.block.header.view
            self.references[height] = len(final.block.body.batches)
            inner(final)

        def send(outbound: Any) -> None:
            block = getattr(outbound.message, "block", None)
            if block is not None and hasattr(outbound.message, "witnesses"):
                self.proposed.setdefault(block.header.view, asyncio.get_running_loop().time())
            release(outbound)

        node.executor.submit = submit  # type: ignore[method-assign]
        node._send = send  # type: ignore[method-assign]
        if self._always_pending:
            node.replica.proposals.waiting = _always  # type: ignore[method-assign]

    @property
    def height(self) -> int:
        """That all have executed."""
        executed = self.executed()
        return min(executed) if len(executed) == self.n else 0

    async def offer(self, a_second: float) -> None:
        """By turns, to all together."""
        number = 0
        sent: set[asyncio.Task[Any]] = set()
        while True:
            data = self.sign("registrar", membership(number), nonce=number)
            task = asyncio.create_task(self.submit(number % self.n, data, within=60))
            sent.add(task)
            task.add_done_callback(sent.discard)
            number += 1
            await asyncio.sleep(1 / a_second)


def _always(tip: Lineage, taken: Taken) -> bool:
    return True


def grown(n: int, blocks: int, batches: float, seed: int = 1) -> dict[str, Any]:
    checks = Checks()

    async def main() -> dict[str, Any]:
        cluster = Growing(n, Params(), seed, always_pending=not batches)
        await cluster.start()
        loop = asyncio.get_running_loop()
        offering = asyncio.create_task(cluster.offer(batches * n)) if batches else None
        assert await cluster.until(lambda: cluster.height >= WARM_BLOCKS, _MOST_S)
        first = max(cluster.views)
        before = Counter(cluster.messages), Counter(cluster.bytes), checks.asked, Timed.steps, Timed.step_s
        began, used = loop.time(), time.process_time()
        assert await cluster.until(lambda: cluster.height >= first + blocks, _MOST_S)
        seconds, used = loop.time() - began, time.process_time() - used
        if offering is not None:
            offering.cancel()
        # Of blocks that all hold for final; what was sent meanwhile is shared among as many as began meanwhile.
        heights = [height for height in sorted(cluster.views) if height > first]
        counted = max(cluster.views) - first
        last = [height for height in heights if len(cluster.final[height]) == n]
        times = [
            1000 * (cluster.proposed[cluster.views[b]] - cluster.proposed[cluster.views[a]]) for a, b in pairwise(last)
        ]
        finalities = sorted(
            1000 * (at - cluster.proposed[cluster.views[height]]) for height in last for at in cluster.final[height]
        )
        messages, sizes = cluster.messages - before[0], cluster.bytes - before[1]
        shares = n * counted
        steps, step_s = Timed.steps - before[3], Timed.step_s - before[4]
        return {
            "validators": n,
            "batches": batches,
            "blocks": len(last),
            "virtual_s": round(seconds, 1),
            "block_ms": round(median(times)),
            "finality_ms": round(median(finalities)),
            "finality_slowest_tenth_ms": round(finalities[int(0.9 * len(finalities))]),
            "views_given_up": sum(cluster.node(0).replica.ordering.timing.reasons.values()),
            "references_a_block": round(sum(cluster.references[height] for height in heights) / counted, 1),
            "messages": round(messages.total() / shares),
            "kib": round(sizes.total() / shares / 1024, 1),
            "mbit_s": round(sizes.total() * 8 / n / seconds / 1e6, 2),
            "kib_by_kind": {
                MESSAGES[kind][0].__name__: round(size / shares / 1024, 1) for kind, size in sizes.most_common()
            },
            "messages_by_kind": {
                MESSAGES[kind][0].__name__: round(count / shares, 1) for kind, count in messages.most_common()
            },
            "signatures": round((checks.asked - before[2]) / shares, 1),
            "step_us": round(step_s / steps * 1e6, 1),
            "step_ms_a_block": round(step_s / shares * 1000, 2),
            "simulation_cpu_ms_a_block_and_validator": round(used / shares * 1000, 2),
        }

    with checks.instead():
        return simulate(main)
