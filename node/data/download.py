"""One blob on its way here: its manifest first, then its leaves, then it is published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chain.cid import CidError
from chain.codec import CodecError, decode
from chain.unixfs import Manifest, leaf_range, manifest_cid
from fl.blobs import BlobKind
from fl.errors import Refused
from node.data.bulk_messages import MANIFEST_BYTES, Have, ManifestRequest, Offer, to_request
from node.data.commons import Commons
from node.data.index import Blob
from node.data.pull import Pull
from node.data.staging import Staging
from node.data.standing import Fault
from node.ports import Peer, PeerGone

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

    def wake(self) -> None:
        if self._pull is not None:
            self._pull.wake()

    async def run(self) -> Blob:
        commons = self._commons
        staging = commons.store.staging(self._cid)
        if staging is not None:
            self._look_at(staging.manifest)
            await commons.store.resumed(staging)
            pull = self._begin(staging)
        else:
            found = await self._find()
            self._look_at(found.offer.manifest)
            staging = commons.store.stage(self._cid, found.offer.manifest, self._kind, self._account)
            pull = self._begin(staging)
            pull.learn(found.peer, found.offer.have)
        slow = False
        while not pull.complete:
            async with commons.turns.turn(last=slow):
                slow = not await pull.turn(self._sources)
        blob = await commons.store.publish(staging)
        commons.tally.blobs += 1
        return blob

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

    async def _find(self) -> _Found:
        limits, chance = self._commons.limits, self._commons.chance
        pause_ms, longest_ms = limits.again_ms
        while True:
            found = await self._first_offer(self._in_turn())
            if found is not None:
                return found
            await asyncio.sleep(pause_ms * chance.uniform(0.5, 1.5) / 1000)
            pause_ms = min(2 * pause_ms, longest_ms)

    def _in_turn(self) -> Iterator[Peer]:
        """The sources, and some of the others."""
        commons = self._commons
        peers = commons.bulk.peers()
        sources = [peer for peer in self._sources if peer in peers]
        others = sorted(peers.difference(sources))
        commons.chance.shuffle(sources)
        yield from sources
        yield from commons.chance.sample(others, min(commons.limits.asked_others, len(others)))

    async def _first_offer(self, peers: Iterator[Peer]) -> _Found | None:
        """Each is asked when one before has answered that it has nothing, or is silent."""
        loop = asyncio.get_running_loop()
        # In a list and not in a set, whose order would not be the same in two runs of a simulation.
        asking: list[asyncio.Task[_Found | None]] = []
        try:
            while True:
                peer = next(peers, None)
                if peer is not None:
                    asking.append(loop.create_task(self._ask(peer)))
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

    async def _ask(self, peer: Peer) -> _Found | None:
        commons = self._commons
        try:
            async with asyncio.timeout(commons.limits.ask_ms / 1000), commons.standing(peer).asks:
                answer = await commons.bulk.ask(peer, to_request(ManifestRequest(self._cid)), MANIFEST_BYTES)
        except (TimeoutError, PeerGone):
            return None
        if not answer:
            return None
        try:
            offer = decode(Offer, answer, MANIFEST_BYTES)
            if manifest_cid(offer.manifest) != self._cid:
                raise CidError("its CID is another one")
        except (CodecError, CidError) as error:
            commons.blame(peer, Fault.WRONG_MANIFEST, f"a manifest of something else: {error}")
            return None
        return _Found(peer, offer)
