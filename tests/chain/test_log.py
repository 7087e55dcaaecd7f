from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.codec import decode, encode
from chain.hashing import Domain, digest
from chain.log import (
    EMPTY,
    PAGE_LEAVES,
    PAGE_LEVEL,
    Frontier,
    LogProof,
    append,
    extend,
    frontier_at,
    leaf_digest,
    node_over,
    prove,
    verify_log,
)

LONGEST = 70


def leaf(index: int) -> bytes:
    return leaf_digest(b"entry %d" % index)


def grown(size: int) -> tuple[list[Frontier], dict[tuple[int, int], bytes]]:
    frontiers, nodes = [EMPTY], {}
    for index in range(size):
        frontier, new = append(frontiers[-1], leaf(index))
        frontiers.append(frontier)
        nodes.update({(level, at): node for level, at, node in new})
    return frontiers, nodes


FRONTIERS, NODES = grown(LONGEST)


def node(level: int, index: int) -> bytes:
    return NODES[level, index]


def rfc6962(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return digest(Domain.NODE, rfc6962(leaves[:split]), rfc6962(leaves[split:]))


@pytest.mark.parametrize("size", range(1, LONGEST + 1))
def test_the_root_is_that_of_rfc_6962_sealed_with_the_size(size: int) -> None:
    tree = rfc6962([leaf(index) for index in range(size)])
    assert FRONTIERS[size].root() == digest(Domain.LOG_ROOT, size.to_bytes(8, "big"), tree)


def test_an_empty_log_has_a_root() -> None:
    assert EMPTY.root() == digest(Domain.LOG_ROOT, bytes(8))
    assert not verify_log(EMPTY.root(), 0, 0, leaf(0), LogProof(()))


@given(st.integers(1, LONGEST), st.data())
def test_every_leaf_is_proven_under_the_root_of_every_later_size(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = prove(size, index, node)
    assert verify_log(FRONTIERS[size].root(), size, index, leaf(index), proof)
    assert decode(LogProof, encode(proof), 4096) == proof


@given(st.integers(1, LONGEST), st.data())
def test_a_proof_holds_for_nothing_else(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root, proof = FRONTIERS[size].root(), prove(size, index, node)
    other = data.draw(st.integers(-1, LONGEST + 1).filter(lambda each: each != index))
    assert not verify_log(root, size, other, leaf(index), proof)
    assert not verify_log(root, size, index, leaf(other), proof)
    other_size = data.draw(st.integers(0, LONGEST + 1).filter(lambda each: each != size))
    assert not verify_log(root, other_size, index, leaf(index), proof)
    assert not verify_log(bytes(32), size, index, leaf(index), proof)
    assert not verify_log(root, size, index, leaf(index), LogProof((*proof.path, bytes(32))))
    if proof.path:
        assert not verify_log(root, size, index, leaf(index), LogProof(proof.path[:-1]))
        at = data.draw(st.integers(0, len(proof.path) - 1))
        changed = (*proof.path[:at], bytes(32), *proof.path[at + 1 :])
        assert not verify_log(root, size, index, leaf(index), LogProof(changed))


def test_an_inner_node_is_not_taken_for_a_leaf() -> None:
    above = LogProof(prove(4, 0, node).path[1:])
    assert not verify_log(FRONTIERS[4].root(), 4, 0, node(1, 0), above)
    assert not verify_log(FRONTIERS[4].root(), 2, 0, node(1, 0), above)


def test_every_earlier_frontier_is_rebuilt_from_the_stored_nodes() -> None:
    for size in range(LONGEST + 1):
        assert frontier_at(size, node) == FRONTIERS[size]


def test_no_node_is_ever_written_twice() -> None:
    _, new = append(FRONTIERS[7], leaf(7))
    assert [(level, index) for level, index, _ in new] == [(0, 7), (1, 3), (2, 1), (3, 0)]
    assert len(NODES) == sum(LONGEST >> level for level in range(8))


def test_a_leaf_beyond_the_end_is_not_proven() -> None:
    for size, index in ((0, 0), (5, 5), (5, -1)):
        with pytest.raises(ValueError, match="no leaf"):
            prove(size, index, node)


def test_a_frontier_with_the_wrong_number_of_peaks_has_no_root() -> None:
    with pytest.raises(ValueError, match="peaks"):
        replace(FRONTIERS[5], size=7).root()


def test_a_frontier_survives_encoding() -> None:
    assert decode(Frontier, encode(FRONTIERS[63]), 4096) == FRONTIERS[63]


@given(st.integers(0, LONGEST), st.integers(0, 2 * PAGE_LEAVES + 9))
def test_many_leaves_at_once_are_as_good_as_one_by_one(size: int, count: int) -> None:
    frontier, stored = FRONTIERS[size], {}
    for index in range(size, size + count):
        frontier, new = append(frontier, leaf(index))
        stored.update({(level, at): node for level, at, node in new if level >= PAGE_LEVEL})
    together, nodes = extend(FRONTIERS[size], [leaf(index) for index in range(size, size + count)])
    assert together == frontier
    assert {(level, at): node for level, at, node in nodes} == stored


@pytest.mark.parametrize("level", range(PAGE_LEVEL + 1))
def test_a_node_is_computed_again_from_the_leaves_below_it(level: int) -> None:
    for index in range(LONGEST >> level):
        assert node_over([leaf(at) for at in range(index << level, index + 1 << level)]) == NODES[level, index]
