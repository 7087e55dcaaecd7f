"""A real IPFS client, `@helia/verified-fetch`, against the gateway."""

from __future__ import annotations

from hashlib import sha256

import pytest

from chain.cid import LEAF_BYTES, cid_text
from chain.unixfs import Buffer
from tests.ipfs.blocks import Shelf, noise
from tests.ipfs.others import Failed, installed, run
from tests.ipfs.serving import gateway, serving


@installed
async def test_an_ipfs_client_fetches_files_of_one_leaf_and_of_many() -> None:
    shelf = Shelf()
    files = [b"a small model", noise(LEAF_BYTES), noise(5 * LEAF_BYTES + 4321)]
    cids = [cid_text(shelf.add(data)) for data in files]
    async with serving(gateway(shelf.block)) as url:
        got = await run("fetch.mjs", url, *cids)
    assert got == [f"{len(data)} {sha256(data).hexdigest()}" for data in files]


@installed
async def test_an_ipfs_client_takes_no_wrong_leaf_from_the_gateway() -> None:
    shelf = Shelf()
    cid = shelf.add(noise(2 * LEAF_BYTES))
    *good, last = shelf.blocks
    shelf.blocks[last] = bytes(LEAF_BYTES)
    asked: set[bytes] = set()

    def block(wanted: bytes) -> Buffer | None:
        asked.add(wanted)
        return shelf.block(wanted)

    async with serving(gateway(block)) as url:
        with pytest.raises(Failed, match="nobody is left to ask"):
            await run("fetch.mjs", url, cid_text(cid))
    assert asked == {*good, last}
