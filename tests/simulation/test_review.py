"""Whole nodes at moments that were picked, not drawn."""

from __future__ import annotations

import asyncio

from chain.genesis import Params
from consensus.messages import Channel, FetchRange, RangeAnswer, from_frame, to_frame
from consensus.ordering.records import SILENT_FOR_EVER
from consensus.replica import RANGES_A_SECOND
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate
from tests.simulation.media import DiskMedium, KvMedium

SHORT = Params(horizon=32, execution_window=16, heartbeat_ms=500)


def test_a_rejoining_validator_that_restarts_behind_a_long_catch_up_is_still_silent() -> None:
    """Its replay begins two horizons back: what silences it was written before that."""

    async def main() -> None:
        cluster = Cluster(genesis_of(4, SHORT), seed=41)
        await cluster.start()
        host = cluster.hosts[3]
        assert await cluster.until(lambda: min(cluster.executed()) >= 80, within=120)
        host.machine.crash()
        host.machine.disk, host.machine.kv = DiskMedium(), KvMedium()
        # One of the three who would have to tell how far the lost journal may have voted cannot be heard.
        cluster.network.partition(["n2"], ["n3"])
        await host.live(cluster.genesis, rejoin=True)
        assert await cluster.until(lambda: host.up, within=5)
        assert await cluster.until(lambda: cluster.node(3).executor.executed.lineage.height >= 80, within=20)
        await asyncio.sleep(2)
        assert cluster.node(3).replica.ordering.silent_until == SILENT_FOR_EVER
        host.machine.kill()
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: host.up, within=5)
        assert cluster.node(3).replica.ordering.silent_until == SILENT_FOR_EVER
        cluster.network.heal()
        assert await cluster.until(lambda: not cluster.node(3).replica.silent, within=30)

    simulate(main)


def test_a_validator_that_was_away_for_hundreds_of_blocks_catches_up() -> None:
    """It hears of the newest final block first, and has to be brought there in more than one row."""

    async def main() -> None:
        cluster = Cluster(genesis_of(4, SHORT), seed=42)
        await cluster.start()
        host = cluster.hosts[3]
        host.machine.kill()
        # More than the others keep in memory and more than one answer holds.
        assert await cluster.until(lambda: min(cluster.executed()) >= 230, within=2_000)
        await host.live(cluster.genesis)
        assert await cluster.until(lambda: host.up, within=5)
        await asyncio.sleep(3)
        assert cluster.node(3).executor.executed.lineage.height >= 230

    simulate(main)


def test_no_question_for_blocks_stops_a_node_or_keeps_it_busy() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4, SHORT), seed=43)
        await cluster.start()
        asked = cluster.hosts[0].key.public
        assert await cluster.until(lambda: min(cluster.executed()) >= 1, within=60)
        answers: list[bytes] = []

        def count(now: float, source: str, target: str, channel: int, frame: bytes) -> None:
            if (source, target) == ("n0", "n1") and isinstance(from_frame(Channel(channel), frame), RangeAnswer):
                answers.append(frame)

        cluster.network.tap(count)
        for first, last in ((2**64 - 1, 2**64 - 1), (0, 2**64 - 1), (2**64 - 1, 0)):
            cluster.network.inject("n1", asked, Channel.DATA, to_frame(FetchRange(first, last)))
        await asyncio.sleep(0.3)
        assert cluster.hosts[0].up and not cluster.hosts[0].failures
        for _ in range(200):
            cluster.network.inject("n1", asked, Channel.DATA, to_frame(FetchRange(1, 128)))
        await asyncio.sleep(0.5)
        assert len(answers) <= RANGES_A_SECOND
        assert cluster.network.punishments == []

    simulate(main)
