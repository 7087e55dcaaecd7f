"""Blobs by their CIDs, whole or in part. A CID names its bytes for ever, so whoever has them need not ask again."""

from __future__ import annotations

import re

from chain.cid import cid_text
from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import OCTETS, Param, Request, Response, read_cid

CID = Param("cid", "path", read_cid, {"type": "string", "pattern": "^b[a-z2-7]{58}$"}, "The blob's CID, as text.")

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.ASCII)


async def model(api: Api, request: Request) -> Response:
    tag = f'"{cid_text(request[CID])}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=31536000, immutable", "Accept-Ranges": "bytes"}
    data = api.node.blobs.get(request[CID])
    if data is None:
        raise Problem("UNKNOWN_BLOB")
    known = request.headers.get("If-None-Match", "")
    if known.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
        return Response(b"", OCTETS, 304, headers)
    wanted = request.headers.get("Range")
    if wanted is None or request.headers.get("If-Range", tag) != tag:
        return Response(data, OCTETS, 200, headers)
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or found.groups() == ("", ""):
        # Several ranges, or units that are not ours: the whole is a correct answer to that.
        return Response(data, OCTETS, 200, headers)
    start, stop = _bounds(len(data), *found.groups())
    if start >= stop:
        raise Problem("BAD_RANGE", headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Response(data[start:stop], OCTETS, 206, headers)


def _bounds(size: int, first: str, last: str) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
