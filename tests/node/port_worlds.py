"""Where the promises of the ports are asked for: the real ports on both loops, and the simulated ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop

from chain.keys import SigningKey
from node.ports import (
    Channel,
    Clock,
    Disk,
    Kv,
    Links,
    Offload,
    PeerAddress,
)
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.links import LinkLimits, TlsLinks
from node.ports.offload import ThreadOffload
from tests.node.doors import free_port
from tests.simulation.loop import simulate
from tests.simulation.network import Network, SimulatedLinks
from tests.simulation.ports import (
    Machine,
    Power,
    SimulatedClock,
    SimulatedDisk,
    SimulatedKv,
    SimulatedOffload,
)

CONSENSUS, DATA = Channel.CONSENSUS, Channel.DATA
KEYS = sorted((SigningKey.from_seed(bytes([n]) * 32) for n in range(1, 4)), key=lambda key: key.public)
PEERS = [key.public for key in KEYS]
PATIENCE_SECONDS = 60.0


class World(Protocol):
    """Where a test runs. Ports of one kind opened twice see the same medium."""

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None: ...
    def disk(self) -> Disk: ...
    def kv(self) -> Kv: ...
    def offload(self) -> Offload: ...
    def clock(self) -> Clock: ...
    def links(self, number: int) -> Links: ...
    def addresses(self) -> dict[bytes, PeerAddress]: ...


class Real:
    def __init__(self, root: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._root = root
        self._loop_factory = loop_factory
        self._ports = [free_port() for _ in PEERS]

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(asyncio.wait_for(body(), PATIENCE_SECONDS))

    def disk(self) -> Disk:
        return FileDisk(self._root / "files")

    def kv(self) -> Kv:
        return LevelKv(self._root / "rows")

    def offload(self) -> Offload:
        return ThreadOffload()

    def clock(self) -> Clock:
        return SystemClock()

    def links(self, number: int) -> Links:
        limits = LinkLimits(retry_s=(0.02, 0.2))
        return TlsLinks(KEYS[number], PEERS[number], bytes(32), ("127.0.0.1", self._ports[number]), limits)

    def addresses(self) -> dict[bytes, PeerAddress]:
        return {peer: PeerAddress(peer, "127.0.0.1", port) for peer, port in zip(PEERS, self._ports, strict=True)}


class Simulated:
    def __init__(self) -> None:
        self._machines: list[Machine] = []
        self._network: Network | None = None

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            network = self._network = Network(seed=1)
            for number, peer in enumerate(PEERS):
                name = f"v{number}"
                self._machines.append(Machine(name, 1, network, network.join(name, peer)))
            await body()

        simulate(main)

    def disk(self) -> Disk:
        return SimulatedDisk(self._machines[0], Power(self._machines[0]))

    def kv(self) -> Kv:
        return SimulatedKv(self._machines[0].kv, Power(self._machines[0]))

    def offload(self) -> Offload:
        return SimulatedOffload(self._machines[0], Power(self._machines[0]))

    def clock(self) -> Clock:
        return SimulatedClock(self._machines[0], Power(self._machines[0]))

    def links(self, number: int) -> Links:
        assert self._network is not None
        return SimulatedLinks(self._network, self._machines[number].endpoint)

    def addresses(self) -> dict[bytes, PeerAddress]:
        return {peer: PeerAddress(peer, "", 0) for peer in PEERS}

    def break_syncs(self, broken: bool) -> None:
        self._machines[0].traits.failing = {"journal/"} if broken else set()


@pytest.fixture(params=["asyncio", "uvloop", "simulated"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "simulated":
        yield Simulated()
    else:
        factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop
        yield Real(tmp_path, factory)
