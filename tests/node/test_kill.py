"""Real processes under load, killed at random moments: nothing acknowledged is lost, nothing diverges, no help is
needed. The moments are drawn from a seed that is printed; the machine adds chance of its own."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from chain.genesis import Params
from cli.localnets import LocalNetwork, Plan
from tests.node.load import (
    HANG_S,
    SILENT,
    Load,
    check_no_divergence,
    check_nothing_is_lost,
    height,
    registration,
    settle,
    submit,
    until,
)
from tests.node.networks import local_network

QUICK = Params(heartbeat_ms=500)


@pytest.fixture
def network() -> Iterator[LocalNetwork]:
    with local_network(Plan(validators=4, open_admission=True, params=QUICK)) as made:
        yield made


def kill_at_random(network: LocalNetwork, times: int) -> None:
    seed = int(os.environ.get("QUORATE_KILL_SEED", time.time_ns() % 2**32))
    chance = random.Random(seed)
    print(f"\n{times} kills from seed {seed}")
    with Load(network) as load:
        load.goes_on()
        for number in range(times):
            victim = chance.choice(list(network.members))
            time.sleep(chance.uniform(0.0, 2.0))
            network.kill(victim)
            down_s = chance.uniform(0.0, 2.0)
            time.sleep(down_s)
            load.goes_on()
            network.start(victim)
            if chance.random() < 0.3:
                # Again, somewhere in the middle of taking up its logs.
                time.sleep(chance.uniform(0.0, 1.0))
                network.kill(victim)
                network.start(victim)
            network.wait_ready([victim], HANG_S)
            print(f"{number + 1}: {victim} was down for {down_s:.1f} s; {len(load.promises)} acknowledged")
    settle(network)
    check_nothing_is_lost(network, load.promises)
    blocks = check_no_divergence(network)
    print(f"{len(load.promises)} acknowledged transactions in {blocks} blocks: none lost, no divergence")


@pytest.mark.slow
def test_killing_any_validator_at_random_moments_loses_nothing_and_needs_no_help(network: LocalNetwork) -> None:
    kill_at_random(network, 3)


@pytest.mark.nightly
def test_fifty_kills_in_one_run_lose_nothing(network: LocalNetwork) -> None:
    kill_at_random(network, 50)


def halted_at(network: LocalNetwork, names: tuple[str, ...]) -> list[int]:
    """The last blocks that are final at these. What was on its way when the others were killed may still become so;
    afterwards, with heartbeats missed, nothing does."""
    seen: list[list[int]] = []

    def still() -> bool:
        time.sleep(2 * QUICK.heartbeat_ms / 1000)
        seen.append([height(network, name) for name in names])
        return SILENT not in seen[-1] and seen[-2:-1] == seen[-1:]

    until("the chain halts", still)
    return seen[-1]


@pytest.mark.slow
def test_with_two_of_four_stopped_the_chain_halts_and_resumes_by_itself_when_they_are_back(
    network: LocalNetwork,
) -> None:
    chain_id = bytes.fromhex(network.chain_id)
    until("a transaction is taken", lambda: submit(network, "v0", registration(chain_id, "before")[0]))
    for name in ("v2", "v3"):
        network.kill(name)
    halted = halted_at(network, ("v0", "v1"))
    waiting, _ = registration(chain_id, "meanwhile")
    assert not submit(network, "v0", waiting, timeout_s=3)
    assert halted_at(network, ("v0", "v1")) == halted

    network.start("v2")
    until("the chain resumes with three", lambda: height(network, "v0") > max(halted))
    until("what was waiting is taken", lambda: submit(network, "v0", waiting))
    network.start("v3")
    network.wait_ready(network.members, HANG_S)
    settle(network)
    check_no_divergence(network)


@pytest.mark.slow
def test_all_validators_killed_at_once_go_on_where_they_were(network: LocalNetwork) -> None:
    with Load(network) as load:
        load.goes_on()
        for name in network.members:
            network.kill(name)
        for name in network.members:
            network.start(name)
        network.wait_ready(network.members, HANG_S)
        load.goes_on()
    settle(network)
    check_nothing_is_lost(network, load.promises)
    check_no_divergence(network)
