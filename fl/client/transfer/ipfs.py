"""Files from IPFS, by their CID, from anyone who has their blocks.

A source is a trustless gateway (a Quorate node is one) or the RPC API of a Kubo node. None of them is believed: each
block is hashed before a byte of it is used, and a tree must add up to what its root says. So any list of sources will
do, and a source that gives wrong bytes is only not asked again.

Any file is read, however it was cut: raw leaves or leaves in nodes, of any size up to what IPFS passes around, in
trees of any width. Blocks are fetched several at a time, and written where they belong as they come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from chain.cid import CidError, cid_text, is_named, is_raw
from chain.unixfs import (
    LEAF_BYTES,
    LINKS,
    MAX_BLOCK_BYTES,
    MAX_FILE_BYTES,
    Manifest,
    Node,
    check_manifest,
    manifest_cid,
    manifest_of,
    parse_node,
)
from fl.client.errors import BadInput, QuorateError, Unreachable, Unverified

log = logging.getLogger("quorate.client")

AT_ONCE = 8
"""Blocks on their way; as many are in memory."""
MAX_DEPTH = 32
MAX_BLOCKS = 512 * 1024
"""Of one file, whose size alone would allow a block for each byte."""
ROUNDS = 3
"""Through all sources, while one of them says that it may do better later."""

_RAW = "application/vnd.ipld.raw"
_KUBO_PATH = "/api/v0"
_CONNECT_S = 10.0
_SILENCE_S = 30.0
_BLOCK_S = 120.0
"""A gateway may have to search the network before it gives the first byte."""
_PAUSE_S = 0.5
_NOT_NOW = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = 3
_PIECE_BYTES = 64 * 1024

Write = Callable[[int, bytes], None]
"""Takes bytes of the file and where they belong: each byte once, in no order."""


class NotFound(Unreachable):
    """No source has a block that is needed."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where blocks are asked for. A URL that ends in `/api/v0` is a Kubo node's RPC API, any other a gateway."""

    url: str

    @classmethod
    def of(cls, text: str) -> Source:
        url = text.strip().rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadInput(
                "BAD_SOURCE",
                f"'{text}' is no address of a gateway or of a Kubo node.",
                "As in https://trustless-gateway.link or http://127.0.0.1:5001/api/v0.",
            )
        return cls(url)

    @property
    def kubo(self) -> bool:
        return self.url.endswith(_KUBO_PATH)


class _Failed(Exception):
    """This source does not give this block. `later`: perhaps in a moment."""

    def __init__(self, why: str, later: bool) -> None:
        super().__init__(why)
        self.later = later


@dataclass(frozen=True, slots=True)
class _Part:
    """A tree that is still to be fetched, and where in the file its bytes belong."""

    cid: bytes
    start: int
    size: int
    depth: int


async def fetch(cid: bytes, sources: Sequence[Source], write: Write, limit_bytes: int = MAX_FILE_BYTES) -> int:
    """Writes the file that `cid` names and returns its size. What it raises leaves a part of the file written."""
    async with Blocks(sources) as blocks:
        return await blocks.file(cid, write, limit_bytes)


