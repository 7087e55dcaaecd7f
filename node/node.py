"""A validator at work: the cores behind the ports, and the order in which their effects reach the world.

Everything happens on one event loop. An event is stepped through the replica at once; what it wants durable is
appended, and what it wants to say waits in line until the logs are synced that far. Execution and aggregation follow
behind, each in a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from chain.codec import CodecError
from chain.genesis import Genesis
from chain.keys import SigningKey
from consensus import availability as avail
from consensus.attestation import ResultCertified, RoundComputed, StateCertified
from consensus.availability import BatchStored, SequenceReserved
from consensus.availability.guards import VOTE_AHEAD
from consensus.effects import Alarm, Tick
from consensus.lineage import genesis_lineage, rebase
from consensus.messages import DataAddress, channel_of, from_frame, to_frame
from consensus.ordering.events import Convicted, Finalized
from consensus.ordering.records import SILENT_FOR_EVER, SilentUntil
from consensus.proposals import NextSet
from consensus.replica import (
    Blame,
    ChainExecuted,
    EpochBegun,
    Outbound,
    PeerLinked,
    PeerMessage,
    Replica,
    ReplicaOutput,
    ServeBatch,
    ServeBlock,
    ServeRange,
)
from fl.execution import BlockOutcome
from fl.machine import wants_block_at
from fl.rounds import rounds_in
from node.admission import Admission
from node.aggregator import Aggregator
from node.batchlog import BatchLog
from node.buckets import Rate
from node.checking import BatchChecks
from node.dataplane import DataPlane
from node.directory import Directory
from node.executor import Executor, FinalBlock
from node.lacking import Lacking
from node.membership import is_member, standing_of, validator_sets
from node.observer import Observer
from node.ports import Channel, DiskFailure, Down, Frame, Peer, PeerAddress, Ports, Up
from node.progress import Progress
from node.readings import ReadBatches
from node.records import journal_entry, read_journal_entry
from node.retention import Keeping, Retention
from node.segments import LogExists, SegmentedLog, Writer
from node.serving import Serving
from node.store import JournalMark, Store, begin_journal

log = logging.getLogger("quorate.node")

JOURNAL = "journal"
BATCHES = "batches"
LOCK = "node.lock"
ACCOUNT_RATE = Rate(500, 1_000)
STRANGER_RATE = Rate(100, 200)


class NodeFailure(Exception):
    """The node stopped because going on would break a promise. The sentence says what to do."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
    """Of this node's own resources; nothing that others have to agree with."""

    disk_reserve_bytes: int = 256 * 1024 * 1024
    journal_keep_blocks: int = 100_000
    sync_every_ms: int = 1_000
    account_rate: Rate = ACCOUNT_RATE
    """Of transactions taken for one member."""
    stranger_rate: Rate = STRANGER_RATE
    """Of transactions taken for all senders together who are not members."""
    keeping: Keeping = field(default_factory=Keeping)
    advertised: DataAddress | None = None
    """Where other validators reach the data process, if not where it listens."""


async def initialise(ports: Ports, *, rejoin: bool = False) -> None:
    """Create the logs of a new validator. Starting never does: a lost journal must not go unnoticed."""
    with suppress(LogExists):
        await SegmentedLog.create(ports.disk, BATCHES, ports.clock.entropy)
    if rejoin:
        begin_journal(ports.kv)
    journal = await SegmentedLog.create(ports.disk, JOURNAL, ports.clock.entropy)
    if rejoin:
        await journal.durable(journal.append(*journal_entry(SilentUntil(0, SILENT_FOR_EVER))))


@dataclass(frozen=True, slots=True)
class Effects:
    """What leaves once both logs are durable up to these numbers."""

    batches: int
    journal: int
    replay_from: int
    sends: list[Outbound]
    acks: list[object]


