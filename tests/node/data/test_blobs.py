"""The store of blobs on a real disk: what is published is found, and nothing else is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chain.cid import cid_text
from chain.unixfs import Manifest, inner_blocks, leaf_cid
from fl.blobs import BlobKind
from node.data.blobs import BlobLimits, BlobStore
from node.data.errors import Discarded, NoSpace, QuotaExceeded, StaleMark, TooLarge, Unfinished, WrongManifest
from node.data.staging import Staging
from node.ports import Buffer, DiskFailure, DiskFull, NoSuchFile
from tests.node.data.worlds import ALICE, BOB, LIMITS, MIB, Room, fill, leaf, named, some_bytes

DATA = some_bytes(2 * MIB + 77)
CID, MANIFEST = named(DATA)
SMALL = b"a few bytes"
SMALL_CID, _ = named(SMALL)


@pytest.fixture
def place(tmp_path: Path) -> Room:
    return Room(tmp_path)


async def published(store: BlobStore, data: bytes, kind: BlobKind = BlobKind.UPDATE, account: bytes = b"") -> bytes:
    cid, manifest = named(data)
    staging = store.stage(cid, manifest, kind, account)
    fill(staging, data)
    await store.publish(staging)
    return cid


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
async def test_a_blob_of_any_size_takes_the_same_road(place: Room, size: int) -> None:
    data = some_bytes(size)
    cid, manifest = named(data)
    async with place.open() as store:
        staging = store.stage(cid, manifest, BlobKind.UPDATE)
        fill(staging, data)
        assert staging.whole and store.find(cid) is None
        blob = await store.publish(staging)
        assert blob == store.find(cid)
        assert (blob.size_bytes, blob.kind, blob.manifest) == (size, BlobKind.UPDATE, manifest)
        assert store.view(cid) == data
        assert (store.count, store.size_bytes) == (1, size)
        assert place.files() == [cid_text(cid)]
    async with place.open() as store:
        assert store.find(cid) == blob and store.view(cid) == data
        assert (store.count, store.size_bytes) == (1, size)


async def test_nothing_is_found_before_all_of_it_is_here(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        staging.put(0, leaf(DATA, 0))
        assert store.find(CID) is None and store.blobs(None, 10) == []
        with pytest.raises(NoSuchFile):
            store.view(CID)
        with pytest.raises(Unfinished):
            await store.publish(staging)
        assert staging.missing() == [1, 2] and staging.bitmap() == b"\x01"
        assert staging.has(0) and not staging.has(1) and not staging.has(99)
        assert staging.leaf(0) == leaf(DATA, 0) and staging.leaf(1) is None
        assert staging.missing_bytes == MIB + 77


async def test_wrong_bytes_and_wrong_sizes_are_refused_and_leave_no_trace(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        assert not staging.put(0, leaf(DATA, 1))
        assert not staging.put(0, leaf(DATA, 0)[:-1])
        assert not staging.put(2, leaf(DATA, 2) + b"\0")
        assert not staging.put(2, b"")
        assert not staging.put(3, b"") and not staging.put(-1, leaf(DATA, 2))
        assert staging.missing() == [0, 1, 2]
        assert place.files() == []


async def test_a_manifest_of_something_else_is_refused(place: Room) -> None:
    async with place.open() as store:
        for manifest in (
            Manifest(MANIFEST.size_bytes + 1, MANIFEST.digests),
            Manifest(MANIFEST.size_bytes, MANIFEST.digests[:-32]),
            Manifest(MANIFEST.size_bytes, MANIFEST.digests[:-1] + b"\0"),
            Manifest(2**60, MANIFEST.digests),
        ):
            with pytest.raises((WrongManifest, TooLarge)):
                store.stage(CID, manifest, BlobKind.UPDATE)
        assert store.staging(CID) is None and place.files() == []


async def test_of_two_words_of_a_leafs_size_the_one_with_the_leaf_holds(place: Room) -> None:
    """The CID of a blob of one leaf does not say how long it is."""
    async with place.open() as store:
        cid, manifest = named(SMALL)
        false = replace(manifest, size_bytes=manifest.size_bytes - 1)
        store.stage(cid, false, BlobKind.MODEL, BOB)
        staging = store.stage(cid, manifest, BlobKind.UPDATE, ALICE)
        fill(staging, SMALL)
        with pytest.raises(WrongManifest):
            store.stage(cid, false, BlobKind.MODEL, BOB)
        blob = await store.publish(staging)
        assert (blob.size_bytes, blob.kind, blob.account) == (len(SMALL), BlobKind.UPDATE, ALICE)
        with pytest.raises(WrongManifest):
            store.stage(cid, false, BlobKind.MODEL, BOB)
        other = b"made here"
        cid, manifest = named(other)
        store.stage(cid, replace(manifest, size_bytes=manifest.size_bytes + 1), BlobKind.MODEL, BOB)
        assert (await store.put(BlobKind.RECORD, other)).size_bytes == len(other)
    async with place.open() as store:
        assert bytes(store.view(cid)) == other and store.lost == []


async def test_a_blob_over_the_limit_is_refused_before_anything_is_taken(tmp_path: Path) -> None:
    place = Room(tmp_path, BlobLimits(reserve_bytes=0, blob_bytes=MIB))
    async with place.open() as store:
        with pytest.raises(TooLarge):
            store.stage(CID, MANIFEST, BlobKind.UPDATE)
        with pytest.raises(TooLarge):
            await store.lease(ALICE, CID, 2**60, BlobKind.UPDATE)


async def test_leaves_come_from_many_threads_while_the_loop_looks_on(place: Room) -> None:
    data = some_bytes(16 * MIB + 5, seed=3)
    cid, manifest = named(data)
    async with place.open() as store:
        staging = store.stage(cid, manifest, BlobKind.UPDATE)

        def receive(part: int) -> None:
            for index in range(part, 17 + part):
                assert staging.put(index % 17, leaf(data, index % 17))

        threads = [threading.Thread(target=receive, args=(part * 4,)) for part in range(4)]
        for thread in threads:
            thread.start()
        while not staging.whole:
            assert len(staging.missing()) <= 17
            await asyncio.sleep(0)
        await store.publish(staging)
        for thread in threads:
            thread.join()
        assert staging.put(0, leaf(data, 0))
        assert store.view(cid) == data
        assert place.files() == [cid_text(cid)]


async def test_publishing_twice_at_once_is_publishing_once(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        fill(staging, DATA)
        first, second = await asyncio.gather(store.publish(staging), store.publish(staging))
        assert first == second == await store.publish(staging)
        assert (store.count, store.size_bytes) == (1, len(DATA))
        again = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        assert again.whole and await store.publish(again) == first


async def test_a_publisher_that_gives_up_leaves_it_published(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        fill(staging, DATA)
        task = asyncio.ensure_future(store.publish(staging))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await store.publish(staging) == store.find(CID)
        assert (store.count, place.files()) == (1, [cid_text(CID)])


async def test_staged_leaves_are_hashed_again_after_a_restart(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE, ALICE)
        assert staging.put(2, leaf(DATA, 2)) and staging.put(0, leaf(DATA, 0))
    path = place.root / "files" / "blobs" / (cid_text(CID) + ".part")
    with path.open("r+b") as file:
        file.write(b"not what it was")
    async with place.open() as store:
        resumed = store.staging(CID)
        assert resumed is not None and (resumed.kind, resumed.account) == (BlobKind.UPDATE, ALICE)
        await store.resumed(resumed)
        assert resumed.missing() == [0, 1]
        fill(resumed, DATA)
        await store.publish(resumed)
        assert store.view(CID) == DATA


async def test_a_draft_is_hashed_as_it_is_written_and_kept_under_its_cid(place: Room) -> None:
    async with place.open() as store:
        chunks: list[Buffer] = [DATA[:5], b"", memoryview(DATA)[5 : 2 * MIB], bytearray(DATA[2 * MIB :])]
        draft = await asyncio.to_thread(store.write, BlobKind.MODEL, chunks)
        assert (draft.cid, draft.size_bytes) == (CID, len(DATA))
        assert store.find(CID) is None and place.files() == ["draft-1.part"]
        blob = await store.keep(draft)
        assert blob == store.find(CID) == await store.keep(draft)
        assert store.view(CID) == DATA and place.files() == [cid_text(CID)]
        twice = store.write(BlobKind.MODEL, [DATA])
        assert await store.keep(twice) == blob
        assert (store.count, place.files()) == (1, [cid_text(CID)])
        assert (await store.put(BlobKind.RECORD, SMALL)).cid == SMALL_CID
        assert await store.keep(store.write(BlobKind.RECORD, [])) == store.find(named(b"")[0])


async def test_a_draft_that_fails_or_is_dropped_leaves_nothing(place: Room) -> None:
    def chunks() -> Iterator[bytes]:
        yield DATA
        raise RuntimeError("the sum did not come out")

    async with place.open() as store:
        with pytest.raises(RuntimeError):
            store.write(BlobKind.MODEL, chunks())
        assert place.files() == []
        draft = store.write(BlobKind.MODEL, [DATA])
        store.drop(draft)
        assert place.files() == []
        with pytest.raises(Discarded):
            await store.keep(draft)
        store.write(BlobKind.MODEL, [DATA])
    async with place.open():
        assert place.files() == []


async def test_a_draft_takes_the_place_of_leaves_that_others_sent(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.MODEL)
        staging.put(1, leaf(DATA, 1))
        blob = await store.keep(store.write(BlobKind.MODEL, [DATA]))
        assert staging.whole and staging.put(0, leaf(DATA, 0)) and staging.leaf(2) == leaf(DATA, 2)
        assert await store.publish(staging) == blob
        assert store.staging(CID) is None and place.files() == [cid_text(CID)]


async def test_lists_go_on_where_they_ended(place: Room) -> None:
    async with place.open() as store:
        cids = sorted([(await store.put(BlobKind.UPDATE, bytes([n]), ALICE)).cid for n in range(7)])
        first = store.blobs(None, 4)
        assert [each.cid for each in first] == cids[:4]
        assert [each.cid for each in store.blobs(first[-1].cid, 100)] == cids[4:]
        assert (first[0].size_bytes, first[0].kind, first[0].account) == (1, BlobKind.UPDATE, ALICE)


# Kinds


async def test_blocks_of_public_blobs_are_found_by_their_own_names(place: Room) -> None:
    async with place.open() as store:
        await published(store, DATA, BlobKind.MODEL)
        private = some_bytes(2 * MIB, seed=9)
        await published(store, private, BlobKind.UPDATE)
        await store.put(BlobKind.RECORD, SMALL)
        await store.put(BlobKind.UPDATE, b"secret")
        blob = store.find(CID)
        for index in range(3):
            assert store.block(leaf_cid(MANIFEST.leaf(index))) == (blob, index)
        assert store.block(CID) == next(block for cid, block in inner_blocks(MANIFEST) if cid == CID)
        assert store.block(SMALL_CID) == (store.find(SMALL_CID), 0)
        cid, manifest = named(private)
        assert store.block(cid) is None and store.block(leaf_cid(manifest.leaf(0))) is None
        assert store.block(named(b"secret")[0]) is None
        await store.sweep(store.mark(), set())
        assert store.block(CID) is None and store.block(leaf_cid(MANIFEST.leaf(1))) is None
        assert [*store._kv.iterate(b"", b"\xff")] == []


async def test_inner_nodes_of_deep_trees_are_found(place: Room) -> None:
    async with place.open() as store:
        blob = await store.keep(store.write(BlobKind.DATASET, (bytes(4 * MIB) for _ in range(257))))
        assert blob.manifest.count == 1028
        blocks = dict(inner_blocks(blob.manifest))
        assert len(blocks) == 3
        assert all(store.block(cid) == block for cid, block in blocks.items())
        assert store.block(leaf_cid(blob.manifest.leaf(1000))) == (blob, 0)


async def test_a_block_is_found_whatever_its_cid_ends_with(place: Room) -> None:
    ends: dict[int, bytes] = {}
    for number in range(10_000):
        data = number.to_bytes(4, "big")
        ends.setdefault(named(data)[0][-1], data)
    async with place.open() as store:
        for end in (0, 127, 254, 255):
            blob = await store.put(BlobKind.MODEL, ends[end])
            assert store.block(blob.cid) == (blob, 0)


async def test_the_state_and_the_owner_may_publish_what_came_as_private_and_nobody_else(place: Room) -> None:
    async with place.open() as store:
        await published(store, DATA, BlobKind.UPDATE, ALICE)
        again = store.stage(CID, MANIFEST, BlobKind.DATASET, BOB)
        assert (await store.publish(again)).kind == BlobKind.UPDATE
        assert store.block(CID) is None
        again = store.stage(CID, MANIFEST, BlobKind.MODEL)
        assert (await store.publish(again)).kind == BlobKind.MODEL
        assert store.block(leaf_cid(MANIFEST.leaf(1))) is not None
        small = await store.put(BlobKind.UPDATE, SMALL, ALICE)
        assert small.kind == BlobKind.UPDATE
        assert (await store.put(BlobKind.RECORD, SMALL)).kind == BlobKind.RECORD
        assert store.block(SMALL_CID) is not None and store.count == 2


# Leases, quotas, the reserve


async def test_leases_count_until_they_end_and_outlive_a_restart(place: Room) -> None:
    async with place.open() as store:
        lease = await store.lease(ALICE, CID, 40 * MIB, BlobKind.UPDATE)
        assert lease.until_ms == place.clock.ms + LIMITS.lease_ms
        assert store.leases(ALICE) == [lease] and store.leased_bytes(ALICE) == 40 * MIB
        with pytest.raises(QuotaExceeded):
            await store.lease(ALICE, SMALL_CID, 25 * MIB, BlobKind.UPDATE)
        await store.lease(BOB, SMALL_CID, 25 * MIB, BlobKind.UPDATE)
    async with place.open() as store:
        assert (store.leased_bytes(ALICE), store.leased_bytes(BOB)) == (40 * MIB, 25 * MIB)
        place.clock.ms += LIMITS.lease_ms // 2
        assert (await store.lease(ALICE, CID, 40 * MIB, BlobKind.UPDATE)).until_ms > lease.until_ms
        place.clock.ms += LIMITS.lease_ms // 2
        assert (store.leased_bytes(ALICE), store.leased_bytes(BOB)) == (40 * MIB, 0)
        place.clock.ms += LIMITS.lease_ms
        assert store.leased_bytes(ALICE) == 0
        await store.lease(ALICE, SMALL_CID, 64 * MIB, BlobKind.UPDATE)


async def test_what_is_staged_for_an_account_counts_without_a_lease(place: Room) -> None:
    async with place.open() as store:
        store.stage(CID, MANIFEST, BlobKind.UPDATE, ALICE)
        store.stage(CID, MANIFEST, BlobKind.UPDATE, ALICE)
        assert store.leased_bytes(ALICE) == len(DATA)
        with pytest.raises(QuotaExceeded):
            await store.lease(ALICE, SMALL_CID, 62 * MIB, BlobKind.UPDATE)
        other = some_bytes(3 * MIB, seed=5)
        await store.lease(BOB, SMALL_CID, 62 * MIB, BlobKind.UPDATE)
        with pytest.raises(QuotaExceeded):
            store.stage(*named(other), BlobKind.UPDATE, BOB)
        assert store.staging(named(other)[0]) is None
        store.stage(*named(other), BlobKind.UPDATE)
    async with place.open() as store:
        assert store.leased_bytes(ALICE) == len(DATA)


async def test_a_lease_on_a_false_size_is_set_right_by_the_manifest(place: Room) -> None:
    async with place.open() as store:
        await store.lease(ALICE, CID, 1, BlobKind.UPDATE)
        store.stage(CID, MANIFEST, BlobKind.UPDATE, ALICE)
        assert store.leased_bytes(ALICE) == len(DATA)


async def test_an_account_holds_so_many_leases_and_no_more(tmp_path: Path) -> None:
    place = Room(tmp_path, BlobLimits(reserve_bytes=0, member_leases=3))
    async with place.open() as store:
        for number in range(3):
            await store.lease(ALICE, named(bytes([number]))[0], 0, BlobKind.UPDATE)
        with pytest.raises(QuotaExceeded):
            await store.lease(ALICE, CID, 0, BlobKind.UPDATE)
        await store.lease(ALICE, named(b"\0")[0], 0, BlobKind.UPDATE)
        await store.lease(BOB, CID, 0, BlobKind.UPDATE)


async def test_the_reserve_counts_what_is_still_to_come(place: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.open() as store:
        free = 10 * MIB
        monkeypatch.setattr(store._disk, "free_bytes", lambda: free)
        await store.lease(ALICE, CID, len(DATA), BlobKind.UPDATE)
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE, ALICE)
        other = some_bytes(6 * MIB, seed=6)
        await store.lease(BOB, named(other)[0], len(other), BlobKind.UPDATE)
        for size in (2 * MIB, 10 * MIB):
            with pytest.raises(NoSpace):
                await store.lease(BOB, SMALL_CID, size, BlobKind.UPDATE)
        await store.lease(BOB, SMALL_CID, MIB, BlobKind.UPDATE)
        free = MIB // 2
        with pytest.raises(NoSpace):
            staging.put(0, leaf(DATA, 0))
        with pytest.raises(NoSpace):
            store.write(BlobKind.MODEL, [DATA])
        assert staging.put(2, leaf(DATA, 2))
        free = 10 * MIB
        fill(staging, DATA)
        free = 0
        assert not store.full
        await store.publish(staging)
        free = -1
        assert store.full


async def test_rows_without_room_end_the_process_for_nobody_knows_what_they_hold(
    place: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise DiskFull("cannot write rows: no space left on the device")

    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        fill(staging, DATA)
        with monkeypatch.context() as patch:
            patch.setattr(store._kv, "write", full)
            for work in (store.publish(staging), store.lease(ALICE, CID, 5, BlobKind.UPDATE), store.pin(CID)):
                with pytest.raises(DiskFailure) as caught:
                    await work
                assert not isinstance(caught.value, DiskFull)
        assert store.find(CID) is None and store.leased_bytes(ALICE) == 0
    async with place.open() as store:
        resumed = store.staging(CID)
        assert resumed is not None
        await store.resumed(resumed)
        await store.publish(resumed)
        assert store.view(CID) == DATA


# Deletion


async def test_a_sweep_takes_what_nobody_wants(place: Room) -> None:
    async with place.open() as store:
        kept, pinned, leased, touched, new, old = (some_bytes(100, seed) for seed in range(6))
        for data in (kept, pinned, leased, touched, old):
            await store.put(BlobKind.UPDATE, data)
        await store.pin(named(pinned)[0])
        await store.lease(ALICE, named(leased)[0], 100, BlobKind.UPDATE)
        token = store.mark()
        await store.put(BlobKind.UPDATE, new)
        assert store.touch(named(touched)[0]) and not store.touch(CID)
        view = store.view(named(old)[0])
        assert await store.sweep(token, {named(kept)[0]}) == (1, 100)
        assert store.find(named(old)[0]) is None and view == old
        for data in (kept, pinned, leased, touched, new):
            assert store.view(named(data)[0]) == data
        assert (store.count, store.size_bytes, len(place.files())) == (5, 500, 5)
        await store.unpin(named(pinned)[0])
        assert await store.sweep(store.mark(), {named(leased)[0]}) == (4, 400)
    async with place.open() as store:
        assert (store.count, len(place.files())) == (1, 1)
        assert await store.sweep(store.mark(), set()) == (1, 100)


async def test_roots_of_an_older_mark_are_refused(place: Room) -> None:
    async with place.open() as store:
        await store.put(BlobKind.UPDATE, SMALL)
        old, token = store.mark(), store.mark()
        for each in (old, token + 1):
            with pytest.raises(StaleMark):
                await store.sweep(each, set())
        await store.sweep(token, {SMALL_CID})
        with pytest.raises(StaleMark):
            await store.sweep(token, set())
        token = store.mark()
    async with place.open() as store:
        with pytest.raises(StaleMark):
            await store.sweep(token, set())
        assert store.find(SMALL_CID) is not None


async def test_a_lease_ends_when_roots_name_its_blob(place: Room) -> None:
    async with place.open() as store:
        cid = await published(store, DATA, BlobKind.UPDATE, ALICE)
        assert store.leased_bytes(ALICE) == len(DATA)
        assert await store.sweep(store.mark(), {cid}) == (0, 0)
        assert store.leased_bytes(ALICE) == 0
        assert await store.sweep(store.mark(), set()) == (1, len(DATA))


async def test_staged_blobs_go_once_nobody_has_touched_them_for_long(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        staging.put(0, leaf(DATA, 0))
        store.write(BlobKind.MODEL, [SMALL])
        place.clock.ms += LIMITS.idle_ms - 1
        await store.sweep(store.mark(), set())
        assert len(place.files()) == 2
        staging.put(1, leaf(DATA, 1))
        place.clock.ms += 1
        await store.sweep(store.mark(), set())
        assert place.files() == [cid_text(CID) + ".part"]
        place.clock.ms += LIMITS.idle_ms
        await store.sweep(store.mark(), {CID})
        assert not staging.whole and store.staging(CID) is staging
        await store.sweep(store.mark(), set())
        assert place.files() == [] and store.staging(CID) is None
        with pytest.raises(Discarded):
            staging.put(2, leaf(DATA, 2))
        with pytest.raises(Discarded):
            staging.filled(staging.name)
            await store.publish(staging)


async def test_a_staged_blob_is_thrown_away_on_demand(place: Room) -> None:
    async with place.open() as store:
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        staging.put(0, leaf(DATA, 0))
        await store.discard(CID)
        assert place.files() == [] and store.staging(CID) is None
        fill(store.stage(CID, MANIFEST, BlobKind.UPDATE), DATA)
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        await store.publish(staging)
        await store.discard(CID)
        assert store.view(CID) == DATA


async def test_leaves_that_come_while_their_blob_is_thrown_away_leave_no_file(place: Room) -> None:
    async with place.open() as store:
        for _ in range(20):
            staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)

            def receive(staging: Staging, index: int) -> bool:
                try:
                    return staging.put(index, leaf(DATA, index))
                except Discarded:
                    return False

            threads = [asyncio.to_thread(receive, staging, index % 3) for index in range(6)]
            await asyncio.gather(*threads, store.discard(CID))
            assert place.files() == [] and store.staging(CID) is None


async def test_a_blob_staged_again_while_it_is_swept_is_published_again(place: Room) -> None:
    async with place.open() as store:
        await published(store, DATA)
        sweeping = asyncio.ensure_future(store.sweep(store.mark(), set()))
        while store.find(CID) is not None:
            await asyncio.sleep(0)
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        fill(staging, DATA)
        publishing = asyncio.ensure_future(store.publish(staging))
        assert await sweeping == (1, len(DATA))
        await publishing
        assert store.view(CID) == DATA and store.count == 1
    async with place.open() as store:
        assert store.view(CID) == DATA


# What a disk does to blobs


async def test_a_flipped_byte_is_found_and_its_leaf_mended(place: Room) -> None:
    async with place.open() as store:
        await published(store, DATA, BlobKind.MODEL)
        assert await store.verify(CID) == [] and await store.damaged(CID) is None
        view = store.view(CID)
        path = place.root / "files" / "blobs" / cid_text(CID)
        with path.open("r+b") as file:
            file.seek(MIB + 5)
            file.write(bytes([DATA[MIB + 5] ^ 1]))
        assert view[MIB + 5] != DATA[MIB + 5]
        assert await store.verify(CID) == [1]
        staging = await store.damaged(CID)
        assert staging is not None and staging.missing() == [1] and store.lost == [staging]
        assert store.find(CID) is None and store.count == 0 and store.block(CID) is None
        assert staging.leaf(0) == leaf(DATA, 0)
    async with place.open() as store:
        (lost,) = store.lost
        assert (lost.cid, lost.kind, lost.manifest) == (CID, BlobKind.MODEL, MANIFEST)
        await store.resumed(lost)
        assert lost.missing() == [1]
        fill(lost, DATA)
        await store.publish(lost)
        assert store.lost == [] and await store.verify(CID) == [] and store.block(CID) is not None
    async with place.open() as store:
        assert store.lost == [] and store.view(CID) == DATA


@pytest.mark.parametrize("how", ["gone", "cut", "grown"])
async def test_a_file_that_is_not_what_its_row_says_is_lost_and_wanted_back(place: Room, how: str) -> None:
    async with place.open() as store:
        await published(store, DATA, BlobKind.MODEL)
        await store.put(BlobKind.UPDATE, SMALL)
    path = place.root / "files" / "blobs" / cid_text(CID)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(DATA[: MIB + 5] if how == "cut" else DATA + b"more")
    async with place.open() as store:
        assert store.find(CID) is None and store.count == 1
        (lost,) = store.lost
        await store.resumed(lost)
        assert lost.missing() == {"gone": [0, 1, 2], "cut": [1, 2], "grown": []}[how]
        fill(lost, DATA)
        await store.publish(lost)
        assert store.view(CID) == DATA
    async with place.open() as store:
        assert store.view(CID) == DATA and store.lost == []


async def test_a_file_that_vanishes_while_the_store_is_open_is_wanted_back(place: Room) -> None:
    async with place.open() as store:
        await store.put(BlobKind.MODEL, SMALL)
        store._disk.unlink(f"blobs/{cid_text(SMALL_CID)}")
        with pytest.raises(NoSuchFile):
            store.view(SMALL_CID)
        staging = await store.damaged(SMALL_CID)
        assert staging is not None and staging.missing() == [0]
        fill(staging, SMALL)
        await store.publish(staging)
        assert store.view(SMALL_CID) == SMALL
