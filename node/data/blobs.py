"""The store of blobs: content-addressed files of any size, whole and durable before anything names them.

    blobs/<cid>             whole
    blobs/<cid>.part        staged: its leaves come from members and peers
    blobs/draft-<n>.part    being written here; its CID is not known before the end
    blobs/blank-<n>.part    of a blob that was deleted, to be written again

Small and large blobs take the same road: file renamed, file and directory synced, row written with sync,
acknowledged. Deletion goes the other way: row deleted with sync, then the file. So whatever moment a crash picks, a
row has its file, and a file without a row is rubbish that the next start takes away (or goes on filling, if it was
staged). Only the disk itself can break that; what it lost becomes staged again, with the leaves that are still good,
and is listed as `lost` until somebody has brought back the others.

Memory does not grow with a blob: files are viewed mapped, leaves written as they come, hashes taken in pieces.
`find`, `view`, `block`, `write` and a staging's leaves are for any thread, everything else for the event loop.

NoSpace and DiskFull pass: files that found no room are given up, and all goes on once something was freed. Any other
DiskFailure does not, for it leaves in doubt what is durable: whoever sees one starts this process again, and the start
finds out what is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Set
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from chain.cid import CidError, cid_text
from chain.unixfs import Manifest, block_of, manifest_cid
from fl.blobs import BlobKind
from node.data import index
from node.data.blanks import Blanks
from node.data.drafts import Draft, Drafts
from node.data.errors import Discarded, TooLarge, Unfinished, WrongManifest, beyond_doubt, room
from node.data.index import Blob, BlobIndex, Listed
from node.data.kinds import hides, publishes
from node.data.leases import Lease, Leases
from node.data.limits import BlobLimits
from node.data.marks import Mark
from node.data.recovery import Recovered, recover
from node.data.staging import Reserve, Staging, part_name, unsound, whole_name
from node.data.strays import Strays
from node.data.views import Views
from node.ports import Buffer, Clock, Disk, DiskFailure, DiskFull, Kv, NoSuchFile, Offload, PortError

__all__ = ["Blob", "BlobLimits", "BlobStore", "Draft", "Lease", "Listed", "Staging"]

_T = TypeVar("_T")

_HASHED_AT_ONCE = 16
"""Leaves that one call in a thread hashes, some 20 ms, so that others get their turn between two."""
_SWEPT_AT_ONCE = 32
_PAGE = 256


class BlobStore:
    def __init__(self, disk: Disk, kv: Kv, clock: Clock, offload: Offload, limits: BlobLimits) -> None:
        self.limits = limits
        self.count = 0
        self.size_bytes = 0
        """Of whole blobs."""
        self._disk = disk
        self._kv = kv
        self._clock = clock
        self._offload = offload
        self.blanks = Blanks(disk, limits.blank_bytes)
        self.reserve = Reserve(disk, limits.reserve_bytes, self.blanks)
        self._index = BlobIndex(kv)
        self._leases = Leases(limits.member_bytes, limits.member_leases)
        self._pins: set[bytes] = set()
        self._stagings: dict[bytes, Staging] = {}
        self._resuming: dict[bytes, asyncio.Future[None]] = {}
        self._resumption = asyncio.Lock()
        self._under_way: set[asyncio.Future[Any]] = set()
        self._drafts = Drafts(disk, clock, self.reserve)
        self._strays = Strays(disk)
        self._going: set[bytes] = set()
        """Being deleted: found no more."""
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        """By CID: one at a time moves its file and writes its row."""
        self._mark = Mark()
        self._views = Views()
        self.doubted: Callable[[DiskFailure], object] = lambda failure: None
        """Called when the disk has left in doubt what is durable, whoever was the one to see it."""

    @classmethod
    async def open(
        cls, disk: Disk, kv: Kv, clock: Clock, offload: Offload, limits: BlobLimits | None = None
    ) -> BlobStore:
        store = cls(disk, kv, clock, offload, limits or BlobLimits())
        store._begin(await offload.run(recover, disk, kv, store._index))
        return store

    def _begin(self, found: Recovered) -> None:
        self.count, self.size_bytes = found.count, found.size_bytes
        for cid, row, manifest, in_part in found.staged:
            staging = self._staging(cid, manifest, BlobKind(row.kind), row.account)
            staging.lost, staging.begun = row.lost, in_part
            self._stagings[cid] = staging
            if in_part:
                self._resuming[cid] = asyncio.ensure_future(self._resume(staging))
        self._leases.restore(self._index.leases())
        self._pins.update(self._index.pins())
        self._expire()

    async def close(self) -> None:
        """Disk, rows and threads may be closed after it."""
        for task in self._resuming.values():
            task.cancel()
        under_way = [*self._under_way, *self._resuming.values()]
        await asyncio.gather(*under_way, return_exceptions=True)

    # Whole blobs

    def find(self, cid: bytes) -> Blob | None:
        blob = self._index.find(cid)
        return None if cid in self._going else blob

    def blobs(self, after: bytes | None, limit: int) -> list[Listed]:
        """In the order of their CIDs, those beyond `after`."""
        return [each for each in self._index.page(after, limit) if each.cid not in self._going]

    def view(self, cid: bytes) -> memoryview:
        """All its bytes, mapped; they stay even when the blob is deleted. Raises NoSuchFile."""
        if (view := self._views.get(cid)) is not None:
            return view
        if self.find(cid) is None:
            raise NoSuchFile(f"there is no blob {cid_text(cid)}")
        view = self._disk.view(whole_name(cid))
        self._views.put(cid, view)
        if self.find(cid) is None:
            self._views.forget(cid)
        return view

    def block(self, cid: bytes) -> tuple[Blob, int] | bytes | None:
        """What this CID names among public blobs: a leaf, as its blob and index, or an inner node."""
        if (blob := self.find(cid)) is not None and blob.public:
            found = block_of(blob.manifest, cid)
            return (blob, found) if isinstance(found, int) else found
        for owner, leaf in self._index.owners(cid):
            if (blob := self.find(owner)) is None or not blob.public:
                continue
            if leaf is not None:
                return blob, leaf
            if isinstance(node := block_of(blob.manifest, cid), bytes):
                return node
        return None

    @property
    def full(self) -> bool:
        """The reserve is being used up: nothing more is promised until something is freed."""
        return self.reserve.used_up

    # Staged blobs

    def staging(self, cid: bytes) -> Staging | None:
        return self._stagings.get(cid)

    @property
    def staged_bytes(self) -> int:
        return sum(each.size_bytes - each.missing_bytes for each in self._stagings.values())

    @property
    def lost(self) -> list[Staging]:
        """Blobs that were whole here before the disk lost some of them."""
        return [staging for staging in self._stagings.values() if staging.lost]

    def stage(self, cid: bytes, manifest: Manifest, kind: BlobKind, account: bytes = b"") -> Staging:
        """Begins, or resumes. Raises WrongManifest, TooLarge, QuotaExceeded, NoSpace.

        An account gets a lease if it has none. Without an account the state wants the blob: the kind that it says then
        holds, whoever has sent the bytes and as what. An account that has announced a blob and sent nothing of it
        makes nothing public that comes as another one's private blob.
        """
        if manifest.size_bytes > self.limits.blob_bytes:
            raise TooLarge(f"a blob has at most {self.limits.blob_bytes} bytes here, not {manifest.size_bytes}")
        try:
            named = manifest_cid(manifest)
        except CidError as error:
            raise WrongManifest(str(error)) from error
        if named != cid:
            raise WrongManifest(f"these leaves make {cid_text(named)}, not {cid_text(cid)}")
        staging = self._unrefuted(cid, manifest)
        if staging is None and self.find(cid) is not None:
            whole = self._staging(cid, manifest, kind, account)
            whole.filled(whole_name(cid))
            return whole
        if staging is None:
            self._check_room(cid, manifest.size_bytes)
        puts = self._leased_to(account, cid, manifest.size_bytes, kind)
        if staging is None:
            staging = self._stagings[cid] = self._staging(cid, manifest, kind, account)
            puts |= index.begin(cid, manifest, kind, account)
        elif publishes(kind, staging.kind, account, staging.account):
            staging.kind = kind
            puts |= index.begin(cid, manifest, kind, staging.account)
        elif staging.empty and hides(kind, staging.kind, account, staging.account):
            staging.kind, staging.account = kind, account
            puts |= index.begin(cid, manifest, kind, account)
        staging.touch()
        if puts:
            self._note(puts)
        return staging

    def _unrefuted(self, cid: bytes, manifest: Manifest) -> Staging | None:
        """The CID of one leaf proves no size: of two manifests, that one is wrong whose leaf nobody has brought. With
        the other one it begins anew, so nobody keeps a blob from coming by a false word of it."""
        staging, blob = self._stagings.get(cid), self.find(cid)
        known = staging if staging is not None and not staging.empty else blob
        if known is not None and known.size_bytes != manifest.size_bytes:
            raise WrongManifest(f"this blob has {known.size_bytes} bytes, not {manifest.size_bytes}")
        if staging is not None and staging.size_bytes != manifest.size_bytes:
            del self._stagings[cid]
            return None
        return staging

    async def resumed(self, staging: Staging) -> None:
        """Leaves from before a restart are hashed again in threads, blob by blob, and count one by one: once this
        returns, all that are here count."""
        if (resuming := self._resuming.get(staging.cid)) is not None:
            await asyncio.shield(resuming)

    async def _resume(self, staging: Staging) -> None:
        try:
            async with self._resumption:
                missing = staging.missing()
                for start in range(0, len(missing), _HASHED_AT_ONCE):
                    await self._offload.run(staging.check, missing[start : start + _HASHED_AT_ONCE])
        finally:
            del self._resuming[staging.cid]

    async def publish(self, staging: Staging) -> Blob:
        """Once it returns, the blob is durable and found. Again for one that is published already: nothing more."""
        return await self._to_the_end(self._publish(staging))

    async def _publish(self, staging: Staging) -> Blob:
        cid = staging.cid
        async with self._turn(cid):
            if (blob := self.find(cid)) is not None:
                return await self._classify(blob, staging.kind, staging.account)
            if self._stagings.get(cid) is not staging:
                raise Discarded(f"{cid_text(cid)} was thrown away meanwhile; stage it again")
            if not staging.whole:
                raise Unfinished(f"{cid_text(cid)} lacks {staging.missing_count} leaves")
            return await self._finish(staging)

    async def _finish(self, staging: Staging) -> Blob:
        cid, name = staging.cid, whole_name(staging.cid)
        if staging.name != name:
            self._disk.rename(staging.name, name)
            staging.moved(name)
        try:
            with room():
                await self._disk.sync(name)
        except PortError:
            # Linux reports lost pages once. What the file holds is unknown from here on, so it goes.
            self._strays.remove(name, cid)
            staging.emptied()
            raise
        blob = Blob(cid, staging.size_bytes, staging.kind, staging.manifest, staging.account)
        await self._appear(blob)
        del self._stagings[cid]
        return blob

    async def _appear(self, blob: Blob) -> None:
        """Its file is durable."""
        await self._write(partial(index.appear, blob))
        self._index.forget(blob.cid)
        self.count += 1
        self.size_bytes += blob.size_bytes
        self.touch(blob.cid)

    async def discard(self, cid: bytes) -> None:
        """Throws away a staged blob: nobody wants it, or its bytes are bad for good."""
        async with self._turn(cid):
            if (staging := self._stagings.get(cid)) is not None:
                await self._discard(staging)

    async def _discard(self, staging: Staging) -> None:
        if (resuming := self._resuming.get(staging.cid)) is not None:
            await asyncio.wait([resuming])
        self._note({}, index.vanish(staging.cid, staging.kind, staging.manifest))
        await self._offload.run(staging.close)
        self._stagings.pop(staging.cid, None)
        self._strays.remove(staging.name, staging.cid)

    # Blobs made here

    def write(
        self,
        kind: BlobKind,
        chunks: Iterable[Buffer],
        account: bytes = b"",
        *,
        expected_bytes: int = 0,
        from_reserve: bool = False,
    ) -> Draft:
        """Hashes and writes in one pass; for a thread. A draft that is not kept is dropped, or swept some time. What is
        written `from_reserve` is small, and execution waits for it."""
        return self._drafts.write(kind, chunks, account, expected_bytes=expected_bytes, from_reserve=from_reserve)

    async def keep(self, draft: Draft) -> Blob:
        """Publishes it: once this returns, the blob is durable and found."""
        return await self._to_the_end(self._keep(draft))

    async def put(self, kind: BlobKind, data: Buffer, account: bytes = b"") -> Blob:
        return await self.keep(await self._offload.run(self.write, kind, [data], account))

    async def _keep(self, draft: Draft) -> Blob:
        cid = draft.cid
        async with self._turn(cid):
            if (blob := self.find(cid)) is not None:
                self.drop(draft)
                self.touch(cid)
                return await self._classify(blob, draft.kind, draft.account)
            staging = self._stagings.get(cid)
            if self._drafts.take(draft.name):
                staging = await self._adopt(draft, staging)
            elif staging is None or not staging.whole:
                raise Discarded(f"the draft of {cid_text(cid)} is gone; write it again")
            return await self._finish(staging)

    async def _adopt(self, draft: Draft, staging: Staging | None) -> Staging:
        """The draft is the staged file from here on, in place of whatever leaves others have sent."""
        if staging is None or staging.size_bytes != draft.size_bytes:
            staging = self._staging(draft.cid, draft.manifest, draft.kind, draft.account)
        else:
            await self._offload.run(staging.close)
            self._strays.remove(staging.name, staging.cid)
            if publishes(draft.kind, staging.kind, draft.account, staging.account):
                staging.kind = draft.kind
        staging.filled(draft.name)
        self._stagings[draft.cid] = staging
        return staging

    def drop(self, draft: Draft) -> None:
        if self._drafts.take(draft.name):
            self._strays.remove(draft.name, draft.cid)

    # Leases and pins

    async def lease(self, account: bytes, cid: bytes, size_bytes: int, kind: BlobKind) -> Lease:
        """Promises an account room for a blob, or renews the promise. Raises QuotaExceeded, NoSpace, TooLarge."""
        if size_bytes > self.limits.blob_bytes:
            raise TooLarge(f"a blob has at most {self.limits.blob_bytes} bytes here, not {size_bytes}")
        self._expire()
        if self.find(cid) is None:
            self._check_room(cid, size_bytes)
        self._leases.check(account, cid, size_bytes)
        lease = self._new_lease(account, cid, size_bytes, kind)
        before = self._leases.of(account, cid)
        self._leases.put(lease)
        try:
            await self._write(lambda: ({lease.key: lease.row}, ()))
        except PortError:
            if self._leases.of(account, cid) is lease:
                self._leases.drop(lease)
                if before is not None:
                    self._leases.put(before)
            raise
        return lease

    def leases(self, account: bytes) -> list[Lease]:
        self._expire()
        return self._leases.held_by(account)

    def leased_bytes(self, account: bytes) -> int:
        """What counts against the account's quota."""
        self._expire()
        return self._leases.bytes_of(account)

    def release(self, cid: bytes) -> None:
        """The state answers for this blob from here on: it counts against nobody's quota any more."""
        self._end(self._leases.on(cid))

    def _expire(self) -> None:
        self._end(self._leases.ended(self._clock.now().wall_ms))

    def _end(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._leases.drop(lease)
        if leases:
            self._note({}, [lease.key for lease in leases])

    def _new_lease(self, account: bytes, cid: bytes, size_bytes: int, kind: BlobKind) -> Lease:
        return Lease(account, cid, size_bytes, kind, self._clock.now().wall_ms + self.limits.lease_ms)

    def _leased_to(self, account: bytes, cid: bytes, size_bytes: int, kind: BlobKind) -> index.Puts:
        """The row of a lease, for an account that has none on this blob or one of another size."""
        if not account:
            return {}
        self._expire()
        held = self._leases.of(account, cid)
        if held is not None and held.size_bytes == size_bytes:
            return {}
        self._leases.check(account, cid, size_bytes)
        self._check_room(cid, size_bytes)
        lease = self._new_lease(account, cid, size_bytes, kind)
        self._leases.put(lease)
        return {lease.key: lease.row}

    def _check_room(self, cid: bytes, size_bytes: int) -> None:
        """For this blob, besides all that others are still to bring."""
        staged = {each.cid: each.missing_bytes for each in self._stagings.values()}
        if self.reserve.holds(size_bytes + self._leases.size_bytes + sum(staged.values())):
            return
        leased = {each.cid: each.size_bytes for each in self._leases if self._index.listed(each.cid) is None}
        self.reserve.check(sum(({cid: size_bytes} | leased | staged).values()))

    async def pin(self, cid: bytes) -> None:
        """It stays, whatever the roots say."""
        self._pins.add(cid)
        await self._write(lambda: ({index.PIN + cid: b""}, ()))

    async def unpin(self, cid: bytes) -> None:
        await self._write(lambda: ({}, [index.PIN + cid]))
        self._pins.discard(cid)

    @property
    def pins(self) -> frozenset[bytes]:
        return frozenset(self._pins)

    # Deletion

    def mark(self) -> int:
        """Whatever comes or is touched from here on outlives the sweep with this token. A later mark replaces it."""
        return self._mark.set(int.from_bytes(self._clock.entropy(8), "big"))

    def touch(self, cid: bytes) -> bool:
        """It is wanted. False if it is not here, whole or staged."""
        staging = self._stagings.get(cid)
        if staging is not None:
            staging.touch()
        elif self.find(cid) is None:
            return False
        self._mark.touch(cid)
        return True

    async def sweep(self, token: int, roots: Set[bytes]) -> tuple[int, int]:
        """Deletes what is older than the mark and neither named by roots, leased nor pinned; says how many blobs and
        bytes. Raises StaleMark."""
        self._mark.check(token)
        self._expire()
        named = [lease.cid for lease in self._leases if lease.cid in roots]
        for cid in named:
            self.release(cid)
        count = size_bytes = 0
        last: bytes | None = None
        while page := self._index.page(last, _PAGE):
            last = page[-1].cid
            unwanted = [each for each in page if not self._stays(each.cid, roots)]
            for start in range(0, len(unwanted), _SWEPT_AT_ONCE):
                group = unwanted[start : start + _SWEPT_AT_ONCE]
                swept = await self._to_the_end(self._delete(group, token, roots))
                count += len(swept)
                size_bytes += sum(each.size_bytes for each in swept)
            self._mark.check(token)
        await self._sweep_unfinished(roots)
        self._start(self.blanks.settle())
        self._mark.check(token)
        self._mark.end()
        return count, size_bytes

    def _stays(self, cid: bytes, roots: Set[bytes]) -> bool:
        return cid in roots or cid in self._pins or self._mark.spares(cid) or bool(self._leases.on(cid))

    async def _delete(self, unwanted: list[Listed], token: int, roots: Set[bytes]) -> list[Listed]:
        async with AsyncExitStack() as turns:
            going = []
            for each in unwanted:
                turn = self._turn(each.cid)
                if not turn.locked():
                    await turns.enter_async_context(turn)
                    going.append(each)
            # What somebody has its turn with is wanted, and so is what was touched or leased a moment ago.
            self._mark.check(token)
            going = [each for each in going if not self._stays(each.cid, roots) and self.find(each.cid) is not None]
            cids = [each.cid for each in going]
            self._going.update(cids)
            try:
                await self._write(lambda: ({}, self._index.rows_of(going)))
                for cid in cids:
                    self._forget(cid)
            finally:
                self._going.difference_update(cids)
            self.count -= len(going)
            self.size_bytes -= sum(each.size_bytes for each in going)
            for each in going:
                if not self.blanks.retire(whole_name(each.cid), each.size_bytes):
                    self._strays.remove(whole_name(each.cid), each.cid)
            return going

    async def _sweep_unfinished(self, roots: Set[bytes]) -> None:
        for staging in list(self._stagings.values()):
            idle = staging.idle_ms >= self.limits.idle_ms
            if idle and not self._turn(staging.cid).locked() and not self._stays(staging.cid, roots):
                await self.discard(staging.cid)
        for name in self._drafts.idle(self.limits.idle_ms):
            if self._drafts.take(name):
                self._strays.remove(name, b"")
        staged = {staging.name for staging in self._stagings.values()}
        self._strays.try_again(
            lambda name, cid: name in staged or (name == whole_name(cid) and self.find(cid) is not None)
        )

    # What the disk did to them

    async def verify(self, cid: bytes) -> list[int]:
        """Reads all of a whole blob and says which leaves are not what they were. Raises NoSuchFile."""
        if (blob := self.find(cid)) is None:
            raise NoSuchFile(f"there is no blob {cid_text(cid)}")
        bad: list[int] = []
        for start in range(0, blob.manifest.count, _HASHED_AT_ONCE):
            stop = min(start + _HASHED_AT_ONCE, blob.manifest.count)
            bad += await self._offload.run(unsound, self._disk, blob.cid, blob.manifest, range(start, stop))
        return bad

    async def damaged(self, cid: bytes) -> Staging | None:
        """Verifies a blob that looks wrong. If it is, it is staged from here on, with the leaves that are good, and
        found again once it is published; None if nothing is wrong with it."""
        bad = set(await self.verify(cid))
        return await self._to_the_end(self._lose(cid, bad)) if bad else None

    async def _lose(self, cid: bytes, bad: set[int]) -> Staging | None:
        async with self._turn(cid):
            blob = self.find(cid)
            if blob is None:
                return self._stagings.get(cid)
            self._going.add(cid)
            try:
                await self._write(partial(index.lose, cid, blob.size_bytes, blob.kind, blob.account))
                self._forget(cid)
            finally:
                self._going.discard(cid)
            self.count -= 1
            self.size_bytes -= blob.size_bytes
            staging = self._staging(cid, blob.manifest, blob.kind, blob.account)
            staging.lost = True
            self._stagings[cid] = staging
            with suppress(NoSuchFile):
                self._disk.rename(whole_name(cid), part_name(cid))
            staging.filled(part_name(cid), but=bad)
            return staging

    # Between them

    async def classify(self, blob: Blob, kind: BlobKind) -> Blob:
        """The state says of what kind it is, whoever has brought it as what."""
        return await self._to_the_end(self._reclassify(blob, kind))

    async def _reclassify(self, blob: Blob, kind: BlobKind) -> Blob:
        async with self._turn(blob.cid):
            known = self.find(blob.cid)
            return blob if known is None else await self._classify(known, kind, b"")

    def _staging(self, cid: bytes, manifest: Manifest, kind: BlobKind, account: bytes) -> Staging:
        return Staging(self._disk, self._clock, self.reserve, cid, manifest, kind, account)

    async def _classify(self, blob: Blob, kind: BlobKind, account: bytes) -> Blob:
        """The same bytes under another kind: readable by all once the state, or their owner, says so."""
        if kind == blob.kind or not publishes(kind, blob.kind, account, blob.account):
            return blob
        changed = Blob(blob.cid, blob.size_bytes, kind, blob.manifest, blob.account)
        await self._write(partial(index.appear, changed))
        self._index.forget(blob.cid)
        return changed

    def _forget(self, cid: bytes) -> None:
        self._index.forget(cid)
        self._views.forget(cid)

    def _turn(self, cid: bytes) -> asyncio.Lock:
        return self._turns.setdefault(cid, asyncio.Lock())

    async def _write(self, rows: Callable[[], tuple[index.Puts, Iterable[bytes]]]) -> None:
        """Durably; in the thread that makes them, for it waits for the disk."""
        await self._offload.run(lambda: self._note(*rows(), sync=True))

    def _note(self, puts: index.Puts, deletes: Iterable[bytes] = (), sync: bool = False) -> None:
        with beyond_doubt():
            self._kv.write(puts, deletes, sync)

    async def _to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """A caller that gives up does not stop it half-way, with a row written and nobody who knows."""
        return await asyncio.shield(self._start(work))

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, DiskFailure) and not isinstance(failure, DiskFull):
            self.doubted(failure)
