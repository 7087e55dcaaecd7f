"""What happens to machines and to the network between them, from one seed; and the end of all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

from chain.certificate import Vote, VoteKind
from chain.codec import decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from consensus.messages import BatchOffer, Proposal
from fl.records import Account, Kind
from tests.simulation.arena import Arena, Station
from tests.simulation.loop import Crash, drawn_from
from tests.simulation.network import Conditions
from tests.simulation.ports import Traits
from tests.simulation.scenario import TRAPS, Feature, Scenario

DEFAULT = Traits()
AT_ONCE_S = 0.01
_CORE_OPERATIONS = ("disk.append", "disk.sync", "disk.synced", "disk.rename", "kv.write", "kv.synced")
_DATA_OPERATIONS = ("disk.write_at", "disk.sync", "disk.synced", "disk.rename", "disk.unlink", "kv.write", "kv.synced")
OUTAGES_S = (0.005, 0.02, 0.1, 0.5, 2.0, 5.0)
"""Most are short: a validator that is back within its view can contradict itself, one that is late cannot."""


def drawn_conditions(scenario: Scenario) -> Conditions:
    chance = drawn_from(scenario.seed, "conditions")
    features = scenario.features
    delay_ms = chance.choice((20.0, 60.0, 120.0)) if Feature.DELAY in features else chance.choice((1.0, 5.0, 15.0))
    return Conditions(
        delay_ms=delay_ms,
        jitter_ms=delay_ms * chance.choice((0.1, 1.0, 2.0)),
        loss=chance.choice((0.01, 0.05, 0.2)) if Feature.LOSS in features else 0.0,
        duplicate=chance.choice((0.02, 0.2)) if Feature.DUPLICATION in features else 0.0,
        reorder=chance.choice((0.05, 0.4)) if Feature.REORDERING in features else 0.0,
    )


class Faults:
    def __init__(self, arena: Arena, scenario: Scenario) -> None:
        self.arena = arena
        self.scenario = scenario
        self.chance = drawn_from(scenario.seed, "faults")
        self.over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._returns: dict[int, asyncio.Task[None]] = {}
        self._back_after: dict[int, float] = {}
        self._aim: tuple[VoteKind, str] | None = None
        arena.on_trouble = self._after_trouble
        arena.on_sent.append(self._after_sent)
        for host in arena.hosts:
            host.machine.on_crash = self._revival(host)

    def begin(self) -> None:
        kinds: dict[Feature, Callable[[], Coroutine[Any, Any, None]]] = {
            Feature.PARTITIONS: self._partitions,
            Feature.ONE_WAY: self._one_way,
            Feature.CLOGS: self._clogs,
            Feature.CUTS: self._cuts,
            Feature.SLOW_NODES: self._slow_nodes,
            Feature.SLOW_DISKS: self._slow_disks,
            Feature.SKEW: self._skew,
            Feature.STEPS: self._steps,
            Feature.DISK_FULL: self._disk_full,
            Feature.SYNC_FAILS: self._failing_syncs,
            Feature.CRASHES: self._crashes,
            Feature.KILLS: self._kills,
            Feature.AIMED_CRASHES: self._aimed_crashes,
            Feature.CRASHES_IN_IO: self._crashes_in_io,
            Feature.POWER_CUTS: self._power_cuts,
            Feature.DATA_KILLS: self._data_kills,
            Feature.BULK_CUTS: self._bulk_cuts,
            Feature.BARE_QUORUM: self._bare_quorum,
        }
        for feature in self.scenario.features:
            if feature in kinds:
                self._start(kinds[feature]())
            elif feature not in TRAPS:
                self._count(feature)
        if self.scenario.doomed:
            self._start(self._dooms())
        if self.scenario.rotten is not None:
            self._start(self._rot(self.scenario.rotten))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self.arena.spawn(work))

    def _count(self, what: str) -> None:
        self.arena.findings.counts[f"fault: {what}"] += 1

    async def end(self) -> None:
        """Everything is mended: links, disks, clocks; who was down and is not lost is started."""
        self.over = True
        for task in (*self._tasks, *self._returns.values()):
            task.cancel()
        self._returns.clear()
        self._aim = None
        self.arena.network.heal()
        self._join(self._names(), self._names())
        self.arena.network.set_conditions(Conditions())
        for host in self.arena.hosts:
            host.machine.on_operation = host.data.on_operation = None
            traits = host.machine.traits
            traits.sync_ms, traits.offload_ms = DEFAULT.sync_ms, DEFAULT.offload_ms
            traits.skew_ms, traits.capacity_bytes = 0, None
            traits.failing.clear()
            traits.lagging.clear()
        for host in self.arena.hosts:
            if host.machine.running and host.node is None and not host.gone and not host.opening:
                host.machine.kill()
            if not host.machine.running and not host.gone:
                await host.live(self.arena.genesis)

    # Coming back

    def _revival(self, host: Station) -> Callable[[], None]:
        def crashed() -> None:
            host.node = None
            if not host.gone and host.index not in self._returns:
                after = AT_ONCE_S if self.over else self._back_after.pop(host.index, None)
                seconds = self._outage() if after is None else after
                self._returns[host.index] = self.arena.spawn(self._return(host, seconds))

        return crashed

    def _outage(self) -> float:
        return self.chance.choice(OUTAGES_S) * self.chance.uniform(0.5, 1.5)

    async def _return(self, host: Station, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._returns.pop(host.index, None)
        if not host.machine.running and not host.gone:
            await host.live(self.arena.genesis)

    def _after_trouble(self, host: Station) -> None:
        """Its node stopped because of its disk; somebody will look after it."""
        asyncio.get_running_loop().call_later(self.chance.uniform(0.5, 3.0), self._mend, host)

    def _mend(self, host: Station) -> None:
        traits = host.machine.traits
        traits.capacity_bytes = None
        traits.failing.clear()
        # Once all is mended nobody is revived any more, and a node without a face is one that is starting.
        if host.machine.running and host.node is None and not self.over:
            host.machine.kill()

    # Machines

    def _pick(self) -> Station | None:
        running = [host for host in self.arena.hosts if host.up]
        return self.chance.choice(running) if running else None

    async def _pause(self, mean_s: float) -> None:
        await asyncio.sleep(min(self.chance.expovariate(1 / mean_s), 3 * mean_s) + 0.01)

    async def _again(self, mean_s: float, act: Callable[[], object]) -> None:
        while True:
            await self._pause(mean_s)
            act()

    async def _crashes(self) -> None:
        await self._again(self.chance.choice((1.0, 3.0)), self._crash_one)

    def _crash_one(self) -> None:
        host = self._pick()
        if host is not None:
            self._count(Feature.CRASHES)
            host.machine.crash()

    async def _kills(self) -> None:
        await self._again(self.chance.choice((1.0, 3.0)), self._kill_one)

    def _kill_one(self) -> None:
        host = self._pick()
        if host is not None:
            self._count(Feature.KILLS)
            host.machine.kill()

    async def _data_kills(self) -> None:
        await self._again(self.chance.choice((1.0, 3.0)), self._kill_data)

    def _kill_data(self) -> None:
        running = [host for host in self.arena.hosts if host.data.up]
        if running:
            self._count(Feature.DATA_KILLS)
            self.chance.choice(running).data.kill()

    async def _bulk_cuts(self) -> None:
        """Connections break, or carry nothing for a while."""
        bulk = self.arena.bulk
        while True:
            await self._pause(1.0)
            self._count(Feature.BULK_CUTS)
            a, b = (host.data.endpoint.key for host in self.chance.sample(self.arena.hosts, 2))
            if self.chance.random() < 0.5:
                bulk.cut(a, b)
            else:
                bulk.block(a, b)
                asyncio.get_running_loop().call_later(self.chance.uniform(0.1, 8.0), bulk.unblock, a, b)

    async def _power_cuts(self) -> None:
        await self._again(self.chance.choice((2.0, 5.0)), self._cut_power)

    def _cut_power(self) -> None:
        """All machines at once, or most; back one after the other, or together."""
        self._count(Feature.POWER_CUTS)
        together = self._outage() if self.chance.random() < 0.7 else None
        self._crash_all_but(self.chance.choice((0, 0, 0, 1, self.scenario.f)), together)

    def _flicker(self) -> None:
        """All machines that are left, and they are back soon."""
        self._crash_all_but(0, self.chance.uniform(0.05, 0.2))

    def _crash_all_but(self, spared: int, together: float | None) -> None:
        hosts = [host for host in self.arena.hosts if host.machine.running and not host.gone]
        for host in self.chance.sample(hosts, max(0, len(hosts) - spared)):
            if together is not None:
                self._back_after[host.index] = together * self.chance.uniform(0.9, 1.1)
            host.machine.crash()

    async def _crashes_in_io(self) -> None:
        await self._again(self.chance.choice((0.5, 2.0)), self._arm_operation)

    def _arm_operation(self) -> None:
        host = self._pick()
        if host is None:
            return
        in_data = self.chance.random() < 0.3
        machine = host.data if in_data else host.machine
        kind = self.chance.choice(_DATA_OPERATIONS if in_data else _CORE_OPERATIONS)
        left = self.chance.choice((1, 2, 5, 20))

        def strike(number: int, operation: str) -> None:
            nonlocal left
            left -= operation == kind
            if left <= 0:
                machine.on_operation = None
                self._count(Feature.CRASHES_IN_IO)
                raise Crash

        machine.on_operation = strike

    async def _aimed_crashes(self) -> None:
        while True:
            await self._pause(self.chance.choice((0.3, 1.0, 2.0)))
            kind = self.chance.choice(
                (
                    VoteKind.NOTARIZE,
                    VoteKind.NULLIFY,
                    VoteKind.NULLIFY,
                    VoteKind.FINALIZE,
                    VoteKind.AVAILABLE,
                    VoteKind.HELD,
                )
            )
            self._aim = (kind, self.chance.choice(("at once", "soon", "all")))

    def _after_sent(self, host: Station, message: object) -> None:
        if self._aim is None:
            return
        kind, how = self._aim
        vote = message.vote if isinstance(message, Proposal) else message
        if not isinstance(vote, Vote) or vote.kind != kind:
            return
        self._aim = None
        self._count(Feature.AIMED_CRASHES)
        loop = asyncio.get_running_loop()
        self._back_after[host.index] = self.chance.choice((0.002, 0.01, 0.05)) * self.chance.uniform(0.5, 2)
        if how == "at once":
            host.machine.crash()
        elif how == "soon":
            loop.call_later(self.chance.uniform(0, 0.02), host.machine.crash)
        elif how == "all that are left":
            self._count(Feature.BARE_QUORUM)
            loop.call_later(self.chance.uniform(0, 0.02), self._flicker)
        else:
            loop.call_later(self.chance.uniform(0, 0.02), self._cut_power)

    async def _last_words(self, host: Station) -> None:
        """It tells a client what that will not send again, and is lost for good, while the others, whose disks have
        been slow since they were offered it, lose power."""
        offered: set[bytes] = set()

        def sent(who: Station, message: object) -> None:
            if who is host and isinstance(message, BatchOffer) and not self.over:
                offered.update(message.signed.batch.transactions)
                for other in self.arena.hosts:
                    other.machine.traits.lagging.update({"": (100.0, 1_000.0)} if other is not host else {})

        def promised(who: Station, data: bytes) -> None:
            at_stake = decode(Transaction, data, MAX_TRANSACTION_BYTES).kind == Kind.REGISTER_MEMBER
            if who is host and at_stake and data in offered and not host.gone and not self.over:
                self._count(Feature.LAST_WORDS)
                self._doom(host)
                self._flicker()

        await self._pause(self.scenario.seconds / 4)
        self.arena.on_sent.append(sent)
        self.arena.on_promise.append(promised)
        while not host.gone:
            await asyncio.sleep(0.2)
            for other in self.arena.hosts:
                other.machine.traits.lagging.clear()

    async def _solitude(self, host: Station) -> None:
        """For a while it reaches none but clients, and then it is lost for good, with what it promised meanwhile."""
        await asyncio.sleep(self.chance.uniform(0, self.scenario.seconds / 2))
        self._count(Feature.SOLITUDE)
        self._part([host.machine.name], [name for name in self._names() if name != host.machine.name])
        await asyncio.sleep(self.chance.uniform(1.0, 4.0))
        self._doom(host)

    async def _bare_quorum(self) -> None:
        """As few as can go on lose power together, when they have given up a view and nobody may know of it."""
        while True:
            await self._pause(0.5)
            self._aim = (VoteKind.NULLIFY, "all that are left")

    async def _dooms(self) -> None:
        """Those who are lost for good go after a promise to a client, or at some moment, unless a trap says when."""
        doomed = list(self.scenario.doomed)
        if Feature.LAST_WORDS in self.scenario.features:
            await self._last_words(self.arena.hosts[doomed[0]])
            return
        if Feature.SOLITUDE in self.scenario.features:
            await self._solitude(self.arena.hosts[doomed[0]])
            return
        if Feature.BARE_QUORUM in self.scenario.features:
            for index in doomed:
                self._doom(self.arena.hosts[index])
            return
        after_promise = set(doomed) if self.chance.random() < 0.6 else set()

        def promised(host: Station, _: bytes) -> None:
            if host.index in after_promise and self.arena.findings.counts["promises"] > 2:
                after_promise.discard(host.index)
                self._doom(host)

        self.arena.on_promise.append(promised)
        for index in doomed:
            await asyncio.sleep(self.chance.uniform(0, self.scenario.seconds / 2))
            if index not in after_promise:
                self._doom(self.arena.hosts[index])

    def _doom(self, host: Station) -> None:
        if not host.gone:
            self._count("machines lost for good")
            host.gone = True
            host.machine.crash()

    async def _rot(self, index: int) -> None:
        await asyncio.sleep(self.chance.uniform(0.2, self.scenario.seconds / 2))
        medium = self.arena.hosts[index].machine.kv
        keys = [key for key in sorted(medium.rows) if key.startswith(b"s/acct/")]
        if keys:
            self._count("rows that rot")
            key = self.chance.choice(keys)
            account = decode(Account, medium.rows[key], 1024)
            spoilt = encode(replace(account, floor=account.floor + 1 + self.chance.randrange(3)))
            medium.rows[key] = medium.durable[key] = spoilt
            # Until it starts again, it may know better than its disk.
            self.arena.hosts[index].machine.kill()

    async def _disk_full(self) -> None:
        self.arena.limits = replace(self.arena.limits, disk_reserve_bytes=self.chance.choice((0, 32_768)))
        for each in self.arena.hosts:
            if each.node is not None:
                each.node.limits = self.arena.limits
        while True:
            await self._pause(3.0)
            host = self._pick()
            if host is not None:
                self._count(Feature.DISK_FULL)
                host.disk_troubled = True
                host.machine.traits.capacity_bytes = host.machine.disk.used_bytes() + self.chance.randrange(40_000)
                await self._pause(2.0)
                host.machine.traits.capacity_bytes = None

    async def _failing_syncs(self) -> None:
        while True:
            await self._pause(4.0)
            host = self._pick()
            if host is not None:
                self._count(Feature.SYNC_FAILS)
                host.disk_troubled = True
                host.machine.traits.failing.add(self.chance.choice(("journal/", "batches/", "blobs/")))
                await self._pause(1.0)
                host.machine.traits.failing.clear()

    async def _slow_nodes(self) -> None:
        await self._slow(Feature.SLOW_NODES, "offload_ms", ((20.0, 80.0), (50.0, 500.0)), DEFAULT.offload_ms)

    async def _slow_disks(self) -> None:
        await self._slow(Feature.SLOW_DISKS, "sync_ms", ((5.0, 40.0), (30.0, 200.0)), DEFAULT.sync_ms)

    async def _slow(
        self, feature: Feature, trait: str, choices: tuple[tuple[float, float], ...], usual: tuple[float, float]
    ) -> None:
        while True:
            self._count(feature)
            for host in self.arena.hosts:
                slow = self.chance.random() < 0.4
                setattr(host.machine.traits, trait, self.chance.choice(choices) if slow else usual)
            await self._pause(4.0)

    async def _skew(self) -> None:
        self._count(Feature.SKEW)
        for host in self.arena.hosts:
            host.machine.traits.skew_ms = self.chance.choice((0, 0, -200, 200, 400, -1_000, 2_000))

    async def _steps(self) -> None:
        while True:
            await self._pause(3.0)
            host = self._pick()
            if host is not None:
                self._count(Feature.STEPS)
                host.machine.traits.skew_ms += self.chance.choice((-3_000, -300, 300, 1_000, 3_000))

    # The network

    def _names(self) -> list[str]:
        return [host.machine.name for host in self.arena.hosts]

    def _places(self, ones: list[str], others: list[str]) -> Iterator[tuple[bytes, bytes]]:
        """Of data processes: each pair of one of these and one of those."""
        keys = {host.machine.name: host.data.endpoint.key for host in self.arena.hosts}
        return ((keys[a], keys[b]) for a in ones for b in others if a != b)

    def _part(self, ones: list[str], others: list[str]) -> None:
        self.arena.network.partition(ones, others)
        for a, b in self._places(ones, others):
            self.arena.bulk.block(a, b)

    def _join(self, ones: list[str], others: list[str]) -> None:
        for a, b in self._places(ones, others):
            self.arena.bulk.unblock(a, b)

    async def _partitions(self) -> None:
        network = self.arena.network
        while True:
            await self._pause(2.0)
            self._count(Feature.PARTITIONS)
            names = self._names()
            self.chance.shuffle(names)
            cut = self.chance.randrange(1, len(names))
            self._part(names[:cut], names[cut:])
            await self._pause(self.chance.choice((0.5, 2.0, 6.0)))
            for source in names:
                for target in names:
                    if source != target:
                        network.unblock(source, target)
            self._join(names[:cut], names[cut:])

    async def _one_way(self) -> None:
        network = self.arena.network
        while True:
            await self._pause(2.0)
            self._count(Feature.ONE_WAY)
            pairs = [(a, b) for a in self._names() for b in self._names() if a != b]
            blocked = self.chance.sample(pairs, self.chance.randint(1, len(pairs) // 2))
            for source, target in blocked:
                network.block(source, target)
            await self._pause(self.chance.choice((0.5, 2.0, 6.0)))
            for source, target in blocked:
                network.unblock(source, target)

    async def _clogs(self) -> None:
        while True:
            await self._pause(0.7)
            self._count(Feature.CLOGS)
            source, target = self.chance.sample(self._names(), 2)
            self.arena.network.clog(source, target, self.chance.uniform(0.05, 3.0))

    async def _cuts(self) -> None:
        while True:
            await self._pause(1.0)
            self._count(Feature.CUTS)
            self.arena.network.cut(*self.chance.sample(self._names(), 2))
