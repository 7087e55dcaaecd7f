"""A cluster under observation: every frame that an honest node sends, every block that it holds for final, every
state that it computes goes through the checkers. What liars do to themselves is nobody's failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from chain.batch import SignedBatch
from chain.block import block_digest
from chain.codec import decode
from chain.genesis import Genesis, check_genesis, genesis_header
from consensus.availability import Acknowledged
from consensus.effects import Alarm
from consensus.messages import from_frame
from consensus.ordering.events import Finalized
from consensus.replica import ChainExecuted
from fl.execution import BlockOutcome
from fl.records import Job
from fl.retention import Policy, roots
from fl.rounds import SubmitUpdate
from fl.state import JOBS, MAX_VALUE_BYTES
from fl.transactions import read
from node.admission import Answer, Busy, Status
from node.membership import validator_sets
from node.node import Limits, Node, NodeFailure
from node.ports import Channel, DiskFailure, Peer
from node.retention import Keeping
from tests.simulation.audit import Books, check_receipts
from tests.simulation.checkers import Chain, Findings, Wire, check_certified_blocks, check_durable
from tests.simulation.cluster import Cluster, Host, consensus_key, genesis_of
from tests.simulation.loop import Crash, drawn_from
from tests.simulation.network import Conditions
from tests.simulation.scenario import Scenario, Vice

_STATUS = 7
"""Type byte of the frames that are said each second and hold nothing to check."""

OnSent = Callable[["Station", object], None]


class Watched(Node):
    """An honest node that tells the checkers what it acts on, at the moment at which it does."""

    station: Station

    def _acknowledge(self, ack: object, replay_from: int) -> None:
        arena, name = self.station.arena, self.station.machine.name
        if isinstance(ack, Finalized):
            arena.chain.final(name, [block for block, _ in ack.blocks], ack.certificate)
        elif isinstance(ack, Acknowledged):
            if arena.direct and ack.batch not in arena.wire.available:
                arena.findings.report(f"{name} acknowledged transactions before their batch was certified")
            arena.findings.counts["promises"] += len(ack.ids)
            arena.check_blobs_held(name, self.batches.read(ack.batch))
        super()._acknowledge(ack, replay_from)

    async def _executed(self, executed: ChainExecuted, outcome: BlockOutcome) -> None:
        if not self.station.rotten:
            self.station.arena.chain.executed(
                self.station.machine.name, executed.height, executed.block, executed.state_root, outcome.receipts
            )
        await super()._executed(executed, outcome)


class Lawless(Node):
    """A liar's honest half: nothing that its own lies bring back to it stops it."""

    def _alarm(self, alarm: Alarm) -> None:
        pass

    def _step(self, event: object) -> None:
        try:
            super()._step(event)
        except Exception:  # its own lies may well have led it astray
            self._stepping = False


@dataclass
class Station(Host):
    arena: Arena = field(kw_only=True)
    honest: bool = True
    rotten: bool = False
    gone: bool = False
    """Lost for good, with its disk."""
    disk_troubled: bool = False
    opening: bool = False

    async def live(self, genesis: Genesis, rejoin: bool = False) -> None:
        self.limits = self.arena.limits
        self.opening = True
        await super().live(genesis, rejoin)

    def begun(self, node: Node) -> None:
        self.opening = False
        if isinstance(node, Watched):
            node.station = self

    def stopped(self, failure: NodeFailure) -> None:
        self.opening = False
        self.arena.on_failure(self, failure.code, str(failure))

    def broke(self, failure: BaseException) -> None:
        self.opening = False
        if isinstance(failure, DiskFailure):
            self.arena.on_failure(self, failure.code, str(failure))
        elif self.rotten:
            self.gone = True
        elif self.honest:
            super().broke(failure)


