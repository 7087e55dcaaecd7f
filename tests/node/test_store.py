"""Logs in rows: leaves by pages, nodes above them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.log import EMPTY, PAGE_LEAVES, Frontier, extend, frontier_at, leaf_digest, prove, verify_log
from fl.execution import Growth
from fl.state import EVENTS, RECEIPTS
from node.ports.kv import LevelKv
from node.segments import Location
from node.store import FORMAT_VERSION, LOGS_KEPT, PAGES_KEPT, Store, WrongStore
from tests.simulation.ports import Computer, Power, SimulatedKv

CHAIN = bytes(32)


def leaf(number: int) -> bytes:
    return b"leaf %d " % number * (1 + number % 3)


def store() -> Store:
    machine = Computer("alone", 1)
    return Store(SimulatedKv(machine.kv, Power(machine)), CHAIN)


def grow(rows: Store, log: bytes, frontier: Frontier, count: int) -> Frontier:
    leaves = tuple(leaf(number) for number in range(frontier.size, frontier.size + count))
    longer, nodes = extend(frontier, [leaf_digest(each) for each in leaves])
    rows.write(rows.log_rows([Growth(log, frontier.size, leaves, tuple(nodes))]))
    return longer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3 * PAGE_LEAVES), min_size=1, max_size=6), st.data())
def test_a_log_of_any_growth_gives_back_its_leaves_and_proves_them(counts: list[int], choose: st.DataObject) -> None:
    rows, frontier = store(), EMPTY
    for count in counts:
        frontier = grow(rows, b"a", frontier, count)
    size = frontier.size

    def node(level: int, index: int) -> bytes:
        return rows.log_node(b"a", level, index)

    assert frontier_at(size, node) == frontier
    start = choose.draw(st.integers(0, size))
    stop = choose.draw(st.integers(start, size))
    assert rows.leaves(b"a", start, stop) == [leaf(number) for number in range(start, stop)]
    index = choose.draw(st.integers(0, size - 1))
    assert verify_log(frontier.root(), size, index, leaf_digest(leaf(index)), prove(size, index, node))


def test_rows_of_batches_are_read_at_once_and_written_with_the_next_block() -> None:
    machine, kinds = Computer("alone", 1), list[str]()
    rows = Store(SimulatedKv(machine.kv, Power(machine)), CHAIN)
    machine.on_operation = lambda _, kind: kinds.append(kind)
    where = {bytes([number]) * 32: Location(1, number, 9) for number in range(3)}
    for number, (digest, location) in enumerate(where.items(), 1):
        rows.keep_batches(number, {digest: location})
    assert all(rows.batch_location(digest) == location for digest, location in where.items())
    assert rows.batches_indexed() == 3 and not kinds
    assert Store(SimulatedKv(machine.kv, Power(machine)), CHAIN).batches_indexed() == 0
    rows.write({b"row": b"of a block"})
    rows.write_waiting()
    assert kinds == ["kv.write"]
    again = Store(SimulatedKv(machine.kv, Power(machine)), CHAIN)
    assert again.batches_indexed() == 3
    assert all(again.batch_location(digest) == location for digest, location in where.items())
    rows.keep_batches(4, {b"\x05" * 32: Location(1, 5, 9)})
    rows.write_waiting()
    assert Store(SimulatedKv(machine.kv, Power(machine)), CHAIN).batches_indexed() == 4


def test_a_block_may_add_to_one_log_twice() -> None:
    rows = store()
    first, second = (leaf(0), leaf(1)), tuple(leaf(number) for number in range(2, 70))
    rows.write(rows.log_rows([Growth(b"a", 0, first, ()), Growth(b"b", 0, first, ()), Growth(b"a", 2, second, ())]))
    assert rows.leaves(b"a", 0, 70) == [leaf(number) for number in range(70)]
    assert rows.leaves(b"b", 0, 2) == [leaf(0), leaf(1)]


def test_rows_that_were_not_written_are_made_again_from_those_that_are_there() -> None:
    rows, grown = store(), Growth(b"a", 3, tuple(leaf(number) for number in range(3, 8)), ())
    grow(rows, b"a", EMPTY, 3)
    lost = rows.log_rows([grown])
    assert rows.log_rows([Growth(b"a", 3, (), ())]) == {}
    assert rows.log_rows([grown]) == lost
    rows.write(lost)
    rows.write(rows.log_rows([Growth(b"a", 8, (leaf(8),), ())]))
    assert rows.leaves(b"a", 0, 9) == [leaf(number) for number in range(9)]


def test_pages_of_more_logs_than_are_kept_are_added_to() -> None:
    rows, logs = store(), [b"log %d" % number for number in range(LOGS_KEPT + 2)]
    for size in range(3):
        rows.write(rows.log_rows([Growth(log, size, (leaf(size),), ()) for log in logs]))
    assert all(rows.leaves(log, 0, 3) == [leaf(0), leaf(1), leaf(2)] for log in logs)


def test_what_was_read_of_a_log_before_it_grew_is_read_again() -> None:
    rows = store()
    frontier = grow(rows, RECEIPTS, EMPTY, 3)
    assert rows.receipt(2) == leaf(2) and rows.receipt(3) is None
    grow(rows, RECEIPTS, frontier, PAGES_KEPT * PAGE_LEAVES)
    assert rows.leaves(RECEIPTS, 0, 2 * PAGE_LEAVES) == [leaf(number) for number in range(2 * PAGE_LEAVES)]
    assert [rows.receipt(number) for number in range(0, (PAGES_KEPT + 1) * PAGE_LEAVES, PAGE_LEAVES)] == [
        leaf(number) if number < 3 + PAGES_KEPT * PAGE_LEAVES else None
        for number in range(0, (PAGES_KEPT + 1) * PAGE_LEAVES, PAGE_LEAVES)
    ]


@pytest.mark.parametrize("stop", [3, PAGE_LEAVES, PAGE_LEAVES + 1])
def test_leaves_that_are_not_there_are_missed(stop: int) -> None:
    rows = store()
    grow(rows, b"a", EMPTY, 2)
    with pytest.raises(LookupError):
        rows.leaves(b"a", 0, stop)


def test_receipts_and_events_are_found_by_number() -> None:
    rows, size = store(), 2 * PAGE_LEAVES + 5
    grow(rows, RECEIPTS, EMPTY, size)
    grow(rows, EVENTS, EMPTY, size)
    assert [rows.receipt(index) for index in range(size)] == [leaf(index) for index in range(size)]
    assert rows.receipt(size) is None and rows.receipt(10 * size) is None
    for first, limit in ((0, 3), (PAGE_LEAVES - 1, 2), (PAGE_LEAVES, PAGE_LEAVES), (size - 1, 9), (size, 4), (4, 0)):
        wanted = [(index, leaf(index)) for index in range(first, min(size, first + limit))]
        assert list(rows.events(first, limit)) == wanted


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_rows_of_another_format_are_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    kv = LevelKv(tmp_path)
    kv.write({b"m/format": version.to_bytes(2, "big")})
    with pytest.raises(WrongStore):
        Store(kv, CHAIN)
    assert kv.get(b"m/chain") is None
    kv.close()
