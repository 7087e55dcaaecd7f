"""Simulated machines: what their disks hold survives a crash as far as it was synced, and of the rest what
chance leaves.

A `Machine` keeps the media; `boot` gives a node the ports of one incarnation; `crash` ends that incarnation
in the middle of whatever it does. Every operation that changes a disk is numbered, so that a test can crash a
machine at each of them in turn.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar

from consensus.effects import Now
from node.ports import AlreadyLocked, Buffer, DiskFailure, DiskFull, NoSuchFile, Pipe, PipeEvent, Ports, check_name
from tests.simulation.loop import OWNER, Crash, VirtualLoop, drawn_from
from tests.simulation.media import DiskMedium, File, KvMedium, apply, parent_of
from tests.simulation.network import Endpoint, Network, SimulatedLinks

_P = ParamSpec("_P")
_T = TypeVar("_T")

EPOCH_MS = 1_750_000_000_000
"""What the walls' clocks of all machines show, skew apart, when the loop's clock is at 0."""

WHOLE = ".whole"
"""Ends the name under which a file is written before it replaces the one of its name."""

OnOperation = Callable[[int, str], None]
"""Called with the number and the kind of an operation before it happens; may raise Crash."""


@dataclass(slots=True)
class Traits:
    """What sets a machine apart; may be changed while it runs."""

    sync_ms: tuple[float, float] = (0.2, 3.0)
    offload_ms: tuple[float, float] = (0.1, 2.0)
    skew_ms: int = 0
    capacity_bytes: int | None = None
    failing: set[str] = field(default_factory=set)
    """Syncs of files whose names begin so fail."""
    lagging: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Those of files whose names begin so take so long."""

    def sync_s(self, name: str, chance: random.Random) -> float:
        range_ms = next((each for prefix, each in self.lagging.items() if name.startswith(prefix)), self.sync_ms)
        return chance.uniform(*range_ms) / 1000


class Power:
    """Of one incarnation: without it every port raises Crash."""

    def __init__(self, machine: Computer) -> None:
        self._machine = machine
        self.on = True

    def check(self) -> None:
        if not self.on:
            raise Crash

    def operation(self, kind: str) -> None:
        self.check()
        machine = self._machine
        machine.operations += 1
        if machine.on_operation is not None:
            try:
                machine.on_operation(machine.operations, kind)
            except Crash:
                self.on = False
                machine.crash()
                raise


