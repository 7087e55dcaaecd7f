"""Time in units of one message delay, on whole nodes: no jitter, instant disks, nothing waits for a clock."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise

import pytest

from chain.genesis import Params
from consensus.lineage import Lineage
from consensus.messages import Proposal, from_frame
from consensus.ordering.payload import Taken
from consensus.ordering.timing import LEADER_INACTIVE, NO_PROPOSAL
from node.executor import FinalBlock
from node.node import Node
from node.ports import Channel
from tests.simulation.claims import assert_alive, membership
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate
from tests.simulation.network import Conditions
from tests.simulation.ports import Traits

DELAY_MS = 40.0
AT_ONCE = Params(min_block_interval_ms=0)
SAME_MS = 0.2
"""Frames that leave at one instant arrive a microsecond apart, in their order."""


class Exact(Cluster):
    """Every delay is the same, and a node always has something to put into a block if `pending`."""

    def __init__(self, n: int, params: Params, pending: bool = True) -> None:
        super().__init__(genesis_of(n, params), seed=n, conditions=Conditions(delay_ms=DELAY_MS, jitter_ms=0.0))
        self.proposed: dict[int, float] = {}
        """By view, when its leader sent its proposal."""
        self.final: dict[int, dict[int, float]] = defaultdict(dict)
        """By host and height, when it was told that the block is final and durable."""
        self.views: dict[int, int] = {}
        """By height, the view in which the block was proposed."""
        for host in self.hosts:
            host.machine.traits = Traits(sync_ms=(0.0, 0.0), offload_ms=(0.0, 0.0))
            host.started = self._watch(host.index, pending)
        self.network.tap(self._tap)

    def _tap(self, now: float, source: str, target: str, channel: Channel, frame: bytes) -> None:
        if channel is Channel.CONSENSUS and frame[0] == 1:
            message = from_frame(channel, frame)
            assert isinstance(message, Proposal)
            view = message.block.header.view
            self.proposed.setdefault(view, now - DELAY_MS / 1000)

    def _watch(self, index: int, pending: bool) -> Callable[[Node], None]:
        def started(node: Node) -> None:
            inner = node.executor.submit

            def submit(final: FinalBlock) -> None:
                height = final.lineage.height
                self.final[index].setdefault(height, asyncio.get_running_loop().time())
                self.views[height] = final.block.header.view
                inner(final)

            node.executor.submit = submit  # type: ignore[method-assign]
            if pending:
                node.replica.proposals.waiting = always  # type: ignore[method-assign]

        return started

    def block_times_ms(self, since: int) -> Iterator[float]:
        heights = sorted(height for height in self.views if height >= since)
        for earlier, later in pairwise(heights):
            yield 1000 * (self.proposed[self.views[later]] - self.proposed[self.views[earlier]])

    def finalities_ms(self, since: int) -> Iterator[float]:
        for finals in self.final.values():
            for height, at in finals.items():
                if height >= since:
                    yield 1000 * (at - self.proposed[self.views[height]])


def always(tip: Lineage, taken: Taken) -> bool:
    return True


def run(n: int, params: Params, play: Callable[[Exact], Coroutine[None, None, None]], pending: bool = True) -> None:
    async def main() -> None:
        cluster = Exact(n, params, pending)
        await cluster.start()
        await play(cluster)

    simulate(main)


@pytest.mark.parametrize("n", [4, 7])
def test_block_time_is_two_delays_and_finality_three_exactly(n: int) -> None:
    async def play(cluster: Exact) -> None:
        await asyncio.sleep(2)
        settled = max(cluster.heights())
        await asyncio.sleep(4)
        assert max(cluster.heights()) >= settled + 4_000 / DELAY_MS / 2 - 1
        blocks, finalities = list(cluster.block_times_ms(settled)), list(cluster.finalities_ms(settled))
        assert len(finalities) > n * 40
        assert all(abs(time - 2 * DELAY_MS) < SAME_MS for time in blocks), (min(blocks), max(blocks))
        assert all(abs(time - 3 * DELAY_MS) < SAME_MS for time in finalities), (min(finalities), max(finalities))

    run(n, AT_ONCE, play)


def test_a_stream_of_transactions_changes_neither() -> None:
    async def play(cluster: Exact) -> None:
        await asyncio.sleep(1)
        settled = max(cluster.heights())
        submitted = []
        for number in range(60):
            data = cluster.sign("registrar", membership(number))
            submitted.append(asyncio.ensure_future(cluster.submit(number % 4, data)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*submitted)
        assert all(abs(time - 2 * DELAY_MS) < SAME_MS for time in cluster.block_times_ms(settled))
        assert all(abs(time - 3 * DELAY_MS) < SAME_MS for time in cluster.finalities_ms(settled))
        assert await cluster.until(lambda: len(cluster.acknowledged) == 60, within=5)

    run(4, AT_ONCE, play)


def test_a_crashed_leader_costs_one_timeout_a_turn_and_none_once_it_is_skipped() -> None:
    async def play(cluster: Exact) -> None:
        await asyncio.sleep(1)
        timings = [node.replica.ordering.timing for node in cluster.running()[:3]]
        cluster.hosts[3].machine.kill()
        before = max(cluster.views.values())
        assert await cluster.until(lambda: all(timing.reasons[LEADER_INACTIVE] for timing in timings), within=60)
        turns = (max(cluster.views.values()) - before) / 4 + 1
        missed = [timing.reasons[NO_PROPOSAL] for timing in timings]
        assert max(missed) <= turns
        settled = max(cluster.heights())
        await asyncio.sleep(20)
        assert [timing.reasons[NO_PROPOSAL] for timing in timings] == missed
        # A skipped leader costs one exchange of votes.
        gaps = {round(time / DELAY_MS, 1) for time in cluster.block_times_ms(settled)}
        assert gaps == {2.0, 3.0}

    run(4, AT_ONCE, play)


def test_an_idle_chain_burns_no_views_beyond_its_heartbeat() -> None:
    async def play(cluster: Exact) -> None:
        await asyncio.sleep(60)
        beats = 60_000 // Params().heartbeat_ms
        assert all(beats - 1 <= height <= beats for height in cluster.heights())
        assert all(node.replica.ordering.view <= beats + 1 for node in cluster.running())

    run(4, Params(), play, pending=False)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_networks_work(n: int) -> None:
    async def play(cluster: Exact) -> None:
        await assert_alive(cluster, number=0)
        await asyncio.sleep(12)
        assert min(cluster.heights()) >= 3

    run(n, Params(), play, pending=False)


def test_two_of_four_stopped_halt_the_chain_and_their_return_resumes_it() -> None:
    async def play(cluster: Exact) -> None:
        await asyncio.sleep(3)
        for index in (1, 2):
            cluster.hosts[index].machine.crash()
        await asyncio.sleep(1)
        halted = max(cluster.heights())
        await asyncio.sleep(60)
        assert max(cluster.heights()) == halted
        for index in (1, 2):
            await cluster.hosts[index].live(cluster.genesis)
        back = asyncio.get_running_loop().time()
        assert await cluster.until(lambda: min(cluster.heights()) > halted + 10, within=20)
        print(f"resumed {asyncio.get_running_loop().time() - back:.1f} s after the return")
        await assert_alive(cluster, number=0)

    run(4, Params(), play)


def test_clocks_within_the_drift_cost_nothing_and_one_far_ahead_only_its_own_turns() -> None:
    async def play(cluster: Exact) -> None:
        for host, skew_ms in zip(cluster.hosts, (240, -240, 200, -200), strict=True):
            host.machine.traits.skew_ms = skew_ms
        await asyncio.sleep(5)
        assert not any(node.replica.ordering.timing.reasons for node in cluster.running())
        assert min(cluster.heights()) > 5_000 // 150
        cluster.hosts[2].machine.traits.skew_ms = 60_000
        await assert_alive(cluster, number=0, within=30)
        cluster.hosts[2].machine.traits.skew_ms = -60_000
        await assert_alive(cluster, number=10, within=30)

    run(4, Params(), play)
