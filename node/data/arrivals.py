"""Blobs on their way here: what is done around the swarm, which pulls them from the other validators.

The swarm never gives up, shares a download among those who want the blob, and ends it with the last of them. Here is
what it leaves open: what to do while there is no room, and where else to look for a public blob that no validator has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from fl.blobs import PUBLIC_KINDS, BlobKind
from node.data.blobs import Blob, BlobStore
from node.data.errors import NoSpace, QuotaExceeded, TooLarge
from node.data.swarm import Admit, Check, Swarm
from node.ports import DiskFull, Peer

STILL_S = 5.0
"""A download without a single leaf for so long stands still, and other places are tried beside it."""
LAST_STILL_S = 300.0
ROOM_S = 1.0
"""After that the disk is looked at again."""

Elsewhere: TypeAlias = Callable[[bytes, BlobKind], Awaitable[bool]]
"""Gets a blob from without the chain into the store. False if nobody there has it."""


class Arrivals:
    def __init__(self, store: BlobStore, swarm: Swarm, elsewhere: Elsewhere | None = None) -> None:
        self._store = store
        self._swarm = swarm
        self._elsewhere = elsewhere
        self.under_way = 0
        self.without_room = 0
        self.tally: Counter[str] = Counter()

    async def obtain(
        self,
        cid: bytes,
        kind: BlobKind,
        account: bytes = b"",
        sources: Sequence[Peer] = (),
        check: Check | None = None,
        admit: Admit | None = None,
    ) -> Blob:
        """Returns once the blob is durable here, however long that takes; what has come stays when it is cancelled.
        Raises Refused if the bytes are not what was told, and DiskFailure."""
        self.under_way += 1
        try:
            while True:
                known = self._store.find(cid)
                if known is not None:
                    return known
                try:
                    return await self._from_anywhere(cid, kind, account, sources, check, admit)
                except (NoSpace, QuotaExceeded, TooLarge, DiskFull):
                    await self._wait_for_room()
        finally:
            self.under_way -= 1

    async def _wait_for_room(self) -> None:
        self.without_room += 1
        try:
            await asyncio.sleep(ROOM_S)
        finally:
            self.without_room -= 1

    async def _from_anywhere(
        self,
        cid: bytes,
        kind: BlobKind,
        account: bytes,
        sources: Sequence[Peer],
        check: Check | None,
        admit: Admit | None,
    ) -> Blob:
        swarm = self._swarm.obtain(cid, kind, account, sources, check, admit)
        if self._elsewhere is None or kind not in PUBLIC_KINDS:
            return await swarm
        pulling = asyncio.ensure_future(swarm)
        try:
            lacking, still_s = self._lacking(cid), STILL_S
            while True:
                await asyncio.wait({pulling}, timeout=still_s)
                if pulling.done():
                    return await pulling
                before, lacking = lacking, self._lacking(cid)
                if before != lacking:
                    continue
                found = await self._first(pulling, self._elsewhere(cid, kind))
                still_s = min(2 * still_s, LAST_STILL_S)
                if found and (blob := self._store.find(cid)) is not None:
                    self.tally["from_elsewhere"] += 1
                    return blob
        finally:
            await _end(pulling)

    async def _first(self, pulling: asyncio.Future[Blob], elsewhere: Awaitable[bool]) -> bool:
        """Whether it came from elsewhere before the swarm got it."""
        other = asyncio.ensure_future(elsewhere)
        try:
            both: set[asyncio.Future[Any]] = {pulling, other}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return other.done() and other.result()
        finally:
            await _end(other)

    def _lacking(self, cid: bytes) -> int | None:
        staging = self._store.staging(cid)
        return None if staging is None else staging.missing_count


async def _end(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
