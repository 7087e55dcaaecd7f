"""A cluster of whole nodes on simulated machines, and clients that submit to them and note what they were promised."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chain.certificate import Validator
from chain.genesis import Genesis, GenesisMember, Params, SetChange
from chain.keys import SigningKey
from consensus.beacon import first_commitment
from node.admission import Answer, Busy, Status
from node.datadir import check_owner, create, owner_of
from node.node import Limits, Node, NodeFailure
from node.ports import Ports
from tests.fl.builders import Actor, actor, signing_key, trainer_names
from tests.simulation.bulk import BulkNetwork
from tests.simulation.datamachine import DataMachine
from tests.simulation.loop import Crash, drawn_from
from tests.simulation.network import Conditions, Network
from tests.simulation.ports import EPOCH_MS, Machine, Traits

LIMITS = Limits(disk_reserve_bytes=0)


def consensus_key(index: int) -> SigningKey:
    return signing_key(f"consensus/{index}")


def validator(index: int) -> Validator:
    key = consensus_key(index)
    name = f"org-{index:03}"
    return Validator(
        name=name,
        consensus_key=key.public,
        link_key=signing_key(f"link/{index}").public,
        operator_key=signing_key(f"operator/{index}").public,
        beacon_commit=first_commitment(key),
        address=f"{name}.example:7000",
        rpc=f"https://{name}.example",
    )


def genesis_of(
    n: int, params: Params | None = None, trainers: int = 4, set_changes: tuple[SetChange, ...] = ()
) -> Genesis:
    people = [GenesisMember("creator", signing_key("creator").public, ("creator",))]
    people += [GenesisMember(name, signing_key(name).public, ("trainer",)) for name in trainer_names(trainers)]
    return Genesis(
        version=1,
        name="simulated",
        time_ms=EPOCH_MS,
        params=params or Params(),
        validators=tuple(validator(index) for index in range(n)),
        set_changes=set_changes,
        registrars=(signing_key("registrar").public,),
        admission="registrars",
        members=tuple(people),
    )


@dataclass
class Host:
    """One machine and the node that lives on it, through all its incarnations."""

    index: int
    machine: Machine
    data: DataMachine
    key: SigningKey
    node: Node | None = None
    failures: list[NodeFailure] = field(default_factory=list)
    started: Callable[[Node], None] = lambda node: None
    kind: type[Node] = Node
    limits: Limits = LIMITS

    def stopped(self, failure: NodeFailure) -> None:
        self.failures.append(failure)

    async def live(self, genesis: Genesis, rejoin: bool = False) -> None:
        self.node = None

        async def main(ports: Ports) -> None:
            node: Node | None = None
            try:
                owner = owner_of(ports.disk)
                if rejoin or owner is None or not owner.complete:
                    least = len(genesis.validators)
                    await create(ports, genesis.chain_id, self.key.public, least, rejoin=rejoin)
                    ports.disk.close()
                check_owner(ports.disk, genesis.chain_id, self.key.public)
                self.node = node = await self.kind.open(genesis, self.key, ports, limits=self.limits)
                self.started(node)
                await node.run()
            except NodeFailure as failure:
                self.stopped(failure)
            finally:
                if self.node is node:
                    self.node = None

        task = self.machine.run(main)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not isinstance(failure, Crash):
            self.broke(failure)

    def broke(self, failure: BaseException) -> None:
        """The node ended in a way that it does not know of."""
        asyncio.get_running_loop().call_exception_handler({"message": "a node died", "exception": failure})

    @property
    def up(self) -> bool:
        return self.machine.running and self.node is not None


class Cluster:
    def __init__(self, genesis: Genesis, seed: int, conditions: Conditions | None = None, extra: int = 0) -> None:
        self.genesis = genesis
        self.seed = seed
        self.network = Network(seed, conditions or Conditions())
        self.bulk = BulkNetwork(seed)
        self._places: set[bytes] = set()
        self.chance: random.Random = drawn_from(seed, "cluster")
        self.acknowledged: dict[bytes, str] = {}
        """Transactions that a node answered with `available`, by id, and which node it was."""
        self.hosts = [self._host(index) for index in range(len(genesis.validators) + extra)]
        self._actors: dict[str, Actor] = {}

    def _host(self, index: int) -> Host:
        return Host(index, *self.machines(f"n{index}", index), consensus_key(index))

    def machines(self, name: str, identity: int) -> tuple[Machine, DataMachine]:
        """Of one validator: its core's and its data process's, which share the power and the disk's room."""
        key, link_key = consensus_key(identity).public, signing_key(f"link/{identity}").public
        machine = Machine(name, self.seed, self.network, self.network.join(name, key, link_key), Traits())
        # Of two machines with one key, others find the first.
        known = key in self._places
        self._places.add(key)
        place = self.bulk.join(name, name.encode() if known else key)
        data = DataMachine(f"{name}/data", self.seed, machine.traits, self.bulk, place)
        machine.data = data
        machine.others, data.others = (data,), (machine,)
        return machine, data

    def actor(self, name: str) -> Actor:
        known = self._actors.get(name)
        if known is None:
            known = self._actors[name] = actor(name, self.genesis.chain_id)
        return known

    async def start(self, *indices: int) -> None:
        for host in self.hosts:
            if not indices or host.index in indices:
                await host.live(self.genesis)
        wanted = [host for host in self.hosts if not indices or host.index in indices]
        assert await self.until(lambda: all(host.up for host in wanted), within=5)

    def node(self, index: int) -> Node:
        found = self.hosts[index].node
        assert found is not None, f"n{index} is down"
        return found

    def blob_of(self, node: Node, cid: bytes) -> bytes | None:
        """As its data process has it."""
        host = next((host for host in self.hosts if host.node is node), None)
        return None if host is None else host.data.read(cid)

    def running(self) -> list[Node]:
        return [host.node for host in self.hosts if host.up and host.node is not None]

    def now_ms(self) -> int:
        return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)

    def sign(self, name: str, body: object, **changes: object) -> bytes:
        changes.setdefault("valid_until_ms", self.now_ms() + 3_600_000)
        return self.actor(name).sign(body, **changes)

    async def submit(
        self, index: int, *transactions: bytes, wait: Status = Status.AVAILABLE, within: float = 10
    ) -> list[Answer]:
        """As a client does; what is acknowledged is remembered for the checkers."""
        node = self.node(index)
        try:
            answers = await node.admission.submit(transactions)
            for answer in answers:
                if answer.id is not None:
                    [standing] = await node.admission.wait([node.admission.standing(answer.id)], wait, within)
                    if standing.reached(Status.AVAILABLE) and standing.status is not Status.EXPIRED:
                        self.acknowledged[answer.id] = f"n{index}"
        except (Busy, Crash):
            # To a client a machine that lost its power is a connection that broke.
            return []
        return answers

    def heights(self) -> list[int]:
        return [node.replica.ordering.tree.root.height for node in self.running()]

    def executed(self) -> list[int]:
        return [node.executor.executed.lineage.height for node in self.running()]

    async def until(self, condition: Callable[[], bool], within: float, step: float = 0.05) -> bool:
        loop = asyncio.get_running_loop()
        ends = loop.time() + within
        while not condition():
            if loop.time() >= ends:
                return False
            await asyncio.sleep(step)
        return True
