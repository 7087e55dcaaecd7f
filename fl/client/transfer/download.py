"""A blob on its way from the nodes: its manifest, checked against the CID, then leaves from several nodes at once.

Each leaf is compared with the manifest as it arrives. A node that sends other bytes is not asked for this blob again
and is named in what is returned; one that stalls or lacks the blob is passed over for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from chain.cid import CidError, cid_text, is_raw, raw_cid
from chain.codec import CodecError, decode
from chain.unixfs import LEAF_BYTES, MAX_LEAVES, Manifest, leaf_range, manifest_cid, manifest_of
from fl.client.errors import QuorateError, RefusedByChain, Unreachable, Unverified
from fl.client.nodes import Node, Reply, Unusable
from fl.client.transfer.blobfile import Partial, Told, is_file, untold
from fl.client.transfer.doors import ABSENT, GOOD, LEAVE_WANTED, Asked, Doors, Shown, blob_path
from fl.client.transfer.upload import at_once

log = logging.getLogger("quorate.client")

_MANIFEST_BYTES = 32 * MAX_LEAVES + 64
_ABSENT_S = 0.5
"""A node that lacks a blob may have it soon: validators give it to one another."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """`lied` names the nodes that sent bytes that are not the blob's."""

    path: Path
    size_bytes: int
    lied: tuple[str, ...]


@dataclass(slots=True)
class _Giver:
    """A node, as far as this blob is concerned."""

    node: Node
    asked: int = 0
    """Leaves that it is about to give."""
    absent_until: float = 0.0
    absent: bool = False
    """So it said when it was asked last."""
    denied: bool = False
    """It has the blob, and this account may not read it."""
    lied: bool = False


