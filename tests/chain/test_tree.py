from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import decode, encode
from chain.hashing import Domain, digest
from chain.tree import (
    BRANCHES,
    BUCKETS,
    DEPTH,
    PAIR_BYTES,
    PROOF_DIGESTS,
    HeightNotKept,
    StateProof,
    StateTree,
    verify_state,
)

Rows = dict[bytes, bytes]


def colliding(count: int) -> list[bytes]:
    """Keys that share one bucket, so that few rows exercise what many would."""
    found: dict[bytes, list[bytes]] = {}
    number = 0
    while True:
        key = b"key/%d" % number
        same = found.setdefault(digest(Domain.STATE_KEY, key)[:2], [])
        same.append(key)
        if len(same) == count:
            return same
        number += 1


TOGETHER = colliding(4)
KEYS = [*TOGETHER, *(b"row/%d" % number for number in range(8))]


class World:
    """A tree beside plain dictionaries of every height."""

    def __init__(self, rows: Rows, history: int = 64) -> None:
        self.states = [dict(rows)]
        self.tree = StateTree(rows.items(), history=history)

    def write(self, writes: Mapping[bytes, bytes | None]) -> bytes:
        before = self.states[-1]
        root = self.tree.apply(len(self.states), writes, {key: before.get(key) for key in writes})
        after = {**before, **writes}
        self.states.append({key: value for key, value in after.items() if value is not None})
        return root


