from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chain.cid import cid_text
from chain.unixfs import LEAF_BYTES, cid_of, manifest_of
from fl.blobs import BlobKind
from fl.client.errors import BadFile, BadInput, QuorateError, RefusedByChain, Unreachable, Unverified
from fl.client.network import AsyncNetwork, connect_async
from fl.client.transfer.blobfile import Partial, mapped
from fl.client.transfer.blobs import cid_of_file, verify
from fl.client.transfer.doors import Pace
from tests.fl.client.blobdoor import Door
from tests.fl.client.chainlet import Running

LEAVES = 6
QUICK = Pace(stall_s=0.3, leaf_s=5.0, pause_s=0.01, longest_pause_s=0.1)


def content(size: int = (LEAVES - 1) * LEAF_BYTES + 1234) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.fixture
def data() -> bytes:
    return content()


@pytest.fixture
def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    return path


@pytest.fixture
async def network(chain: Running) -> AsyncIterator[AsyncNetwork]:
    async with await connect_async(**chain.settings()) as connected:
        connected.blobs.pace = QUICK
        yield connected


def doors(chain: Running, network: AsyncNetwork) -> list[Door]:
    """In the order in which this client asks them."""
    by_url = {face.url: face.door for face in chain.faces}
    return [by_url[node.url] for node in network.nodes.in_order()]


def beside(path: Path) -> list[Path]:
    return sorted(each for each in path.parent.iterdir() if each.name.endswith(".part"))


