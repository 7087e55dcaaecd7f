"""Public blobs for IPFS clients: the Trustless Gateway (specs.ipfs.tech/http-gateways/trustless-gateway).

    GET|HEAD /ipfs/{cid}?format=raw    one block
    GET|HEAD /ipfs/{cid}?format=car    the tree below it, or the part that holds some bytes, as an archive

or the same by an `Accept` header. All that goes out is verifiable by the CID that was asked for, so nothing is
assembled or rendered here: a model is put together by whoever fetches it. Only blocks of public blobs exist as far as
this gateway goes; a private blob's are no different from those that nobody has.

Pure: a request and where blocks come from, in; status, headers and a lazy iterator of buffers, out. The iterator
reads from the disk, so it is for a thread to draw on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import quote

from chain.car import car_header, write_car
from chain.cid import CidError, cid_text, is_raw, parse_cid
from chain.unixfs import Buffer, parse_node
from node.rpc.problems import Problem

RAW = "application/vnd.ipld.raw"
CAR = "application/vnd.ipld.car"
PREFIX = "/ipfs/"

Blocks: TypeAlias = Callable[[bytes], Buffer | None]
"""The bytes of a block of a public blob: a leaf, an inner node or a root. None if there is none by this CID."""

_PROBE = "bafkqaaa"
"""The identity CID of no bytes, by which clients find out whether there is a trustless gateway."""
_PROBE_CID = b"\x01\x55\x00\x00"
_FOREVER = "public, max-age=29030400, immutable"
_MAX_NAME_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Request:
    """`path` is decoded; `query` holds each parameter once, `headers` those of the request by lower-case name, several
    of a name joined by commas."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    headers: Mapping[str, str]
    body: Iterator[Buffer]
    """Raises Incomplete if a block vanishes on the way: the connection is to be broken then, not ended."""


class Incomplete(Exception):
    """What has been sent is the beginning of an answer that cannot be finished."""


@dataclass(frozen=True, slots=True)
class _Format:
    archive: bool
    dups: str = "n"
    """`y` if a block that occurs again in the tree is to be sent again."""

    @property
    def name(self) -> str:
        return "car" if self.archive else "raw"


class _Scope(StrEnum):
    ALL = "all"
    ENTITY = "entity"
    """Of a file, the same as all of it."""
    BLOCK = "block"


def answer(request: Request, blocks: Blocks) -> Answer:
    """Raises Problem for what is refused."""
    if request.method not in ("GET", "HEAD"):
        raise Problem("METHOD_NOT_ALLOWED", headers={"Allow": "GET, HEAD"})
    if request.headers.get("service-worker") == "script":
        raise Problem("BAD_PARAMETER", "No service worker can be registered for a block.")
    name, _, below = request.path.removeprefix(PREFIX).partition("/")
    chosen = _chosen(request)
    if below and not chosen.archive:
        raise Problem("BAD_PARAMETER", "A raw block is asked for by its own CID, without a path.")
    if name == _PROBE:
        return _probe(request, chosen)
    cid = _cid(name)
    block = blocks(cid)
    if block is None:
        sentence = f"No public blob of this node has a block {name}."
        if "only-if-cached" in request.headers.get("cache-control", ""):
            raise Problem("NOT_CACHED", sentence)
        raise Problem("UNKNOWN_BLOB", sentence)
    if below.strip("/"):
        raise Problem("UNKNOWN_PATH", f"{name} is a file, so there is no {below!r} in it.")
    if not chosen.archive:
        return _answer(request, chosen, name, f"{name}.raw", iter((block,)), len(block))
    tree = _tree(request, cid, block)
    tag = f"{tree.scope}.{tree.first}-{'' if tree.last is None else tree.last}.dfs.{chosen.dups}.{name}.car"
    return _answer(request, chosen, name, tag, write_car([cid], tree.walk(blocks, chosen.dups == "y")), None)


def _cid(name: str) -> bytes:
    try:
        return parse_cid(name)
    except CidError as error:
        raise Problem("BAD_PARAMETER", f"{name!r} names no block that could be here: {error}.") from None


def _probe(request: Request, chosen: _Format) -> Answer:
    body = car_header([_PROBE_CID]) if chosen.archive else b""
    return _answer(request, chosen, _PROBE, f"{_PROBE}.{chosen.name}", iter((body,)), len(body))


def _answer(
    request: Request, chosen: _Format, name: str, tag: str, body: Iterator[Buffer], size_bytes: int | None
) -> Answer:
    etag = f'"{tag}"'
    headers = {
        "Cache-Control": _FOREVER,
        "ETag": etag,
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
        "X-Ipfs-Path": f"{PREFIX}{name}",
        "X-Ipfs-Roots": name,
    }
    if _known(request.headers.get("if-none-match", ""), etag):
        return Answer(HTTPStatus.NOT_MODIFIED, headers, iter(()))
    headers["Content-Disposition"] = _disposition(
        request.query.get("filename") or f"{name}.{'car' if chosen.archive else 'bin'}"
    )
    if chosen.archive:
        headers["Content-Type"] = f"{CAR}; version=1; order=dfs; dups={chosen.dups}"
        headers["Accept-Ranges"] = "none"
    else:
        headers["Content-Type"] = RAW
    if size_bytes is not None:
        headers["Content-Length"] = str(size_bytes)
    if request.query.get("format") != chosen.name:
        headers["Content-Location"] = _location(request, name, chosen)
    return Answer(HTTPStatus.OK, headers, iter(()) if request.method == "HEAD" else body)