def oracle_root(rows: Rows) -> bytes:
    pairs: dict[int, list[bytes]] = {}
    for key, value in rows.items():
        key_hash = digest(Domain.STATE_KEY, key)
        pair = key_hash + digest(Domain.STATE_VALUE, value)
        pairs.setdefault(int.from_bytes(key_hash[:2], "big"), []).append(pair)
    level = {bucket: digest(Domain.BUCKET, *sorted(each)) for bucket, each in pairs.items()}
    blank = digest(Domain.BUCKET)
    for _ in range(DEPTH):
        level = {
            index: digest(Domain.STATE_NODE, *(level.get(BRANCHES * index + place, blank) for place in range(BRANCHES)))
            for index in {child // BRANCHES for child in level}
        }
        blank = digest(Domain.STATE_NODE, *[blank] * BRANCHES)
    return level.get(0, blank)


values = st.binary(max_size=3)
rows_of_keys = st.dictionaries(st.sampled_from(KEYS), values)
blocks = st.lists(st.dictionaries(st.sampled_from(KEYS), st.none() | values), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(rows_of_keys, blocks)
def test_the_root_depends_on_the_rows_alone_not_on_their_history(rows: Rows, writes: list[Rows]) -> None:
    world = World(rows)
    for block in writes:
        assert world.write(block) == oracle_root(world.states[-1])
    assert StateTree(world.states[-1].items()).root == world.tree.root


@settings(max_examples=12, deadline=None)
@given(rows_of_keys, blocks)
def test_presence_and_absence_are_proven_at_every_kept_height(rows: Rows, writes: list[Rows]) -> None:
    world = World(rows)
    for block in writes:
        world.write(block)
    newest = world.states[-1]
    for height, state in enumerate(world.states):
        root = world.tree.root_at(height)
        assert root == oracle_root(state)
        for key in KEYS:
            value, proof = world.tree.prove(height, key, newest.get)
            assert value == state.get(key)
            assert verify_state(root, key, value, proof)
            assert not verify_state(root, key, b"forged", proof)
            assert verify_state(root, key, None, proof) == (value is None)


def filled() -> World:
    return World({key: b"v" + key for key in KEYS})


def test_a_proof_holds_for_its_own_root_key_and_value_only() -> None:
    world = filled()
    root, tree, key = world.tree.root, world.tree, TOGETHER[0]
    value, proof = tree.prove(0, key, world.states[0].get)
    assert value is not None
    assert verify_state(root, key, value, proof)
    assert not verify_state(bytes(32), key, value, proof)
    assert not verify_state(root, b"row/0", world.states[0][b"row/0"], proof)
    assert not verify_state(root, TOGETHER[1], value, proof)
    pairs = [proof.bucket[at : at + PAIR_BYTES] for at in range(0, len(proof.bucket), PAIR_BYTES)]
    assert len(pairs) == len(TOGETHER)
    for bucket in (b"", proof.bucket[:-1], b"".join(pairs[:-1]), b"".join(pairs[::-1]), proof.bucket + pairs[0]):
        assert not verify_state(root, key, value, replace(proof, bucket=bucket))
        assert not verify_state(root, key, None, replace(proof, bucket=bucket))
    for siblings in (
        proof.siblings[::-1],
        proof.siblings[:-1],
        (*proof.siblings, bytes(32)),
        (bytes(32),) * PROOF_DIGESTS,
    ):
        assert not verify_state(root, key, value, replace(proof, siblings=siblings))


def test_absence_is_not_shown_by_the_bucket_of_another_key() -> None:
    world = filled()
    absent = b"nobody"
    _, elsewhere = world.tree.prove(0, b"row/1", world.states[0].get)
    _, proof = world.tree.prove(0, absent, world.states[0].get)
    assert verify_state(world.tree.root, absent, None, proof)
    assert not verify_state(world.tree.root, absent, None, elsewhere)
    assert not verify_state(world.tree.root, TOGETHER[0], None, elsewhere)


def test_a_pair_is_not_found_at_an_odd_place() -> None:
    key = b"row/0"
    key_hash, value_hash = digest(Domain.STATE_KEY, key), digest(Domain.STATE_VALUE, b"v")
    shifted = bytes(32) + key_hash + value_hash + bytes(32)
    assert not verify_state(bytes(32), key, b"v", StateProof(shifted, (bytes(32),) * PROOF_DIGESTS))


def test_only_recent_heights_are_kept() -> None:
    world = World({}, history=3)
    roots = [world.tree.root, *(world.write({b"k": b"%d" % height}) for height in range(1, 11))]
    assert world.tree.oldest_height == 7
    assert [world.tree.root_at(height) for height in range(7, 11)] == roots[7:]
    for height in (6, 11, -1):
        with pytest.raises(HeightNotKept):
            world.tree.root_at(height)
        with pytest.raises(HeightNotKept):
            world.tree.prove(height, b"k", world.states[-1].get)


def test_empty_blocks_change_no_root_and_may_be_left_out() -> None:
    tree = StateTree([(b"a", b"1")], height=100)
    root = tree.root
    assert tree.apply(101, {}, {}) == root
    changed = tree.apply(105, {b"a": None}, {b"a": b"1"})
    assert changed == oracle_root({})
    assert [tree.root_at(height) for height in (100, 101, 104, 105)] == [root, root, root, changed]
    with pytest.raises(HeightNotKept):
        tree.root_at(99)


def test_heights_only_rise() -> None:
    tree = StateTree(height=5)
    for height in (4, 5):
        with pytest.raises(ValueError, match="does not follow"):
            tree.apply(height, {}, {})


def test_a_write_without_what_it_replaces_changes_nothing() -> None:
    tree = StateTree()
    root = tree.root
    with pytest.raises(KeyError):
        tree.apply(1, {b"a": b"1", b"b": b"2"}, {b"a": None})
    assert (tree.root, tree.height) == (root, 0)


def test_deleting_what_is_not_there_changes_nothing() -> None:
    assert World({}).write({b"a": None}) == StateTree().root == oracle_root({})


def test_a_proof_is_about_two_kilobytes_and_survives_encoding() -> None:
    rows = [(b"acct/" + sha256(b"%d" % number).digest(), b"x") for number in range(BUCKETS)]
    tree, (key, value) = StateTree(rows), rows[77]
    proven, proof = tree.prove(0, key, dict(rows).get)
    assert (proven, decode(StateProof, encode(proof), 1 << 20)) == (value, proof)
    assert len(encode(proof)) < 2400
