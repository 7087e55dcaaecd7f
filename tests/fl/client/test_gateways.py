from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from chain.cid import parse_cid
from chain.unixfs import LEAF_BYTES, cid_of, leaf_cid, manifest_of, node_cid, walk
from fl.client.errors import Unreachable, Unverified
from fl.client.transfer.gateways import get_from_ipfs
from fl.client.transfer.ipfs import AT_ONCE, Source

DATA = np.random.default_rng(8).bytes(4 * LEAF_BYTES + 99)


class Gateway:
    """A trustless gateway that has some blocks."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/ipfs/{cid}", self._give)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _give(self, request: web.Request) -> web.Response:
        cid = parse_cid(request.match_info["cid"])
        self.asked.append(cid)
        block = self.blocks.get(cid)
        return web.Response(status=404) if block is None else web.Response(body=block)

    def add(self, data: bytes) -> bytes:
        """As Quorate cuts it."""
        for cid, block in walk(manifest_of(data)):
            self.blocks[cid] = (
                block if isinstance(block, bytes) else data[block * LEAF_BYTES : (block + 1) * LEAF_BYTES]
            )
        return cid_of(data)

    def add_otherwise(self, parts: Sequence[bytes]) -> bytes:
        """In leaves of other sizes."""
        links = b""
        for part in parts:
            cid = leaf_cid(sha256(part).digest())
            self.blocks[cid] = part
            link = b"\x0a\x24" + cid + b"\x12\x00\x18" + varint(len(part))
            links += b"\x12" + varint(len(link)) + link
        sizes = b"".join(b"\x20" + varint(len(part)) for part in parts)
        data = b"\x08\x02\x18" + varint(sum(map(len, parts))) + sizes
        block = links + b"\x0a" + varint(len(data)) + data
        self.blocks[node_cid(block)] = block
        return node_cid(block)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    runner = await made.start()
    yield made
    await runner.cleanup()


async def test_a_file_comes_from_a_gateway_and_its_progress_is_told(gateway: Gateway, tmp_path: Path) -> None:
    cid = gateway.add(DATA)
    told: list[tuple[str, int, int]] = []
    path = tmp_path / "back"
    size = await get_from_ipfs(cid, [Source(gateway.url)], path, lambda *step: told.append(step))
    assert size == len(DATA) and path.read_bytes() == DATA
    assert told[-1] == ("fetch", len(DATA), len(DATA))


async def test_a_download_from_a_gateway_is_taken_up_where_it_broke_off(gateway: Gateway, tmp_path: Path) -> None:
    # More leaves than are asked for at once: some are here before the last one is asked for.
    data = np.random.default_rng(9).bytes((AT_ONCE + 3) * LEAF_BYTES + 99)
    cid, manifest = gateway.add(data), manifest_of(data)
    last = leaf_cid(manifest.leaf(manifest.count - 1))
    kept = gateway.blocks.pop(last)
    with pytest.raises(Unreachable):
        await get_from_ipfs(cid, [Source(gateway.url)], tmp_path / "back")
    assert not (tmp_path / "back").exists()
    gateway.blocks[last] = kept
    gateway.asked.clear()
    await get_from_ipfs(cid, [Source(gateway.url)], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert last in gateway.asked and len(gateway.asked) < manifest.count + 1


async def test_a_file_that_others_cut_is_put_together(gateway: Gateway, tmp_path: Path) -> None:
    cid = gateway.add_otherwise([DATA[:1000], DATA[1000:500_000], DATA[500_000:900_000]])
    assert await get_from_ipfs(cid, [Source(gateway.url)], tmp_path / "back") == 900_000
    assert (tmp_path / "back").read_bytes() == DATA[:900_000]
    assert list(tmp_path.iterdir()) == [tmp_path / "back"]


async def test_a_gateway_that_sends_wrong_blocks_gets_nothing_written(gateway: Gateway, tmp_path: Path) -> None:
    cid = gateway.add(DATA)
    for each, block in gateway.blocks.items():
        gateway.blocks[each] = block[:-1] + bytes([block[-1] ^ 1])
    with pytest.raises((Unreachable, Unverified)):
        await get_from_ipfs(cid, [Source(gateway.url)], tmp_path / "back")
    assert not (tmp_path / "back").exists()
