"""Whether a blob is what a transaction says of it.

A verdict is a pure function of the blob's bytes and of the job's immutable rules, so it is found once and remembered,
the bad as the good. Leaves that come from a peer are looked at as they arrive, so that a blob with a fault is given up
at its first bad leaf; what was here before is looked at over its mapped file, a stretch at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from chain.codec import encode
from chain.unixfs import LEAF_BYTES, Manifest, leaf_count
from fl.blobs import BlobKind, Demand, check_joints, check_part, check_size
from fl.errors import Refused
from node.data.arrivals import Arrivals
from node.data.blobs import Blob, BlobStore
from node.data.messages import Finding
from node.ports import Offload, Peer

REMEMBERED = 16_384
STRETCH_BYTES = 16 * LEAF_BYTES
"""Of a blob, looked at by one call on a thread."""


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verdict:
    finding: Finding
    code: str = ""


GOOD = Verdict(Finding.OK)


class _Arriving:
    """Looks at the leaves of one download as they come."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self.seen: set[int] = set()

    def __call__(self, index: int, start: int, part: memoryview) -> None:
        check_part(self._demand, start, part)
        self.seen.add(index)

    def admit(self, manifest: Manifest) -> None:
        check_size(self._demand, manifest.size_bytes)


class Judging:
    def __init__(self, store: BlobStore, offload: Offload, arrivals: Arrivals) -> None:
        self._store = store
        self._offload = offload
        self._arrivals = arrivals
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._begun: OrderedDict[bytes, int] = OrderedDict()
        """How far blobs were looked through for those who then gave up: whoever asks again is answered sooner, however
        large the blob."""

    async def at_once(self, demand: Demand) -> Verdict:
        verdict = await self._known(_key(demand), demand, set())
        return verdict or Verdict(Finding.FULL if self._store.full else Finding.ABSENT)

    async def in_time(self, demand: Demand, sources: tuple[Peer, ...]) -> Verdict:
        """Once the blob is here, however long that takes; or as soon as it is known to be bad."""
        claim, key, kind = demand.claim, _key(demand), BlobKind(demand.claim.kind)
        seen: set[int] = set()
        while (verdict := await self._known(key, demand, seen)) is None:
            arriving = _Arriving(demand)
            try:
                await self._arrivals.obtain(claim.cid, kind, claim.account, sources, arriving, arriving.admit)
            except Refused as refused:
                return self._remember(key, Verdict(Finding.BAD, refused.code))
            seen = arriving.seen
        return verdict

    async def _known(self, key: bytes, demand: Demand, seen: set[int]) -> Verdict | None:
        """None while the blob is not here and nothing is known of it."""
        verdict = self._verdicts.get(key)
        if verdict is not None and verdict.finding == Finding.BAD:
            return verdict
        blob = self._store.find(demand.claim.cid)
        if blob is None:
            return None
        if verdict is None:
            verdict = await self._examined(key, demand, blob, seen)
        if verdict.finding == Finding.OK:
            self._store.touch(demand.claim.cid)
            if self._store.find(demand.claim.cid) is None:
                # Swept while it was looked at.
                return None
        return self._remember(key, verdict)

    def _remember(self, key: bytes, verdict: Verdict) -> Verdict:
        _put(self._verdicts, key, verdict)
        return verdict

    async def _examined(self, key: bytes, demand: Demand, blob: Blob, seen: set[int]) -> Verdict:
        try:
            check_size(demand, blob.size_bytes)
            view = self._store.view(blob.cid)
            start = self._begun.get(key, 0)
            while start < len(view) or not start:
                if not seen.issuperset(_leaves_of(view, start)):
                    await self._offload.run(_check_stretch, demand, view, start, seen)
                start += STRETCH_BYTES
                _put(self._begun, key, start)
            await self._offload.run(check_joints, demand, view, LEAF_BYTES)
        except Refused as refused:
            return Verdict(Finding.BAD, refused.code)
        self._begun.pop(key, None)
        return GOOD


def _put(known: OrderedDict[bytes, _T], key: bytes, value: _T) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)


def _check_stretch(demand: Demand, view: memoryview, start: int, seen: set[int]) -> None:
    for leaf in _leaves_of(view, start):
        if leaf not in seen:
            check_part(demand, leaf * LEAF_BYTES, view[leaf * LEAF_BYTES : (leaf + 1) * LEAF_BYTES])


def _leaves_of(view: memoryview, start: int) -> range:
    """Those of a stretch."""
    return range(start // LEAF_BYTES, leaf_count(min(start + STRETCH_BYTES, len(view))))


def _key(demand: Demand) -> bytes:
    claim, rules = demand.claim, demand.rules
    # A job's rules never change, so there the claim alone decides; a first model comes before its job has an id.
    alone = rules is None or bool(claim.job)
    return sha256(encode(claim) + (b"" if alone else encode(rules))).digest()