class Node:
    """Opened by `open`; `run` returns when `stop` was called and raises NodeFailure when it must not go on."""

    def __init__(
        self,
        genesis: Genesis,
        key: SigningKey,
        ports: Ports,
        limits: Limits,
        addresses: Mapping[Peer, tuple[str, int]],
        journal: SegmentedLog,
        batches: BatchLog,
        store: Store,
        replica: Replica,
    ) -> None:
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.key = key
        self.ports = ports
        self.limits = limits
        self.sets = validator_sets(genesis)
        self.journal = journal
        self.batches = batches
        self.store = store
        self.replica = replica
        self.progress = Progress()
        self.disk_full = False
        self.observers: list[Observer] = []
        self.linked: set[tuple[Peer, Channel]] = set()
        self._addresses = addresses
        self._met: dict[Peer, PeerAddress] | None = None
        """Whom the links reach; None before they are opened."""
        self._inbox: deque[object] = deque()
        self._stepping = False
        self._line: deque[Effects] = deque()
        self._line_moved = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_ms: int | None = None
        """What the timer is set for."""
        self._failure: NodeFailure | None = None
        self._over = asyncio.Event()
        self._reserved: SequenceReserved | None = None
        self.data = DataPlane(
            ports.data,
            who=lambda account, key: standing_of(store.state, self.replica.validators, account, key),
        )
        self.directory = Directory(limits.advertised, self._tell, self.data.meet)
        self.data.on_opened.append(lambda opened: self.directory.opened(opened.bulk_port, self._linked_for_data()))
        self._serving = Serving(store, batches, ports.links)
        self.read = ReadBatches()
        self.admission = Admission(
            genesis.chain_id,
            genesis.params,
            store,
            ports.offload,
            ports.clock,
            self.data,
            self.read,
            submit=self.feed,
            room=replica.availability.room,
            certified_height=replica.attestation.certified_height,
            disk_full=lambda: self.disk_full,
            account_rate=limits.account_rate,
            stranger_rate=limits.stranger_rate,
        )
        self.checks = BatchChecks(
            self.chain_id,
            genesis.params,
            ports.offload,
            self.data,
            self.admission.rules_of,
            self.read,
            may_bring=lambda account, key: is_member(store.state, account, key),
            creator_of=lambda signed: self._creator_of(signed.batch.epoch, signed.batch.creator),
            disk_full=lambda: self.disk_full,
            checked=lambda digest, verdict: self.feed(avail.Checked(digest, verdict)),
        )

    @classmethod
    async def open(
        cls,
        genesis: Genesis,
        key: SigningKey,
        ports: Ports,
        *,
        limits: Limits | None = None,
        addresses: Mapping[Peer, tuple[str, int]] | None = None,
    ) -> Node:
        """Take up what the disk holds. Raises a PortError whose sentence says what is wrong with it."""
        ports.disk.lock(LOCK)
        chain_id, params = genesis.chain_id, genesis.params
        # The rows name their format and their chain, so they come first: opening a log may change it.
        store = Store(ports.kv, chain_id)
        writer = Writer(ports.disk)
        batches = BatchLog(await SegmentedLog.open(ports.disk, BATCHES, writer=writer), store)
        journal = await SegmentedLog.open(ports.disk, JOURNAL, writer=writer)
        store.check_logs(journal.last, batches.log.last)
        sets = validator_sets(genesis)
        executed = await Executor.prepare(genesis, store, genesis_lineage(genesis, sets[0]))
        root = executed.lineage
        if root.next_set:
            root = rebase(root, sets[root.epoch + 1])
        schedule = {
            number: NextSet(change.due_height, sets[number + 1]) for number, change in enumerate(genesis.set_changes)
        }
        replica = Replica(
            chain_id,
            params,
            key,
            sets[root.epoch],
            root,
            schedule,
            nonce=ports.clock.entropy(32),
            previous=sets.get(root.epoch - 1),
        )
        node = cls(genesis, key, ports, limits or Limits(), addresses or {}, journal, batches, store, replica)
        node.executor = Executor(
            genesis,
            store,
            batches,
            node.read,
            node.data,
            ports.offload,
            executed,
            missing=lambda digests: node.feed(avail.Need(digests)),
            done=node._executed,
        )
        node.aggregator = Aggregator(
            params,
            store,
            batches,
            node.data,
            ports.offload,
            computed=lambda result: node.feed(RoundComputed(result)),
            alarm=node._alarm,
        )
        node.lacking = Lacking(store, node.data)
        node.retention = Retention(
            params,
            node.limits.keeping,
            store,
            batches,
            node.data,
            ports.offload,
            open_batches=replica.availability.open_batches,
            offered=replica.availability.offered,
            pooled=replica.availability.waiting_alone,
            made_here=lambda: [*node.executor.keeping, *node.aggregator.roots()],
        )
        node._replay()
        return node

    executor: Executor
    aggregator: Aggregator
    retention: Retention
    lacking: Lacking

    def _replay(self) -> None:
        height, horizon = self.executor.executed.lineage.height, self.genesis.params.horizon
        journal_from, batches_from = self.store.replay_from(max(0, height - 2 * horizon))
        records: list[object] = list(self.batches.replay(batches_from))
        for _, kind, payload, _ in self.journal.replay(max(journal_from, self.journal.first)):
            record = read_journal_entry(kind, payload)
            if isinstance(record, SequenceReserved):
                self._reserved = record
            records.append(record)
        blocks = self.store.blocks(max(1, height - horizon - VOTE_AHEAD), height)
        recent = [(block.header.height, block.body) for block in blocks]
        certificate = self.store.newest_certificate()
        out = self.replica.replay(self.ports.clock.now(), records, recent, certificate)
        self._emit(out, journal_from)

    async def run(self) -> None:
        work = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("data", self.data.run()),
                ("links", self._receive()),
                ("release", self._release()),
                ("check", self.checks.run()),
                ("execute", self.executor.run()),
                ("aggregate", self.aggregator.run()),
                ("sync", self._sync()),
                ("retain", self.retention.run()),
                ("fetch", self.lacking.run()),
            )
        ]
        for task in work:
            task.add_done_callback(lambda _: self._over.set())
        try:
            self._met = self._peers()
            self.directory.met(self._met)
            await self.ports.links.start(self._met)
            executed = self.executor.executed
            self.feed(self._chain_executed(executed.lineage.height, executed.lineage.digest, executed.state_root))
            self.aggregator.resume()
            self.lacking.resume()
            await self._over.wait()
            for task in work:
                if task.done():
                    task.result()
        except DiskFailure as failure:
            raise NodeFailure(failure.code, str(failure)) from failure
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.directory.close()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self.ports.links.close()
        if self._failure is not None:
            raise self._failure
        self.store.write_waiting()
        self.journal.rest()

    @property
    def failure(self) -> NodeFailure | None:
        """Why it stopped, once it had to."""
        return self._failure

    def stop(self) -> None:
        self._over.set()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more transactions; True once every one that was accepted is final."""
        self.admission.draining = True
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        while self.admission.unsettled and loop.time() < ends:
            await self.progress.wait(min(1.0, ends - loop.time()))
        return not self.admission.unsettled

    # Stepping

    def feed(self, event: object) -> None:
        """Step an event through the cores. Effects that feed events themselves have theirs stepped after."""
        self._step(event)
        if not self._stepping:
            self._arm()

    def _step(self, event: object) -> None:
        self._inbox.append(event)
        if self._stepping or self._failure is not None:
            return
        self._stepping = True
        try:
            while self._inbox and self._failure is None:
                self._emit(self.replica.step(self.ports.clock.now(), self._inbox.popleft()))
        except DiskFailure as failure:
            self._fail(failure.code, str(failure))
        finally:
            self._stepping = False

    def _arm(self) -> None:
        deadline = self.replica.deadline() if self._failure is None else None
        if deadline == self._armed_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_ms = deadline
        if deadline is not None:
            delay_ms = max(0, deadline - self.ports.clock.now().mono_ms)
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = self._armed_ms = None
        self.feed(Tick())

    def _emit(self, out: ReplicaOutput, replay_from: int | None = None) -> None:
        if replay_from is None:
            # What became final in this step may rest on any of its records, and many blocks may in one step.
            replay_from = self.journal.last
        for record in out.persist:
            self._append(record)
        acks = out.acks
        for ack in acks:
            if isinstance(ack, Finalized):
                for block, lineage in ack.blocks:
                    self.retention.final(lineage.height, block.body.batches)
        for event in out.events:
            if isinstance(event, avail.BatchHere):
                acks.append(event)
            else:
                self._handle(event)
        if out.send or acks:
            self._line.append(Effects(self.batches.log.last, self.journal.last, replay_from, out.send, acks))
            self._line_moved.set()

    def _append(self, record: object) -> None:
        if isinstance(record, BatchStored):
            self.batches.append(record)
            self.read.stored(record.signed)
            return
        if isinstance(record, SequenceReserved):
            self._reserved = record
        self.journal.append(*journal_entry(record))

    async def _release(self) -> None:
        """Let effects out in order, each once all that it depends on is durable. The batches' log goes first."""
        while True:
            while self._line:
                effects = self._line.popleft()
                await self._durable(effects.batches, effects.journal)
                for outbound in effects.sends:
                    self._send(outbound)
                for ack in effects.acks:
                    self._acknowledge(ack, effects.replay_from)
            self._line_moved.clear()
            await self._line_moved.wait()

    async def _durable(self, batches: int, journal: int) -> None:
        await self.batches.log.durable(batches)
        self.batches.settle()
        await self.journal.durable(journal)

    def _send(self, outbound: Outbound) -> None:
        channel, frame = channel_of(outbound.message), to_frame(outbound.message)
        if outbound.to is not None:
            self.ports.links.send(outbound.to, channel, frame)
            return
        for member in self.replica.validators.members:
            if member.consensus_key != self.key.public:
                self.ports.links.send(member.consensus_key, channel, frame)

    def _acknowledge(self, ack: object, replay_from: int) -> None:
        match ack:
            case Finalized(blocks, certificate):
                newest = blocks[-1][1].height
                # What silences a validator that lost its journal stands at the start of the new one.
                mark = JournalMark(0 if self.replica.silent else replay_from, self.journal.synced)
                for block, lineage in blocks:
                    finalization = certificate if lineage.height == newest else None
                    validators = self.sets[block.header.epoch]
                    self.executor.submit(FinalBlock(block, lineage, finalization, mark, validators))
                    self.admission.final(lineage.height, block.body.batches)
                    for observer in self.observers:
                        observer.final(block, lineage)
                self.checks.advanced(newest)
                self.progress.moved()
            case avail.Acknowledged(ids, batch):
                self.admission.available(ids, batch)
            case avail.BatchHere():
                self.executor.batch_here()

    # What the cores ask of the node

    def _handle(self, event: object) -> None:
        match event:
            case avail.CheckBatch(digest, signed, look):
                self.checks.ask(digest, signed, look)
            case avail.CheckSpared(digest):
                self.checks.spare(digest)
            case ServeRange() | ServeBlock() | ServeBatch():
                self._serving.serve(event)
            case Blame(peer, reason):
                log.warning("peer misbehaved", extra={"peer": peer.hex(), "reason": reason})
                self.ports.links.punish(peer, reason)
            case Alarm():
                self._alarm(event)
            case EpochBegun(validators):
                log.info("epoch begun", extra={"epoch": validators.epoch})
                asyncio.get_running_loop().create_task(self._meet())
            case StateCertified(certificate):
                self.store.keep_certificate(certificate)
                self.admission.certified()
                self.progress.moved()
            case ResultCertified(_, subject):
                log.info("result certified", extra={"job": subject.job.hex(), "round": subject.round})
            case Convicted(first):
                log.error("a validator equivocated", extra={"signer": first.signer, "epoch": first.epoch})
            case avail.PoolFull(ids):
                self.admission.not_taken(ids)
            case avail.TransactionsExpired(ids):
                self.admission.expired(ids)

    def _alarm(self, alarm: Alarm) -> None:
        self._fail(alarm.code, alarm.sentence)

    def _fail(self, code: str, sentence: str) -> None:
        if self._failure is None:
            log.critical(sentence, extra={"code": code})
            self._failure = NodeFailure(code, sentence)
            self._over.set()

    # The data process

    def _tell(self, peer: Peer, address: DataAddress) -> None:
        self.ports.links.send(peer, Channel.DATA, to_frame(address))

    def _linked_for_data(self) -> list[Peer]:
        return sorted(peer for peer, channel in self.linked if channel is Channel.DATA)

    def _creator_of(self, epoch: int, creator: int) -> Peer | None:
        validators = self.sets.get(epoch)
        if validators is None or creator >= validators.n:
            return None
        key = validators.members[creator].consensus_key
        return None if key == self.key.public else key

    def _peers(self) -> dict[Peer, PeerAddress]:
        """The validators of this epoch; of the next, so that links stand before they are needed; and of the last, while
        batches that only they may hold can still be ordered."""
        peers: dict[Peer, PeerAddress] = {}
        epoch, root = self.replica.validators.epoch, self.replica.ordering.tree.root
        last = epoch - 1 if root.height <= root.epoch_height + self.genesis.params.horizon else epoch
        for validators in (self.sets.get(last), self.sets.get(epoch + 1), self.sets[epoch]):
            for member in validators.members if validators is not None else ():
                if member.consensus_key != self.key.public:
                    host, _, port = member.address.rpartition(":")
                    known = self._addresses.get(member.consensus_key, (host.strip("[]"), int(port)))
                    peers[member.consensus_key] = PeerAddress(member.link_key, *known)
        return peers

    async def _meet(self) -> None:
        peers = self._peers()
        if self._met is not None and peers != self._met:
            self._met = peers
            self.directory.met(peers)
            await self.ports.links.update(peers)

    # The tasks

    async def _receive(self) -> None:
        links = self.ports.links
        while True:
            match await links.receive():
                case Frame(peer, channel, data):
                    try:
                        message = from_frame(channel, data)
                    except CodecError as error:
                        links.punish(peer, f"undecodable message: {error}")
                    else:
                        if isinstance(message, DataAddress):
                            self.directory.heard(peer, message)
                        else:
                            self._step(PeerMessage(peer, message))
                case Up(peer, channel):
                    self.linked.add((peer, channel))
                    if channel is Channel.DATA:
                        self.directory.linked(peer)
                    self._step(PeerLinked(peer, channel))
                case Down(peer, channel):
                    self.linked.discard((peer, channel))
            if not links.waiting:
                self._arm()

    async def _executed(self, executed: ChainExecuted, outcome: BlockOutcome) -> None:
        self.admission.executed(executed.height, outcome.ids, outcome.receipts)
        for observer in self.observers:
            observer.executed(executed.height)
        self.retention.executed(executed.height)
        self.aggregator.executed(executed.rounds_over, rounds_in(outcome.changes), outcome.accepted)
        if outcome.events:
            self.lacking.executed(outcome)
        self.feed(executed)
        self.progress.moved()

    def _chain_executed(self, height: int, digest: bytes, state_root: bytes) -> ChainExecuted:
        return ChainExecuted(height, digest, state_root, wants_block_at(self.store.state), ())

    async def _sync(self) -> None:
        """Each second: make the rows durable, look at the disk, drop what no replay can need."""
        while True:
            await asyncio.sleep(self.limits.sync_every_ms / 1000)
            height = self.executor.executed.lineage.height
            self.store.write_waiting()
            await self.ports.offload.run(self.store.sync)
            self.disk_full = self.ports.disk.free_bytes() < self.limits.disk_reserve_bytes
            await self._meet()
            await self._prune(height - self.limits.journal_keep_blocks)

    async def _prune(self, height: int) -> None:
        if height <= 0:
            return
        journal, _ = self.store.replay_from(height)
        if journal > self.journal.first + 100_000:
            if self._reserved is not None:
                await self.journal.durable(self.journal.append(*journal_entry(self._reserved)))
            await self.journal.drop_before(journal)
