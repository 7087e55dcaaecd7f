from __future__ import annotations

from itertools import pairwise

import pytest

from chain.genesis import Params
from tests.consensus.bare import Bare

FAST = Params(min_block_interval_ms=0)


def test_block_time_is_two_delays_and_finality_three_exactly() -> None:
    net = Bare(4, FAST, delay_ms=10)
    net.run(2_000)
    net.assert_agreement()
    for chain in net.final:
        proposed = [block.header.time_ms - net.genesis.time_ms for _, block in chain]
        assert len(chain) > 90
        assert {later - earlier for earlier, later in pairwise(proposed)} == {20}
        assert {at - start for (at, _), start in zip(chain, proposed, strict=True)} == {30}


def test_one_crashed_leader_of_four_costs_at_most_one_timeout_a_turn_and_less_once_skipped() -> None:
    net = Bare(4, FAST, delay_ms=10)
    net.crashed.add(2)
    net.run(15_000)
    net.assert_agreement()
    reasons = net.cores[0].timing.reasons
    assert min(height for index, height in enumerate(net.heights()) if index != 2) > 250
    assert reasons["no proposal in time"] <= 6
    assert reasons["the leader has been silent for long"] > 50


def test_idle_burns_no_views_beyond_the_heartbeat() -> None:
    net = Bare(4, Params(), delay_ms=10)
    for payload in net.payloads:
        payload.pending = False
    net.run(60_000)
    assert set(net.heights()) == {12} or set(net.heights()) == {11}
    assert all(core.view <= 14 for core in net.cores)


def test_a_single_validator_certifies_alone() -> None:
    net = Bare(1, Params(), delay_ms=10)
    net.run(5_000)
    assert net.heights()[0] >= 95


def test_all_crash_after_nullify_and_recover() -> None:
    net = Bare(4, FAST, delay_ms=10)
    leader = net.cores[0].tree.leader(1)
    net.crashed.add(leader)
    net.run(505)
    assert all(core.view == 1 for index, core in enumerate(net.cores) if index != leader)
    assert all(core.views[1].my_nullify for index, core in enumerate(net.cores) if index != leader)
    net.heap.clear()
    for index in range(4):
        if index != leader:
            net.crashed.add(index)
    net.run(1_000)
    for index in range(4):
        if index != leader:
            net.restart(index)
    net.run(3_000)
    assert all(height > 10 for index, height in enumerate(net.heights()) if index != leader)


def test_a_node_that_was_away_catches_up_and_votes_again() -> None:
    net = Bare(4, Params(), delay_ms=10)
    net.run(1_000)
    net.crashed.add(3)
    net.run(3_000)
    net.restart(3)
    net.run(8_000)
    net.assert_agreement()
    assert max(net.heights()) - net.heights()[3] <= 1


def test_more_than_f_crashed_halts_and_resumes_by_itself() -> None:
    net = Bare(4, Params(), delay_ms=10)
    net.run(1_000)
    net.crashed |= {2, 3}
    net.run(20_000)
    halted = net.heights()[0]
    assert halted <= 22
    net.restart(2)
    net.restart(3)
    net.run(25_000)
    net.assert_agreement()
    assert min(net.heights()) > halted + 20


def test_lossy_links_only_slow_it_down() -> None:
    import random

    net = Bare(4, Params(), delay_ms=10)
    chance = random.Random(7)
    net.drop = lambda source, target, message: chance.random() < 0.2
    net.run(60_000)
    net.assert_agreement()
    assert min(net.heights()) > 50


@pytest.mark.parametrize("busy", [4, 3])
def test_a_busy_chain_makes_fewer_blocks_and_gives_nobody_up(busy: int) -> None:
    """Nor does one who has not noticed yet that it is busy."""
    net = Bare(4, Params(), delay_ms=10)
    for payload in net.payloads[:busy]:
        payload.busy_interval_ms = 250
    net.run(20_000)
    net.assert_agreement()
    fewest, most = (70, 80) if busy == 4 else (80, 100)
    assert fewest < min(net.heights()) <= max(net.heights()) < most
    assert not any(core.timing.reasons for core in net.cores)
