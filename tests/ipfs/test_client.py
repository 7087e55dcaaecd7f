from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

import fl.client.transfer.ipfs as ipfs
from chain.cid import LEAF_BYTES, raw_cid
from chain.unixfs import LINKS, MAX_BLOCK_BYTES, inner_blocks, manifest_cid, manifest_of, node_cid, zeros_manifest
from fl.client.errors import BadInput, QuorateError, Unreachable, Unverified
from fl.client.transfer.ipfs import Blocks, NotFound, Source, fetch
from tests.ipfs.blocks import Shelf, foreign_file, foreign_node, noise
from tests.ipfs.serving import Handler, gateway, kubo, saying, serving

DATA = noise(2 * LEAF_BYTES + 5)


class Sheet:
    """A file that is written in any order, each byte once."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.written = 0

    def write(self, offset: int, data: bytes) -> None:
        self.bytes.extend(bytes(max(0, offset + len(data) - len(self.bytes))))
        self.bytes[offset : offset + len(data)] = data
        self.written += len(data)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs, "_PAUSE_S", 0.001)


async def fetched(cid: bytes, *handlers: Handler, limit_bytes: int = 2**30, path: str = "") -> bytes:
    async with AsyncExitStack() as stack:
        sources = [Source.of(await stack.enter_async_context(serving(each)) + path) for each in handlers]
        sheet = Sheet()
        size = await fetch(cid, sources, sheet.write, limit_bytes)
    assert size == sheet.written == len(sheet.bytes)
    return bytes(sheet.bytes)


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES, LEAF_BYTES + 1, len(DATA)])
async def test_a_file_is_fetched_from_a_gateway(size: int) -> None:
    shelf = Shelf()
    assert await fetched(shelf.add(DATA[:size]), gateway(shelf.block)) == DATA[:size]


@pytest.mark.parametrize("raw_leaves", [True, False])
@pytest.mark.parametrize(("leaf_bytes", "width"), [(262_144, 174), (262_144, 2), (100_003, 3), (2_000_000, 174)])
async def test_a_file_that_others_have_cut_is_fetched_too(leaf_bytes: int, width: int, raw_leaves: bool) -> None:
    cid, blocks = foreign_file(DATA, leaf_bytes, width, raw_leaves)
    assert await fetched(cid, gateway(blocks.get)) == DATA


async def test_a_node_may_hold_bytes_before_those_of_its_children() -> None:
    leaf = raw_cid(b"world")
    root = foreign_node([(leaf, 5)], b"hello ")
    assert await fetched(node_cid(root), gateway({leaf: b"world", node_cid(root): root}.get)) == b"hello world"


async def test_a_file_is_fetched_from_a_kubo_node() -> None:
    cid, blocks = foreign_file(DATA, 262_144, 174, True)
    assert await fetched(cid, kubo(blocks), path="/api/v0") == DATA


async def test_another_source_answers_where_one_does_not() -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    wrong = gateway(dict.fromkeys(shelf.blocks, b"no such thing").get)
    endless = saying(200, bytes(MAX_BLOCK_BYTES + 1))
    sources = (saying(404), saying(503), wrong, endless, gateway(shelf.block))
    assert await fetched(cid, *sources) == DATA


async def test_blocks_may_be_scattered_over_sources() -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    parts: list[dict[bytes, bytes]] = [{}, {}]
    for place, (each, block) in enumerate(shelf.blocks.items()):
        parts[place % 2][each] = bytes(block)
    assert await fetched(cid, *(gateway(part.get) for part in parts)) == DATA


async def test_a_source_that_gave_wrong_bytes_is_not_asked_again() -> None:
    shelf = Shelf()
    cid = shelf.add(DATA)
    asked = 0

    async def wrong(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response(body=b"wrong")

    async with AsyncExitStack() as stack:
        bad = await stack.enter_async_context(serving(wrong))
        good = await stack.enter_async_context(serving(gateway(shelf.block)))
        blocks = await stack.enter_async_context(Blocks([Source.of(bad), Source.of(good)]))
        await blocks.block(cid)
        assert asked == 1
        assert await blocks.file(cid, Sheet().write) == len(DATA)
    assert asked == 1


async def test_a_source_that_does_better_later_is_asked_again() -> None:
    shelf = Shelf()
    cid = shelf.add(b"small")
    answers = iter([saying(503), saying(429), gateway(shelf.block)])

    async def moody(request: web.Request) -> web.StreamResponse:
        return await next(answers)(request)

    assert await fetched(cid, moody) == b"small"


async def test_what_nobody_has_is_not_found_and_what_nobody_answers_is_unreachable() -> None:
    cid = raw_cid(b"nowhere")
    with pytest.raises(NotFound):
        await fetched(cid, saying(404), gateway({}.get))
    with pytest.raises(NotFound):
        await fetched(cid, kubo({}), path="/api/v0")
    with pytest.raises(NotFound, match="wrong bytes"):
        await fetched(cid, saying(200, b"else"))
    with pytest.raises(Unreachable) as caught:
        await fetched(cid, saying(502))
    assert not isinstance(caught.value, NotFound)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable):
            await fetch(cid, [Source(f"http://127.0.0.1:{closed.getsockname()[1]}")], Sheet().write)


async def test_more_than_is_wanted_is_not_begun() -> None:
    shelf = Shelf()
    for data in (DATA, b"small"):
        sheet = Sheet()
        async with serving(gateway(shelf.block)) as url:
            cid = shelf.add(data)
            with pytest.raises(QuorateError) as caught:
                await fetch(cid, [Source.of(url)], sheet.write, len(data) - 1)
        assert caught.value.code == "FILE_TOO_LARGE"
        assert sheet.written == 0


def chain_of_nodes(depth: int) -> tuple[bytes, dict[bytes, bytes]]:
    blocks = {raw_cid(b"leaf"): b"leaf"}
    cid = raw_cid(b"leaf")
    for _ in range(depth):
        block = foreign_node([(cid, 4)])
        cid = node_cid(block)
        blocks[cid] = block
    return cid, blocks


async def test_a_tree_that_does_not_add_up_is_refused() -> None:
    leaf = raw_cid(b"leaf")
    child = foreign_node([(leaf, 4)])
    for claimed, cid in ((5, leaf), (3, node_cid(child)), (2**63, leaf)):
        root = foreign_node([(cid, claimed)])
        blocks = {leaf: b"leaf", node_cid(child): child, node_cid(root): root}
        with pytest.raises(QuorateError):
            await fetched(node_cid(root), gateway(blocks.get))
    for block in (b"\x00", foreign_node([], kind=1), foreign_node([], kind=5)):
        with pytest.raises(Unverified) as caught:
            await fetched(node_cid(block), kubo({node_cid(block): block}), path="/api/v0")
        assert caught.value.code == "NOT_A_FILE"


async def test_a_tree_that_is_too_deep_is_refused() -> None:
    cid, blocks = chain_of_nodes(ipfs.MAX_DEPTH)
    assert await fetched(cid, gateway(blocks.get)) == b"leaf"
    cid, blocks = chain_of_nodes(ipfs.MAX_DEPTH + 1)
    with pytest.raises(Unverified, match="deeper"):
        await fetched(cid, gateway(blocks.get))


async def test_branches_without_bytes_are_not_followed() -> None:
    leaf = raw_cid(b"leaf")
    cid, blocks = raw_cid(b""), {leaf: b"leaf"}
    for _ in range(20):
        block = foreign_node([(cid, 0)] * 50)
        cid = node_cid(block)
        blocks[cid] = block
    root = foreign_node([(cid, 0), (leaf, 4), (cid, 0)])
    blocks[node_cid(root)] = root
    assert await fetched(node_cid(root), gateway(blocks.get)) == b"leaf"


async def test_a_file_in_too_many_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs, "MAX_BLOCKS", 40)
    cid, blocks = foreign_file(b"x" * 30, 1, 5, True)
    assert await fetched(cid, gateway(blocks.get)) == b"x" * 30
    cid, blocks = foreign_file(b"x" * 60, 1, 5, True)
    with pytest.raises(Unverified, match="blocks"):
        await fetched(cid, gateway(blocks.get))


async def test_a_manifest_is_read_from_the_nodes_alone() -> None:
    shelf = Shelf()
    large = zeros_manifest(b"header", (LINKS + 3) * LEAF_BYTES + 1)
    shelf.blocks |= dict(inner_blocks(large))
    wanted = [large, *(manifest_of(DATA[:size]) for size in (0, 1, len(DATA)))]
    for size in (0, 1, len(DATA)):
        shelf.add(DATA[:size])
    async with serving(gateway(shelf.block)) as url, Blocks([Source.of(url)]) as blocks:
        for manifest in wanted:
            assert await blocks.manifest(manifest_cid(manifest)) == manifest
        with pytest.raises(QuorateError):
            await blocks.manifest(manifest_cid(large), large.size_bytes - 1)


async def test_a_file_that_was_cut_otherwise_has_no_manifest_here() -> None:
    cuts = [(262_144, 1024, True), (LEAF_BYTES, 2, True), (LEAF_BYTES, 1024, False), (LEAF_BYTES - 1, 1024, True)]
    for leaf_bytes, width, raw_leaves in cuts:
        cid, held = foreign_file(DATA, leaf_bytes, width, raw_leaves)
        async with serving(gateway(held.get)) as url, Blocks([Source.of(url)]) as blocks:
            with pytest.raises(Unverified) as caught:
                await blocks.manifest(cid)
        assert caught.value.code == "FOREIGN_LAYOUT"


def test_a_source_is_an_address() -> None:
    assert Source.of(" https://gateway.example/ ") == Source("https://gateway.example")
    assert not Source.of("https://gateway.example/base").kubo
    assert Source.of("http://127.0.0.1:5001/api/v0/").kubo
    for wrong in ("", "gateway.example", "ftp://gateway.example", "https://", "https://gateway.example/?x=1"):
        with pytest.raises(BadInput):
            Source.of(wrong)
    with pytest.raises(BadInput):
        Blocks([])
