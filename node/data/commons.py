"""What all downloads of a node share: the store and the ports as they see them, the peers and their standing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from chain.unixfs import Manifest
from fl.blobs import BlobKind
from node.data.index import Blob
from node.data.staging import Staging
from node.data.standing import Fault, Standing, SwarmLimits, Tally, Turns
from node.ports import Bulk, Clock, Peer


class Store(Protocol):
    """What the swarm needs of the blob store. `find`, `view` and `staging` may be called on any thread."""

    def find(self, cid: bytes) -> Blob | None: ...
    def view(self, cid: bytes) -> memoryview: ...
    def staging(self, cid: bytes) -> Staging | None: ...
    def stage(self, cid: bytes, manifest: Manifest, kind: BlobKind, account: bytes = b"") -> Staging: ...
    async def resumed(self, staging: Staging) -> None: ...
    async def publish(self, staging: Staging) -> Blob: ...


@dataclass(slots=True)
class Commons:
    store: Store
    bulk: Bulk
    clock: Clock
    limits: SwarmLimits
    chance: random.Random
    turns: Turns
    tally: Tally
    blame: Callable[[Peer, Fault, str], None]
    wake_others: Callable[[object], None]
    """Called by a pull when credits are free that it has no use for."""
    standings: dict[Peer, Standing] = field(default_factory=dict)
    leaves_in_flight: int = 0

    def now_ms(self) -> int:
        return self.clock.now().mono_ms

    def standing(self, peer: Peer) -> Standing:
        standing = self.standings.get(peer)
        if standing is None:
            standing = self.standings[peer] = Standing(self.limits)
        return standing

    def may_start(self, peer: Peer, now_ms: int) -> bool:
        return self.leaves_in_flight < self.limits.leaves and self.standing(peer).has_credit(now_ms)
