"""The ports: all that a validator can do to the world, and all that the world can do to it.

What enters: frames of authenticated peers, bytes of files, rows, the time, randomness. What leaves: frames,
bytes, rows. The Protocols below are what the rest of `node/` knows; the real ones stand beside them (`links`,
`disk`, `kv`, `offload`, `clock`), the simulated ones in `tests/simulation/`, and one suite of tests holds
both to the same promises.

Two promises that everything else leans on. Nothing is durable before `sync` has returned, and a file whose
sync failed once is failed for good: the kernel may have dropped the pages and would report success the next
time. And every queue has a bound: a slow peer or a slow disk costs answers, never memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, ParamSpec, Protocol, TypeAlias, TypeVar

from consensus.effects import Now
from consensus.messages import Channel

__all__ = [
    "AlreadyLocked",
    "Buffer",
    "Bulk",
    "Channel",
    "Clock",
    "DataPorts",
    "Disk",
    "DiskFailure",
    "DiskFull",
    "Down",
    "Frame",
    "Kv",
    "LeafOutcome",
    "LinkEvent",
    "Links",
    "NoSuchFile",
    "Now",
    "Offload",
    "Peer",
    "PeerAddress",
    "PeerGone",
    "Pipe",
    "PipeDown",
    "PipeEvent",
    "PipeUp",
    "PortError",
    "Ports",
    "Serve",
    "Up",
    "check_name",
]

Peer = bytes
"""A validator, named by its consensus key (33 bytes)."""

Buffer: TypeAlias = bytes | bytearray | memoryview

_P = ParamSpec("_P")
_T = TypeVar("_T")


class PortError(Exception):
    """The world did not do what was asked. The sentence says what failed and what the operator can do."""

    code: ClassVar[str] = "PORT"


class DiskFailure(PortError):
    """Bytes may be lost. Nothing that depends on them may leave this process any more."""

    code = "DISK_FAILURE"


class DiskFull(DiskFailure):
    """There was no room. Raised by an append, it has left the file as it was."""

    code = "DISK_FULL"


class NoSuchFile(DiskFailure):
    code = "NO_SUCH_FILE"


class AlreadyLocked(PortError):
    """Another process works in this directory. Two nodes with one key would contradict each other."""

    code = "ALREADY_LOCKED"


_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
TEMPORARY = ".tmp"
"""Ends the names of files that are being written whole; they are never listed."""


def check_name(name: str) -> None:
    """A file is `name` or `directory/name`: no name can lead out of the disk's own directory."""
    parts = name.split("/")
    if len(parts) > 2:
        raise ValueError(f"file name {name!r} has more than one directory level")
    for part in parts:
        if not part or part[0] == "." or len(part) > 128 or not _NAME_CHARACTERS.issuperset(part):
            raise ValueError(f"file name {name!r} is not made of letters, digits, '.', '_' and '-'")
    if name.endswith(TEMPORARY):
        raise ValueError(f"file name {name!r} is reserved for files being written")


class Clock(Protocol):
    def now(self) -> Now: ...

    def entropy(self, size: int) -> bytes:
        """Unpredictable bytes."""


