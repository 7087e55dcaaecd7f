"""What the operator may do with blobs, through a socket in the data directory that nobody else can open."""

from __future__ import annotations

from chain.cid import cid_text
from fl.blobs import BlobKind
from node.data.blobs import Blob
from node.data.door.api import DoorApi
from node.data.door.downloads import CURSOR
from node.data.door.views import HeldView, PinView, VerifiedView, blob_view
from node.ports import NoSuchFile
from node.rpc.problems import Problem
from node.rpc.ranges import CID
from node.rpc.requests import LIMIT, Param, Request, Response, json_response, one_of, read_flag

_WORDS = tuple(kind.name.lower() for kind in BlobKind)

REPAIR = Param("repair", "query", read_flag, {"type": "string", "enum": ["0", "1"]}, "Bring back what is bad.", False)
KIND = Param("kind", "query", one_of(_WORDS), {"type": "string", "enum": list(_WORDS)}, "What the blob is.", "dataset")


async def pin(api: DoorApi, request: Request) -> Response:
    await api.store.pin(_found(api, request).cid)
    return json_response(PinView(cid=cid_text(request[CID]), pinned=True))


async def unpin(api: DoorApi, request: Request) -> Response:
    await api.store.unpin(request[CID])
    return json_response(PinView(cid=cid_text(request[CID]), pinned=False))


async def held(api: DoorApi, request: Request) -> Response:
    """Everything that is here, whoever's it is, and what was here before the disk lost a part of it."""
    page = api.store.blobs(request[CURSOR], request[LIMIT])
    following = cid_text(page[-1].cid) if len(page) == request[LIMIT] else None
    lost = [cid_text(staging.cid) for staging in api.store.lost]
    return json_response(HeldView(blobs=[blob_view(each) for each in page], next=following, lost=lost))


async def verify(api: DoorApi, request: Request) -> Response:
    """Reads every byte of it. With `repair`, bad leaves are pulled from other validators, and the answer comes when
    the blob is whole again."""
    cid = request[CID]
    staging = api.store.staging(cid)
    if staging is None or not staging.lost:
        _found(api, request)
    damaged: list[int] = []
    if staging is not None:
        damaged = staging.missing()
    elif not request[REPAIR]:
        damaged = await _verified(api, cid)
    elif (staging := await api.store.damaged(cid)) is not None:
        damaged = staging.missing()
    sound = not damaged and staging is None
    if staging is not None and request[REPAIR]:
        await api.obtain(cid, staging.kind, staging.account)
        sound = True
    return json_response(VerifiedView(cid=cid_text(cid), damaged=damaged, sound=sound))


async def obtain(api: DoorApi, request: Request) -> Response:
    """From other validators, or from the gateways of the configuration; answered when the blob is here."""
    blob = await api.obtain(request[CID], BlobKind[request[KIND].upper()], b"")
    return json_response(blob_view(blob))


def _found(api: DoorApi, request: Request) -> Blob:
    found = api.store.find(request[CID])
    if found is None:
        raise Problem("UNKNOWN_BLOB")
    return found


async def _verified(api: DoorApi, cid: bytes) -> list[int]:
    try:
        return await api.store.verify(cid)
    except NoSuchFile:
        raise Problem("UNKNOWN_BLOB") from None
