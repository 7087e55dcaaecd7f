"""A blob on its way to a node: the manifest first, then the leaves that the node says it lacks.

    POST manifest ─▶ a lease, and which leaves are missing ─▶ PUT each, several at once ─▶ POST again: whole
                        ▲                                        │
                        └── the node has forgotten, or fails ────┘   a node that cannot: all of it at the next one

Whatever happens, the next POST says what is still missing there, so a transfer that broke goes on with the rest, here
or elsewhere, now or in the next run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from chain.cid import cid_text
from chain.codec import encode
from chain.unixfs import LEAF_BYTES, Manifest, leaf_range
from fl.client.errors import QuorateError, RefusedByChain, Unreachable
from fl.client.nodes import Node, Reply, Unusable, from_base64
from fl.client.transfer.blobfile import Source, Told, untold
from fl.client.transfer.doors import Asked, Doors, Permit, blob_path

log = logging.getLogger("quorate.client")

_FORGOTTEN = frozenset({404, 409, 410})
"""Answers to a leaf by a node that does not wait for it: it may have been started again."""
_FULL = 507
_TOO_MANY = frozenset({429, 503})
_SETTLES_S = 120.0
"""A node that has every leaf makes them durable before it calls the blob whole."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a node says of a blob that it was offered."""

    node: str
    lease_until_ms: int
    missing: frozenset[int]
    whole: bool


class Upload:
    """One blob and where it comes from. It can be sent to any number of nodes, one after another."""

    def __init__(self, doors: Doors, source: Source, cid: bytes, manifest: Manifest, permit: Permit) -> None:
        self._doors = doors
        self._source = source
        self._cid = cid
        self._manifest = manifest
        self._offer = encode(manifest)
        self._permit = permit
        self._moved_at = time.monotonic()
        self.sent_bytes = 0
        """In leaves that nodes have taken."""

    async def to_any(self, needed: int, patience_s: float, told: Told = untold) -> Grant:
        """A node has all of it, durably. A refusal is raised when `needed` nodes agree on its code, and Unreachable
        when no node has taken anything for so long."""
        nodes, pace = self._doors.nodes, self._doors.pace
        pause = pace.pause_s
        self._moved_at = time.monotonic()
        while True:
            failures: dict[str, str] = {}
            refusals: dict[str, RefusedByChain] = {}
            for node in nodes.ready():
                try:
                    grant = await self.to(node, told)
                except RefusedByChain as refused:
                    refusals[node.name] = refused
                    if sum(each.code == refused.code for each in refusals.values()) >= needed:
                        raise
                except Unusable as error:
                    log.warning("node %s does not take blob %s: %s", node.name, cid_text(self._cid), error)
                    failures[node.name] = str(error)
                else:
                    nodes.prefer(node)
                    return grant
            wait = max(pause, nodes.cool_s())
            if time.monotonic() + wait > self._moved_at + patience_s:
                raise _given_up(failures, refusals)
            await asyncio.sleep(wait)
            pause = min(2 * pause, pace.longest_pause_s)

    async def to(self, node: Node, told: Told = untold) -> Grant:
        """This node has all of it, durably. Raises Unusable or RefusedByChain when it will not."""
        try:
            return await self._to(node, told)
        except Unusable as error:
            node.failed(str(error), getattr(error, "retry_after_s", 0.0))
            raise

    async def _to(self, node: Node, told: Told) -> Grant:
        pause, settles = self._doors.pace.pause_s, time.monotonic() + _SETTLES_S
        left = self._manifest.count + 1
        while True:
            grant = await self._open(node)
            if grant.whole:
                told(self._manifest.size_bytes, self._manifest.size_bytes)
                return grant
            if len(grant.missing) < left:
                left = len(grant.missing)
                settles = time.monotonic() + _SETTLES_S
            elif grant.missing or time.monotonic() > settles:
                raise Unusable("what it was sent is missing there again")
            if grant.missing:
                await self._send(node, grant.missing, told)
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._doors.pace.longest_pause_s)

    async def _open(self, node: Node) -> Grant:
        asked = Asked(
            "POST",
            blob_path(self._cid),
            headers={"Content-Type": "application/msgpack"},
            body=self._offer,
            limit_bytes=256 * 1024,
        )
        reply = await self._doors.ask(node, asked, self._permit)
        if reply.status not in (200, 201):
            raise _complaint(reply)
        node.answered()
        return _grant(reply, self._manifest.count)

    async def _send(self, node: Node, missing: Iterable[int], told: Told) -> None:
        waiting = deque(sorted(missing))
        total = self._manifest.size_bytes
        there = total - sum(stop - start for start, stop in (leaf_range(total, index) for index in waiting))
        told(there, total)

        async def lane() -> None:
            nonlocal there
            room = bytearray(min(total, LEAF_BYTES))
            while waiting:
                size = await self._put(node, waiting.popleft(), room)
                there += size
                self.sent_bytes += size
                self._moved_at = time.monotonic()
                told(there, total)

        try:
            await at_once(lane() for _ in range(self._doors.pace.lanes))
        except _Forgotten:
            log.info("node %s has forgotten blob %s; it is offered again", node.name, cid_text(self._cid))

    async def _put(self, node: Node, index: int, room: bytearray) -> int:
        """The size of the leaf, once the node has it."""
        pace = self._doors.pace
        data = await asyncio.to_thread(self._source.leaf, self._manifest, index, room)
        asked = Asked("PUT", blob_path(self._cid, f"/leaves/{index}"), body=data)
        pause, tries = pace.pause_s, pace.tries
        while True:
            tries -= 1
            try:
                reply = await self._doors.ask(node, asked, self._permit)
                if reply.status in (200, 201, 202, 204):
                    return len(data)
                if reply.status in _FORGOTTEN:
                    raise _Forgotten
                complaint = _complaint(reply)
                if isinstance(complaint, RefusedByChain):
                    await asyncio.to_thread(self._source.check_leaf, self._manifest, index, data)
            except Unusable as error:
                complaint = error
            if isinstance(complaint, RefusedByChain | _Full) or tries <= 0:
                raise complaint
            await asyncio.sleep(max(pause, min(getattr(complaint, "retry_after_s", 0.0), pace.leaf_s)))
            pause = min(2 * pause, pace.longest_pause_s)