class Download:
    def __init__(self, doors: Doors, cid: bytes, shown: Shown) -> None:
        self._doors = doors
        self._cid = cid
        self._shown = shown
        self._givers = [_Giver(node) for node in doors.nodes.in_order()]
        self._failures: dict[str, str] = {}
        self._moved_at = time.monotonic()
        self._only_leaf = b""
        """Of a blob that has one leaf and came with the proof of its size."""

    async def to(self, path: Path, patience_s: float, told: Told = untold, checked: Told = untold) -> Fetched:
        """The blob is whole and durable at `path`. Raises Unreachable when nothing has come for so long, and Unverified
        when every node lies; what has come stays beside `path` for the next time."""
        manifest = await self.manifest(patience_s)
        if not await asyncio.to_thread(is_file, path, self._cid, manifest.size_bytes):
            partial = Partial(path, self._cid, manifest)
            try:
                await asyncio.to_thread(partial.open, checked)
                await self._fill(partial, patience_s, told)
                await asyncio.to_thread(partial.finish)
            finally:
                partial.close()
        return Fetched(path, manifest.size_bytes, self._liars())

    async def manifest(self, patience_s: float) -> Manifest:
        self._moved_at = time.monotonic()
        asked = Asked("GET", blob_path(self._cid, "/manifest"), limit_bytes=_MANIFEST_BYTES)
        if is_raw(self._cid):
            # The CID is that of the one leaf, and proves a manifest by its bytes alone.
            asked = Asked("GET", blob_path(self._cid), limit_bytes=LEAF_BYTES)
        while True:
            giver = await self._next(patience_s)
            reply = await self._ask(giver, asked)
            if reply is None:
                continue
            manifest = self._checked(reply.body)
            if manifest is not None:
                return manifest
            self._blame(giver, "a manifest or bytes that do not lead to the CID")

    def _checked(self, body: bytes) -> Manifest | None:
        if is_raw(self._cid):
            if raw_cid(body) != self._cid:
                return None
            self._only_leaf = body
            return manifest_of(body)
        try:
            manifest = decode(Manifest, body, _MANIFEST_BYTES)
            return manifest if manifest_cid(manifest) == self._cid else None
        except (CodecError, CidError):
            return None

    async def _fill(self, partial: Partial, patience_s: float, told: Told) -> None:
        total = partial.manifest.size_bytes
        waiting = deque(sorted(partial.missing))
        there = total - sum(stop - start for start, stop in (leaf_range(total, index) for index in waiting))
        told(there, total)
        self._moved_at = time.monotonic()

        async def lane() -> None:
            nonlocal there
            room = memoryview(bytearray(min(total, LEAF_BYTES)))
            while waiting:
                index = waiting.popleft()
                size = await self._leaf(partial, index, room, patience_s)
                there += size
                partial.missing.discard(index)
                self._moved_at = time.monotonic()
                told(there, total)

        await at_once(lane() for _ in range(self._doors.pace.lanes))

    async def _leaf(self, partial: Partial, index: int, room: memoryview, patience_s: float) -> int:
        start, stop = leaf_range(partial.manifest.size_bytes, index)
        leaf = room[: stop - start]
        if self._only_leaf != b"" and await asyncio.to_thread(partial.put, index, self._only_leaf):
            return stop - start
        asked = Asked(
            "GET",
            blob_path(self._cid),
            headers={"Range": f"bytes={start}-{stop - 1}"},
            room=leaf,
        )
        while True:
            giver = await self._next(patience_s)
            giver.asked += 1
            try:
                reply = await self._ask(giver, asked)
            finally:
                giver.asked -= 1
            if reply is None:
                continue
            if await asyncio.to_thread(partial.put, index, leaf):
                return stop - start
            self._blame(giver, f"bytes that are not those of leaf {index}")

    async def _next(self, patience_s: float) -> _Giver:
        """The node to ask: of those that may have it, the one that is least busy with it."""
        while True:
            truthful = [each for each in self._givers if not each.lied]
            if not truthful:
                raise Unverified(
                    "WRONG_BYTES",
                    f"No node has sent the bytes that {cid_text(self._cid)} names ({', '.join(self._liars())} lied).",
                    "Check the network file; if it is right, tell the members.",
                )
            now = time.monotonic()
            ready = [each for each in truthful if max(each.absent_until, each.node.cool_until) <= now]
            if ready:
                return min(ready, key=lambda each: each.asked)
            if now > self._moved_at + patience_s:
                raise self._given_up()
            first = min(max(each.absent_until, each.node.cool_until) for each in truthful)
            await asyncio.sleep(max(self._doors.pace.pause_s, min(first - now, self._doors.pace.longest_pause_s)))

    async def _ask(self, giver: _Giver, asked: Asked) -> Reply | None:
        """A good answer; None when this node has none."""
        node = giver.node
        try:
            reply = await self._doors.read(node, asked, self._shown)
        except Unusable as error:
            node.failed(str(error))
            self._failures[node.name] = str(error)
            log.info("node %s did not give blob %s: %s", node.name, cid_text(self._cid), error)
            return None
        giver.absent, giver.denied = reply.status in ABSENT, reply.problem_code() == "BLOB_NOT_YOURS"
        if reply.status in GOOD:
            node.answered()
            return reply
        self._failures[node.name] = reply.problem()
        if reply.status in LEAVE_WANTED:
            giver.absent_until = time.monotonic() + max(_ABSENT_S, reply.retry_after_s)
        else:
            node.failed(reply.problem(), reply.retry_after_s)
        return None

    def _blame(self, giver: _Giver, what: str) -> None:
        giver.lied = True
        giver.node.failed(what)
        self._failures[giver.node.name] = what
        log.warning("node %s sent %s, of blob %s", giver.node.name, what, cid_text(self._cid))

    def _liars(self) -> tuple[str, ...]:
        return tuple(each.node.name for each in self._givers if each.lied)

    def _all_say_no(self) -> bool:
        return all(each.absent or each.denied for each in self._givers)

    def _given_up(self) -> QuorateError:
        cid = cid_text(self._cid)
        if (deny := [each.node.name for each in self._givers if each.denied]) and self._all_say_no():
            return RefusedByChain(
                "BLOB_NOT_YOURS",
                f"{cid} is not for this account ({', '.join(deny)}).",
                "Updates are given to their member, to auditors and to validators.",
            )
        if self._all_say_no():
            return Unreachable(
                "UNKNOWN_BLOB",
                f"All nodes answer, and none has {cid} for this account.",
                "Check the CID, and whose it is: an update is given to its member only.",
            )
        reasons = "; ".join(f"{name}: {each}" for name, each in self._failures.items())
        return Unreachable(
            "NO_ANSWER",
            f"No node gives {cid} ({reasons}).",
            "Check the CID, and that this account may read it; what has come is kept for the next run.",
        )
