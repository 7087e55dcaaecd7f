"""The leaves of one blob, pulled from whoever has them.

The *origin* is the peer that had the blob first, and the one whose egress must be spared: if all others pulled the
whole blob from it, it would send it n-1 times. So each leaf has an owner among the nodes that download the blob, the
same in the eyes of all without a word said: the owner pulls it from the origin, the others from the owner, or from whom
it has reached meanwhile. Who downloads is seen by polling haves, at a bounded rate. An owner for which this node
has sat idle too long is passed over, and its leaves fall to the others; in the end this node owns all that nobody
brings.

Within that, the order is random, so that no two nodes lack the same leaves for long. At the end, when every leaf is
under way, those that are late are asked of a second peer. Everything else that can go wrong with a peer is in one of
two classes. Proven and blamed: a leaf with other bytes; a leaf that it says it has, does not give, and still says it
has. Routed around: silence and broken connections, which cost it credits and rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from chain.codec import CodecError, decode
from chain.unixfs import leaf_range
from node.data.bulk_messages import (
    HAVE_BYTES,
    Have,
    HaveRequest,
    LeafRequest,
    all_leaves,
    leaves_of,
    to_request,
)
from node.data.commons import Commons
from node.data.staging import Staging
from node.data.standing import Fault
from node.ports import LeafOutcome, Peer, PeerGone

_ASKED_AT_ONCE = 3
"""Of how many peers one late leaf may be under way from."""


@dataclass(slots=True)
class _Holder:
    """A peer, as far as this blob is concerned."""

    leaves: int = 0
    whole: bool = False
    pulling: bool = False
    """It downloads the blob itself."""
    known: bool = False
    missed: int = 0
    """Leaves that it said it had, and had not when they were asked for."""
    doubt: asyncio.Event = field(default_factory=asyncio.Event)
    """What it has must be asked again, now."""


@dataclass(frozen=True, slots=True)
class _Asked:
    peer: Peer
    at_ms: int


class Pull:
    def __init__(
        self,
        commons: Commons,
        cid: bytes,
        staging: Staging,
        take: Callable[[int, memoryview], bool],
    ) -> None:
        self._commons = commons
        self._cid = cid
        self._staging = staging
        self._take = take
        self._size_bytes = staging.manifest.size_bytes
        self._count = staging.manifest.count
        self._began_ms = commons.now_ms()
        self._holders: dict[Peer, _Holder] = {}
        self._passed_over: set[Peer] = set()
        self._flight: dict[int, list[_Asked]] = {}
        self._flying = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._leaf_ms = 0.0
        self._idle_ms = 0
        self._taken = 0
        self._freed: set[Peer] = set()
        """Whose credits came back and were not used again: others may want them."""
        self._sources: Collection[Peer] = ()
        self._everyone: list[Peer] = []
        self._owners: tuple[Peer, ...] = ()
        self._mine = 0
        self._at_origin = 0
        self._missing = all_leaves(self._count)
        self._look_again()

    @property
    def have(self) -> Have:
        """What this node can give others of the blob: never all of it before it is published. Safe on any thread."""
        leaves = all_leaves(self._count) & ~self._missing
        return Have(False, leaves.to_bytes((self._count + 7) // 8, "little"))

    def learn(self, peer: Peer, have: Have) -> None:
        self._learn(self._holder(peer), have)

    def wake(self) -> None:
        self._wake.set()

    async def turn(self, sources: Collection[Peer]) -> bool:
        """Pulls until every leaf is here, or until others have waited long enough for their turn: then it
        returns whether this one came to something. Raises what the staging raised."""
        commons, limits = self._commons, self._commons.limits
        self._sources = sources
        self._look_again()
        until_ms, self._taken = commons.now_ms() + limits.turn_ms, 0
        pollers: dict[Peer, asyncio.Task[None]] = {}
        before_ms = commons.now_ms()
        try:
            while self._missing:
                self._follow(pollers)
                self._wake.clear()
                self._start_leaves()
                if self._freed:
                    self._freed.clear()
                    commons.wake_others(self)
                with suppress(TimeoutError):
                    async with asyncio.timeout(limits.tick_ms / 1000):
                        await self._wake.wait()
                if self._failure is not None:
                    raise self._failure
                if self._staging.whole:
                    # A client may have brought the rest.
                    self._missing = 0
                now_ms = commons.now_ms()
                if now_ms >= until_ms and commons.turns.wanted:
                    return self._taken >= limits.turn_leaves
                self._note_idleness(now_ms - before_ms)
                before_ms = now_ms
        finally:
            await self._end_tasks()
            self._freed.clear()
            commons.wake_others(self)
        return True

    @property
    def complete(self) -> bool:
        return not self._missing

    def _look_again(self) -> None:
        """What the staging has, it may have got from elsewhere, or have lost."""
        self._missing = all_leaves(self._count) & ~int.from_bytes(self._staging.bitmap(), "little")

    def _holder(self, peer: Peer) -> _Holder:
        return self._holders.setdefault(peer, _Holder())

    # Who has what

    def _follow(self, pollers: dict[Peer, asyncio.Task[None]]) -> None:
        peers = self._commons.bulk.peers()
        if pollers.keys() == peers:
            return
        for peer in pollers.keys() - peers:
            pollers.pop(peer).cancel()
            self._holders.pop(peer, None)
        for peer in sorted(peers - pollers.keys()):
            pollers[peer] = self._spawn(self._poll(peer, self._holder(peer)))

    async def _poll(self, peer: Peer, holder: _Holder) -> None:
        limits = self._commons.limits
        shortest, longest = limits.poll_ms
        pause_ms = 0
        while True:
            with suppress(TimeoutError):
                # What is whole stays so: it is asked again only in doubt.
                async with asyncio.timeout(None if holder.whole else pause_ms / 1000):
                    await holder.doubt.wait()
            before = holder.leaves
            holder.doubt.clear()
            have = await self._ask(peer)
            self._learn(holder, have)
            if have is None:
                pause_ms = min(max(2 * pause_ms, shortest), limits.absent_ms)
            else:
                pause_ms = shortest if holder.leaves != before else min(max(pause_ms * 3 // 2, shortest), longest)

    async def _ask(self, peer: Peer) -> Have | None:
        commons = self._commons
        try:
            async with asyncio.timeout(commons.limits.ask_ms / 1000), commons.standing(peer).asks:
                answer = await commons.bulk.ask(peer, to_request(HaveRequest(self._cid)), HAVE_BYTES)
        except (TimeoutError, PeerGone):
            return None
        try:
            return decode(Have, answer, HAVE_BYTES) if answer else None
        except CodecError as error:
            commons.blame(peer, Fault.BAD_ANSWER, f"a have that cannot be read: {error}")
            return None

    def _learn(self, holder: _Holder, have: Have | None) -> None:
        before = (holder.leaves, holder.pulling, holder.known)
        holder.known = True
        holder.leaves = 0 if have is None else leaves_of(have, self._count)
        holder.whole = have is not None and have.whole
        holder.pulling = have is not None and not have.whole
        if before != (holder.leaves, holder.pulling, True):
            self._wake.set()

    def _origins(self) -> set[Peer]:
        origins = {peer for peer in self._sources if peer in self._holders and self._holders[peer].leaves}
        if not origins:
            whole = {peer for peer, holder in self._holders.items() if holder.whole}
            # Of several that have all of it, none has to be spared.
            origins = whole if len(whole) == 1 else set()
        return origins

    # Who fetches what from the origin

    def _update_owners(self, origins: Collection[Peer], now_ms: int) -> None:
        beginning = now_ms - self._began_ms < self._commons.limits.grace_ms
        owners = tuple(
            peer
            for peer, holder in sorted(self._holders.items())
            if peer not in origins
            and peer not in self._sources
            and peer not in self._passed_over
            and (holder.pulling or (beginning and not holder.whole))
        )
        everyone = sorted((self._commons.bulk.peers() | {self._commons.bulk.own}).difference(self._sources))
        if owners != self._owners or everyone != self._everyone:
            self._owners, self._everyone = owners, everyone
            self._mine = self._owned_by(self._commons.bulk.own)

    def _owned_by(self, peer: Peer) -> int:
        """Leaf i belongs to the i-th of all peers in turn. The leaves of those that do not download the blob are
        dealt out in turn among those that do, so that a node which errs about one peer errs about its leaves
        only."""
        active = sorted({*self._owners, self._commons.bulk.own})
        size, share = len(self._everyone), len(active)
        owned = bytearray((self._count + 7) // 8)
        for place, each in enumerate(self._everyone):
            if each == peer:
                first, step = place, size
            elif each not in active:
                first, step = place + active.index(peer) * size, share * size
            else:
                continue
            for index in range(first, self._count, step):
                owned[index >> 3] |= 1 << (index & 7)
        return int.from_bytes(owned, "little")

    def _note_idleness(self, passed_ms: int) -> None:
        """Passes over the owner that owes most, when waiting for owners has cost too much."""
        owed = self._missing & ~self._flying & ~self._mine & self._at_origin
        if self._flight or not owed or not self._owners:
            return
        self._idle_ms += passed_ms
        if self._idle_ms < max(self._commons.limits.patience_ms, 4 * self._leaf_ms):
            return
        self._idle_ms = 0
        debts = {peer: (self._owned_by(peer) & owed).bit_count() for peer in self._owners}
        self._passed_over.add(max(debts, key=lambda peer: (debts[peer], peer)))

    # Asking for leaves

    def _start_leaves(self) -> None:
        commons = self._commons
        now_ms = commons.now_ms()
        origins = self._origins()
        slow = self._far_slower(origins, now_ms)
        self._passed_over |= slow
        self._update_owners(origins, now_ms)
        elsewhere = self._at_origin = 0
        for peer, holder in self._holders.items():
            if peer in origins:
                self._at_origin |= holder.leaves
            elif peer not in slow and not commons.standing(peer).rests(now_ms):
                elsewhere |= holder.leaves
        able = [peer for peer, holder in self._holders.items() if holder.leaves & self._missing]
        commons.chance.shuffle(able)
        able.sort(key=lambda peer: (peer in origins, commons.standing(peer).in_flight))
        from_origin = all_leaves(self._count)
        if self._count > commons.limits.direct_leaves:
            settled = now_ms - self._began_ms >= commons.limits.hedge_ms or all(
                holder.known for holder in self._holders.values()
            )
            # Before it is known who else has the blob, there may be others to pull it from.
            from_origin = self._mine & ~elsewhere if settled else 0
        while able:
            # One leaf a peer and round, so that the load spreads.
            able = [
                peer
                for peer in able
                if commons.may_start(peer, now_ms)
                and self._start_one(peer, from_origin if peer in origins else -1, now_ms)
            ]

    def _far_slower(self, origins: Collection[Peer], now_ms: int) -> set[Peer]:
        """Than the origin; sparing the origin would then cost too much."""
        standings = self._commons.standings
        usual_ms = max((standings[peer].leaf_ms for peer in origins if peer in standings), default=0.0)
        limit_ms = max(self._commons.limits.late_ms, 4 * usual_ms)
        slow = {peer for peer in self._holders if peer in standings and standings[peer].leaf_ms > limit_ms}
        slow |= {each.peer for asked in self._flight.values() for each in asked if now_ms - each.at_ms > limit_ms}
        return slow.difference(origins)

    def _start_one(self, peer: Peer, allowed: int, now_ms: int) -> bool:
        holder = self._holders[peer]
        if holder.missed and holder.doubt.is_set():
            return False
        wanted = holder.leaves & self._missing & ~self._flying
        # What it failed to give first, so that a peer which claims what it lacks is found out at once.
        index = self._any_of(wanted & holder.missed)
        if index is None:
            index = self._any_of(wanted & allowed)
        if index is None:
            index = self._late_leaf(peer, holder, now_ms)
        if index is None:
            return False
        if self._staging.has(index):
            self._missing &= ~(1 << index)
            self._wake.set()
            return True
        asked = _Asked(peer, now_ms)
        self._flight.setdefault(index, []).append(asked)
        self._flying |= 1 << index
        self._freed.discard(peer)
        self._commons.leaves_in_flight += 1
        self._commons.standing(peer).in_flight += 1
        task = self._spawn(self._leaf(peer, holder, index))
        task.add_done_callback(partial(self._landed, index, asked))
        return True

    def _any_of(self, leaves: int) -> int | None:
        if not leaves:
            return None
        skipped = self._commons.chance.randrange(leaves.bit_length())
        above = leaves >> skipped
        return skipped + (above & -above).bit_length() - 1

    def _late_leaf(self, peer: Peer, holder: _Holder, now_ms: int) -> int | None:
        # Measured by the one that would be asked: what is usual for a slow peer is late all the same.
        late_ms = max(self._commons.limits.late_ms, 4 * self._commons.standing(peer).leaf_ms)
        for index, asked in self._flight.items():
            if (
                holder.leaves >> index & 1
                and self._missing >> index & 1
                and len(asked) < _ASKED_AT_ONCE
                and all(each.peer != peer and now_ms - each.at_ms > late_ms for each in asked)
            ):
                return index
        return None

    async def _leaf(self, peer: Peer, holder: _Holder, index: int) -> None:
        commons, standing = self._commons, self._commons.standing(peer)
        start, stop = leaf_range(self._size_bytes, index)
        request = to_request(LeafRequest(self._cid, index))
        began_ms = commons.now_ms()
        was_here = False

        def take(data: memoryview) -> bool:
            nonlocal was_here
            was_here = self._staging.has(index)
            return self._take(index, data)

        try:
            async with asyncio.timeout(standing.wait_ms / 1000):
                outcome = await commons.bulk.leaf(peer, request, stop - start, take)
        except TimeoutError:
            commons.tally.timeouts += 1
            standing.failed(commons.now_ms(), silent=True)
            return
        except PeerGone:
            standing.failed(commons.now_ms(), silent=False)
            holder.leaves, holder.whole = 0, False
            holder.doubt.set()
            return
        if outcome is LeafOutcome.TAKEN:
            took_ms = commons.now_ms() - began_ms
            standing.delivered(took_ms)
            self._leaf_ms += (took_ms - self._leaf_ms) * (0.25 if self._leaf_ms else 1.0)
            self._missing &= ~(1 << index)
            holder.missed &= ~(1 << index)
            self._taken += 1
            commons.tally.leaves += 1
            commons.tally.leaf_bytes += stop - start
            commons.tally.duplicates += was_here
        elif outcome is LeafOutcome.REJECTED:
            holder.leaves, holder.whole = 0, False
            commons.blame(peer, Fault.WRONG_LEAF, "a leaf that is not the one asked for")
        elif holder.missed >> index & 1:
            holder.leaves, holder.whole = 0, False
            commons.blame(peer, Fault.FALSE_HAVE, "it says that it has a leaf, twice, and does not give it")
        else:
            # It may have deleted the blob since it was asked what it has.
            holder.missed |= 1 << index
            holder.leaves, holder.whole = 0, False
            holder.doubt.set()

    def _landed(self, index: int, asked: _Asked, _: asyncio.Task[None]) -> None:
        self._commons.leaves_in_flight -= 1
        self._commons.standing(asked.peer).in_flight -= 1
        under_way = self._flight[index]
        under_way.remove(asked)
        if not under_way:
            del self._flight[index]
            self._flying &= ~(1 << index)
        self._freed.add(asked.peer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
        self._wake.set()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