class _Forgotten(Exception):
    """The node does not wait for this leaf."""


class Busy(Unusable):
    """It says itself when to come again."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class _Full(Busy):
    """Trying again at once does not help; another node may have room."""


def _complaint(reply: Reply) -> Unusable | RefusedByChain:
    if reply.status == _FULL:
        return _Full(reply.problem(), reply.retry_after_s)
    if reply.status in _TOO_MANY:
        return Busy(reply.problem(), reply.retry_after_s)
    if 400 <= reply.status < 500 and (code := reply.problem_code()):
        detail = reply.json().get("detail")
        return RefusedByChain.of(code, detail if isinstance(detail, str) else "")
    return Unusable(reply.problem())


def _grant(reply: Reply, count: int) -> Grant:
    fields = reply.json()
    until_ms, whole = fields.get("lease_until_ms"), fields.get("whole")
    if not isinstance(until_ms, int) or not isinstance(whole, bool):
        raise Unusable("an answer without a lease")
    bits = from_base64(fields.get("missing", ""))
    missing = frozenset(index for index in range(8 * len(bits)) if bits[index >> 3] >> (index & 7) & 1)
    if missing and max(missing) >= count:
        raise Unusable("it lacks leaves that there are not")
    return Grant(reply.node, until_ms, missing, whole)


def _given_up(failures: dict[str, str], refusals: dict[str, RefusedByChain]) -> QuorateError:
    if refusals and not failures:
        return next(iter(refusals.values()))
    said = failures | {name: str(each) for name, each in refusals.items()}
    reasons = "; ".join(f"{name}: {each}" for name, each in said.items())
    return Unreachable(
        "NO_ANSWER",
        f"No node takes the blob ({reasons}).",
        "Run it again: what a node has already is not sent again.",
    )


async def at_once(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of it; with the first failure, which is raised, the others end."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
