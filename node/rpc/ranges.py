"""A blob over HTTP: its entity tag, the part of it that is asked for, and how long an answer may be kept.

A CID names its bytes for ever, so whoever has them need not ask again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from chain.cid import cid_text
from node.rpc.problems import Problem
from node.rpc.requests import Param, Request, read_cid

CID = Param("cid", "path", read_cid, {"type": "string", "pattern": "^b[a-z2-7]{58}$"}, "The blob's CID, as text.")

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    """What to answer with: bytes `start` to `stop` of the blob."""

    status: HTTPStatus
    headers: dict[str, str]
    start: int
    stop: int


def wanted_part(request: Request, cid: bytes, size_bytes: int, *, public: bool) -> Part:
    """Raises BAD_RANGE."""
    tag = f'"{cid_text(cid)}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes"}
    if public:
        headers["Cache-Control"] = "public, max-age=31536000, immutable"
    known = request.headers.get("If-None-Match", "")
    if known.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
        return Part(HTTPStatus.NOT_MODIFIED, headers, 0, 0)
    whole = Part(HTTPStatus.OK, headers, 0, size_bytes)
    wanted = request.headers.get("Range")
    if wanted is None or request.headers.get("If-Range", tag) != tag:
        return whole
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or found.groups() == ("", ""):
        # Several ranges, or units that are not ours: the whole is a correct answer to that.
        return whole
    start, stop = _bounds(size_bytes, *found.groups())
    if start >= stop:
        raise Problem("BAD_RANGE", headers={"Content-Range": f"bytes */{size_bytes}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
    return Part(HTTPStatus.PARTIAL_CONTENT, headers, start, stop)


def _bounds(size: int, first: str, last: str) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
