"""The data process at work: what the core asks is done here, and answered once it is true.

Each request is a task of its own, so that one that waits for a blob nobody has holds up nothing. What is acknowledged
is on the disk. A disk that fails ends the process after it has said so, for nothing can be promised any more; a disk
that is full ends nothing: what needs room waits for it, or is refused with words. With its pipe, the process ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, repeat

from chain.cid import cid_text
from chain.codec import CodecError
from chain.unixfs import LEAF_BYTES, manifest_cid, zeros_manifest
from fl.blobs import BlobKind, Demand
from fl.errors import Refused
from fl.tensors.layout import Schema
from fl.tensors.model import model_form
from node.data.arrivals import Arrivals, Elsewhere
from node.data.blobs import Blob, BlobLimits, BlobStore, Staging
from node.data.errors import NoSpace, QuotaExceeded, TooLarge
from node.data.judging import Judging, Verdict
from node.data.messages import (
    BLOB_BYTES,
    Add,
    Begin,
    Close,
    DataPeer,
    Done,
    Drop,
    Failed,
    Figure,
    Figures,
    Finding,
    Forget,
    Judge,
    Judged,
    Keep,
    Kept,
    Mark,
    Marked,
    Obtain,
    Opened,
    Peers,
    Roots,
    Standing,
    Swept,
    Zeros,
    from_frame,
    to_frame,
)
from node.data.pile import Pile
from node.data.questions import Questions
from node.data.summing import CannotSum, Sums
from node.data.swarm import Swarm, SwarmLimits
from node.ports import Buffer, DataPorts, DiskFailure, DiskFull, Peer, PeerAddress, PipeDown, PipeUp, PortError

log = logging.getLogger("quorate.data")

FIGURES_S = 1.0
MAX_FIGURES = 64
LAST_WORDS_S = 0.05
"""From the failure of the disk to the end, for the answers that it is."""

_ZEROS = memoryview(bytes(LEAF_BYTES))

Gauge = Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class DataLimits:
    blobs: BlobLimits
    sums_bytes: int = 1024 * 1024 * 1024
    downloads: int = 8


class DataNode:
    """Opened by `open`; `run` returns when the pipe has ended and raises DiskFailure when the disk has failed."""

    def __init__(
        self,
        ports: DataPorts,
        store: BlobStore,
        limits: DataLimits,
        elsewhere: Elsewhere | None,
        check_kernels: Callable[[], None] | None,
    ) -> None:
        self.store = store
        self.limits = limits
        self.swarm = Swarm(store, ports.bulk, ports.clock, SwarmLimits(downloads=limits.downloads))
        self.arrivals = Arrivals(store, self.swarm, elsewhere)
        self.judging = Judging(store, ports.offload, self.arrivals)
        numbers = count(1)
        self.sums = Sums(
            store,
            ports.offload,
            self.arrivals,
            lambda: Pile(ports.disk, store.reserve, next(numbers)),
            limits.sums_bytes,
            check_kernels,
        )
        self.questions = Questions(ports.clock, self._say)
        self.gauges: list[Gauge] = []
        """Of whoever works beside it; said to the core with its own figures."""
        self._ports = ports
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._roots: tuple[int, set[bytes]] = (0, set())
        self._failure: asyncio.Future[None] | None = None

    @classmethod
    async def open(
        cls,
        ports: DataPorts,
        limits: DataLimits,
        *,
        elsewhere: Callable[[BlobStore], Elsewhere] | None = None,
        check_kernels: Callable[[], None] | None = None,
    ) -> DataNode:
        """Takes up what the disk holds. Raises a PortError whose sentence says what is wrong with it."""
        store = await BlobStore.open(ports.disk, ports.kv, ports.clock, ports.offload, limits.blobs)
        return cls(ports, store, limits, None if elsewhere is None else elsewhere(store), check_kernels)

    async def run(self, door: tuple[str, int] = ("", 0)) -> None:
        """`door` is where clients are served, for the core to tell them."""
        self._failure = asyncio.get_running_loop().create_future()
        self.store.doubted = self._fail
        port = await self._ports.bulk.start({}, self.swarm.serve)
        self._say(Opened(port, *door))
        work: list[asyncio.Task[None]] = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (("core", self._hear()), ("sums", self.sums.run()), ("figures", self._figures()))
        ]
        repairs = [asyncio.create_task(self._repaired(each), name="repair") for each in self.store.lost]
        try:
            await asyncio.wait({*work, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                await asyncio.sleep(LAST_WORDS_S)
                self._failure.result()
            for task in work:
                if task.done():
                    task.result()
        finally:
            if not self._failure.cancel():
                # Whoever ends this process meanwhile need not hear of it.
                self._failure.exception()
            tasks = [*work, *repairs, *self._requests.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._ports.bulk.close()
            await self.store.close()

    async def obtain(self, cid: bytes, kind: BlobKind, account: bytes = b"") -> Blob:
        """From wherever it can be had; for ever, if it cannot be had."""
        blob = await self.arrivals.obtain(cid, kind, account)
        self.store.touch(cid)
        return blob

    async def _repaired(self, lost: Staging) -> None:
        """What the disk lost is brought back, as far as anybody has it."""
        log.warning(
            "the disk has lost some of a blob", extra={"cid": cid_text(lost.cid), "leaves": len(lost.missing())}
        )
        try:
            await self.obtain(lost.cid, lost.kind, lost.account)
        except DiskFailure as failure:
            self._fail(failure)

    # What the core says

    async def _hear(self) -> None:
        while True:
            match await self._ports.core.receive():
                case PipeDown():
                    return
                case PipeUp():
                    pass
                case frame:
                    try:
                        message = from_frame(bytes(frame))
                    except CodecError as error:
                        log.error("the core said what cannot be read", extra={"reason": str(error)})
                        continue
                    await self._take(message)

    async def _take(self, message: object) -> None:
        match message:
            case Peers(peers):
                await self._ports.bulk.update(_addresses(peers))
            case Standing():
                self.questions.answered(message)
            case Forget(number):
                if (task := self._requests.get(number)) is not None:
                    task.cancel()
            case Begin():
                self.sums.begin(message)
            case Drop(job, number):
                self.sums.drop(job, number)
            case Judge(number):
                self._answer(number, self._judge(message))
            case Obtain(number, cid, kind):
                self._answer(number, self._obtain(number, cid, BlobKind(kind)))
            case Keep(number, kind, data):
                self._answer(number, self._keep(number, BlobKind(kind), data))
            case Zeros(number, schema):
                self._answer(number, self._zeros(number, schema))
            case Add(number):
                self._answer(number, self._add(message))
            case Close(number):
                self._answer(number, self.sums.close(message))
            case Mark(number):
                self._answer(number, self._mark(number))
            case Roots(number):
                self._answer(number, self._sweep(message))
            case _:
                log.error("the core said what only a data process says", extra={"type": type(message).__name__})

    def _say(self, message: object) -> None:
        self._ports.core.send(to_frame(message))

    def _answer(self, number: int, answer: Coroutine[object, object, object]) -> None:
        task = asyncio.create_task(self._answered(number, answer), name=f"request-{number}")
        self._requests[number] = task
        task.add_done_callback(lambda _: self._requests.pop(number, None))

    async def _answered(self, number: int, answer: Coroutine[object, object, object]) -> None:
        failure: DiskFailure | None = None
        try:
            message = await answer
        except (NoSpace, QuotaExceeded, TooLarge, DiskFull) as full:
            message = Failed(number, "DISK_FULL", _cut(str(full)))
        except DiskFailure as error:
            failure, message = error, Failed(number, error.code, _cut(str(error)))
        except (Refused, CannotSum, PortError) as refused:
            message = Failed(number, refused.code, _cut(str(refused)))
        except Exception as error:
            log.exception("a request of the core could not be done", extra={"code": "FAULT"})
            message = Failed(number, "FAULT", _cut(f"{type(error).__name__}: {error}"))
        self._say(message)
        if failure is not None:
            self._fail(failure)

    def _fail(self, failure: DiskFailure) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(failure)

    async def _judge(self, asked: Judge) -> Judged:
        demand = Demand(asked.claim, asked.rules)
        if asked.wait:
            verdict = await self.judging.in_time(demand, asked.sources)
        else:
            verdict = await self.judging.at_once(demand)
        return _judged(asked.id, verdict)

    async def _obtain(self, number: int, cid: bytes, kind: BlobKind) -> Judged:
        self._expect(kind)
        await self.store.classify(await self.obtain(cid, kind), kind)
        return _judged(number, Verdict(Finding.OK))

    async def _keep(self, number: int, kind: BlobKind, data: bytes) -> Kept:
        """Without it the core does not go on, and it is small: as everything of the core's, it takes of the reserve."""
        self._expect(kind)
        draft = await self._ports.offload.run(self.store.write, kind, iter((data,)), from_reserve=True)
        cid = (await self.store.keep(draft)).cid
        self.store.touch(cid)
        return Kept(number, cid)

    async def _zeros(self, number: int, schema: Schema) -> Kept:
        self._expect(BlobKind.MODEL)
        form = model_form(schema)
        cid = manifest_cid(await self._ports.offload.run(zeros_manifest, form.header, form.size_bytes))
        if self.store.find(cid) is None:
            zeros = _zero_model(form.header, form.size_bytes)
            await self.store.keep(await self._ports.offload.run(self.store.write, BlobKind.MODEL, zeros))
        self.store.touch(cid)
        return Kept(number, cid)

    def _expect(self, kind: BlobKind) -> None:
        """A model comes with a job."""
        if kind == BlobKind.MODEL:
            self.sums.expect()

    async def _add(self, asked: Add) -> Done:
        await self.sums.add(asked)
        return Done(asked.id)

    async def _mark(self, number: int) -> Marked:
        return Marked(number, self.store.mark())

    async def _sweep(self, piece: Roots) -> Swept:
        token, roots = self._roots
        if token != piece.token:
            roots = set()
        roots.update(piece.cids)
        self._roots = (piece.token, roots)
        if not piece.last:
            return Swept(piece.id, 0, 0)
        self._roots = (0, set())
        return Swept(piece.id, *await self.store.sweep(piece.token, roots | self.sums.made()))

    # What is said to it unasked

    async def _figures(self) -> None:
        while True:
            self.sums.tidy(self._ports.clock.now().mono_ms)
            figures = self.figures()
            named = tuple(Figure(name, max(0, value)) for name, value in sorted(figures.items()))[:MAX_FIGURES]
            self._say(Figures(self.store.full, self.store.reserve.free_bytes, named))
            await asyncio.sleep(FIGURES_S)

    def figures(self) -> dict[str, int]:
        own = {
            "blobs": self.store.count,
            BLOB_BYTES: self.store.size_bytes,
            "blank_bytes": self.store.blanks.size_bytes,
            "blobs_lost": len(self.store.lost),
            "staged_bytes": self.store.staged_bytes,
            "requests": len(self._requests),
            "arrivals": self.arrivals.under_way,
            "arrivals_without_room": self.arrivals.without_room,
            "sums": self.sums.open,
            "sums_bytes": self.sums.held_bytes,
            "sums_waiting": self.sums.waiting,
        }
        own |= self.swarm.figures()
        for gauge in self.gauges:
            own |= gauge()
        return own


def _addresses(peers: Sequence[DataPeer]) -> dict[Peer, PeerAddress]:
    """One for each link key: a validator whose consensus key changes with the epoch is named by both for a while, and
    is reached by the one whose address is known, or the newer."""
    by_link_key: dict[bytes, DataPeer] = {}
    for peer in peers:
        if peer.port or peer.link_key not in by_link_key:
            by_link_key[peer.link_key] = peer
    return {peer.key: PeerAddress(peer.link_key, peer.host, peer.port) for peer in by_link_key.values()}


def _judged(number: int, verdict: Verdict) -> Judged:
    return Judged(number, verdict.finding, verdict.code)


def _zero_model(header: bytes, size_bytes: int) -> Iterator[Buffer]:
    yield header
    whole, rest = divmod(size_bytes - len(header), LEAF_BYTES)
    yield from repeat(_ZEROS, whole)
    yield _ZEROS[:rest]


def _cut(sentence: str) -> str:
    return sentence.encode()[:1024].decode(errors="ignore")
