"""The client's blobs against the doors that nodes really have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from chain.cid import cid_text
from chain.unixfs import LEAF_BYTES, cid_of
from fl.blobs import BlobKind
from fl.client.errors import QuorateError, RefusedByChain, Unreachable
from fl.client.home import Home
from fl.client.nodes import Nodes
from fl.client.transfer.blobs import AsyncBlobs
from fl.client.transfer.doors import Pace, Signer
from tests.node.data.door.host import CHAIN, STORE, Hosted, blob_of, hosted, person

DATA = blob_of(5 * LEAF_BYTES + 321)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[list[Hosted]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(hosted(tmp_path / f"host{index}")) for index in range(2)]


class Member:
    """`with` it: the blobs of one account at these doors."""

    def __init__(self, root: Path, hosts: list[Hosted], name: str) -> None:
        who = person(name)
        self.nodes = Nodes([(f"node{index}", host.url) for index, host in enumerate(hosts)], 0, 1.0)
        signer = Signer(CHAIN, who.account, who.key)
        self.blobs = AsyncBlobs(self.nodes, Home(root, CHAIN, who.account), signer, lambda: len(hosts))
        self.blobs.pace = Pace(pause_s=0.01, longest_pause_s=0.1)

    async def __aenter__(self) -> AsyncBlobs:
        return self.blobs

    async def __aexit__(self, *_: object) -> None:
        await self.nodes.close()


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES, len(DATA)])
async def test_what_is_put_at_a_door_comes_back(hosts: list[Hosted], tmp_path: Path, size: int) -> None:
    data = DATA[:size]
    async with Member(tmp_path, hosts, "alice") as blobs:
        receipt = await blobs.put(data)
        assert receipt.cid == cid_text(cid_of(data)) and receipt.node == "node0"
        blob = hosts[0].store.find(cid_of(data))
        assert blob is not None and bytes(hosts[0].store.view(blob.cid)) == data
        assert blob.kind == BlobKind.DATASET and blob.account == person("alice").account
        assert hosts[0].clock.now().wall_ms < receipt.lease_until_ms
        await blobs.get(receipt.cid, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


async def test_a_door_is_sent_only_the_leaves_that_it_lacks(hosts: list[Hosted], tmp_path: Path) -> None:
    async with Member(tmp_path, hosts, "alice") as blobs:
        hosts[0].standings[person("alice").key.public] = ()
        told: list[int] = []

        def stop(what: str, done: int, total: int) -> None:
            told.append(done)
            if what == "send" and done >= 2 * LEAF_BYTES:
                raise KeyError("the program is stopped")

        with pytest.raises(KeyError):
            await blobs.put(DATA, progress=stop)
        staging = hosts[1].store.staging(cid_of(DATA))
        assert staging is not None and 0 < len(staging.missing()) < 6
        lacking = len(staging.missing())
        sent: list[int] = []
        await blobs.put(DATA, progress=lambda what, done, total: sent.append(done) if what == "send" else None)
        assert len(DATA) - sent[0] <= lacking * LEAF_BYTES and sent[-1] == len(DATA)
    assert hosts[1].store.find(cid_of(DATA)) is not None


async def test_an_update_is_read_by_its_member_and_by_auditors(hosts: list[Hosted], tmp_path: Path) -> None:
    async with Member(tmp_path, hosts, "alice") as blobs:
        cid = (await blobs.put(DATA, "update")).cid
        await blobs.get(cid, tmp_path / "mine")
        assert [each.held for each in await blobs.stat(cid)] == [True, False]
        assert [each["cid"] async for each in blobs.ls()] == [cid]
    async with Member(tmp_path, hosts, "auditor") as blobs:
        await blobs.get(cid, tmp_path / "audited")
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "audited").read_bytes() == DATA
    others: tuple[tuple[str, type[QuorateError], str], ...] = (
        ("bob", RefusedByChain, "BLOB_NOT_YOURS"),
        ("stranger", Unreachable, "UNKNOWN_BLOB"),
    )
    for name, error, code in others:
        async with Member(tmp_path, hosts, name) as blobs:
            with pytest.raises(error) as caught:
                await blobs.get(cid, tmp_path / "none", patience_s=0.0)
            assert caught.value.code == code
            assert [each async for each in blobs.ls()] == []


async def test_a_stranger_puts_nothing(hosts: list[Hosted], tmp_path: Path) -> None:
    async with Member(tmp_path, hosts, "stranger") as blobs:
        with pytest.raises(RefusedByChain) as caught:
            await blobs.put(DATA)
    assert caught.value.code == "NOT_MEMBER"


async def test_a_full_door_is_passed_over(tmp_path: Path) -> None:
    full = replace(STORE, reserve_bytes=2**62)
    async with (
        hosted(tmp_path / "full", store_limits=full) as first,
        hosted(tmp_path / "other") as second,
        Member(tmp_path, [first, second], "alice") as blobs,
    ):
        assert (await blobs.put(DATA)).node == "node1"
