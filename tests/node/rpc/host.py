"""One validator with real ports, alone on its chain, and its two doors: in the test's process or, run as a program, in
one of its own. Its data process is a task beside it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from chain.cid import cid_text, raw_cid
from fl.blobs import BlobKind
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob
from fl.records import Phase, Receipt
from fl.rounds import SubmitUpdate
from fl.state import job_of, round_of
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of
from node.admission import Status
from node.buckets import Rate
from node.data.blobs import Blob, BlobLimits
from node.data.door.server import open_door
from node.data.messages import Standing
from node.data.service import DataLimits, DataNode
from node.node import Limits, Node, initialise
from node.ports import Channel, DataPorts, LinkEvent, Peer, PeerAddress, Ports
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload
from node.rpc.limits import RpcLimits
from node.rpc.server import RpcConfig, RpcServer, start
from tests.fl.builders import Actor, actor, make_rules
from tests.simulation.bulk import BulkNetwork, SimulatedBulk
from tests.simulation.cluster import consensus_key, genesis_of
from tests.simulation.pipe import SimulatedPipe

UNLIMITED = Rate(1_000_000, 1_000_000)
LOOSE = replace(RpcLimits(), requests=UNLIMITED)


class NoLinks:
    """A validator alone has nobody to link to."""

    async def start(self, peers: Mapping[Peer, PeerAddress]) -> None: ...

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None: ...

    def send(self, peer: Peer, channel: Channel, frame: bytes) -> bool:
        return False

    async def receive(self) -> LinkEvent:
        return await asyncio.get_running_loop().create_future()

    def punish(self, peer: Peer, reason: str) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Hosted:
    node: Node
    server: RpcServer
    actors: dict[str, Actor] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def actor(self, name: str) -> Actor:
        return self.actors.setdefault(name, actor(name, self.node.genesis.chain_id))

    def sign(self, name: str, body: object, **changes: object) -> bytes:
        changes.setdefault("valid_until_ms", self.node.ports.clock.now().wall_ms + 3_600_000)
        return self.actor(name).sign(body, **changes)

    async def executed(self, name: str, body: object) -> Receipt:
        answers = await self.node.admission.submit([self.sign(name, body)])
        assert answers[0].id is not None, answers
        [standing] = await self.node.admission.wait([self.node.admission.standing(answers[0].id)], Status.PROVEN, 30)
        assert standing.receipt is not None and standing.receipt.status == "ok", standing
        return standing.receipt

    async def train_one_round(self) -> bytes:
        """A job of one trainer, taken through its only round; its id."""
        rules = make_rules(target=1, minimum=1, rounds=1)
        job = (await self.executed("creator", CreateJob(rules, b""))).job
        await self.executed("trainer-000", JoinJob(job, rules_hash(rules)))
        read = self.node.store.state
        while (current := round_of(read, job, 1)) is None or current.phase != Phase.COLLECTING:
            await self.node.progress.wait(1)
        account = self.actor("trainer-000").account
        delta = {spec.name: _values(spec.shape) for spec in rules.schema.tensors}
        payload = encode_update(form_of(rules, 0), Place(job, 1, account), delta)
        await self.executed(
            "trainer-000", SubmitUpdate(job, 1, current.base, 10, (1_000_000,), 0, raw_cid(payload), payload)
        )
        while (found := job_of(read, job)) is None or not found.model_round:
            await self.node.progress.wait(1)
        return job


def _values(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.full(shape, 0.5, np.float32)


@asynccontextmanager
async def _data(directory: Path, pipe: SimulatedPipe, chain_id: bytes) -> AsyncIterator[DataNode]:
    disk, kv, offload = FileDisk(directory), LevelKv(directory / "rows"), ThreadOffload()
    network, key = BulkNetwork(1), consensus_key(0).public
    bulk = SimulatedBulk(network, network.join("n0", key))
    ports = DataPorts(pipe.begin_data(), bulk, disk, kv, offload, SystemClock())
    data = await DataNode.open(ports, DataLimits(BlobLimits(reserve_bytes=0)))

    async def ask(account: bytes, key: bytes) -> Standing:
        return await data.questions.standing(account, key)

    async def obtain(cid: bytes, kind: BlobKind, account: bytes) -> Blob:
        found = data.store.find(cid)
        assert found is not None, "there are no others to have it from"
        return found

    door = await open_door(data.store, ports.clock, offload, chain_id, ask, obtain, RpcConfig(limits=LOOSE))
    running = asyncio.create_task(data.run(door.address))
    try:
        yield data
    finally:
        await door.close()
        running.cancel()
        await asyncio.wait([running])
        await data.store.close()
        pipe.end_data()
        offload.close()
        kv.close()
        disk.close()


@asynccontextmanager
async def hosted(
    directory: Path, limits: RpcLimits = LOOSE, *, node_limits: Limits | None = None, **config: object
) -> AsyncIterator[Hosted]:
    genesis = genesis_of(1)
    disk, kv, offload = FileDisk(directory / "data"), LevelKv(directory / "data" / "rows"), ThreadOffload()
    pipe = SimulatedPipe()
    ports = Ports(NoLinks(), disk, kv, offload, SystemClock(), pipe.begin_core())
    await initialise(ports)
    chosen = node_limits or Limits(disk_reserve_bytes=0, account_rate=UNLIMITED, stranger_rate=UNLIMITED)
    node = await Node.open(genesis, consensus_key(0), ports, limits=chosen)
    server = await start(node, RpcConfig(limits=limits, **config))  # type: ignore[arg-type]
    running = asyncio.create_task(node.run())
    try:
        async with _data(directory / "data" / "data", pipe, genesis.chain_id):
            await node.data.up()
            yield Hosted(node, server)
            await server.close()
    finally:
        await server.close()
        node.stop()
        await asyncio.wait([running])
        offload.close()
        kv.close()
        disk.close()


async def _serve(directory: Path) -> None:
    """Prints one line of JSON once there is something to ask about, and serves until its input ends."""
    async with hosted(directory) as host:
        job = await host.train_one_round()
        found = job_of(host.node.store.state, job)
        assert found is not None
        block = next(each for each in host.node.store.blocks(1, host.server.api.executed_height) if each.body.batches)
        receipt = await host.executed("creator", CreateJob(make_rules(name="another"), b""))
        opened = host.node.data.opened
        assert opened is not None
        known = {
            "url": host.url,
            "door": f"http://127.0.0.1:{opened.door_port}",
            "job": job.hex(),
            "id": receipt.tx_id.hex(),
            "account": host.actor("trainer-000").account.hex(),
            "cid": cid_text(found.model),
            "digest": block.body.batches[0].hex(),
            "key": b"receipts".hex(),
        }
        print(json.dumps(known), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
