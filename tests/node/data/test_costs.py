"""What a blob costs on its way into the store, counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.unixfs import LEAF_BYTES
from fl.blobs import BlobKind, dataset_demand
from node.data import judging
from node.data.blobs import BlobStore
from node.data.errors import NoSpace
from node.data.index import HEAD
from node.data.judging import GOOD, STRETCH_BYTES, Judging
from node.data.staging import whole_name
from tests.node.data.worlds import ALICE, MIB, Room, fill, named, some_bytes

DATA = some_bytes(2 * MIB + 77)
CID, MANIFEST = named(DATA)


@pytest.fixture
def place(tmp_path: Path) -> Room:
    return Room(tmp_path)


async def test_a_blob_is_synced_once_by_the_name_that_it_keeps(place: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.open() as store:
        synced: list[str] = []
        sync = store._disk.sync

        async def noted(*names: str) -> None:
            synced.extend(names)
            await sync(*names)

        monkeypatch.setattr(store._disk, "sync", noted)
        staging = store.stage(CID, MANIFEST, BlobKind.UPDATE)
        fill(staging, DATA)
        await store.publish(staging)
        made = await store.put(BlobKind.MODEL, some_bytes(MIB + 5))
        assert synced == [whole_name(CID), whole_name(made.cid)]


async def test_with_room_for_all_that_was_promised_nobody_looks_which_of_it_is_here(
    place: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.open() as store:
        for seed in range(20):
            cid, manifest = named(data := some_bytes(1000, seed=seed))
            staging = store.stage(cid, manifest, BlobKind.UPDATE, ALICE)
            fill(staging, data)
            await store.publish(staging)
        looked = _looked(store, monkeypatch)
        store.stage(CID, MANIFEST, BlobKind.UPDATE, ALICE)
        assert set(looked) == {HEAD + CID}
        free = store.limits.reserve_bytes + len(DATA) + 10 * 1000
        monkeypatch.setattr(store._disk, "free_bytes", lambda: free)
        other, manifest = named(some_bytes(10 * 1000, seed=99))
        # Only what is still to come has to have room: the twenty are here.
        store.stage(other, manifest, BlobKind.UPDATE, ALICE)
        assert len(set(looked)) == 22
        with pytest.raises(NoSpace):
            store.stage(*named(b"one more"), BlobKind.UPDATE, ALICE)


def _looked(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Rows that are asked for from here on, but those of manifests."""
    keys: list[bytes] = []
    get = store._kv.get

    def noted(key: bytes) -> bytes | None:
        if key.startswith(HEAD):
            keys.append(key)
        return get(key)

    monkeypatch.setattr(store._index._kv, "get", noted)
    return keys


@pytest.mark.parametrize("size", [0, 1, STRETCH_BYTES, STRETCH_BYTES + 1])
async def test_every_leaf_is_looked_at_once_and_none_that_was_seen_as_it_came(
    place: Room, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = some_bytes(size)
    cid, manifest = named(data)
    looked: list[tuple[int, int]] = []
    monkeypatch.setattr(judging, "check_part", lambda demand, start, part: looked.append((start, len(part))))
    async with place.open() as store:
        staging = store.stage(cid, manifest, BlobKind.DATASET)
        fill(staging, data)
        blob = await store.publish(staging)
        demand = dataset_demand(cid, size, ALICE)
        whole = [(start, min(LEAF_BYTES, size - start)) for start in range(0, max(1, size), LEAF_BYTES)]
        for seen in range(manifest.count + 1):
            looked.clear()
            found = await Judging(store, store._offload, None)._examined(b"", demand, blob, set(range(seen)))  # type: ignore[arg-type]
            assert (found, looked) == (GOOD, whole[seen:])
