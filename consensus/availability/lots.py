"""The book of batches: which are open, what their creators have outstanding, which are certified, which ordered.

Bounds: lots voted for by the creators' quotas; lots known by certificate alone by `FOREIGN_LOTS`; digests of ordered
batches by the horizon, since each leaves when it could no longer be named.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chain.availability import AvailabilityCertificate
from chain.batch import SignedBatch
from chain.certificate import Available, Vote
from chain.codec import encode
from chain.genesis import Params
from consensus.availability import guards
from consensus.availability.guards import NOTHING_OUTSTANDING, Outstanding

FOREIGN_LOTS = 32_768
"""Certificates of batches not voted for here. The quotas of f+1 honest signers bound them while this validator keeps
up; one that is far behind takes them from proposals instead."""


@dataclass(slots=True, eq=False)
class Lot:
    """One batch, neither ordered nor expired, that this validator voted for or holds a certificate of."""

    reference: Available
    subject: bytes
    creator: bytes
    """Consensus key: indices change with the epoch."""
    signed: SignedBatch | None = None
    """Kept while the bytes may be asked of this core rather than of the log."""
    stored: bool = False
    voted: bool = False
    looked: bool = False
    """Whether its signatures were verified here, or this validator made it of what was verified at its door."""
    looking: bool = False
    """The application is asked to verify them; the vote that the batch is held was cast before."""
    look_ms: int = 0
    """When to ask, if there is no certificate by then."""
    certificate: AvailabilityCertificate | None = None
    votes: dict[int, dict[int, Vote]] = field(default_factory=dict)
    """By epoch of the signers, then by signer."""
    since_ms: int = 0
    """When it was voted for, then when it was certified."""
    resend_ms: int = 0
    resend_gap_ms: int = 0
    cargo: tuple[tuple[bytes, int], ...] = ()
    """Of an own batch: id and end of validity of each transaction."""
    own: bool = False

    @property
    def digest(self) -> bytes:
        return self.reference.batch


def make_lot(reference: Available, creator: bytes, signed: SignedBatch | None = None) -> Lot:
    return Lot(reference, encode(reference), creator, signed)


class Lots:
    def __init__(self, params: Params) -> None:
        self._params = params
        self._open: dict[bytes, Lot] = {}
        self._ordered: dict[bytes, int] = {}
        self._outstanding: dict[bytes, Outstanding] = {}
        self._certified: dict[bytes, dict[bytes, Lot]] = {}
        self._expiries: list[tuple[int, bytes]] = []
        self._foreign = 0
        self.uncertified: dict[bytes, Lot] = {}
        """Voted for and without a certificate, by digest, oldest vote first."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Lot]:
        return iter(self._open.values())

    def get(self, digest: bytes) -> Lot | None:
        return self._open.get(digest)

    def is_ordered(self, digest: bytes) -> bool:
        return digest in self._ordered

    def outstanding(self, creator: bytes) -> Outstanding:
        return self._outstanding.get(creator, NOTHING_OUTSTANDING)

    @property
    def takes_foreign(self) -> bool:
        return self._foreign < FOREIGN_LOTS

    def vote(self, lot: Lot, now_ms: int) -> None:
        """Counts from here on against its creator's quota."""
        assert not lot.voted and lot.stored
        if lot.digest in self._open:
            self._foreign -= 1
        lot.voted = True
        self._add(lot)
        held = self._outstanding.setdefault(lot.creator, Outstanding())
        held.size_bytes += lot.reference.size_bytes
        held.batches += 1
        if lot.certificate is None:
            lot.since_ms = now_ms
            self.uncertified[lot.digest] = lot

    def certify(self, lot: Lot, certificate: AvailabilityCertificate, now_ms: int) -> None:
        assert lot.certificate is None and certificate.subject == lot.subject
        lot.certificate = certificate
        lot.votes = {}
        lot.since_ms = now_ms
        if lot.digest not in self._open:
            self._foreign += 1
        self._add(lot)
        self.uncertified.pop(lot.digest, None)
        self._certified.setdefault(lot.creator, {})[lot.digest] = lot

    def give_up(self, lot: Lot) -> None:
        """It will never be certified, and nobody is told of it any more; the quota is its creator's loss."""
        self.uncertified.pop(lot.digest, None)
        lot.signed = None

    def order(self, digest: bytes, latest_expiry: int) -> Lot | None:
        """Closes the lot, if there is one; the digest is remembered until no block could name it again."""
        lot = self._open.get(digest)
        expiry = latest_expiry if lot is None else lot.reference.expiry
        if digest not in self._ordered:
            self._ordered[digest] = expiry
            heapq.heappush(self._expiries, (expiry, digest))
        if lot is not None:
            self.close(lot)
        return lot

    def expire(self, final: int) -> list[Lot]:
        """Closes and returns the lots that no block after this height may name."""
        closed: list[Lot] = []
        while self._expiries and self._expiries[0][0] <= final:
            _, digest = heapq.heappop(self._expiries)
            self._ordered.pop(digest, None)
            lot = self._open.get(digest)
            if lot is not None:
                self.close(lot)
                closed.append(lot)
        return closed

    def close(self, lot: Lot) -> None:
        del self._open[lot.digest]
        self.uncertified.pop(lot.digest, None)
        if lot.certificate is not None:
            of_creator = self._certified[lot.creator]
            del of_creator[lot.digest]
            if not of_creator:
                del self._certified[lot.creator]
        if not lot.voted:
            self._foreign -= 1
            return
        held = self._outstanding[lot.creator]
        held.size_bytes -= lot.reference.size_bytes
        held.batches -= 1
        if held.batches == 0:
            del self._outstanding[lot.creator]

    def has_candidate(self, taken: Callable[[bytes], bool], height: int) -> bool:
        return any(
            guards.may_include(lot.reference, height) and not taken(digest)
            for of_creator in self._certified.values()
            for digest, lot in of_creator.items()
        )

    def candidates(self, taken: Callable[[bytes], bool], height: int) -> tuple[Available, ...]:
        """Creators take turns, first another one at each height; of each the oldest first; up to a block's caps."""
        queues = [self._queue(creator, taken, height) for creator in sorted(self._certified)]
        queues = [queue for queue in queues if queue]
        if not queues:
            return ()
        start = height % len(queues)
        queues = queues[start:] + queues[:start]
        chosen: list[Available] = []
        left = self._params.block_bytes
        while queues:
            for queue in queues:
                if len(chosen) == self._params.block_references:
                    return tuple(chosen)
                if queue[0].size_bytes > left:
                    # A smaller, younger one must not overtake: it could do so for ever.
                    queue.clear()
                    continue
                left -= queue[0].size_bytes
                chosen.append(queue.popleft())
            queues = [queue for queue in queues if queue]
        return tuple(chosen)

    def _queue(self, creator: bytes, taken: Callable[[bytes], bool], height: int) -> deque[Available]:
        eligible = (
            lot.reference
            for digest, lot in self._certified[creator].items()
            if guards.may_include(lot.reference, height) and not taken(digest)
        )
        return deque(sorted(eligible, key=lambda ref: (ref.created, ref.sequence, ref.batch)))

    def _add(self, lot: Lot) -> None:
        if lot.digest not in self._open:
            self._open[lot.digest] = lot
            heapq.heappush(self._expiries, (lot.reference.expiry, lot.digest))
