"""What is told of accepted updates, and from where: as they come out of execution, or from the logs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fl.execution import Accepted
from fl.records import Entry
from node import aggregator
from node.aggregator import _addends_from, _Sum

JOB = bytes(32)


def accepted(first: int, sizes: Sequence[int]) -> Accepted:
    entries = tuple(
        Entry(bytes(32), bytes([first + at]) * 32, 1, 1 + at, 0, bytes(36), bytes(32), at) for at in range(len(sizes))
    )
    return Accepted(JOB, 1, first, entries, tuple(bytes(size) for size in sizes))


def test_what_was_accepted_is_told_from_any_place_on_with_its_positions() -> None:
    fresh = accepted(5, [3, 0, 2])
    told = _addends_from(fresh, 6)
    assert [each.index for each in told] == [6, 7]
    assert [each.member for each in told] == [each.member for each in fresh.entries[1:]]
    assert [len(each.payload) for each in told] == [0, 2]


def test_a_message_holds_so_many_updates_and_so_many_bytes_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregator, "TOLD_BYTES", 10)
    monkeypatch.setattr(aggregator, "ADDENDS", 3)
    assert len(_addends_from(accepted(0, [1] * 5), 0)) == 3
    assert len(_addends_from(accepted(0, [6, 4, 1]), 0)) == 2
    assert len(_addends_from(accepted(0, [11, 1]), 0)) == 1


def test_what_was_told_is_let_go() -> None:
    begun = _Sum((JOB, 1))
    begun.fresh.extend([accepted(0, [1, 1]), accepted(2, [1]), accepted(7, [1, 1])])
    held_back, later = begun.fresh[1], begun.fresh[2]
    assert begun.fresh_bytes == 5
    assert begun.fresh_from(1) is not None and begun.fresh_bytes == 5
    assert begun.fresh_from(2) is held_back
    # There is a gap: what is in it has to be read.
    assert begun.fresh_from(3) is later and later.first == 7
    assert begun.fresh_from(8) is later and begun.fresh_bytes == 2
    assert begun.fresh_from(9) is None and begun.fresh_bytes == 0
