"""The door's tables. The public one is in the core's OpenAPI document too, for that is where clients look first."""

from __future__ import annotations

from typing import Any

from chain.cid import LEAF_BYTES
from chain.unixfs import MAX_FILE_BYTES
from node.data import gateway
from node.data.door import downloads, operator, uploads, views
from node.data.door.api import DoorApi
from node.rpc.ranges import CID
from node.rpc.requests import JSON, LIMIT, MSGPACK, OCTETS, Param, Request, Response
from node.rpc.table import LIST_COST, PROOF_COST, Answer, Body, Handler, Route

_LEAVES = ("NO_LEAVE", "LEAVE_EXPIRED", "LEAVE_MISMATCH", "WRONG_KEY", "CORE_DOWN")
_PUTTING = (*_LEAVES, "NOT_MEMBER", "MALFORMED_BODY", "LENGTH_REQUIRED", "DISK_FULL")
_READING = (*_LEAVES, "UNKNOWN_BLOB", "BLOB_NOT_YOURS")
_NEW = ("KIND_NOT_TAKEN", "QUOTA_EXCEEDED")

BLOCK = Param("block", "path", str, {"type": "string", "minLength": 1}, "The CID of a block.")

_MANIFEST = {
    "type": "string",
    "contentMediaType": MSGPACK,
    "description": "The canonical msgpack of the blob's size and the sha2-256 digests of its leaves, one string.",
}


def _bytes(about: str, most: int, media_type: str = OCTETS) -> Body:
    return Body({media_type: ({"type": "string", "description": about}, most)}, streamed=True)


def _get(
    path: str,
    handler: Handler[DoorApi],
    summary: str,
    view: Any,
    *params: Param[Any],
    problems: tuple[str, ...] = _READING,
    cost: int = 1,
    media_type: str = JSON,
) -> Route[DoorApi]:
    answers = {200: Answer(media_type, view)}
    return Route("GET", path, handler, summary, answers, params, problems, cost=cost, leave=True)


def _blob(path: str, summary: str) -> Route[DoorApi]:
    answers = {
        200: Answer(OCTETS, None, "The whole blob."),
        206: Answer(OCTETS, None, "The range that was asked for."),
        304: Answer(OCTETS, None, "The client has it."),
    }
    return Route("GET", path, downloads.blob, summary, answers, (CID,), (*_READING, "BAD_RANGE"), leave=True)


async def _openapi(api: DoorApi, request: Request) -> Response:
    return Response(api.openapi, JSON)


BLOBS: tuple[Route[DoorApi], ...] = (
    _get(
        "/v1/blobs",
        downloads.blobs,
        "Blobs that are whole here: public ones, one's own, or all to those who may see them.",
        views.BlobsView,
        downloads.CURSOR,
        LIMIT,
        problems=_LEAVES,
        cost=LIST_COST,
    ),
    Route(
        "POST",
        "/v1/blobs/{cid}",
        uploads.offer,
        "Begin an upload, or ask how far it has come.",
        {200: Answer(JSON, views.OfferView, "The blob has a lease; these leaves are missing.")},
        (CID,),
        (*_PUTTING, *_NEW, "WRONG_MANIFEST", "NO_MANIFEST"),
        Body({MSGPACK: (_MANIFEST, uploads.MANIFEST_BYTES)}, streamed=True),
        cost=PROOF_COST,
        leave=True,
    ),
    Route(
        "PUT",
        "/v1/blobs/{cid}/leaves/{index}",
        uploads.put_leaf,
        "Send a leaf. The last one is answered when the blob is durable.",
        {200: Answer(JSON, views.ProgressView)},
        (CID, uploads.INDEX),
        (*_PUTTING, "NO_MANIFEST", "WRONG_LEAF"),
        _bytes("The leaf: 1 MiB, or what is left for the last.", LEAF_BYTES),
        leave=True,
    ),
    Route(
        "PUT",
        "/v1/blobs/{cid}",
        uploads.put_whole,
        "Send a whole blob as one body.",
        {200: Answer(JSON, views.OfferView, "The blob is durable.")},
        (CID,),
        (*_PUTTING, *_NEW, "WRONG_CID"),
        _bytes("The blob.", MAX_FILE_BYTES),
        cost=LIST_COST,
        leave=True,
    ),
    _blob("/v1/blobs/{cid}", "A blob by its CID; ranges and ETag as usual."),
    _get("/v1/blobs/{cid}/stat", downloads.stat, "What is known of a blob.", views.BlobView, CID),
    _get(
        "/v1/blobs/{cid}/manifest",
        downloads.manifest,
        "The encoded Manifest of a blob.",
        None,
        CID,
        media_type=MSGPACK,
    ),
    _get(
        "/v1/leases", downloads.leases, "What one has here that no block names yet.", views.LeasesView, problems=_LEAVES
    ),
    _blob("/v1/models/{cid}", "A model, or another blob, by its CID."),
    Route(
        "GET",
        "/ipfs/{block...}",
        downloads.ipfs,
        "A block, or a tree of them, of a public blob: the Trustless Gateway of IPFS.",
        {
            200: Answer(gateway.RAW, None, "A block, or an archive (CAR) if that was asked for."),
            304: Answer(gateway.RAW, None, "The client has it."),
        },
        (BLOCK,),
        ("UNKNOWN_BLOB", "NOT_ACCEPTABLE", "NOT_CACHED", "UNKNOWN_PATH"),
        cost=PROOF_COST,
        passed_on=True,
    ),
)

DOCUMENT: Route[DoorApi] = Route(
    "GET", "/v1/openapi.json", _openapi, "This document.", {200: Answer(JSON, dict[str, object])}
)
"""The door's own; the core's lists the same routes beside its own."""


def _operator(
    method: str, path: str, handler: Handler[DoorApi], summary: str, view: Any, *params: Param[Any]
) -> Route[DoorApi]:
    return Route(method, path, handler, summary, {200: Answer(JSON, view)}, (CID, *params), ("UNKNOWN_BLOB",))


OPERATOR: tuple[Route[DoorApi], ...] = (
    Route(
        "GET",
        "/v1/admin/blobs",
        operator.held,
        "All blobs that are here, and those that the disk lost.",
        {200: Answer(JSON, views.HeldView)},
        (downloads.CURSOR, LIMIT),
    ),
    _operator("POST", "/v1/admin/blobs/{cid}/pin", operator.pin, "Keep a blob whatever happens.", views.PinView),
    _operator("POST", "/v1/admin/blobs/{cid}/unpin", operator.unpin, "Keep it no longer than others.", views.PinView),
    _operator(
        "POST",
        "/v1/admin/blobs/{cid}/verify",
        operator.verify,
        "Read a blob and compare each leaf.",
        views.VerifiedView,
        operator.REPAIR,
    ),
    _operator(
        "POST",
        "/v1/admin/blobs/{cid}/obtain",
        operator.obtain,
        "Bring a blob here, from other validators or from the gateways of the configuration.",
        views.BlobView,
        operator.KIND,
    ),
)