class SimulatedDisk:
    def __init__(self, machine: Computer, power: Power) -> None:
        self._machine = machine
        self._medium = machine.disk
        self._power = power
        self._writing: set[str] = set()

    def append(self, name: str, *pieces: bytes) -> None:
        check_name(name)
        self._append(name, b"".join(pieces))

    def write_at(self, name: str, offset: int, data: Buffer) -> None:
        check_name(name)
        self._power.operation("disk.write_at")
        self._check(name)
        file = self._medium.entries.get(name)
        # A hole counts as written: room that the real file system would have lent to others.
        growth = offset + len(data) - (0 if file is None else len(file.data))
        if self._machine.traits.capacity_bytes is not None and self.free_bytes() < growth:
            raise DiskFull(f"cannot write to {name}: no space left on the device")
        if file is None:
            file = File()
            self._medium.change(name, file)
        if len(data):
            write = (offset, bytes(data))
            file.pending.append(write)
            apply(file.data, write)

    def view(self, name: str) -> memoryview:
        """Not a copy, as on the real one: whoever cuts or lengthens a file that is viewed gets a BufferError."""
        self._power.check()
        return memoryview(self._file(name).data).toreadonly()

    def in_use(self, name: str) -> bool:
        self._power.check()
        data = self._file(name).data
        try:
            data.append(0)
        except BufferError:
            return True
        del data[-1]
        return False

    async def sync(self, *names: str) -> None:
        for name in names:
            check_name(name)
            await self._sync(name)

    async def write_whole(self, name: str, data: bytes) -> None:
        check_name(name)
        self._check(name)
        if name in self._writing:
            raise ValueError(f"{name} is being written already")
        self._writing.add(name)
        try:
            other = name + WHOLE
            if other in self._medium.entries:
                self._medium.change(other, None)
            self._append(other, data)
            await self._sync(other)
            self._rename(other, name)
            await self._sync(name)
        finally:
            self._writing.discard(name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        self._power.check()
        data = self._file(name).data
        return bytes(data[offset : len(data) if size is None else offset + size])

    def size(self, name: str) -> int | None:
        self._power.check()
        file = self._medium.entries.get(name)
        return None if file is None else len(file.data)

    def truncate(self, name: str, size: int) -> None:
        self._power.operation("disk.truncate")
        self._check(name)
        file = self._file(name)
        if size > len(file.data):
            raise ValueError(f"{name} has {len(file.data)} bytes; it cannot be cut to {size}")
        del file.data[size:]
        file.pending.append((size, None))

    def rename(self, old: str, new: str) -> None:
        check_name(new)
        if parent_of(old) != parent_of(new):
            raise ValueError(f"{old} and {new} are in different directories")
        self._rename(old, new)

    def unlink(self, name: str) -> None:
        self._power.operation("disk.unlink")
        self._file(name)
        self._medium.change(name, None)
        self._medium.failed.discard(name)

    def list(self, prefix: str = "") -> list[str]:
        self._power.check()
        return sorted(name for name in self._medium.entries if name.startswith(prefix) and not name.endswith(WHOLE))

    def free_bytes(self) -> int:
        self._power.check()
        free = self._machine.free_bytes()
        return 1 << 40 if free is None else free

    def lock(self, name: str) -> None:
        self._power.check()
        check_name(name)
        if name in self._medium.locked:
            raise AlreadyLocked(f"another process works on {self._machine.name}; stop it first")
        self._medium.locked[name] = self

    def close(self) -> None:
        self._power.check()
        for name in [name for name, holder in self._medium.locked.items() if holder is self]:
            del self._medium.locked[name]

    def _check(self, name: str) -> None:
        if name in self._medium.failed:
            raise DiskFailure(f"{name} failed before; restart after mending the disk")

    def _file(self, name: str) -> File:
        file = self._medium.entries.get(name)
        if file is None:
            raise NoSuchFile(f"there is no file {name}")
        return file

    def _append(self, name: str, data: bytes) -> None:
        self._power.operation("disk.append")
        self._check(name)
        if self._machine.traits.capacity_bytes is not None and self.free_bytes() < len(data):
            raise DiskFull(f"cannot append to {name}: no space left on the device")
        file = self._medium.entries.get(name)
        if file is None:
            file = File()
            self._medium.change(name, file)
        file.pending.append((len(file.data), bytes(data)))
        file.data += data

    async def _sync(self, name: str) -> None:
        self._power.operation("disk.sync")
        self._check(name)
        file, directory = self._file(name), parent_of(name)
        number = file.done + len(file.pending)
        entries = self._medium.pending.get(directory, [])[:]
        await asyncio.sleep(self._machine.traits.sync_s(name, self._machine.chance))
        self._power.check()
        if any(name.startswith(prefix) for prefix in self._machine.traits.failing):
            self._medium.failed.add(name)
            raise DiskFailure(f"cannot sync {name}: input/output error")
        file.settle(number)
        now = self._medium.pending.get(directory, [])
        self._medium.settle(directory, sum(1 for operation in entries if any(operation is each for each in now)))
        # A crash here is one after the bytes were safe and before the node knows.
        self._power.operation("disk.synced")

    def _rename(self, old: str, new: str) -> None:
        self._power.operation("disk.rename")
        self._check(old)
        self._medium.change(new, self._file(old), old)
        self._medium.failed.discard(new)


class SimulatedKv:
    def __init__(self, medium: KvMedium, power: Power) -> None:
        self._medium = medium
        self._power = power

    def get(self, key: bytes) -> bytes | None:
        self._power.check()
        return self._medium.rows.get(key)

    def iterate(self, start: bytes, stop: bytes, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self._power.check()
        medium = self._medium
        keys = medium.keys[bisect_left(medium.keys, start) : bisect_left(medium.keys, stop)]
        rows = [(key, medium.rows[key]) for key in keys]
        return iter(reversed(rows) if reverse else rows)

    def write(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = False) -> None:
        removed = tuple(deletes)
        for key in removed:
            if key in puts:
                raise ValueError(f"row {key.hex()} is both put and deleted in one write")
        self._power.operation("kv.write_sync" if sync else "kv.write")
        medium = self._medium
        for key in removed:
            if medium.rows.pop(key, None) is not None:
                del medium.keys[bisect_left(medium.keys, key)]
        for key, value in puts.items():
            if key not in medium.rows:
                insort(medium.keys, key)
            medium.rows[key] = value
        medium.pending.append((dict(puts), removed))
        if sync:
            medium.settle(len(medium.pending))
            self._power.operation("kv.synced")

    def close(self) -> None:
        self._power.check()


class SimulatedOffload:
    def __init__(self, machine: Computer, power: Power) -> None:
        self._machine = machine
        self._power = power

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """A thread may see the world as it was or as it has become meanwhile: the call is made first, or
        last."""
        self._power.check()
        chance = self._machine.chance
        seconds = chance.uniform(*self._machine.traits.offload_ms) / 1000
        if chance.random() < 0.5:
            await asyncio.sleep(seconds)
            self._power.check()
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            await asyncio.sleep(seconds)
            self._power.check()

    def spread(self, pieces: Sequence[Callable[[], _T]]) -> list[_T]:
        return [piece() for piece in pieces]

    def close(self) -> None:
        self._power.check()


class SimulatedClock:
    """The loop's time; what the wall shows is off by the machine's skew, which a test may change at any
    time."""

    def __init__(self, machine: Computer, power: Power) -> None:
        self._loop = asyncio.get_running_loop()
        self._machine = machine
        self._power = power
        self._random = drawn_from(machine.seed, machine.name, "entropy", machine.boots)
        self._mono_start_ms = machine.chance.randrange(1_000_000)

    def now(self) -> Now:
        # The loop's time is a float: a timer for millisecond m must not find itself in m - 1.
        passed_ms = int(self._loop.time() * 1000 + 1e-3)
        return Now(self._mono_start_ms + passed_ms, EPOCH_MS + passed_ms + self._machine.traits.skew_ms)

    def entropy(self, size: int) -> bytes:
        self._power.check()
        return self._random.randbytes(size)


class Computer:
    """What one process has of a machine, through all of its incarnations: its files, its rows, its power. Processes of
    one machine share the disk's room, and the moment at which the power fails."""

    def __init__(self, name: str, seed: int, traits: Traits | None = None) -> None:
        self.name = name
        self.seed = seed
        self.traits = traits or Traits()
        self.chance = drawn_from(seed, name, "machine")
        self.disk = DiskMedium()
        self.kv = KvMedium()
        self.operations = 0
        self.boots = 0
        self.on_operation: OnOperation | None = None
        self.on_crash: Callable[[], None] | None = None
        """Called within the event loop once the incarnation is gone."""
        self.others: tuple[Computer, ...] = ()
        """The other processes of the same machine."""
        self._power: Power | None = None

    @property
    def running(self) -> bool:
        return self._power is not None

    def free_bytes(self) -> int | None:
        capacity = self.traits.capacity_bytes
        if capacity is None:
            return None
        return max(0, capacity - sum(each.disk.used_bytes() for each in (self, *self.others)))

    def power_on(self) -> Power:
        if self._power is not None:
            raise RuntimeError(f"{self.name} runs already")
        self.boots += 1
        self._power = Power(self)
        return self._power

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """As the process's own: a crash ends this task and all that descend from it."""
        context = copy_context()
        context.run(OWNER.set, self._power)
        return context.run(asyncio.get_running_loop().create_task, work)

    def crash(self) -> None:
        """The power fails: of what was not synced, chance keeps what it likes. Safe within an operation."""
        ending = [each for each in (self, *self.others) if each.running]
        for each in ending:
            each.end(noticed=False)
        for each in ending:
            each.disk.survive(each.chance)
            each.kv.survive(each.chance)

    def kill(self) -> None:
        """The process is killed: it forgets everything, the operating system nothing."""
        if self.end(noticed=True):
            self.disk.failed.clear()
            self.disk.locked.clear()

    def end(self, *, noticed: bool) -> bool:
        """`noticed`: only the process ends, and its system says so to those who are connected."""
        power = self._power
        if power is None:
            return False
        self._power = None
        power.on = False
        self.cut_off(noticed)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for task in loop.running_tasks(owner=power):
            task.cancel()
        if self.on_crash is not None:
            loop.call_soon(self.on_crash)
        return True

    def cut_off(self, noticed: bool) -> None:
        """From the rest of the world: the incarnation is gone."""


class Machine(Computer):
    """A computer that is linked to others."""

    def __init__(
        self, name: str, seed: int, network: Network, endpoint: Endpoint, traits: Traits | None = None
    ) -> None:
        super().__init__(name, seed, traits)
        self._network = network
        self.endpoint = endpoint
        self._links: SimulatedLinks | None = None
        self.data: Companion = NoData()

    def boot(self) -> Ports:
        power = self.power_on()
        self._links = SimulatedLinks(self._network, self.endpoint)
        return Ports(
            links=self._links,
            disk=SimulatedDisk(self, power),
            kv=SimulatedKv(self.kv, power),
            offload=SimulatedOffload(self, power),
            clock=SimulatedClock(self, power),
            data=self.data.core_began(),
        )

    def run(self, main: Callable[[Ports], Coroutine[Any, Any, _T]]) -> asyncio.Task[_T]:
        """Boots and starts `main`."""
        return self.start(main(self.boot()))

    def cut_off(self, noticed: bool) -> None:
        if self._links is not None:
            self._links.cut_power()
            self._links = None
            self.data.core_gone()


class Companion(Protocol):
    """The data process of a machine."""

    def core_began(self) -> Pipe: ...

    def core_gone(self) -> None: ...


class NoData:
    """Of a machine without a data process: nobody is ever there."""

    def core_began(self) -> Pipe:
        return self

    def core_gone(self) -> None: ...

    def send(self, frame: bytes) -> bool:
        return False

    async def receive(self) -> PipeEvent:
        nothing: asyncio.Future[PipeEvent] = asyncio.get_running_loop().create_future()
        return await nothing

    async def close(self) -> None: ...
