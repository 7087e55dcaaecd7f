from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.cid import LEAF_BYTES, CidError, cid_text, is_raw, raw_cid
from chain.codec import decode, encode
from chain.unixfs import (
    LINKS,
    MAX_BLOCK_BYTES,
    MAX_FILE_BYTES,
    MAX_LEAVES,
    Hasher,
    Manifest,
    block_of,
    check_manifest,
    cid_of,
    inner_blocks,
    leaf_cid,
    leaf_count,
    leaf_range,
    manifest_cid,
    manifest_of,
    node_cid,
    parse_node,
    walk,
    zeros_manifest,
)
from tests.chain.files import manifest_of_pattern

KNOWN = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreicl6ujc6ncfktctxxroxognfn7d2fqavvrryoc2lv6m4i6hpbkfti",
    LEAF_BYTES - 1: "bafkreif7txi62ivdu4orxq4nhphodtvpdm2imxqqv4eo7wgmzfnh57mlku",
    LEAF_BYTES: "bafkreidls5nvhst5r7fmsr5kwk5otylrrmbhnyjdew7l53f62lr3iqeei4",
    LEAF_BYTES + 1: "bafybeid36gvbvsbhnvmj6alllqdmjssvi5psisao433qnyawilgjlnbgxy",
    5 * LEAF_BYTES + 77: "bafybeibfnks4ml4qdated5uuvvnfkkjj5grsfixl2fy7kep6lzcc7di6ym",
}
"""What ipfs-unixfs-importer 17.1.1 calls the files of `pattern`."""


def made_up(size_bytes: int) -> Manifest:
    """A manifest whose leaves nobody has."""
    count = leaf_count(size_bytes)
    return Manifest(size_bytes, b"".join(sha256(index.to_bytes(4, "big")).digest() for index in range(count)))


@pytest.mark.parametrize("size_bytes", KNOWN)
def test_a_file_has_the_name_that_ipfs_gives_it(size_bytes: int) -> None:
    manifest = manifest_of_pattern(size_bytes)
    assert manifest.size_bytes == size_bytes
    assert cid_text(manifest_cid(manifest)) == KNOWN[size_bytes]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 700_000), max_size=8), st.integers(0, 255))
def test_the_pieces_in_which_bytes_arrive_do_not_matter(sizes: list[int], seed: int) -> None:
    data = b"".join(bytes((seed + index & 0xFF,)) * size for index, size in enumerate(sizes))
    hasher = Hasher()
    at = 0
    for size in sizes:
        hasher.update(memoryview(data)[at : at + size])
        at += size
    manifest = hasher.finish()
    assert manifest == manifest_of(data)
    check_manifest(manifest)
    for index in range(manifest.count):
        start, stop = leaf_range(len(data), index)
        assert manifest.leaf(index) == sha256(data[start:stop]).digest()


@given(st.binary(max_size=300))
def test_one_leaf_is_named_by_its_plain_hash(data: bytes) -> None:
    assert cid_of(data) == raw_cid(data) == leaf_cid(sha256(data).digest())
    assert list(inner_blocks(manifest_of(data))) == []


@given(st.integers(0, MAX_FILE_BYTES))
def test_leaves_cover_a_file_without_gaps(size_bytes: int) -> None:
    count = leaf_count(size_bytes)
    first, last = leaf_range(size_bytes, 0), leaf_range(size_bytes, count - 1)
    assert first[0] == 0
    assert last[1] == size_bytes
    assert count == 1 or 0 < last[1] - last[0] <= LEAF_BYTES
    with pytest.raises(IndexError):
        leaf_range(size_bytes, count)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([0, 1, LEAF_BYTES - 1, LEAF_BYTES, 2 * LEAF_BYTES + 5]))
def test_zeros_need_not_be_made_to_be_named(header: bytes, zeros: int) -> None:
    assert zeros_manifest(header, len(header) + zeros) == manifest_of(header + bytes(zeros))


def test_a_header_may_be_longer_than_a_leaf() -> None:
    header = b"\x01" * (LEAF_BYTES + 3)
    assert zeros_manifest(header, 4 * LEAF_BYTES) == manifest_of(header.ljust(4 * LEAF_BYTES, b"\0"))
    with pytest.raises(CidError):
        zeros_manifest(header, LEAF_BYTES)


