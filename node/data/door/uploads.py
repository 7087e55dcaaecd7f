"""How members' blobs come in: a manifest and then its leaves, in any order and from several connections at once; or all
of it as one stream, whose CID is looked at when the last byte is here.

    POST manifest ─▶ lease, which leaves are missing ─▶ PUT each of them ─▶ the last one is answered when the blob is
    durable and found by everybody

No request takes memory before its leave, its sender and the quota were looked at, and none takes more than one leaf
(two as a stream). A buffer goes back when the thread that writes from it is done, whatever became of the client.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue

from chain.cid import LEAF_BYTES, cid_text
from chain.codec import CodecError, decode
from chain.unixfs import MAX_FILE_BYTES, MAX_LEAVES, Manifest, leaf_count, leaf_range
from fl.blobs import BlobKind
from node.data.blobs import Draft, Lease, Staging
from node.data.door.api import DoorApi
from node.data.door.permits import Bearer
from node.data.door.views import OfferView, ProgressView
from node.data.errors import Discarded, NoSpace, QuotaExceeded, TooLarge, WrongManifest
from node.ports import DiskFull, PortError
from node.rpc.problems import Problem
from node.rpc.ranges import CID
from node.rpc.requests import Incoming, Param, Request, Response, integer, json_response

INDEX = Param(
    "index",
    "path",
    integer(0, MAX_LEAVES - 1),
    {"type": "integer", "minimum": 0, "maximum": MAX_LEAVES - 1},
    "Which leaf, counted from 0.",
)

KINDS = frozenset({BlobKind.UPDATE, BlobKind.MODEL, BlobKind.DATASET})
"""The others are made by validators."""
_FRAMING_BYTES = 32
"""Of an encoded manifest, beside its digests."""
MANIFEST_BYTES = 32 * MAX_LEAVES + _FRAMING_BYTES
RESUMED_S = 5.0
"""What came before a restart is hashed again for so long before the client is told what is missing; it may then send
leaves that are here, which harms nobody."""
LEAF_S = 60.0
"""For a leaf to arrive: slower than 17 KiB a second, nothing is of use."""


async def offer(api: DoorApi, request: Request) -> Response:
    """Begins an upload, or says how far it has come."""
    cid, incoming = request[CID], _incoming(request)
    bearer = await api.permits.putter(request, cid)
    kind, size_bytes = _wanted(bearer)
    if incoming.size_bytes > 32 * leaf_count(size_bytes) + _FRAMING_BYTES:
        raise Problem("WRONG_MANIFEST", "It is longer than that of a blob of the size that the leave says.")
    try:
        lease = await api.store.lease(bearer.account, cid, size_bytes, kind)
        manifest = await _read_manifest(api, request, incoming)
        if manifest.size_bytes != size_bytes:
            raise Problem("LEAVE_MISMATCH", "The leave is for a blob of another size.")
        staging = api.store.stage(cid, manifest, kind, bearer.account)
        with suppress(TimeoutError):
            async with asyncio.timeout(RESUMED_S):
                await api.store.resumed(staging)
        if staging.whole:
            await api.store.publish(staging)
    except PortError as error:
        raise _problem(error) from error
    return json_response(_offered(lease, staging))


async def put_leaf(api: DoorApi, request: Request) -> Response:
    cid, index, incoming = request[CID], request[INDEX], _incoming(request)
    bearer = await api.permits.putter(request, cid)
    staging = api.store.staging(cid)
    if staging is None:
        if api.store.find(cid) is None:
            raise Problem("NO_MANIFEST")
        return json_response(ProgressView(missing=0, whole=True))
    if bearer.leave.size_bytes != staging.size_bytes:
        raise Problem("LEAVE_MISMATCH", "The leave is for a blob of another size.")
    if index >= staging.manifest.count:
        raise Problem("BAD_PARAMETER", f"The blob has {staging.manifest.count} leaves.", parameter=INDEX.name)
    start, stop = leaf_range(staging.size_bytes, index)
    if incoming.size_bytes != stop - start:
        raise Problem("WRONG_LEAF", f"Leaf {index} has {stop - start} bytes, not {incoming.size_bytes}.")
    try:
        if not staging.has(index):
            await _take_leaf(api, staging, index, incoming, bearer.account)
        if staging.whole:
            await api.store.publish(staging)
    except PortError as error:
        raise _problem(error) from error
    return json_response(ProgressView(missing=staging.missing_count, whole=staging.whole))


async def put_whole(api: DoorApi, request: Request) -> Response:
    cid, incoming = request[CID], _incoming(request)
    bearer = await api.permits.putter(request, cid)
    kind, size_bytes = _wanted(bearer)
    if incoming.size_bytes != size_bytes:
        raise Problem("LEAVE_MISMATCH", f"The leave is for {size_bytes} bytes, not {incoming.size_bytes}.")
    try:
        lease = await api.store.lease(bearer.account, cid, size_bytes, kind)
        draft = await _take_stream(api, incoming, kind, bearer.account)
        if draft.cid != cid:
            await api.offload.run(api.store.drop, draft)
            raise Problem("WRONG_CID", f"The bytes hash to {cid_text(draft.cid)}; nothing of them is kept.")
        blob = await api.store.keep(draft)
    except PortError as error:
        raise _problem(error) from error
    return json_response(
        OfferView(
            lease_until_ms=lease.until_ms,
            size_bytes=blob.size_bytes,
            leaves=blob.manifest.count,
            missing=_bits(bytes(-(-blob.manifest.count // 8))),
            whole=True,
        )
    )


def _incoming(request: Request) -> Incoming:
    assert request.incoming is not None
    return request.incoming


def _wanted(bearer: Bearer) -> tuple[BlobKind, int]:
    leave = bearer.leave
    if leave.kind not in KINDS:
        raise Problem("KIND_NOT_TAKEN")
    if leave.size_bytes > MAX_FILE_BYTES:
        raise Problem("BODY_TOO_LARGE", f"A blob has at most {MAX_FILE_BYTES} bytes.")
    return BlobKind(leave.kind), leave.size_bytes


async def _read_manifest(api: DoorApi, request: Request, incoming: Incoming) -> Manifest:
    limits = api.reception.limits
    api.reception.turnstile.begin_body(incoming.size_bytes)
    request.held_bytes += incoming.size_bytes
    body = bytearray(incoming.size_bytes)
    await incoming.fill(memoryview(body), limits.body_s)
    try:
        return await api.offload.run(decode, Manifest, bytes(body), MANIFEST_BYTES)
    except CodecError as error:
        raise Problem("MALFORMED_BODY", f"Not a manifest: {error}.") from None


def _offered(lease: Lease, staging: Staging) -> OfferView:
    count = staging.manifest.count
    bits = bytearray(~byte & 0xFF for byte in staging.bitmap())
    if count % 8:
        bits[-1] &= (1 << count % 8) - 1
    return OfferView(
        lease_until_ms=lease.until_ms,
        size_bytes=staging.size_bytes,
        leaves=count,
        missing=_bits(bits),
        whole=staging.whole,
    )


def _bits(bits: bytes | bytearray) -> str:
    return base64.b64encode(bits).decode()


async def _take_leaf(api: DoorApi, staging: Staging, index: int, incoming: Incoming, account: bytes) -> None:
    buffer = await api.buffers.in_turn(account)
    try:
        leaf = memoryview(buffer)[: incoming.size_bytes]
        await incoming.fill(leaf, LEAF_S)
        writing = asyncio.ensure_future(api.offload.run(staging.put, index, leaf))
    except BaseException:
        api.buffers.give(account, buffer)
        raise
    writing.add_done_callback(lambda _: api.buffers.give(account, buffer))
    if not await asyncio.shield(writing):
        raise Problem("WRONG_LEAF", f"The bytes are not those of leaf {index}.")


# As one stream


class _Inflow:
    """Leaves on their way from the loop, which receives them, to a thread, which hashes and writes: one is filled
    while the other is written."""

    def __init__(self, buffers: list[bytearray]) -> None:
        self._loop = asyncio.get_running_loop()
        self._empty: asyncio.Queue[bytearray | None] = asyncio.Queue()
        self._full: SimpleQueue[tuple[bytearray, int] | None] = SimpleQueue()
        for buffer in buffers:
            self._empty.put_nowait(buffer)

    async def pour(self, incoming: Incoming) -> None:
        """Returns early if nobody writes any more."""
        left = incoming.size_bytes
        while left:
            buffer = await self._empty.get()
            if buffer is None:
                return
            size = min(left, LEAF_BYTES)
            await incoming.fill(memoryview(buffer)[:size], LEAF_S)
            self._full.put((buffer, size))
            left -= size
        self._full.put((bytearray(), 0))

    def stop(self) -> None:
        """Ends the writing, if it has not come to its end."""
        self._full.put(None)

    def over(self) -> None:
        """Nobody writes any more."""
        self._empty.put_nowait(None)

    def leaves(self) -> Iterator[memoryview]:
        """For the thread."""
        while True:
            item = self._full.get()
            if item is None:
                raise _Stopped
            buffer, size = item
            if not size:
                return
            yield memoryview(buffer)[:size]
            self._loop.call_soon_threadsafe(self._empty.put_nowait, buffer)


class _Stopped(Exception):
    """The sender is gone."""


async def _take_stream(api: DoorApi, incoming: Incoming, kind: BlobKind, account: bytes) -> Draft:
    """A draft that nobody waits for any more is dropped."""
    with api.stream_place(account) as place:
        inflow = _Inflow(place.buffers)
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(api.streaming, api.store.write, kind, inflow.leaves(), account)
        writing.add_done_callback(lambda _: inflow.over())
        place.until(writing)
        try:
            await inflow.pour(incoming)
            return await asyncio.shield(writing)
        except BaseException:
            inflow.stop()
            writing.add_done_callback(lambda done: _drop(api, done))
            raise


def _drop(api: DoorApi, written: asyncio.Future[Draft]) -> None:
    if not written.cancelled() and written.exception() is None:
        api.streaming.submit(api.store.drop, written.result())


def _problem(error: PortError) -> Problem:
    """As what the store's refusals are answered; what is no refusal is raised again."""
    match error:
        case QuotaExceeded():
            return Problem("QUOTA_EXCEEDED", str(error))
        case NoSpace() | DiskFull():
            return Problem("DISK_FULL")
        case TooLarge():
            return Problem("BODY_TOO_LARGE", str(error))
        case WrongManifest():
            return Problem("WRONG_MANIFEST", str(error))
        case Discarded():
            return Problem("NO_MANIFEST", str(error))
        case _:
            raise error
