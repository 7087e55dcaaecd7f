"""The gateway as a node offers it: at its door, over its store of blobs."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest

from chain.car import CarReader
from chain.cid import LEAF_BYTES, cid_text
from chain.unixfs import inner_blocks, leaf_cid, walk
from fl.blobs import BlobKind
from fl.client.transfer.ipfs import NotFound, Source, fetch
from node.data.blobs import BlobStore
from node.data.index import Blob
from tests.ipfs.others import installed, run
from tests.ipfs.test_client import Sheet
from tests.node.data.door.host import Upload, blob_of, hosted

RAW = {"Accept": "application/vnd.ipld.raw"}


async def keep(store: BlobStore, blob: Upload, account: bytes = b"") -> None:
    staging = store.stage(blob.cid, blob.manifest, blob.kind, account)
    for index in staging.missing():
        assert staging.put(index, blob.leaf(index))
    await store.publish(staging)


async def test_every_block_of_a_public_blob_is_given_and_none_of_a_private_one(tmp_path: Path) -> None:
    common = blob_of(LEAF_BYTES, seed=1)
    public = Upload(common + blob_of(LEAF_BYTES + 7, seed=2))
    private = Upload(common + blob_of(LEAF_BYTES + 7, seed=3), BlobKind.UPDATE)
    async with hosted(tmp_path) as host:
        await keep(host.store, public)
        await keep(host.store, private, sha256(b"alice").digest())
        for blob in (public, private):
            blocks = dict(inner_blocks(blob.manifest))
            blocks |= {leaf_cid(blob.manifest.leaf(index)): blob.leaf(index) for index in range(blob.manifest.count)}
            for cid, block in blocks.items():
                status, headers, body = await host.call("GET", f"/ipfs/{cid_text(cid)}", headers=RAW)
                if blob is public or block == common:
                    assert (status, body) == (200, block)
                    assert headers["content-type"] == RAW["Accept"]
                    assert headers["content-length"] == str(len(block))
                else:
                    assert status == 404
                    assert b'"UNKNOWN_BLOB"' in body
                head, _, nothing = await host.call("HEAD", f"/ipfs/{cid_text(cid)}", headers=RAW)
                assert (head, nothing) == (status, b"")


async def test_an_archive_of_a_blob_leaves_the_door_whole_or_in_part(tmp_path: Path) -> None:
    blob = Upload(blob_of(3 * LEAF_BYTES + 5))
    path = f"/ipfs/{cid_text(blob.cid)}?format=car"
    steps = list(walk(blob.manifest))
    async with hosted(tmp_path) as host:
        await keep(host.store, blob)
        for query, wanted in (("", steps), ("&entity-bytes=-1:*", [steps[0], steps[-1]])):
            status, headers, body = await host.call("GET", path + query)
            assert status == 200
            assert headers["content-type"] == "application/vnd.ipld.car; version=1; order=dfs; dups=n"
            assert headers["x-content-type-options"] == "nosniff"
            reader = CarReader()
            assert [cid for cid, _ in reader.feed(body)] == [cid for cid, _ in wanted]
            reader.finish()
            again, _, nothing = await host.call("GET", path + query, headers={"If-None-Match": headers["etag"]})
            assert (again, nothing) == (304, b"")


async def test_a_client_fetches_a_blob_from_the_door_and_nothing_private(tmp_path: Path) -> None:
    public, private = Upload(blob_of(5 * LEAF_BYTES + 3)), Upload(blob_of(100), BlobKind.UPDATE)
    async with hosted(tmp_path) as host:
        await keep(host.store, public)
        await keep(host.store, private, sha256(b"alice").digest())
        sheet = Sheet()
        assert await fetch(public.cid, [Source.of(host.url)], sheet.write) == len(public.data)
        assert sheet.bytes == public.data
        with pytest.raises(NotFound):
            await fetch(private.cid, [Source.of(host.url)], sheet.write)


async def test_an_archive_that_cannot_be_finished_breaks_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = Upload(blob_of(9 * LEAF_BYTES))
    asked = 0

    def until_it_is_swept(store: BlobStore, cid: bytes) -> tuple[Blob, int] | bytes | None:
        nonlocal asked
        asked += 1
        return block(store, cid) if asked < 5 else None

    block = BlobStore.block
    monkeypatch.setattr(BlobStore, "block", until_it_is_swept)
    async with hosted(tmp_path) as host:
        await keep(host.store, blob)
        with pytest.raises(aiohttp.ClientPayloadError):
            await host.call("GET", f"/ipfs/{cid_text(blob.cid)}?format=car")


@installed
async def test_an_ipfs_client_fetches_a_blob_from_the_door(tmp_path: Path) -> None:
    blobs = [Upload(blob_of(size)) for size in (0, 1000, LEAF_BYTES, 4 * LEAF_BYTES + 1)]
    async with hosted(tmp_path) as host:
        for blob in blobs:
            await keep(host.store, blob)
        got = await run("fetch.mjs", host.url, *(cid_text(blob.cid) for blob in blobs))
    assert got == [f"{len(blob.data)} {sha256(blob.data).hexdigest()}" for blob in blobs]


@installed
async def test_another_implementation_reads_the_archives_of_the_door(tmp_path: Path) -> None:
    blobs = [Upload(blob_of(size)) for size in (0, 1000, 3 * LEAF_BYTES + 1)]
    async with hosted(tmp_path) as host:
        for blob in blobs:
            await keep(host.store, blob)
            name = cid_text(blob.cid)
            read = await run("archive.mjs", f"{host.url}/ipfs/{name}?format=car")
            assert read == [name, *(cid_text(cid) for cid, _ in walk(blob.manifest))]
