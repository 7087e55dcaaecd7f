"""Rounds being summed: updates go in as they become available, the next model comes out when the round has closed.

Under most rules a round costs one sum a parameter, however many updates it has, and there is a budget for all rounds
together. A round that finds no room in it waits with nothing but the names of its updates, and is summed when it
closes; then it may exceed the budget, one round at a time. Inline updates belong to models so small that their sums
always have room, so nobody waits with bytes in hand.

Under a rule that looks at all updates at once, a round waits with the names of its updates, and with the inline ones in
a file, until it closes. Then it takes its room in the budget, one such round at a time: it holds a map of each update,
and the system has so many of them for all.

Open rounds take turns, one group of updates each: a round of large updates delays a small one by one group. The work
of a rule that looks at all of them is done in pieces, beside the turns of the others. An update that is not here is
fetched from the others meanwhile; nobody waits for it but its own round.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from chain.unixfs import DIGEST_BYTES, LEAF_BYTES
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Bundle, Closing, Update, Work, new_sums
from fl.blobs import BlobKind
from fl.errors import Refused
from fl.kernels import KERNEL_VERSION
from fl.kernels.denormals import FlushedDenormals
from fl.records import JobRules
from fl.rules import rule_of
from fl.tensors.closing import fingerprint
from fl.tensors.encodings import Place
from fl.tensors.layout import layout_of
from fl.updates import form_of
from node.data.arrivals import Arrivals
from node.data.blobs import Blob, BlobStore, Draft
from node.data.bundles import unpacked
from node.data.errors import NoSpace
from node.data.messages import Add, Addend, Begin, Close, Closed
from node.data.pile import Pile
from node.data.spare import Spare
from node.ports import DiskFailure, DiskFull, NoSuchFile, Offload

log = logging.getLogger("quorate.data")

SUM_BYTES = 8
ALWAYS_BYTES = 1024 * 1024
"""Sums of a round that takes no more are outside of the budget."""
FETCHED_AT_ONCE = 8
"""Missing updates of one round."""
ROOM_S = 1.0
GROUP = 4
"""Updates summed by one call where there are as many: what the kernels fuse."""

_NOTHING = np.empty((0, 0), np.uint8)


class CannotSum(Exception):
    """No result of this round comes from here, and asking again does not change that."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Kept:
    """An update that waits for all others."""

    addend: Addend
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class _Piled:
    """Inline updates that do. Their payloads are in the pile, of which the rows are."""

    bundle: Bundle
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class _Round:
    job: bytes
    number: int
    rules: JobRules
    step: int
    sums_bytes: int
    """What its sums take."""
    pile: Pile | None
    """Of a rule that looks at all updates at once."""
    kept: list[_Kept] = field(default_factory=list)
    piled: list[_Piled] = field(default_factory=list)
    """Under such a rule, updates that are here."""
    known: set[int] = field(default_factory=set)
    """Indexes of updates that were added."""
    inline: deque[Bundle] = field(default_factory=deque)
    here: deque[Addend] = field(default_factory=deque)
    """Updates whose blobs are here."""
    fetches: set[asyncio.Task[None]] = field(default_factory=set)
    fetching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHED_AT_ONCE))
    sums: Aggregation | None = None
    summed: int = 0
    size: int | None = None
    """Once the round has closed."""
    trouble: CannotSum | None = None
    closed: Closed | None = None
    made: set[bytes] = field(default_factory=set)
    """CIDs of what it ended with: named by nobody before the core has heard of them, and by the state much later."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when anything of the above changes that somebody may wait for."""
    ending: int = 0
    """How many have asked for its end and are not answered."""
    over: bool = False

    @property
    def waiting(self) -> int:
        """How many such updates are here."""
        return len(self.kept) + sum(len(each.bundle.indices) for each in self.piled)

    def tell(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()


class Sums:
    def __init__(
        self,
        store: BlobStore,
        offload: Offload,
        arrivals: Arrivals,
        piles: Callable[[], Pile],
        budget_bytes: int,
        check_kernels: Callable[[], None] | None,
    ) -> None:
        """`piles` begins one. `check_kernels` raises if this machine computes other numbers than all others; called
        once, before the first result."""
        self._store = store
        self._offload = offload
        self._arrivals = arrivals
        self._piles = piles
        self._budget_bytes = budget_bytes
        self._spare = Spare(new_sums)
        self.check_kernels = check_kernels
        self._checking: asyncio.Task[None] | None = None
        self._rounds: dict[tuple[bytes, int], _Round] = {}
        self._changed = asyncio.Event()
        self._failure: DiskFailure | None = None

    # Figures

    @property
    def open(self) -> int:
        return len(self._rounds)

    @property
    def waiting(self) -> int:
        """Updates not yet summed."""
        return sum(len(each.known) - each.summed for each in self._rounds.values())

    @property
    def held_bytes(self) -> int:
        return sum(each.sums_bytes for each in self._rounds.values() if each.sums is not None)

    def tidy(self, now_ms: int) -> None:
        self._spare.tidy(now_ms)

    def made(self) -> set[bytes]:
        """What rounds ended with that were not dropped yet: it must stay, whoever names it."""
        return {cid for each in self._rounds.values() for cid in each.made}

    # What the core asks

    def expect(self) -> None:
        """A job is about to begin. Its kernels are loaded now: the time that its first round has for its end is the
        same as that of all others."""
        if self.check_kernels is not None and self._checking is None:
            self._checking = asyncio.create_task(self._offload.run(self.check_kernels), name="kernels")
            # Whoever closes a round hears of it.
            self._checking.add_done_callback(lambda done: done.cancelled() or done.exception())

    def begin(self, asked: Begin) -> None:
        self.expect()
        size_bytes = SUM_BYTES * layout_of(asked.rules.schema).parameters
        pile = self._piles() if rule_of(asked.rules.rule).all_at_once else None
        begun = _Round(asked.job, asked.round, asked.rules, asked.step, size_bytes, pile)
        self._rounds.setdefault((asked.job, asked.round), begun)

    async def add(self, asked: Add) -> None:
        """Returns once nothing of the request itself has to be kept in memory. Raises CannotSum."""
        current = self._rounds.get((asked.job, asked.round))
        if current is None:
            raise _unknown()
        if current.closed is not None:
            return
        for bundle in asked.bundles:
            new = unpacked(bundle, current.known)
            if new is not None:
                current.known.update(new.indices)
                current.inline.append(new)
        for addend in asked.blobs:
            if addend.index in current.known:
                continue
            current.known.add(addend.index)
            if self._store.find(addend.cid) is not None:
                current.here.append(addend)
            else:
                self._fetch(current, addend)
        self._changed.set()
        while current.inline and not current.over and current.trouble is None:
            await current.moved.wait()

    async def close(self, asked: Close) -> Closed:
        """Raises CannotSum."""
        await self._kernels(asked.kernel_version)
        current = self._rounds.get((asked.job, asked.round))
        if current is None:
            raise _unknown()
        if current.closed is not None:
            self._touch(current)
            return replace(current.closed, id=asked.id)
        # Before it takes what others wait for.
        base = await self._mapped(asked.base, BlobKind.MODEL)
        moments = await self._mapped(asked.optimizer, BlobKind.OPTIMIZER) if asked.optimizer else None
        current.size = asked.size
        self._changed.set()
        while (current.summed < asked.size or current.sums is None) and current.trouble is None and not current.over:
            await current.moved.wait()
        if current.trouble is not None:
            raise current.trouble
        if current.over or current.sums is None:
            raise _dropped()
        return await self._finished(current, current.sums, asked, base, moments)

    async def _mapped(self, cid: bytes, kind: BlobKind) -> memoryview:
        """It stays though the blob may go: others may have closed the round long ago, and what it started from is
        then kept by nobody."""
        while True:
            blob = await self._store.classify(await self._arrivals.obtain(cid, kind), kind)
            with suppress(NoSuchFile):
                return self._store.view(blob.cid)

    def drop(self, job: bytes, number: int) -> None:
        current = self._rounds.pop((job, number), None)
        if current is not None:
            self._end(current)

    def _end(self, current: _Round) -> None:
        current.over = True
        self._clear(current)
        for fetch in current.fetches:
            fetch.cancel()
        current.tell()
        self._changed.set()

    def _clear(self, current: _Round) -> None:
        current.sums = None
        current.kept.clear()
        current.piled.clear()
        if current.pile is not None:
            current.pile.drop()

    # Fetching

    def _fetch(self, current: _Round, addend: Addend) -> None:
        task = asyncio.create_task(self._fetched(current, addend), name="addend")
        current.fetches.add(task)
        task.add_done_callback(current.fetches.discard)

    async def _fetched(self, current: _Round, addend: Addend) -> None:
        async with current.fetching:
            try:
                await self._arrivals.obtain(addend.cid, BlobKind.UPDATE)
            except Exception as error:
                self._spoil(current, error)
                return
        current.here.append(addend)
        self._changed.set()

    # Summing

    async def run(self) -> None:
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                self._changed.clear()
                worked = False
                for current in list(self._rounds.values()):
                    worked |= await self._group(current)
                if not worked:
                    await self._changed.wait()
        finally:
            for current in self._rounds.values():
                self._end(current)

    async def _group(self, current: _Round) -> bool:
        """Sums the next updates of a round. False if it has none, or no room for sums."""
        if current.over or current.trouble is not None or current.closed is not None:
            return False
        try:
            if current.pile is not None:
                return await self._keep(current, current.pile)
            return await self._sum(current)
        except Exception as error:
            self._spoil(current, error)
            return True

    async def _sum(self, current: _Round) -> bool:
        if not current.inline and len(current.here) < (GROUP if current.size is None else 1):
            # More of them will come; together they cost less.
            return False
        if current.sums is None:
            if not self._room(current):
                return False
            sums = await self._offload.run(self._new_sums, current)
            if current.over:
                return True
            current.sums = sums
        if current.inline:
            bundle = current.inline[0]
            await self._offload.run(current.sums.add_rows, bundle)
            current.inline.popleft()
            current.summed += len(bundle.indices)
        else:
            group = [current.here[place] for place in range(min(GROUP, len(current.here)))]
            if self._gone(current, group):
                return True
            await self._offload.run(self._add, current, current.sums, group)
            for _ in group:
                current.here.popleft()
            current.summed += len(group)
        current.tell()
        return True

    async def _keep(self, current: _Round, pile: Pile) -> bool:
        """For the rules that look at all updates at once: what is here waits for the rest."""
        if current.inline:
            if not await self._put_on(current, pile):
                return False
        elif current.here:
            group = [current.here[place] for place in range(min(GROUP, len(current.here)))]
            if self._gone(current, group):
                return True
            prints = await self._offload.run(self._fingerprints, current, group)
            for addend, values in zip(group, prints, strict=True):
                current.kept.append(_Kept(addend, values))
                current.here.popleft()
        elif current.sums is None and current.waiting == current.size and self._alone() and self._room(current):
            gone = self._gone(current, [each.addend for each in current.kept])
            current.kept = [each for each in current.kept if each.addend.index not in gone]
            if not gone:
                current.sums = await self._offload.run(self._all_of, current, pile)
                current.summed = current.waiting
        else:
            return False
        if current.over:
            self._clear(current)
        current.tell()
        return True

    async def _put_on(self, current: _Round, pile: Pile) -> bool:
        bundle = current.inline[0]
        try:
            start = await self._offload.run(pile.put, bundle.payloads.data.cast("B"))
        except (NoSpace, DiskFull) as full:
            log.warning("no room for the updates of a round", extra={"job": current.job, "reason": str(full)})
            asyncio.get_running_loop().call_later(ROOM_S, self._changed.set)
            return False
        current.piled.append(_Piled(replace(bundle, payloads=_NOTHING), start, start + bundle.payloads.size))
        current.inline.popleft()
        return True

    def _fingerprints(self, current: _Round, group: list[Addend]) -> list[bytes]:
        return [self._fingerprint(current, each, self._store.view(each.cid)) for each in group]

    def _fingerprint(self, current: _Round, addend: Addend, payload: memoryview) -> bytes:
        """Of a blob, of which all leaves but the first were hashed when it came."""
        blob = self._store.find(addend.cid)
        if blob is None:
            raise NoSuchFile(f"the blob of update {addend.index} is gone")
        return fingerprint(payload[_offset(current, addend) : LEAF_BYTES], blob.manifest.digests[DIGEST_BYTES:])

    def _gone(self, current: _Round, group: list[Addend]) -> set[int]:
        """Which of these the disk has lost meanwhile; they are fetched again."""
        gone = [each for each in group if self._store.find(each.cid) is None]
        for addend in gone:
            if addend in current.here:
                current.here.remove(addend)
            self._fetch(current, addend)
        return {each.index for each in gone}

    def _new_sums(self, current: _Round) -> Aggregation:
        rules = AggregationRules(current.job, current.number, current.rules, current.step)

        def spread(pieces: Sequence[Work]) -> Iterable[int]:
            return self._offload.spread([partial(_unless_over, current, piece) for piece in pieces])

        return Aggregation(rules, spread, self._spare.take)

    def _add(self, current: _Round, sums: Aggregation, group: list[Addend]) -> None:
        views = [self._store.view(each.cid) for each in group]
        prints = [self._fingerprint(current, each, view) for each, view in zip(group, views, strict=True)]
        sums.add(*map(_update, group, views, prints))

    def _all_of(self, current: _Round, pile: Pile) -> Aggregation:
        sums = self._new_sums(current)
        rows = np.frombuffer(pile.view(), np.uint8)
        for piled in current.piled:
            sums.add_rows(
                replace(piled.bundle, payloads=rows[piled.start : piled.stop].reshape(len(piled.bundle.indices), -1))
            )
        for each in current.kept:
            sums.add(_update(each.addend, self._store.view(each.addend.cid), each.fingerprint))
        return sums

    def _alone(self) -> bool:
        """Whether no round holds all of its updates."""
        return all(each.pile is None or each.sums is None for each in self._rounds.values())

    def _room(self, current: _Round) -> bool:
        if current.sums_bytes <= ALWAYS_BYTES:
            return True
        counted = [each for each in self._rounds.values() if each.sums is not None and each.sums_bytes > ALWAYS_BYTES]
        held_bytes = sum(each.sums_bytes for each in counted)
        if held_bytes + current.sums_bytes <= self._budget_bytes:
            return True
        # Beyond the budget there is one round that has closed.
        return current.size is not None and held_bytes <= self._budget_bytes

    def _spoil(self, current: _Round, error: Exception) -> None:
        if current.over and isinstance(error, NoSuchFile):
            # Its pile went with it while a thread was about to look at it, or its updates were swept.
            return
        if isinstance(error, DiskFailure):
            self._failure = error
            self._changed.set()
            return
        if current.over:
            return
        code = error.code if isinstance(error, Refused) else "SUM_FAILED"
        current.trouble = CannotSum(code, f"round {current.number} cannot be summed: {error}")
        log.error("a round cannot be summed", extra={"code": code, "job": current.job, "round": current.number})
        self._clear(current)
        current.tell()

    # Closing

    async def _kernels(self, version: int) -> None:
        if version != KERNEL_VERSION:
            raise CannotSum(
                "KERNEL_VERSION", f"the round wants kernels of version {version}; this program has {KERNEL_VERSION}"
            )
        self.expect()
        if self._checking is None:
            return
        try:
            await asyncio.shield(self._checking)
        except Exception as error:
            raise CannotSum("KERNELS_DIFFER", str(error) or type(error).__name__) from error

    async def _finished(
        self, current: _Round, sums: Aggregation, asked: Close, base: memoryview, moments: memoryview | None
    ) -> Closed:
        current.ending += 1
        try:
            return await self._ended(current, sums, asked, base, moments)
        finally:
            current.ending -= 1

    async def _ended(
        self, current: _Round, sums: Aggregation, asked: Close, base: memoryview, moments: memoryview | None
    ) -> Closed:
        try:
            closing = await self._offload.run(sums.finish, asked.log_root, base, moments)
        except Refused as refused:
            raise CannotSum(refused.code, f"round {current.number} cannot be closed: {refused}") from refused
        while True:
            try:
                outcome = await self._written(current, closing, asked.base, len(base))
                break
            except (NoSpace, DiskFull) as full:
                # The round waits, as all that needs room does; its sums stay as they are.
                log.warning("no room for the model of a round", extra={"job": current.job, "reason": str(full)})
                await asyncio.sleep(ROOM_S)
            except FlushedDenormals as flushed:
                raise CannotSum("KERNELS_DIFFER", str(flushed)) from flushed
        current.closed = Closed(
            asked.id, outcome.ok, outcome.code, outcome.model_cid, outcome.optimizer_cid, outcome.record_cid
        )
        self._clear(current)
        if current.ending == 1:
            # Whoever asked twice may still be writing from them.
            self._spare.give(mean.sums for mean in closing.found.means)
        current.known.clear()
        self._changed.set()
        self._touch(current)
        return current.closed

    def _touch(self, current: _Round) -> None:
        """With the answer, whoever has marked before it and collects what must stay cannot know of these yet."""
        for cid in current.made:
            self._store.touch(cid)

    async def _written(self, current: _Round, closing: Closing, base: bytes, base_bytes: int) -> AggregationOutcome:
        """The outcome, once its blobs are durable here."""
        code, optimizer = "", None
        try:
            optimizer = await self._moments(current, closing)
        except Refused as refused:
            code = refused.code
        drafts: list[Draft] = []
        try:
            outcome = await self._offload.run(self._drafted, drafts, closing, code, optimizer, base, base_bytes)
        except BaseException:
            for draft in drafts:
                self._store.drop(draft)
            raise
        current.made.update(draft.cid for draft in drafts)
        # Together, so that the disk is waited for once.
        kept = await asyncio.gather(*map(self._store.keep, drafts), return_exceptions=True)
        for each in kept:
            if isinstance(each, BaseException):
                raise each
        assert drafts[-1].cid == outcome.record_cid, "a blob is named by its bytes"
        return outcome

    def _drafted(
        self, drafts: list[Draft], closing: Closing, code: str, optimizer: Blob | None, base: bytes, base_bytes: int
    ) -> AggregationOutcome:
        """Writes the model, unless there is none, and the record."""
        outcome: AggregationOutcome | None = None
        if not code:
            try:
                chunks = closing.model(None if optimizer is None else self._store.view(optimizer.cid))
                drafts.append(self._store.write(BlobKind.MODEL, chunks, expected_bytes=base_bytes))
                outcome = closing.closed(drafts[-1].cid, base, b"" if optimizer is None else optimizer.cid)
            except Refused as refused:
                code = refused.code
        if outcome is None:
            outcome = closing.failed(code, base)
        drafts.append(self._store.write(BlobKind.RECORD, iter((outcome.record,))))
        return outcome

    async def _moments(self, current: _Round, closing: Closing) -> Blob | None:
        chunks = closing.moments()
        if chunks is None:
            return None
        draft = await self._offload.run(self._store.write, BlobKind.OPTIMIZER, chunks)
        current.made.add(draft.cid)
        return await self._store.keep(draft)


def _unknown() -> CannotSum:
    return CannotSum("UNKNOWN_ROUND", "this round did not begin in this life of the data process")


def _dropped() -> CannotSum:
    return CannotSum("DROPPED", "the round was dropped while it was summed")


def _unless_over(current: _Round, piece: Work) -> int:
    """Nobody waits for a round that was dropped, and others may wait for what it takes."""
    if current.over:
        raise _dropped()
    return piece()


def _update(addend: Addend, payload: memoryview, values: bytes) -> Update:
    return Update(addend.index, addend.round, addend.member, addend.weight, addend.group, payload, values)


def _offset(current: _Round, addend: Addend) -> int:
    """Where the values of an update begin, if its header is the right one."""
    place = Place(current.job, addend.round, addend.member)
    return len(form_of(current.rules, addend.group).header(place))