# Putting


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES])
async def test_what_is_put_comes_back_under_the_name_that_its_bytes_have(
    chain: Running, network: AsyncNetwork, tmp_path: Path, size: int
) -> None:
    given = content(size)
    receipt = await network.blobs.put(given)
    assert receipt.cid == cid_text(cid_of(given)) and receipt.size_bytes == size
    assert receipt.lease_until_ms > 0
    fetched = await network.blobs.get(receipt.cid, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == given
    assert fetched.lied == () and beside(tmp_path / "back") == []


async def test_the_door_is_asked_for_once_and_remembered(chain: Running, network: AsyncNetwork, file: Path) -> None:
    await network.blobs.put(file)
    await network.blobs.put(b"other")
    assert sum(face.redirected for face in chain.faces) == 1


async def test_a_door_that_has_moved_is_asked_for_again(chain: Running, network: AsyncNetwork, data: bytes) -> None:
    await network.blobs.put(b"first")
    door, *others = doors(chain, network)

    async def move() -> None:
        await door.stop()
        await door.start()

    chain.run(move())
    for each in others:
        each.full = True
    await network.blobs.put(data, patience_s=10.0)
    assert cid_of(data) in door.whole


async def test_an_upload_that_broke_off_goes_on_with_what_is_missing(
    chain: Running, network: AsyncNetwork, file: Path
) -> None:
    for door in doors(chain, network)[1:]:
        door.full = True
    door = doors(chain, network)[0]
    door.takes_at_most = 2
    with pytest.raises(Unreachable):
        await network.blobs.put(file, patience_s=0.0)
    first = set(door.taken)
    assert len(first) == 2
    door.down, door.takes_at_most = False, None
    door.taken.clear()
    await network.blobs.put(file, patience_s=5.0)
    assert set(door.taken) == set(range(LEAVES)) - first and len(door.taken) == LEAVES - 2


async def test_when_a_node_dies_another_one_gets_only_what_it_lacks(
    chain: Running, network: AsyncNetwork, file: Path, data: bytes
) -> None:
    dying, other = doors(chain, network)[:2]
    dying.takes_at_most = 3
    manifest = manifest_of(data)
    # The other node has pulled two leaves already.
    for door in doors(chain, network)[2:]:
        door.full = True
    await asyncio.wait_for(_put_half(chain, network, other, file), 10)
    has = set(other.taken)
    other.taken.clear()
    receipt = await network.blobs.put(file)
    assert set(other.taken) == set(range(manifest.count)) - has
    assert receipt.node == next(face for face in chain.faces if face.door is other).name
    assert other.whole[cid_of(data)].data == data


async def _put_half(chain: Running, network: AsyncNetwork, door: Door, file: Path) -> None:
    others = [each for each in doors(chain, network) if each is not door]
    for each in others:
        each.down = True
    door.takes_at_most = 2
    with pytest.raises(Unreachable):
        await network.blobs.put(file, patience_s=0.0)
    door.down, door.takes_at_most = False, None
    for each in others:
        each.down = False
    await cooled(network)


async def cooled(network: AsyncNetwork) -> None:
    for node in network.nodes.in_order():
        node.answered()


async def test_a_full_node_is_passed_over(chain: Running, network: AsyncNetwork, file: Path) -> None:
    full, other = doors(chain, network)[:2]
    full.full = True
    receipt = await network.blobs.put(file)
    assert full.taken == [] and len(other.taken) == LEAVES
    assert receipt.node == next(face for face in chain.faces if face.door is other).name


async def test_when_all_nodes_are_full_it_is_waited_for_room(chain: Running, network: AsyncNetwork) -> None:
    for face in chain.faces:
        face.door.full = True
    waiting = asyncio.create_task(network.blobs.put(b"small", patience_s=10.0))
    while not all(face.door.offered for face in chain.faces):
        await asyncio.sleep(0.01)
    for face in chain.faces:
        face.door.full = False
    assert (await waiting).size_bytes == 5


async def test_a_busy_node_is_asked_again_when_it_says(chain: Running, network: AsyncNetwork, file: Path) -> None:
    door = doors(chain, network)[0]
    await network.blobs.put(b"warm")
    door.busy_for = 3
    receipt = await network.blobs.put(file, patience_s=10.0)
    assert receipt.size_bytes == file.stat().st_size


async def test_a_node_that_forgets_what_it_was_offered_is_offered_it_again(
    chain: Running, network: AsyncNetwork, file: Path, data: bytes
) -> None:
    door = doors(chain, network)[0]
    door.forgets_once = True
    await network.blobs.put(file, patience_s=10.0)
    assert door.offered.count(cid_of(data)) >= 2


async def test_one_node_cannot_refuse_a_blob_for_all(chain: Running, network: AsyncNetwork) -> None:
    doors(chain, network)[0].refuses = "QUOTA_EXCEEDED"
    assert (await network.blobs.put(b"small")).size_bytes == 5
    for face in chain.faces:
        face.door.refuses = "QUOTA_EXCEEDED"
    with pytest.raises(RefusedByChain) as caught:
        await network.blobs.put(b"other")
    assert caught.value.code == "QUOTA_EXCEEDED"


async def test_a_file_that_changes_while_it_is_sent_is_noticed(
    chain: Running, network: AsyncNetwork, file: Path
) -> None:
    def change(what: str, done: int, total: int) -> None:
        if what == "hash" and done == total:
            with open(file, "r+b") as opened:
                opened.seek(2 * LEAF_BYTES)
                opened.write(b"changed")

    with pytest.raises(BadFile) as caught:
        await network.blobs.put(file, progress=change)
    assert caught.value.code == "FILE_CHANGED"


async def test_only_an_account_can_put(chain: Running) -> None:
    async with await connect_async(**chain.settings(None)) as reader:
        with pytest.raises(BadInput) as caught:
            await reader.blobs.put(b"x")
    assert caught.value.code == "NO_KEY"


# Getting


async def test_leaves_come_from_several_nodes(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    cid = chain.do(chain.chain.spread, data, BlobKind.DATASET)
    told: list[tuple[str, int, int]] = []
    await network.blobs.get(cid_text(cid), tmp_path / "back", progress=lambda *step: told.append(step))
    assert sorted(index for face in chain.faces for index in face.door.given) == list(range(LEAVES))
    assert sum(bool(face.door.given) for face in chain.faces) > 1
    assert told[-1] == ("fetch", len(data), len(data))


async def test_wrong_bytes_are_caught_and_their_node_is_named(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cid = chain.do(chain.chain.spread, data, BlobKind.DATASET)
    liar = chain.faces[1]
    liar.door.wrong_leaves = True
    with caplog.at_level(logging.WARNING, "quorate.client"):
        fetched = await network.blobs.get(cid_text(cid), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert fetched.lied == (liar.name,)
    assert liar.name in caplog.text


async def test_a_wrong_manifest_is_caught_and_its_node_is_named(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    cid = chain.do(chain.chain.spread, data, BlobKind.DATASET)
    doors(chain, network)[0].wrong_manifest = True
    fetched = await network.blobs.get(cid_text(cid), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert len(fetched.lied) == 1


async def test_a_false_word_of_a_small_blobs_size_makes_liars_of_no_others(
    chain: Running, network: AsyncNetwork, tmp_path: Path
) -> None:
    """Its CID is that of its one leaf, and says nothing of a size."""
    small = content(1_000)
    cid = chain.do(chain.chain.spread, small, BlobKind.DATASET)
    doors(chain, network)[0].wrong_size = True
    fetched = await network.blobs.get(cid_text(cid), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == small
    assert fetched.lied == ()
    assert await network.blobs.size_bytes(cid_text(cid)) == len(small)


async def test_when_every_node_lies_nothing_appears_under_the_name(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    cid = chain.do(chain.chain.spread, data, BlobKind.DATASET)
    for face in chain.faces:
        face.door.wrong_leaves = True
    with pytest.raises(Unverified) as caught:
        await network.blobs.get(cid_text(cid), tmp_path / "back")
    assert all(face.name in str(caught.value) for face in chain.faces)
    assert not (tmp_path / "back").exists()


async def test_a_node_that_stalls_is_routed_around(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    cid = chain.do(chain.chain.spread, data, BlobKind.DATASET)
    chain.faces[0].door.stalls = chain.faces[2].door.stalls = True
    await network.blobs.get(cid_text(cid), tmp_path / "back", patience_s=5.0)
    assert (tmp_path / "back").read_bytes() == data
    assert chain.faces[0].door.given == chain.faces[2].door.given == []


async def test_what_no_node_holds_yet_is_waited_for_and_one_that_has_it_is_enough(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    """A round ends with the word of a quorum: whoever is asked may be fetching its model as well."""
    last = doors(chain, network)[-1]
    getting = asyncio.create_task(network.blobs.get(cid_text(cid_of(data)), tmp_path / "back", patience_s=60.0))
    while not all(face.redirected for face in chain.faces):
        await asyncio.sleep(0.01)
    assert not getting.done()
    chain.do(last.hold, data)
    assert (await getting).lied == () and (tmp_path / "back").read_bytes() == data


async def test_a_download_that_broke_off_goes_on_with_what_is_missing(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    door = doors(chain, network)[0]
    cid = door.hold(data, BlobKind.DATASET)
    network.blobs.pace = replace(QUICK, lanes=1)
    door.gives_at_most = 2
    with pytest.raises(Unreachable):
        await network.blobs.get(cid_text(cid), tmp_path / "back", patience_s=0.0)
    assert not (tmp_path / "back").exists() and len(beside(tmp_path / "back")) == 1
    half = Partial(tmp_path / "back", cid, manifest_of(data))
    half.open()
    half.close()
    assert len(half.missing) < LEAVES, "two leaves came before the break"
    door.down, door.gives_at_most = False, None
    door.given.clear()
    await cooled(network)
    await network.blobs.get(cid_text(cid), tmp_path / "back", patience_s=5.0)
    assert (tmp_path / "back").read_bytes() == data and beside(tmp_path / "back") == []
    assert sorted(door.given) == sorted(half.missing)


async def test_a_damaged_half_is_taken_up_only_as_far_as_it_is_right(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    cid, manifest = chain.do(chain.chain.spread, data, BlobKind.DATASET), manifest_of(data)
    path = tmp_path / "back"
    half = Partial(path, cid, manifest)
    half.open()
    for index in range(4):
        assert half.put(index, data[index * LEAF_BYTES : (index + 1) * LEAF_BYTES])
    assert not half.put(4, bytes(LEAF_BYTES))
    half.close()
    (left,) = beside(path)
    with open(left, "r+b") as opened:
        opened.seek(LEAF_BYTES + 7)
        opened.write(b"damage")
    await network.blobs.get(cid_text(cid), path)
    assert path.read_bytes() == data
    assert sorted(index for face in chain.faces for index in face.door.given) == [1, 4, 5]


async def test_what_is_there_already_is_not_fetched(
    chain: Running, network: AsyncNetwork, file: Path, data: bytes
) -> None:
    cid = chain.do(chain.chain.spread, data, BlobKind.DATASET)
    await network.blobs.get(cid_text(cid), file)
    assert not any(face.door.given for face in chain.faces)


async def test_an_update_is_given_to_its_member_on_signed_request_and_to_nobody_else(
    chain: Running, network: AsyncNetwork, data: bytes, tmp_path: Path
) -> None:
    receipt = await network.blobs.put(data, "update")
    await network.blobs.get(receipt.cid, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == data
    assert receipt.cid in [each["cid"] async for each in network.blobs.ls()]
    others: tuple[tuple[str | None, type[QuorateError], str], ...] = (
        ("trainer-001", RefusedByChain, "BLOB_NOT_YOURS"),
        (None, Unreachable, "UNKNOWN_BLOB"),
    )
    for name, error, code in others:
        async with await connect_async(**chain.settings(name, home="other")) as other:
            with pytest.raises(error) as caught:
                await other.blobs.get(receipt.cid, tmp_path / "other", patience_s=0.2)
            assert caught.value.code == code
            assert receipt.cid not in [each["cid"] async for each in other.blobs.ls()]


async def test_nodes_say_what_they_hold(chain: Running, network: AsyncNetwork, data: bytes) -> None:
    receipt = await network.blobs.put(data)
    held = {each.node: each.held for each in await network.blobs.stat(receipt.cid)}
    assert sum(held.values()) == 1 and held[receipt.node]
    for index in range(3):
        await network.blobs.put(b"%d" % index)
    listed = [each["cid"] async for each in network.blobs.ls()]
    assert receipt.cid in listed and len(listed) == len(set(listed))


# Memory and names


async def test_memory_does_not_grow_with_a_blob(chain: Running, network: AsyncNetwork, tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    with open(file, "wb") as opened:
        opened.truncate(96 * LEAF_BYTES)
    for face in chain.faces:
        face.door.keeps = False
    tracemalloc.start()
    try:
        receipt = await network.blobs.put(file)
        chain.do(chain.chain.spread, mapped(file), BlobKind.DATASET)
        await network.blobs.get(receipt.cid, tmp_path / "back")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert verify(tmp_path / "back", receipt.cid)
    # The chainlet's side of each lane is in this process too.
    assert peak < 8 * QUICK.lanes * LEAF_BYTES


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES, LEAF_BYTES + 1, 5 * LEAF_BYTES + 17])
def test_a_file_is_named_offline_as_the_chain_names_its_bytes(tmp_path: Path, size: int) -> None:
    data = content(size)
    (tmp_path / "file").write_bytes(data)
    cid = cid_text(cid_of(data))
    assert cid_of_file(tmp_path / "file") == cid
    assert verify(tmp_path / "file", cid)
    (tmp_path / "file").write_bytes(data + b"!")
    assert not verify(tmp_path / "file", cid)


@pytest.mark.parametrize(("given", "code"), [("nonsense", "BAD_CID"), ("", "BAD_CID")])
def test_a_name_that_is_none_is_refused(tmp_path: Path, given: str, code: str) -> None:
    with pytest.raises(BadInput) as caught:
        verify(tmp_path / "file", given)
    assert caught.value.code == code