@pytest.mark.parametrize("count", [2, 3, LINKS, LINKS + 1, 2 * LINKS, 2 * LINKS + 1])
def test_from_the_root_every_leaf_is_reached_in_order_through_coherent_nodes(count: int) -> None:
    manifest = made_up((count - 1) * LEAF_BYTES + 9)
    blocks = dict(inner_blocks(manifest))
    reached: list[bytes] = []

    def descend(cid: bytes, size: int) -> int:
        """Bytes of all blocks from here downwards."""
        if is_raw(cid):
            reached.append(cid[4:])
            return size
        assert node_cid(blocks[cid]) == cid
        node = parse_node(blocks[cid])
        assert node.size == size
        assert node.data == b""
        assert len(node.links) <= LINKS
        total = len(blocks[cid])
        for (child, tree_bytes), below in zip(node.links, node.blocksizes, strict=True):
            assert descend(child, below) == tree_bytes
            total += tree_bytes
        return total

    root = manifest_cid(manifest)
    assert next(inner_blocks(manifest))[0] == root
    descend(root, manifest.size_bytes)
    assert b"".join(reached) == manifest.digests


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2 * LINKS + 3), st.data())
def test_a_walk_to_some_leaves_takes_only_the_nodes_above_them(count: int, data: st.DataObject) -> None:
    manifest = made_up(count * LEAF_BYTES)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    steps = list(walk(manifest, first, last))
    assert [block for _, block in steps if isinstance(block, int)] == list(range(first, last + 1))
    assert steps[0][0] == manifest_cid(manifest)
    everything = list(walk(manifest))
    assert [step for step in everything if step in steps] == steps
    nodes = [block for _, block in steps if isinstance(block, bytes)]
    assert len(nodes) == (0 if count == 1 else 1 if count <= LINKS else 2 + last // LINKS - first // LINKS)


def test_a_block_is_found_by_its_name() -> None:
    manifest = made_up((LINKS + 2) * LEAF_BYTES)
    for cid, block in inner_blocks(manifest):
        assert block_of(manifest, cid) == block
    assert block_of(manifest, leaf_cid(manifest.leaf(LINKS + 1))) == LINKS + 1
    assert block_of(manifest, raw_cid(b"another")) is None
    assert block_of(manifest, node_cid(b"another")) is None


def test_the_largest_file_has_a_name_too() -> None:
    manifest = Manifest(MAX_FILE_BYTES, bytes(32 * MAX_LEAVES))
    check_manifest(manifest)
    blocks = list(inner_blocks(manifest))
    assert len(blocks) == 1 + MAX_LEAVES // LINKS
    assert max(len(block) for _, block in blocks) < MAX_BLOCK_BYTES


def test_a_manifest_has_one_encoding_and_as_many_digests_as_leaves() -> None:
    manifest = made_up(3 * LEAF_BYTES)
    assert decode(Manifest, encode(manifest), 4096) == manifest
    for wrong in (
        Manifest(3 * LEAF_BYTES + 1, manifest.digests),
        Manifest(2 * LEAF_BYTES, manifest.digests),
        Manifest(0, b""),
        Manifest(1, bytes(33)),
        Manifest(MAX_FILE_BYTES + 1, bytes(32 * (MAX_LEAVES + 1))),
    ):
        with pytest.raises(CidError):
            check_manifest(wrong)
        with pytest.raises(CidError):
            manifest_cid(wrong)
    with pytest.raises(IndexError):
        manifest.leaf(3)


# Nodes that others built.


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


LINK = field(2, field(1, raw_cid(b"abc")) + field(2, b"") + field(3, 3))
DATA = field(1, field(1, 2) + field(3, 3) + field(4, 3))


def test_a_leaf_may_be_a_node_that_carries_its_bytes() -> None:
    node = parse_node(field(1, field(1, 2) + field(2, b"hello") + field(3, 5)))
    assert (node.links, node.data, node.size, node.blocksizes) == ((), b"hello", 5, ())
    old = parse_node(field(1, field(1, 0) + field(2, b"hello")))
    assert (old.data, old.size) == (b"hello", 5)
    dated = parse_node(field(1, field(1, 2) + field(3, 0) + field(7, 0o644) + field(8, field(1, 1))))
    assert dated.size == 0


def test_the_data_may_stand_first_and_a_link_may_be_of_version_0() -> None:
    digest = sha256(b"node").digest()
    link = field(2, field(1, b"\x12\x20" + digest) + field(2, b"") + field(3, 3))
    assert parse_node(DATA + link).links == ((bytes([1, 0x70, 0x12, 0x20]) + digest, 3),)
    assert parse_node(DATA + LINK) == parse_node(LINK + DATA)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        LINK,
        DATA,
        LINK + DATA + LINK,
        LINK + DATA + DATA,
        LINK + DATA + field(3, b""),
        LINK + DATA + field(3, 1),
        LINK + DATA[:-1],
        LINK + field(1, field(1, 1) + field(3, 3) + field(4, 3)),
        LINK + field(1, field(3, 3) + field(4, 3)),
        LINK + field(1, field(1, 2) + field(3, 4) + field(4, 3)),
        LINK + field(1, field(1, 2) + field(4, 3) + field(3, 3)),
        LINK + field(1, field(1, 2) + field(3, 3) + field(4, 3) + field(9, 0)),
        LINK + field(1, field(1, 2) + field(3, 3) + b"\x20\x83\x00"),
        LINK + field(1, field(1, 2) + field(3, 3) + b"\x20" + b"\xff" * 9 + b"\x02"),
        LINK + field(1, field(1, 2) + field(3, 3) + b"\x25\x03\x00\x00\x00"),
        field(2, field(2, b"") + field(3, 3)) + DATA,
        field(2, field(1, raw_cid(b"abc")) + field(3, 3) + field(2, b"")) + DATA,
        field(2, field(1, b"\x01\x55\x00\x03abc") + field(2, b"") + field(3, 3)) + DATA,
        bytes(MAX_BLOCK_BYTES + 1),
    ],
)
def test_a_block_that_is_no_coherent_node_of_a_file_is_refused(block: bytes) -> None:
    parse_node(LINK + DATA)
    with pytest.raises(CidError):
        parse_node(block)


@given(st.binary(max_size=120))
def test_whatever_the_bytes_a_node_is_read_or_refused(block: bytes) -> None:
    try:
        node = parse_node(block)
    except CidError:
        return
    assert node.size == len(node.data) + sum(node.blocksizes)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_node_with_a_byte_changed_is_read_or_refused(place: int, byte: int) -> None:
    _, block = next(inner_blocks(made_up(3 * LEAF_BYTES)))
    changed = bytearray(block)
    changed[place % len(block)] = byte
    try:
        node = parse_node(bytes(changed))
    except CidError:
        return
    assert node.size == len(node.data) + sum(node.blocksizes)