class Blocks:
    """Blocks by CID, each verified, from the first of several sources that gives it. Used by one loop."""

    def __init__(self, sources: Sequence[Source], at_once: int = AT_ONCE) -> None:
        if not sources:
            raise BadInput(
                "NO_SOURCE", "There is no gateway to ask.", "Name one, as in https://trustless-gateway.link."
            )
        self._sources = list(sources)
        self._failures = dict.fromkeys(self._sources, 0)
        self._at_once = at_once
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Blocks:
        timeout = aiohttp.ClientTimeout(total=_BLOCK_S, connect=_CONNECT_S, sock_read=_SILENCE_S)
        self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def block(self, cid: bytes) -> bytes:
        """The block, verified. Raises NotFound if nobody has it, Unreachable if nobody answered well."""
        reasons: dict[str, str] = {}
        for turn in range(ROUNDS):
            later = False
            for source in sorted(self._sources, key=self._failures.__getitem__):
                try:
                    block = await self._ask(source, cid)
                except _Failed as failed:
                    reasons[source.url] = str(failed)
                    later |= failed.later
                    self._failures[source] += failed.later
                    continue
                if not is_named(block, cid):
                    log.warning("%s gave wrong bytes for %s and is not asked again", source.url, cid_text(cid))
                    reasons[source.url] = "wrong bytes"
                    if source in self._sources:
                        self._sources.remove(source)
                    continue
                self._failures[source] = 0
                return block
            if not later:
                break
            if turn + 1 < ROUNDS:
                await asyncio.sleep(_PAUSE_S * 2**turn)
        why = "; ".join(f"{url}: {reason}" for url, reason in reasons.items()) or "all gave wrong bytes before"
        kind = Unreachable if later else NotFound
        raise kind("NO_BLOCK", f"Nobody gives the block {cid_text(cid)} ({why}).", "Name another gateway.")

    async def file(self, cid: bytes, write: Write, limit_bytes: int = MAX_FILE_BYTES) -> int:
        """Writes the file that `cid` names and returns its size."""
        root = await self.block(cid)
        size = len(root) if is_raw(cid) else _node(root, cid).size
        if size > limit_bytes:
            raise _too_large(cid, size, limit_bytes)
        waiting = self._used(root, _Part(cid, 0, size, 0), write)
        running: set[asyncio.Task[list[_Part]]] = set()
        blocks = 1 + len(waiting)
        try:
            while waiting or running:
                while waiting and len(running) < self._at_once:
                    running.add(asyncio.create_task(self._part(waiting.pop(), write)))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    below = task.result()
                    blocks += len(below)
                    if blocks > MAX_BLOCKS:
                        raise _broken(cid, f"it is cut into more than {MAX_BLOCKS} blocks")
                    waiting += below
        finally:
            await _end(running)
        return size

    async def manifest(self, cid: bytes, limit_bytes: int = MAX_FILE_BYTES) -> Manifest:
        """The manifest of a file that was cut as Quorate cuts (`unixfs-v1-2025`), from its nodes alone: its leaves
        can then be fetched in any order, one by one. Raises Unverified for a file that was cut otherwise."""
        root = await self.block(cid)
        if is_raw(cid):
            manifest = manifest_of(root)
            if manifest.size_bytes > limit_bytes:
                raise _too_large(cid, manifest.size_bytes, limit_bytes)
            return _same(cid, manifest)
        node = _node(root, cid)
        if node.size > min(limit_bytes, MAX_FILE_BYTES):
            raise _too_large(cid, node.size, min(limit_bytes, MAX_FILE_BYTES))
        above = [node]
        if not any(is_raw(child) for child, _ in node.links):
            # So large a file has one level of nodes below its root, never two.
            if len(node.links) * LEAF_BYTES > node.size:
                raise _otherwise(cid)
            above = [_node(await self.block(child), child) for child, _ in node.links]
        if any(len(each.links) > LINKS or not all(is_raw(child) for child, _ in each.links) for each in above):
            raise _otherwise(cid)
        digests = b"".join([child[4:] for each in above for child, _ in each.links])
        return _same(cid, Manifest(node.size, digests))

    async def _part(self, part: _Part, write: Write) -> list[_Part]:
        return self._used(await self.block(part.cid), part, write)

    def _used(self, block: bytes, part: _Part, write: Write) -> list[_Part]:
        """Writes what bytes of the file the block holds itself, and says what lies below it: the first part last."""
        node = Node((), block, len(block), ()) if is_raw(part.cid) else _node(block, part.cid)
        if node.size != part.size:
            raise _broken(part.cid, f"it holds {node.size} bytes where its parent says {part.size}")
        if node.data:
            write(part.start, node.data)
        below = []
        start = part.start + len(node.data)
        for (child, _), child_size in zip(node.links, node.blocksizes, strict=True):
            # What holds no bytes of the file is not worth asking for, however much of it there is.
            if child_size:
                below.append(_Part(child, start, child_size, part.depth + 1))
            start += child_size
        if below and part.depth == MAX_DEPTH:
            raise _broken(part.cid, f"its tree is deeper than {MAX_DEPTH} levels")
        below.reverse()
        return below

    async def _ask(self, source: Source, cid: bytes) -> bytes:
        if self._session is None:
            raise RuntimeError("used outside of its context")
        headers = {"Accept-Encoding": "identity"}
        if source.kubo:
            asked = self._session.post(
                f"{source.url}/block/get", params={"arg": cid_text(cid)}, headers=headers, allow_redirects=False
            )
        else:
            asked = self._session.get(
                f"{source.url}/ipfs/{cid_text(cid)}",
                params={"format": "raw"},
                headers=headers | {"Accept": _RAW},
                max_redirects=_REDIRECTS,
            )
        try:
            async with asked as answer:
                if answer.status != 200:
                    raise _Failed(f"status {answer.status}", later=answer.status in _NOT_NOW and not source.kubo)
                block = bytearray()
                async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                    block += piece
                    if len(block) > MAX_BLOCK_BYTES:
                        raise _Failed(f"more than {MAX_BLOCK_BYTES} bytes", later=False)
                return bytes(block)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Failed(str(error) or type(error).__name__, later=True) from None


def _node(block: bytes, cid: bytes) -> Node:
    try:
        return parse_node(block)
    except CidError as error:
        raise _broken(cid, str(error)) from None


def _same(cid: bytes, manifest: Manifest) -> Manifest:
    try:
        check_manifest(manifest)
    except CidError:
        raise _otherwise(cid) from None
    if manifest_cid(manifest) != cid:
        raise _otherwise(cid)
    return manifest


def _broken(cid: bytes, why: str) -> Unverified:
    return Unverified("NOT_A_FILE", f"{cid_text(cid)} is no file that can be put together: {why}.")


def _otherwise(cid: bytes) -> Unverified:
    return Unverified(
        "FOREIGN_LAYOUT",
        f"{cid_text(cid)} is a file that was cut otherwise than `unixfs-v1-2025`, so Quorate has another name for it.",
        "Fetch it, and put it under the CID that `quorate blob cid` prints.",
    )


def _too_large(cid: bytes, size: int, limit_bytes: int) -> QuorateError:
    return QuorateError("FILE_TOO_LARGE", f"{cid_text(cid)} has {size} bytes, and {limit_bytes} are taken.")


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