class Disk(Protocol):
    """Files below one directory of this node. Only `sync` and `write_whole` make anything durable."""

    def append(self, name: str, *pieces: bytes) -> None:
        """All of the pieces, one after the other, or nothing; creates the file. Raises DiskFull with the file
        unchanged, or DiskFailure."""

    async def sync(self, *names: str) -> None:
        """Makes durable all that was done to the files before the call, and their places in their directories: of each
        file before anything of the next."""

    async def write_whole(self, name: str, data: bytes) -> None:
        """Replaces the file, durably: after a crash it holds the old bytes or the new ones, never a mixture.

        One write of a name at a time.
        """

    def write_at(self, name: str, offset: int, data: Buffer) -> None:
        """Creates the file; what lies between its end and `offset` reads as zeros. Different places of one file
        may be written from several threads at once. Raises DiskFull or DiskFailure, the place then undefined."""

    def view(self, name: str) -> memoryview:
        """The whole file, read-only and mapped, not copied: it outlives an unlink, and must not be asked for of a
        file that is still written or cut. Raises NoSuchFile."""

    def in_use(self, name: str) -> bool:
        """Whether anybody in this process reads, writes or syncs the file at this moment, or holds a view of it or of
        a part of it. Raises NoSuchFile."""

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """At most `size` bytes from `offset`, fewer at the end of the file. Raises NoSuchFile."""

    def size(self, name: str) -> int | None:
        """None if there is no such file."""

    def truncate(self, name: str, size: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Within one directory; replaces `new`. Durable with the next `sync(new)`."""

    def unlink(self, name: str) -> None:
        """Durable with the next sync in that directory; until then the file may come back after a crash."""

    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""

    def free_bytes(self) -> int: ...

    def lock(self, name: str) -> None:
        """Held until `close` or the end of the process. Raises AlreadyLocked."""

    def close(self) -> None: ...


class Kv(Protocol):
    """An ordered store of rows. Writes without `sync` may be lost by a crash, the newest first, never half
    of one."""

    def get(self, key: bytes) -> bytes | None: ...

    def iterate(self, start: bytes, stop: bytes, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, as they were when this was called."""

    def write(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = False) -> None:
        """All of it or nothing; a key must not be in both. Synced, it makes every earlier write durable
        too."""

    def close(self) -> None: ...


def after(prefix: bytes) -> bytes:
    """The first key beyond all that begin with the prefix."""
    prefix = prefix.rstrip(b"\xff")
    return prefix[:-1] + bytes((prefix[-1] + 1,))


class Offload(Protocol):
    """Work that would hold the event loop for longer than a frame may wait."""

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T: ...

    def spread(self, pieces: Sequence[Callable[[], _T]]) -> list[_T]:
        """For a function that `run` runs: does its work in pieces, on other threads too, and gives their results."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a validator listens, and the key that whoever answers there must prove to hold."""

    link_key: bytes
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Frame:
    peer: Peer
    channel: Channel
    data: bytes


@dataclass(frozen=True, slots=True)
class Up:
    """The channel carries frames from here on; whatever was sent before may be lost."""

    peer: Peer
    channel: Channel = Channel.CONSENSUS


@dataclass(frozen=True, slots=True)
class Down:
    peer: Peer
    channel: Channel = Channel.CONSENSUS


LinkEvent = Frame | Up | Down


class Links(Protocol):
    """Authenticated connections to the other validators, one a peer and channel, dialled again for ever.

    Per peer and channel: Up comes before the frames, Down after them, and frames keep their order. A frame
    can be lost (with its link, or dropped from a full queue), so whoever needs an answer asks again.
    """

    async def start(self, peers: Mapping[Peer, PeerAddress]) -> None: ...

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None:
        """Replaces the set of peers; links to those that stay as they were are not touched."""

    def send(self, peer: Peer, channel: Channel, frame: bytes) -> bool:
        """False if the frame was dropped because there is no link or its queue is full.

        A full CONSENSUS queue drops its oldest frames instead, for the newest votes and certificates
        supersede them; a full DATA queue drops the frame that was offered, for the peer pulls what it lacks.
        """

    async def receive(self) -> LinkEvent:
        """The next event, consensus before data, though data is never starved. For one task at a time."""

    @property
    def waiting(self) -> int:
        """How many events `receive` would give at once."""

    def punish(self, peer: Peer, reason: str) -> None:
        """Drops the links to a peer that misbehaved and refuses it for a while, longer each time."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PipeUp:
    """The other process is there, and knows nothing of what was said before."""


@dataclass(frozen=True, slots=True)
class PipeDown:
    """The other process is gone; frames that it did not answer may or may not have reached it."""


PipeEvent = bytes | PipeUp | PipeDown


class Pipe(Protocol):
    """Frames between the two processes of one validator, in order. The core's end lets the data process be started
    again whenever it is gone; at the data process's end PipeDown is the last event."""

    def send(self, frame: bytes) -> bool:
        """False if nobody is there. Requests that wait for answers bound what is under way."""

    async def receive(self) -> PipeEvent: ...

    async def close(self) -> None: ...


class LeafOutcome(Enum):
    TAKEN = auto()
    REJECTED = auto()
    """`take` said that these are not the leaf's bytes."""
    ABSENT = auto()
    """The peer says that it does not have it."""


class PeerGone(PortError):
    """No connection to this peer, or it ended before the answer came."""

    code = "PEER_GONE"


Serve = Callable[[Peer, bytes], Buffer]
"""The answer to a peer's request; called on a thread of its own connection. What it returns may be a part of a
mapped file."""


class Bulk(Protocol):
    """Connections for bytes in bulk, apart from the links: each side asks on one that it dialled, and answers on those
    that others dialled. Blocking sockets on threads: an event loop never touches the bytes."""

    @property
    def own(self) -> Peer: ...

    def peers(self) -> frozenset[Peer]:
        """All others, reachable or not, as `start` and `update` named them last."""

    async def start(self, peers: Mapping[Peer, PeerAddress], serve: Serve) -> int:
        """The port that is listened on."""

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None: ...

    async def ask(self, peer: Peer, request: bytes, limit_bytes: int) -> bytes:
        """Raises PeerGone. Several requests to one peer may be under way; it answers in their order."""

    async def leaf(
        self, peer: Peer, request: bytes, size_bytes: int, take: Callable[[memoryview], bool]
    ) -> LeafOutcome:
        """An answer of exactly `size_bytes`, given to `take` on the receiving thread; an empty one is ABSENT. The
        memory is used again when `take` returns. Raises PeerGone."""

    def punish(self, peer: Peer, reason: str) -> None:
        """Ends the connections and refuses that peer for a while, longer each time."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """What one incarnation of a node is given."""

    links: Links
    disk: Disk
    kv: Kv
    offload: Offload
    clock: Clock
    data: Pipe
    """To the data process."""


@dataclass(frozen=True, slots=True)
class DataPorts:
    """What one incarnation of a data process is given; disk and rows are its own."""

    core: Pipe
    bulk: Bulk
    disk: Disk
    kv: Kv
    offload: Offload
    clock: Clock
