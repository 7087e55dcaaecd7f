"""How blobs are read: by range from their mapped files, with what is known of them, and in lists.

Public kinds go to anyone. Of the others a stranger learns nothing, not even that they are here; they go to the member
whose they are, to auditors and to the operators of validators, each showing a leave to read this very blob.

The loop never waits for the disk: a piece is brought into memory by a thread before it is written, and the next one
is asked for when the client has taken it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from http import HTTPStatus

import numpy as np

from chain.cid import LEAF_BYTES, cid_text
from chain.codec import encode
from chain.unixfs import leaf_range
from fl.blobs import PUBLIC_KINDS
from node.data import gateway
from node.data.blobs import Blob, Listed
from node.data.door.api import DoorApi
from node.data.door.permits import CHALLENGE, NO_CID, Bearer
from node.data.door.views import BlobsView, LeasesView, blob_view, lease_view
from node.ports import Buffer, NoSuchFile
from node.rpc.problems import Problem
from node.rpc.ranges import CID, wanted_part
from node.rpc.requests import (
    JSON,
    LIMIT,
    OCTETS,
    Param,
    Request,
    Response,
    json_response,
    raw,
    read_cid,
    read_query,
    split_target,
)

PIECE_BYTES = 256 * 1024
SCANNED = 1_000
"""The most blobs that one page of a list looks at."""

CURSOR: Param[bytes | None] = Param("cursor", "query", read_cid, dict(CID.schema), "`next` of the page before.", None)


async def blob(api: DoorApi, request: Request) -> Response:
    found = await _readable(api, request)
    part = wanted_part(request, found.cid, found.size_bytes, public=found.public)
    view = _view(api, found)[part.start : part.stop]
    if part.status == HTTPStatus.NOT_MODIFIED or (len(view) <= PIECE_BYTES and request.method != "HEAD"):
        return Response(bytes(view), OCTETS, part.status, part.headers)
    pieces = _pieces(api, view)
    return Response(b"", OCTETS, part.status, part.headers, size_bytes=len(view), pieces=pieces)


async def stat(api: DoorApi, request: Request) -> Response:
    return json_response(blob_view(await _readable(api, request)))


async def manifest(api: DoorApi, request: Request) -> Response:
    found = await _readable(api, request)
    return raw(await api.offload.run(encode, found.manifest))


async def blobs(api: DoorApi, request: Request) -> Response:
    """Public ones, the bearer's own, or all."""
    bearer = await api.permits.reader(request, NO_CID)
    limit, last = request[LIMIT], request[CURSOR]
    shown: list[Listed] = []
    looked_at = 0
    while looked_at < SCANNED:
        page = api.store.blobs(last, limit)
        if not page:
            last = None
            break
        for each in page:
            last = each.cid
            looked_at += 1
            if _may_read(bearer, each):
                shown.append(each)
            if len(shown) == limit:
                break
        if len(shown) == limit:
            break
    return json_response(BlobsView(blobs=[blob_view(each) for each in shown], next=cid_text(last) if last else None))


async def leases(api: DoorApi, request: Request) -> Response:
    bearer = await api.permits.reader(request, NO_CID)
    if bearer is None:
        raise Problem("NO_LEAVE", headers=CHALLENGE)
    if not bearer.current_key:
        raise Problem.beside("WRONG_KEY")
    account = bearer.account
    held = sorted(api.store.leases(account), key=lambda lease: lease.cid)
    return json_response(
        LeasesView(leased_bytes=api.store.leased_bytes(account), leases=[lease_view(lease) for lease in held])
    )


async def _readable(api: DoorApi, request: Request) -> Blob:
    found = api.store.find(request[CID])
    if found is not None and found.public:
        return found
    bearer = await api.permits.reader(request, request[CID])
    if bearer is None or (not bearer.member and not bearer.sees_all):
        raise Problem("UNKNOWN_BLOB", headers=CHALLENGE)
    if found is None:
        raise Problem("UNKNOWN_BLOB")
    if not _may_read(bearer, found):
        raise Problem("BLOB_NOT_YOURS")
    return found


def _may_read(bearer: Bearer | None, of: Blob | Listed) -> bool:
    if of.kind in PUBLIC_KINDS:
        return True
    return bearer is not None and (bearer.sees_all or bearer.owns(of.account))


def _view(api: DoorApi, found: Blob) -> memoryview:
    try:
        return api.store.view(found.cid)
    except NoSuchFile:
        raise Problem("UNKNOWN_BLOB") from None


async def _pieces(api: DoorApi, view: memoryview) -> AsyncGenerator[Buffer, None]:
    for start in range(0, len(view), LEAF_BYTES):
        leaf = view[start : start + LEAF_BYTES]
        await api.offload.run(bring_in, leaf)
        for offset in range(0, len(leaf), PIECE_BYTES):
            yield leaf[offset : offset + PIECE_BYTES]


def bring_in(view: memoryview) -> None:
    """Every page of it is read, without the interpreter's lock, so that nobody waits for the disk with it."""
    if view:
        np.frombuffer(view, np.uint8).max()


# The gateway of IPFS


async def ipfs(api: DoorApi, request: Request) -> Response:
    headers = {name.lower(): text for name, text in request.headers.items()}
    segments, query = split_target(request.target)
    asked = gateway.Request(request.method, "/" + "/".join(segments), read_query(query) if query else {}, headers)
    answer = await api.offload.run(gateway.answer, asked, _blocks(api))
    fields = dict(answer.headers)
    media_type = fields.pop("Content-Type", JSON)
    size = fields.pop("Content-Length", None)
    if answer.status == HTTPStatus.NOT_MODIFIED:
        return Response(b"", media_type, answer.status, fields)
    return Response(
        b"",
        media_type,
        answer.status,
        fields,
        size_bytes=None if size is None else int(size),
        pieces=_drawn(api, answer.body),
    )


def _blocks(api: DoorApi) -> Callable[[bytes], Buffer | None]:
    store = api.store

    def block(cid: bytes) -> Buffer | None:
        found = store.block(cid)
        if found is None or isinstance(found, bytes):
            return found
        owner, index = found
        start, stop = leaf_range(owner.size_bytes, index)
        try:
            leaf = store.view(owner.cid)[start:stop]
        except NoSuchFile:
            return None
        bring_in(leaf)
        return leaf

    return block


async def _drawn(api: DoorApi, body: Iterator[Buffer]) -> AsyncGenerator[Buffer, None]:
    while (piece := await api.offload.run(next, body, None)) is not None:
        view = memoryview(piece)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
