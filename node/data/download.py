"""One blob on its way here: its manifest first, then its leaves, then it is published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from chain.cid import CidError, is_raw, raw_cid
from chain.codec import CodecError, decode
from chain.unixfs import LEAF_BYTES, Manifest, leaf_range, manifest_cid, manifest_of
from fl.blobs import BlobKind
from fl.errors import Refused
from node.data.bulk_messages import MANIFEST_BYTES, Have, LeafRequest, ManifestRequest, Offer, Request, to_request
from node.data.commons import Commons
from node.data.index import Blob
from node.data.pull import Pull
from node.data.staging import Staging
from node.data.standing import Fault
from node.ports import Peer, PeerGone

_T = TypeVar("_T")

_NOTHING = raw_cid(b"")
"""The leaf of no bytes, which cannot be told from an answer that says "absent"."""

Check = Callable[[int, int, memoryview], None]
"""Index, offset and bytes of a leaf that has come, on the thread that received it; raises Refused. Leaves that were
staged before are not shown to it."""

Admit = Callable[[Manifest], None]
"""Sees what is about to be pulled, before room is taken for it; raises Refused."""


@dataclass(frozen=True, slots=True)
class _Found:
    peer: Peer
    offer: Offer


class Download:
    def __init__(
        self,
        commons: Commons,
        cid: bytes,
        kind: BlobKind,
        account: bytes,
        sources: Sequence[Peer],
        check: Check | None,
        admit: Admit | None,
    ) -> None:
        self._commons = commons
        self._cid = cid
        self._kind = kind
        self._account = account
        self._sources = tuple(dict.fromkeys(peer for peer in sources if peer != commons.bulk.own))
        self._check = check
        self._admit = admit
        self._staging: Staging | None = None
        self._pull: Pull | None = None
        self._refusal: Refused | None = None
        self.over = asyncio.Event()

    @property
    def have(self) -> Have | None:
        """Safe on any thread."""
        pull = self._pull
        return None if pull is None else pull.have

    def wake(self, but: object) -> None:
        """Unless it was this pull that spoke."""
        if self._pull is not None and self._pull is not but:
            self._pull.wake()

    async def run(self) -> Blob:
        blob = await (self._pull_leaf() if is_raw(self._cid) else self._pull_leaves())
        self._commons.tally.blobs += 1
        return blob

    async def _pull_leaf(self) -> Blob:
        """The CID of a blob of one leaf is that leaf's: it says nothing of a size, so whoever speaks of one is believed
        with the bytes alone."""
        store = self._commons.store
        staging = store.staging(self._cid)
        if staging is not None:
            await store.resumed(staging)
        data = b"" if self._cid == _NOTHING else await self._find(self._ask_leaf)
        if data is not None:
            manifest = manifest_of(data)
            self._look_at(manifest)
            staging = self._staging = store.stage(self._cid, manifest, self._kind, self._account)
            self._take(0, memoryview(data))
        elif (blob := store.find(self._cid)) is not None:
            return blob
        else:
            staging = store.staging(self._cid)
        assert staging is not None, "nobody has thrown it away in this moment"
        self._look_at(staging.manifest)
        return await store.publish(staging)

    async def _pull_leaves(self) -> Blob:
        commons = self._commons
        found = await self._find(self._ask_manifest)
        if found is None:
            if (blob := commons.store.find(self._cid)) is not None:
                return blob
            staging = await self._resume()
        else:
            self._look_at(found.offer.manifest)
            staging = commons.store.stage(self._cid, found.offer.manifest, self._kind, self._account)
        pull = self._begin(staging)
        if found is not None:
            pull.learn(found.peer, found.offer.have)
        slow = False
        while not pull.complete:
            async with commons.turns.turn(last=slow, source=next(iter(self._sources), None)):
                slow = not await pull.turn(self._sources)
        return await commons.store.publish(staging)

    async def _resume(self) -> Staging:
        """With the manifest and the leaves that are here, whoever has brought them."""
        store = self._commons.store
        staging = store.staging(self._cid)
        assert staging is not None, "it was there a moment ago"
        self._look_at(staging.manifest)
        if staging.account != self._account:
            staging = store.stage(self._cid, staging.manifest, self._kind, self._account)
        await store.resumed(staging)
        return staging

    def _look_at(self, manifest: Manifest) -> None:
        if self._admit is not None:
            self._admit(manifest)

    def _begin(self, staging: Staging) -> Pull:
        self._staging = staging
        self._pull = Pull(self._commons, self._cid, staging, self._take)
        return self._pull

    def _take(self, index: int, data: memoryview) -> bool:
        assert self._staging is not None
        if self._refusal is not None:
            raise self._refusal
        if not self._staging.put(index, data):
            return False
        if self._check is not None:
            try:
                self._check(index, leaf_range(self._staging.manifest.size_bytes, index)[0], data)
            except Refused as refusal:
                # These are the bytes that the CID names: whoever sent them is not to blame.
                self._refusal = refusal
                raise
        return True

    async def _find(self, ask: Callable[[Peer], Coroutine[Any, Any, _T | None]]) -> _T | None:
        """What a peer answers; None once the store has what is asked for: clients bring blobs too."""
        limits, chance = self._commons.limits, self._commons.chance
        pause_ms, longest_ms = limits.again_ms
        while not self._is_here:
            found = await self._first(self._in_turn(), ask)
            if found is not None:
                return found
            await asyncio.sleep(pause_ms * chance.uniform(0.5, 1.5) / 1000)
            pause_ms = min(2 * pause_ms, longest_ms)
        return None

    @property
    def _is_here(self) -> bool:
        """All that proves its manifest."""
        store = self._commons.store
        staging = store.staging(self._cid)
        return store.find(self._cid) is not None or (staging is not None and (staging.whole or not is_raw(self._cid)))

    def _in_turn(self) -> Iterator[Peer]:
        """The sources, and some of the others."""
        commons = self._commons
        peers = commons.bulk.peers()
        sources = [peer for peer in self._sources if peer in peers]
        others = sorted(peers.difference(sources))
        commons.chance.shuffle(sources)
        yield from sources
        yield from commons.chance.sample(others, min(commons.limits.asked_others, len(others)))

    async def _first(self, peers: Iterator[Peer], ask: Callable[[Peer], Coroutine[Any, Any, _T | None]]) -> _T | None:
        """Each is asked when one before has answered that it has nothing, or is silent."""
        loop = asyncio.get_running_loop()
        # In a list and not in a set, whose order would not be the same in two runs of a simulation.
        asking: list[asyncio.Task[_T | None]] = []
        try:
            while True:
                peer = next(peers, None)
                if peer is not None:
                    asking.append(loop.create_task(ask(peer)))
                if not asking:
                    return None
                hedge_s = None if peer is None else self._commons.limits.hedge_ms / 1000
                await asyncio.wait(asking, timeout=hedge_s, return_when=asyncio.FIRST_COMPLETED)
                done, asking = [task for task in asking if task.done()], [task for task in asking if not task.done()]
                for task in done:
                    found = task.result()
                    if found is not None:
                        return found
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_manifest(self, peer: Peer) -> _Found | None:
        answer = await self._ask(peer, ManifestRequest(self._cid), MANIFEST_BYTES)
        if not answer:
            return None
        try:
            offer = decode(Offer, answer, MANIFEST_BYTES)
            if manifest_cid(offer.manifest) != self._cid:
                raise CidError("its CID is another one")
        except (CodecError, CidError) as error:
            self._commons.blame(peer, Fault.WRONG_MANIFEST, f"a manifest of something else: {error}")
            return None
        return _Found(peer, offer)

    async def _ask_leaf(self, peer: Peer) -> bytes | None:
        data = await self._ask(peer, LeafRequest(self._cid, 0), LEAF_BYTES)
        if not data:
            return None
        if raw_cid(data) != self._cid:
            self._commons.blame(peer, Fault.WRONG_LEAF, "a leaf that is not the one asked for")
            return None
        self._commons.tally.leaves += 1
        self._commons.tally.leaf_bytes += len(data)
        return data

    async def _ask(self, peer: Peer, request: Request, limit_bytes: int) -> bytes:
        commons = self._commons
        try:
            async with asyncio.timeout(commons.limits.ask_ms / 1000), commons.standing(peer).asks:
                return await commons.bulk.ask(peer, to_request(request), limit_bytes)
        except (TimeoutError, PeerGone):
            return b""
