"""The sums that a round is done with."""

import numpy as np

from fl.aggregation import new_sums
from node.data.spare import KEPT_MS, Spare


def used(count: int) -> np.ndarray:
    sums = new_sums(count)
    sums.fill(7)
    return sums


def test_the_next_round_gets_them_as_zeros() -> None:
    spare, sums = Spare(new_sums), used(1000)
    spare.give([sums])
    assert spare.held_bytes == sums.nbytes
    taken = spare.take(1000)
    assert taken is sums and not taken.any()


def test_they_are_given_to_one_round_alone() -> None:
    spare, sums = Spare(new_sums), used(1000)
    spare.give([sums])
    assert spare.take(1000) is not spare.take(1000)


def test_a_round_of_another_size_has_them_thrown_away() -> None:
    spare = Spare(new_sums)
    spare.give([used(1000)])
    assert spare.take(999).size == 999
    assert not spare.held_bytes


def test_of_several_the_largest_is_kept() -> None:
    spare = Spare(new_sums)
    spare.give([used(10), used(30), used(20)])
    assert spare.held_bytes == 30 * 8
    spare.give([])
    assert not spare.held_bytes


def test_nobody_wants_them_for_a_minute_and_they_are_gone() -> None:
    spare = Spare(new_sums)
    spare.give([used(1000)])
    spare.tidy(5_000)
    spare.tidy(5_000 + KEPT_MS - 1)
    assert spare.held_bytes
    spare.give([used(1000)])
    spare.tidy(5_000 + KEPT_MS)
    assert spare.held_bytes
    spare.tidy(5_000 + 2 * KEPT_MS)
    assert not spare.held_bytes