def _known(tags: str, etag: str) -> bool:
    """Whether the client says that it has what it would get. Weakness does not matter when reading."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in tags.split(","))


def _disposition(file_name: str) -> str:
    short = file_name[:_MAX_NAME_CHARACTERS]
    plain = re.sub(r"[^ !#-\[\]-~]", "_", short)
    if plain == short:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(short, safe='')}"


def _location(request: Request, name: str, chosen: _Format) -> str:
    """An address of the same answer that no cache can take for one in another format."""
    parameters = {key: value for key, value in request.query.items() if key != "format"} | {"format": chosen.name}
    if chosen.archive:
        parameters["car-dups"] = chosen.dups
    query = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in parameters.items())
    return f"{PREFIX}{name}?{query}"


# What form the answer takes: `format` and its kin in the address count before `Accept`.


def _chosen(request: Request) -> _Format:
    wanted = request.query.get("format")
    accept = request.headers.get("accept", "").strip()
    if wanted is None and not accept:
        raise Problem("BAD_PARAMETER", "Say what is wanted: ?format=raw for a block, ?format=car for a tree.")
    if wanted not in (None, "raw", "car"):
        raise _not_acceptable(f"format={wanted} is not given here")
    offers = _accepted(accept)
    if wanted == "raw":
        return _Format(archive=False)
    if wanted == "car":
        # The address decides; of what is acceptable besides, only the parameters of an archive still matter.
        return _car(next((more for media_type, more in offers if media_type == CAR), {}), request.query)
    refused = "none of the types accepted is given here"
    for media_type, more in offers:
        if media_type == RAW:
            return _Format(archive=False)
        if media_type == CAR:
            try:
                return _car(more, request.query)
            except Problem as problem:
                refused = problem.detail
    raise _not_acceptable(refused)


def _not_acceptable(why: str) -> Problem:
    return Problem("NOT_ACCEPTABLE", f"{why}; ?format=raw gives a block, ?format=car a tree")


def _accepted(accept: str) -> list[tuple[str, dict[str, str]]]:
    """Media types with their parameters, the most wanted first."""
    offers = []
    for place, each in enumerate(accept.lower().split(",")):
        media_type, *rest = (part.strip() for part in each.split(";"))
        parameters = {key.strip(): value.strip(' "') for key, _, value in (part.partition("=") for part in rest)}
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            weight = 0.0
        if weight > 0:
            offers.append((-weight, place, media_type, parameters))
    offers.sort(key=lambda offer: offer[:2])
    return [(media_type, parameters) for _, _, media_type, parameters in offers]


def _car(parameters: Mapping[str, str], query: Mapping[str, str]) -> _Format:
    version = query.get("car-version", parameters.get("version", "1"))
    order = query.get("car-order", parameters.get("order", "dfs"))
    dups = query.get("car-dups", parameters.get("dups", "n"))
    if version != "1":
        raise _not_acceptable("archives have version 1 here")
    if order not in ("dfs", "unk"):
        raise _not_acceptable("the blocks of an archive come depth first (dfs)")
    if dups not in ("y", "n"):
        raise Problem("BAD_PARAMETER", "dups is y or n.")
    return _Format(archive=True, dups=dups)


# What goes into an archive.


@dataclass(frozen=True, slots=True)
class _Tree:
    cid: bytes
    scope: _Scope
    first: int = 0
    """Of the bytes of the file below `cid` that shall be verifiable; their blocks alone are sent."""
    last: int | None = None
    """Included; None is the file's end."""

    def walk(self, blocks: Blocks, duplicates: bool) -> Iterator[tuple[bytes, Buffer]]:
        """Depth first, and left to right. What is still to come lies on a stack that is as high as a node is wide."""
        sent: set[bytes] = set()
        waiting = [(self.cid, 0)]
        while waiting:
            cid, start = waiting.pop()
            block = blocks(cid)
            if block is None:
                raise Incomplete(f"{cid_text(cid)} is no longer here")
            if cid not in sent:
                yield cid, block
            elif self.last is None:
                # All below it went out the first time.
                continue
            if not duplicates:
                sent.add(cid)
            if self.scope is _Scope.BLOCK or is_raw(cid):
                continue
            node = parse_node(bytes(block))
            start += len(node.data)
            below = []
            for (child, _), size in zip(node.links, node.blocksizes, strict=True):
                if start + size > self.first and (self.last is None or start <= self.last):
                    below.append((child, start))
                start += size
            waiting += reversed(below)


def _tree(request: Request, cid: bytes, root: Buffer) -> _Tree:
    try:
        scope = _Scope(request.query.get("dag-scope", "all"))
    except ValueError:
        raise Problem("BAD_PARAMETER", "dag-scope is block, entity or all.") from None
    wanted = request.query.get("entity-bytes")
    if wanted is None:
        return _Tree(cid, scope)
    return _within(cid, wanted, len(root) if is_raw(cid) else parse_node(bytes(root)).size)


def _within(cid: bytes, wanted: str, size: int) -> _Tree:
    """`from:to`, both included; `*` is the end, and a negative number counts from there."""
    match = re.fullmatch(r"(-?\d{1,19}):(\*|-?\d{1,19})", wanted, re.ASCII)
    if match is None:
        raise Problem("BAD_PARAMETER", "entity-bytes is from:to, as in 0:1023, 1024:* or -1024:*.")
    first = int(match[1])
    if first < 0:
        first = max(0, size + first)
    last = size - 1 if match[2] == "*" else int(match[2])
    if last < 0 < size:
        last += size
    if first > max(0, size - 1) or last < 0 < size:
        raise Problem("BAD_PARAMETER", f"entity-bytes={wanted} lies outside of the {size} bytes of this file.")
    if last < first:
        return _Tree(cid, _Scope.BLOCK)
    return _Tree(cid, _Scope.ENTITY, first, min(last, size - 1))
