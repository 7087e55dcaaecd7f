from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chain.cid import LEAF_BYTES
from chain.unixfs import Buffer, Manifest, inner_blocks, leaf_cid, manifest_cid, manifest_of
from fl.blobs import BlobKind
from fl.client.transfer.ipfs import Source
from node.data.blobs import BlobStore
from node.data.errors import NoSpace
from node.data.outside import Outside
from node.ports.offload import ThreadOffload
from tests.ipfs.blocks import Shelf, foreign_file, noise
from tests.ipfs.serving import Handler, gateway, saying, serving
from tests.node.data.worlds import LIMITS, Room

DATA = noise(3 * LEAF_BYTES + 11)


@asynccontextmanager
async def outside(store: BlobStore, *handlers: Handler) -> AsyncIterator[Outside]:
    offload = ThreadOffload()
    try:
        if not handlers:
            yield Outside(store, offload, [])
            return
        async with serving(handlers[0]) as url:
            yield Outside(store, offload, [Source.of(url)])
    finally:
        offload.close()


async def test_a_blob_that_a_gateway_has_becomes_durable_here(tmp_path: Path) -> None:
    shelf = Shelf()
    for size in (0, 5, LEAF_BYTES, len(DATA)):
        shelf.add(DATA[:size])
    room = Room(tmp_path)
    async with room.open() as store, outside(store, gateway(shelf.block)) as found:
        for size in (0, 5, LEAF_BYTES, len(DATA)):
            cid = manifest_cid(manifest_of(DATA[:size]))
            assert await found.obtain(cid, BlobKind.DATASET)
            assert store.view(cid) == DATA[:size]
    async with room.open() as store:
        assert store.view(manifest_cid(manifest_of(DATA))) == DATA


async def test_leaves_that_are_here_already_are_not_fetched_again(tmp_path: Path) -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    manifest = manifest_of(DATA)
    asked: list[bytes] = []

    def block(wanted: bytes) -> Buffer | None:
        asked.append(wanted)
        return shelf.block(wanted)

    async with Room(tmp_path).open() as store, outside(store, gateway(block)) as found:
        staging = store.stage(cid, manifest, BlobKind.MODEL)
        for index in (0, 2):
            assert staging.put(index, shelf.blocks[leaf_cid(manifest.leaf(index))])
        assert await found.obtain(cid, BlobKind.MODEL)
        assert store.view(cid) == DATA
    assert asked[0] == cid
    assert set(asked[1:]) == {leaf_cid(manifest.leaf(index)) for index in (1, 3)}


async def test_what_no_gateway_gives_is_left_to_others(tmp_path: Path) -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    del shelf.blocks[leaf_cid(manifest_of(DATA).leaf(1))]
    async with Room(tmp_path).open() as store:
        for handler in (saying(404), saying(200, b"wrong"), gateway(shelf.block)):
            async with outside(store, handler) as found:
                assert not await found.obtain(cid, BlobKind.DATASET)
        async with outside(store) as found:
            assert not await found.obtain(cid, BlobKind.DATASET)
        staging = store.staging(cid)
        assert staging is not None and not staging.whole


async def test_a_file_that_was_cut_otherwise_or_does_not_add_up_is_not_taken(tmp_path: Path) -> None:
    foreign, blocks = foreign_file(DATA, 262_144, 174, True)
    leaves = [b"short", noise(LEAF_BYTES), b"end"]
    lie = Manifest(2 * LEAF_BYTES + 3, b"".join(manifest_of(leaf).digests for leaf in leaves))
    held = blocks | dict(inner_blocks(lie)) | {leaf_cid(manifest_of(leaf).digests): leaf for leaf in leaves}
    async with Room(tmp_path).open() as store, outside(store, gateway(held.get)) as found:
        for cid in (foreign, manifest_cid(lie)):
            assert not await found.obtain(cid, BlobKind.DATASET)
            assert store.find(cid) is None


async def test_more_than_a_blob_may_have_is_not_begun(tmp_path: Path) -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    room = Room(tmp_path, replace(LIMITS, blob_bytes=len(DATA) - 1))
    async with room.open() as store, outside(store, gateway(shelf.block)) as found:
        assert not await found.obtain(cid, BlobKind.DATASET)
        assert store.staging(cid) is None


async def test_want_of_room_is_said_to_whoever_waits(tmp_path: Path) -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    room = Room(tmp_path, replace(LIMITS, reserve_bytes=2**62))
    async with room.open() as store, outside(store, gateway(shelf.block)) as found:
        with pytest.raises(NoSpace):
            await found.obtain(cid, BlobKind.DATASET)
