"""A validator's data process on a simulated machine: its files, its rows, its lives under one core after the other.

Its core starts it, as the real pipe does, and again whenever it is gone. It may die alone; the power takes both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chain.cid import cid_text
from chain.unixfs import LEAF_BYTES, manifest_cid, manifest_of
from fl.blobs import BlobKind
from node.data.blobs import BlobLimits
from node.data.service import DataLimits, DataNode
from node.ports import DataPorts, DiskFailure, Pipe, PipeEvent
from tests.simulation.bulk import BulkEndpoint, BulkNetwork, SimulatedBulk
from tests.simulation.loop import Crash
from tests.simulation.media import DiskMedium, KvMedium
from tests.simulation.pipe import SimulatedEnd, SimulatedPipe
from tests.simulation.ports import (
    Computer,
    SimulatedClock,
    SimulatedDisk,
    SimulatedKv,
    SimulatedOffload,
    Traits,
)

FIRST_START_S = 0.02
RESTART_S = (0.05, 0.6)
LIMITS = DataLimits(BlobLimits(reserve_bytes=0))
WHOLE = "blobs/"


class _CoreEnd:
    """The pipe as the core has it: with the first that it receives the data process is started."""

    def __init__(self, machine: DataMachine, end: SimulatedEnd) -> None:
        self._machine = machine
        self._end = end

    def send(self, frame: bytes) -> bool:
        return self._end.send(frame)

    async def receive(self) -> PipeEvent:
        self._machine.wanted()
        return await self._end.receive()

    async def close(self) -> None:
        await self._end.close()


class DataMachine(Computer):
    def __init__(self, name: str, seed: int, traits: Traits, network: BulkNetwork, endpoint: BulkEndpoint) -> None:
        super().__init__(name, seed, traits)
        self.limits = LIMITS
        self.check_kernels: Callable[[], None] | None = None
        self.node: DataNode | None = None
        self.troubled: Callable[[DiskFailure], None] = self._unexpected
        """Called when it ended because of its disk."""
        self.endpoint = endpoint
        self._network = network
        self._bulk: SimulatedBulk | None = None
        self._pipe = SimulatedPipe()
        self.kept_down = False
        self._wanted = False
        self._timer: asyncio.TimerHandle | None = None

    # Its core

    def core_began(self) -> Pipe:
        return _CoreEnd(self, self._pipe.begin_core())

    def core_gone(self) -> None:
        """Without its core it has no purpose: it is told, and gone before the next one starts another."""
        self._wanted = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pipe.end_core()
        self.kill()

    def wanted(self) -> None:
        if not self._wanted:
            self._wanted = True
            self._begin_in(FIRST_START_S)

    def _begin_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self.kept_down:
            self._begin_in(RESTART_S[0])
            return
        power = self.power_on()
        self._bulk = SimulatedBulk(self._network, self.endpoint)
        ports = DataPorts(
            core=self._pipe.begin_data(),
            bulk=self._bulk,
            disk=SimulatedDisk(self, power),
            kv=SimulatedKv(self.kv, power),
            offload=SimulatedOffload(self, power),
            clock=SimulatedClock(self, power),
        )
        task = self.start(self._live(ports))
        task.add_done_callback(lambda task: self._over(task, power))

    async def _live(self, ports: DataPorts) -> None:
        node = await DataNode.open(ports, self.limits, check_kernels=self.check_kernels)
        self.node = node
        await node.run()

    def _over(self, task: asyncio.Task[None], power: object) -> None:
        failure = None if task.cancelled() else task.exception()
        if self._power is power:
            self.kill()
        if isinstance(failure, DiskFailure):
            self.troubled(failure)
        elif failure is not None and not isinstance(failure, Crash):
            self._unexpected(failure)

    def _unexpected(self, failure: BaseException) -> None:
        context = {"message": "a data process died", "exception": failure}
        asyncio.get_running_loop().call_exception_handler(context)

    def cut_off(self, noticed: bool) -> None:
        self.node = None
        if self._bulk is not None:
            self._bulk.cut_power(noticed=noticed)
            self._bulk = None
        self._pipe.end_data()
        if self._wanted:
            self._begin_in(self.chance.uniform(*RESTART_S))

    # What others do with it

    @property
    def up(self) -> bool:
        return self.running and self.node is not None

    async def put(self, data: bytes, kind: BlobKind, account: bytes) -> bytes:
        """As a client's upload does: once this returns, the blob is durable here. Raises Crash if it dies meanwhile."""
        node = self.node
        if node is None:
            raise Crash
        manifest = manifest_of(data)
        staging = node.store.stage(manifest_cid(manifest), manifest, kind, account)
        for index in staging.missing():
            await asyncio.sleep(0.001)
            staging.put(index, data[index * LEAF_BYTES : (index + 1) * LEAF_BYTES])
        blob = await node.store.publish(staging)
        return blob.cid

    def read(self, cid: bytes) -> bytes | None:
        """A whole blob, as its processes see it."""
        node = self.node
        if node is None or node.store.find(cid) is None:
            return None
        return bytes(node.store.view(cid))

    def lose_everything(self) -> None:
        """Its disk is another one from here on."""
        assert not self.running
        self.disk, self.kv = DiskMedium(), KvMedium()

    def is_durable(self, cid: bytes) -> bool:
        """Whether the platter has the whole blob: its row, its file, and in that the right bytes."""
        file = self.disk.durable.get(WHOLE + cid_text(cid))
        listed = any(cid in key for key in self.kv.durable)
        return file is not None and listed and manifest_cid(manifest_of(file.durable)) == cid