class Arena(Cluster):
    hosts: list[Station]  # type: ignore[assignment]

    def __init__(self, scenario: Scenario, conditions: Conditions, direct: bool = True) -> None:
        """`direct` asks of each frame as it leaves whether it may; otherwise only what comes of it counts."""
        self.scenario = scenario
        self.direct = direct
        liars = dict(scenario.byzantine)
        self.twins = [index for index, vices in scenario.byzantine if Vice.TWIN in vices]
        self._liars = liars
        genesis = genesis_of(scenario.n, scenario.params, trainers=scenario.trainers)
        check_genesis(genesis)
        loop = asyncio.get_running_loop()
        self.findings = Findings(loop.time)
        self.wire = Wire(genesis.chain_id, validator_sets(genesis), self.findings)
        self.wire.rotten = scenario.rotten
        root = block_digest(genesis_header(genesis))
        self.chain = Chain(root, scenario.params.min_block_interval_ms, self.wire, self.findings)
        self.books = Books(genesis.chain_id, scenario.params.nonce_window, scenario.params.horizon, self.findings)
        chance = drawn_from(scenario.seed, "keeping")
        policy = Policy(models=chance.choice((0, 1, 3)), update_rounds=chance.choice((0, 1, 2)))
        self.limits = Limits(
            disk_reserve_bytes=0, keeping=Keeping(policy, every_ms=chance.choice((500, 2_000, 10_000)))
        )
        self.promised_blobs: set[bytes] = set()
        self.on_sent: list[OnSent] = []
        self.bad_transaction: Callable[..., bytes] = lambda chance, *sorts: b""
        self.bad_blob: Callable[..., tuple[bytes, bytes, bytes] | None] = lambda chance: None
        self.on_promise: list[Callable[[Station, bytes], None]] = []
        """Called with whoever has told a client that its transaction will be ordered, and with that."""
        self.on_trouble: Callable[[Station], None] = lambda station: None
        super().__init__(genesis, scenario.seed, conditions, extra=len(self.twins))

    def _host(self, index: int) -> Station:
        n = self.scenario.n
        identity = index if index < n else self.twins[index - n]
        name = f"n{index}" if index < n else f"n{identity}b"
        machine, data = self.machines(name, identity)
        honest = identity not in self._liars
        station = Station(
            index,
            machine,
            data,
            consensus_key(identity),
            arena=self,
            honest=honest,
            rotten=index == self.scenario.rotten,
        )
        station.kind = Watched if honest else Lawless
        data.troubled = lambda failure: self.on_failure(station, failure.code, str(failure))
        station.started = station.begun
        if honest:
            self.network.wrap(name, self._recorder(station))
        return station

    def _recorder(self, station: Station) -> Callable[[Peer, Channel, bytes], Iterable[tuple[Peer, Channel, bytes]]]:
        """Sees each frame of an honest node once, when it first leaves, and lets it pass."""
        seen: set[bytes] = set()
        last = b""

        def pass_on(peer: Peer, channel: Channel, frame: bytes) -> Iterable[tuple[Peer, Channel, bytes]]:
            nonlocal last
            if frame is not last:
                last = frame
                if frame[0] != _STATUS and frame not in seen:
                    seen.add(frame)
                    self._sent(station, from_frame(channel, frame))
            return ((peer, channel, frame),)

        return pass_on

    def _sent(self, station: Station, message: object) -> None:
        self.wire.sent(station.index, message)
        disk = station.machine.disk

        def platter(prefix: str) -> list[bytearray]:
            names = sorted((name for name in disk.durable if name.startswith(prefix)), reverse=True)
            return [disk.durable[name].durable for name in names]

        if self.direct:
            check_durable(station.machine.name, station.index, message, platter, self.wire, self.findings)
        for tell in self.on_sent:
            tell(station, message)

    def on_failure(self, station: Station, code: str, sentence: str) -> None:
        if not station.honest or station.gone:
            return
        self.findings.counts[f"stopped {code}"] += 1
        if station.disk_troubled and code in ("DISK_FULL", "DISK_FAILURE"):
            self.on_trouble(station)
        elif station.rotten and code == "ROOT_DIVERGED":
            station.gone = True
        else:
            self.findings.report(f"{station.machine.name} stopped: {code}: {sentence}")

    async def submit(
        self, index: int, *transactions: bytes, wait: Status = Status.AVAILABLE, within: float = 10
    ) -> list[Answer]:
        """A client whose node dies under it gets no answer."""
        node = self.hosts[index].node
        answers: list[Answer] = []
        try:
            if node is None:
                return []
            answers = await node.admission.submit(transactions)
            for data, answer in zip(transactions, answers, strict=True):
                if answer.id is None:
                    continue
                [standing] = await node.admission.wait([node.admission.standing(answer.id)], wait, within)
                promised = standing.reached(Status.AVAILABLE) and standing.status is not Status.EXPIRED
                host = self.hosts[index]
                if promised and host.honest:
                    self.acknowledged.setdefault(answer.id, host.machine.name)
                    for tell in self.on_promise:
                        tell(host, data)
        except (Busy, Crash):
            return []
        return answers

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of the run itself, whose failure is the run's at once."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._over)
        return task

    @staticmethod
    def _over(task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not isinstance(failure, Crash):
            context = {"message": "a task of the run failed", "exception": failure}
            asyncio.get_running_loop().call_exception_handler(context)

    # What must hold of those that are honest and still there

    def staying(self) -> list[Station]:
        return [host for host in self.hosts if host.honest and not host.gone]

    def batch_of(self, digest: bytes) -> SignedBatch | None:
        """Its bytes, from whichever honest node has them."""
        for host in self.staying():
            if host.up and host.node is not None:
                signed = host.node.batches.read(digest)
                if signed is not None:
                    return signed
        return None

    def executed_everywhere(self, identity: bytes) -> bool:
        nodes = [host.node for host in self.staying() if host.up]
        return len(nodes) == len(self.staying()) and all(
            node is not None and node.store.receipt_index(identity) is not None for node in nodes
        )

    def outstanding(self) -> set[bytes]:
        """Acknowledged transactions that no final block carries yet."""
        self.books.read_on(self.chain, self.batch_of, self.chain.height)
        return self.acknowledged.keys() - self.books.ordered

    def uncertified(self) -> int:
        """Batches that those who stay have made, and that have no certificate yet."""
        nodes = [host.node for host in self.staying() if host.node is not None]
        return sum(lot.own for node in nodes for lot in node.replica.availability._desk.lots.uncertified.values())

    # Blobs

    def check_blobs_held(self, who: str, signed: SignedBatch | None) -> None:
        """Once its batch is certified, a blob is whole on the platters of f+1 honest validators."""
        for data in () if signed is None else signed.batch.transactions:
            body = read(data, self.genesis.params).body
            if isinstance(body, SubmitUpdate) and not body.payload:
                self.findings.counts["promises of blobs"] += 1
                self.promised_blobs.add(body.cid)
                self._check_held(body.cid, f"{who} acknowledged an update")

    def _check_held(self, cid: bytes, what: str) -> None:
        holders = {host.key.public for host in self.hosts if host.honest and host.data.is_durable(cid)}
        if len(holders) <= self.scenario.f:
            self.findings.report(f"{what} whose blob is whole on the disks of {len(holders)} honest validators")

    def check_blobs_kept(self) -> None:
        """What was promised and still is to be kept is where it was."""
        node = next(host.node for host in self.staying() if host.up and host.node is not None)
        store, policy = node.store, self.limits.keeping.policy
        kept = set(roots(store.state, store.state_rows, store.leaves, policy))
        for cid in sorted(self.promised_blobs & kept):
            self.findings.counts["promised blobs kept"] += 1
            self._check_held(cid, "a round names an update")

    def models_everywhere(self) -> bool:
        """Whether each node that stays has the newest model of each job."""
        for host in self.staying():
            if host.node is None or not host.data.up:
                return False
            for _, row in host.node.store.state_rows(JOBS):
                if host.data.read(decode(Job, row, MAX_VALUE_BYTES).model) is None:
                    return False
        return True

    def close_books(self) -> None:
        self.check_blobs_kept()
        check_certified_blocks(self.wire, self.chain, self.findings)
        check_receipts(self.books, self.chain, self.findings)
        self._check_stores()
        honest = {host.key.public: host.machine.name for host in self.hosts if host.honest}
        for who, peer, reason in self.network.punishments:
            accuser = next(host for host in self.hosts if host.machine.name == who)
            if accuser.honest and peer in honest:
                self.findings.report(f"{who} punished {honest[peer]}, which is honest: {reason}")

    def _check_stores(self) -> None:
        """What the nodes kept is what the checkers saw go by."""
        for host in self.staying():
            node = host.node
            if node is None or not host.up:
                continue
            height = node.executor.executed.lineage.height
            for block in node.store.blocks(1, height):
                if block_digest(block.header) != self.chain.digests.get(block.header.height):
                    self.findings.report(f"{host.machine.name} stores another block at {block.header.height}")
            if node.executor.tree.root != self.chain.roots.get(height, node.executor.tree.root):
                self.findings.report(f"{host.machine.name} holds another state after height {height}")
