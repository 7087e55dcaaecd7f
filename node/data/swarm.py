"""The swarm: blobs spread among the validators leaf by leaf, each leaf verified where it arrives.

A node that wants a blob asks a source for its manifest, which the CID proves, and then pulls leaves from all who have
them, others who are still pulling included, so that the one that had the blob first sends it little more than
once (`node.data.pull`). What has come is staged and survives restarts, and a blob that nobody has yet is asked for
again until it is not wanted any more.

Nothing that peers do costs more than the limits say: of leaves under way per peer and in all, of questions under way
per peer, of blobs that are pulled at once. The answering side keeps nothing between two requests; each answer is made
on the connection's own thread, from a mapped file where the blob is whole. Who may ask is the port's affair: it
accepts validators.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Sequence

from chain.codec import encode
from chain.unixfs import leaf_range
from fl.blobs import BlobKind
from node.data.bulk_messages import Have, HaveRequest, LeafRequest, ManifestRequest, Offer, from_request
from node.data.commons import Commons, Store
from node.data.download import Admit, Check, Download
from node.data.errors import Discarded, Unfinished
from node.data.index import Blob
from node.data.standing import Fault, SwarmLimits, Tally, Turns
from node.ports import Buffer, Bulk, Clock, Peer

__all__ = ["Admit", "Check", "Fault", "Swarm", "SwarmLimits"]

_log = logging.getLogger("quorate.swarm")

_WHOLE = Have(True, b"")


class Swarm:
    def __init__(self, store: Store, bulk: Bulk, clock: Clock, limits: SwarmLimits | None = None) -> None:
        limits = limits or SwarmLimits()
        self._store = store
        self._downloads: dict[bytes, Download] = {}
        self._serving = threading.Lock()
        self.tally = Tally()
        self._commons = Commons(
            store=store,
            bulk=bulk,
            clock=clock,
            limits=limits,
            chance=random.Random(clock.entropy(16)),
            turns=Turns(limits.downloads),
            tally=self.tally,
            blame=self._blame,
            wake_others=self._wake_others,
        )

    async def obtain(
        self,
        cid: bytes,
        kind: BlobKind,
        account: bytes = b"",
        sources: Sequence[Peer] = (),
        check: Check | None = None,
        admit: Admit | None = None,
    ) -> Blob:
        """Returns once the blob is durable here, at once if it is already. Tries until it is cancelled; what has come
        by then stays staged. Raises Refused from `check` or `admit`, and what the store raises."""
        while True:
            blob = self._store.find(cid)
            if blob is not None:
                return blob
            if (other := self._downloads.get(cid)) is not None:
                await other.over.wait()
                continue
            try:
                return await self._download(Download(self._commons, cid, kind, account, sources, check, admit), cid)
            except (Discarded, Unfinished):
                # The store threw away what had come, or could not be sure of it.
                await asyncio.sleep(self._commons.limits.again_ms[0] / 1000)

    async def _download(self, download: Download, cid: bytes) -> Blob:
        self._downloads[cid] = download
        try:
            return await download.run()
        finally:
            del self._downloads[cid]
            download.over.set()

    def serve(self, peer: Peer, request: bytes) -> Buffer:
        """The answer to a peer, on any thread. Raises CodecError if it asked for nothing that there is."""
        asked = from_request(request)
        blob = self._store.find(asked.cid)
        match asked:
            case LeafRequest(cid, index):
                return self._leaf(cid, index, blob)
            case HaveRequest(cid):
                have = self._have(cid, blob)
                return b"" if have is None else encode(have)
            case ManifestRequest(cid):
                staging = None if blob is not None else self._store.staging(cid)
                holder, have = blob or staging, self._have(cid, blob)
                return b"" if holder is None or have is None else encode(Offer(holder.manifest, have))

    def figures(self) -> dict[str, int]:
        return self.tally.figures() | {
            "swarm_downloads": len(self._downloads),
            "swarm_leaves_under_way": self._commons.leaves_in_flight,
        }

    def _have(self, cid: bytes, blob: Blob | None) -> Have | None:
        if blob is not None:
            return _WHOLE
        download = self._downloads.get(cid)
        have = None if download is None else download.have
        if have is not None:
            return have
        staging = self._store.staging(cid)
        # Not whole before it is published, even if no leaf is missing.
        return None if staging is None else Have(False, staging.bitmap())

    def _leaf(self, cid: bytes, index: int, blob: Blob | None) -> Buffer:
        if blob is not None:
            if index >= blob.manifest.count:
                return b""
            start, stop = leaf_range(blob.size_bytes, index)
            leaf: Buffer | None = self._store.view(cid)[start:stop]
        else:
            staging = self._store.staging(cid)
            leaf = None if staging is None else staging.leaf(index)
        if leaf is None:
            return b""
        with self._serving:
            self.tally.served_leaves += 1
            self.tally.served_bytes += len(leaf)
        return leaf

    def _blame(self, peer: Peer, fault: Fault, reason: str) -> None:
        self.tally.faults[fault] += 1
        _log.warning("peer blamed", extra={"peer": peer, "fault": str(fault), "reason": reason})
        self._commons.bulk.punish(peer, reason)

    def _wake_others(self, pull: object) -> None:
        for download in self._downloads.values():
            download.wake(pull)
