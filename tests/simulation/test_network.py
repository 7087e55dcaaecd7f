"""The simulated network: what it may do to a frame, and that it does the same again under the same seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from node.ports import Channel, Down, Frame, LinkEvent, Peer, PeerAddress, Up
from tests.simulation.loop import simulate
from tests.simulation.network import Conditions, Network, SimulatedLinks

NAMES = ("v0", "v1", "v2")
KEYS = {name: bytes([1, number]) * 16 + b"k" for number, name in enumerate(NAMES)}
CONSENSUS = Channel.CONSENSUS


class Town:
    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.network = Network(seed, conditions)
        self.links: dict[str, SimulatedLinks] = {}
        self.events: dict[str, list[LinkEvent]] = {}

    async def settle(self, name: str, key: Peer | None = None) -> SimulatedLinks:
        links = SimulatedLinks(self.network, self.network.join(name, key or KEYS[name]))
        await links.start({peer: PeerAddress(peer, "", 0) for peer in KEYS.values()})
        self.links[name] = links
        self.events[name] = []
        asyncio.get_running_loop().create_task(self._listen(name))
        return links

    async def _listen(self, name: str) -> None:
        while True:
            self.events[name].append(await self.links[name].receive())

    def frames(self, name: str) -> list[bytes]:
        return [event.data for event in self.events[name] if isinstance(event, Frame)]

    def turns(self, name: str) -> list[LinkEvent]:
        return [event for event in self.events[name] if not isinstance(event, Frame) and event.channel is CONSENSUS]


def in_town(
    body: Callable[[Town], Coroutine[Any, Any, None]], seed: int = 1, conditions: Conditions | None = None
) -> Town:
    towns: list[Town] = []

    async def main() -> None:
        town = Town(seed, conditions)
        towns.append(town)
        for name in NAMES:
            await town.settle(name)
        await asyncio.sleep(1)
        await body(town)

    simulate(main)
    return towns[0]


def numbered(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


async def say(town: Town, count: int, source: str = "v0", target: str = "v1") -> None:
    for frame in numbered(count):
        town.links[source].send(KEYS[target], CONSENSUS, frame)
        await asyncio.sleep(0.0003)
    await asyncio.sleep(2)


def gossip(seed: int) -> str:
    """The event hash of a run in which everything happens."""

    async def body(town: Town) -> None:
        town.network.block("v0", "v2")
        await asyncio.gather(say(town, 200), say(town, 200, "v1", "v2"), say(town, 200, "v2", "v0"))
        await asyncio.sleep(10)
        town.network.heal()
        await say(town, 50, "v0", "v2")

    conditions = Conditions(loss=0.1, duplicate=0.1, reorder=0.2)
    return in_town(body, seed, conditions).network.event_hash()


def test_frames_keep_their_order_and_arrive_within_delay_and_jitter() -> None:
    town = in_town(lambda town: say(town, 500), conditions=Conditions(delay_ms=20, jitter_ms=10))
    assert town.frames("v1") == numbered(500)


def test_lost_frames_are_lost_and_the_rest_arrives_in_order() -> None:
    town = in_town(lambda town: say(town, 500), conditions=Conditions(loss=0.3))
    received = town.frames("v1")
    assert 250 < len(received) < 450
    assert received == sorted(received)


def test_duplicated_frames_come_twice() -> None:
    town = in_town(lambda town: say(town, 500), conditions=Conditions(duplicate=0.3))
    received = town.frames("v1")
    assert set(received) == set(numbered(500))
    assert 600 < len(received) < 700


def test_reordered_frames_overtake_one_another() -> None:
    town = in_town(lambda town: say(town, 500), conditions=Conditions(reorder=0.3))
    received = town.frames("v1")
    assert sorted(received) == numbered(500)
    assert received != numbered(500)


def test_conditions_hold_for_one_direction() -> None:
    async def body(town: Town) -> None:
        town.network.set_conditions(Conditions(loss=1.0), source="v0", target="v1")
        await say(town, 20)
        await say(town, 20, "v1", "v0")
        await say(town, 20, "v0", "v2")

    town = in_town(body)
    assert [len(town.frames(name)) for name in NAMES] == [20, 0, 20]


def test_a_short_block_delays_its_direction_only() -> None:
    async def body(town: Town) -> None:
        town.network.block("v0", "v1")
        await say(town, 20)
        await say(town, 20, "v1", "v0")
        assert (town.frames("v1"), len(town.frames("v0"))) == ([], 20)
        town.network.unblock("v0", "v1")
        await asyncio.sleep(1)

    town = in_town(body)
    assert town.frames("v1") == numbered(20)
    assert town.turns("v1").count(Down(KEYS["v0"])) == 0


def test_a_lasting_block_takes_the_link_down_on_both_sides_until_it_is_healed() -> None:
    async def body(town: Town) -> None:
        town.network.block("v0", "v1")
        await say(town, 20)
        await asyncio.sleep(60)
        assert not town.links["v0"].send(KEYS["v1"], CONSENSUS, b"no link")
        assert town.links["v0"].send(KEYS["v2"], CONSENSUS, b"a link")
        town.network.heal()
        await asyncio.sleep(2)
        assert town.links["v0"].send(KEYS["v1"], CONSENSUS, b"again")
        await asyncio.sleep(1)

    town = in_town(body)
    assert town.frames("v1") == [b"again"]
    for one, other in (("v0", "v1"), ("v1", "v0")):
        turns = [turn for turn in town.turns(one) if turn in (Up(KEYS[other]), Down(KEYS[other]))]
        assert turns == [Up(KEYS[other]), Down(KEYS[other]), Up(KEYS[other])]


def test_a_partition_parts_groups_and_nothing_else() -> None:
    async def body(town: Town) -> None:
        town.network.partition(["v0", "v1"], ["v2"])
        await say(town, 10, "v0", "v1")
        await say(town, 10, "v0", "v2")
        await say(town, 10, "v2", "v1")

    town = in_town(body)
    assert [len(town.frames(name)) for name in NAMES] == [0, 10, 0]


def test_a_clogged_direction_delivers_late_and_in_order() -> None:
    async def body(town: Town) -> None:
        town.network.clog("v0", "v1", 3.0)
        await say(town, 20)
        assert town.frames("v1") == []
        await asyncio.sleep(2)

    assert in_town(body).frames("v1") == numbered(20)


def test_a_cut_link_loses_what_was_under_way_and_comes_back() -> None:
    async def body(town: Town) -> None:
        town.links["v0"].send(KEYS["v1"], CONSENSUS, b"under way")
        town.network.cut("v0", "v1")
        await asyncio.sleep(1)
        town.links["v0"].send(KEYS["v1"], CONSENSUS, b"after")
        await asyncio.sleep(1)

    town = in_town(body)
    assert town.frames("v1") == [b"after"]


def test_peers_notice_a_node_that_lost_its_power_and_link_to_it_again() -> None:
    async def body(town: Town) -> None:
        town.links["v1"].cut_power()
        await asyncio.sleep(10)
        assert town.turns("v0")[-1] == Down(KEYS["v1"])
        again = SimulatedLinks(town.network, town.links["v1"].endpoint)
        await again.start({peer: PeerAddress(peer, "", 0) for peer in KEYS.values()})
        await asyncio.sleep(1)
        assert town.turns("v0")[-1] == Up(KEYS["v1"])
        town.links["v0"].send(KEYS["v1"], CONSENSUS, b"welcome back")
        while not isinstance(event := await again.receive(), Frame):
            pass
        assert event.data == b"welcome back"

    in_town(body)


def test_a_wrapper_rewrites_what_its_node_sends() -> None:
    def two_faced(peer: Peer, channel: Channel, frame: bytes) -> Iterable[tuple[Peer, Channel, bytes]]:
        yield peer, channel, frame + (b" yes" if peer == KEYS["v1"] else b" no")

    async def body(town: Town) -> None:
        town.network.wrap("v0", two_faced)
        for name in ("v1", "v2"):
            town.links["v0"].send(KEYS[name], CONSENSUS, b"vote")
        town.network.inject("v0", KEYS["v2"], CONSENSUS, b"forged")
        await asyncio.sleep(1)

    town = in_town(body)
    assert town.frames("v1") == [b"vote yes"]
    assert town.frames("v2") == [b"vote no", b"forged"]


def test_taps_see_every_delivery() -> None:
    seen: list[tuple[str, str, bytes]] = []

    async def body(town: Town) -> None:
        town.network.tap(lambda time, source, target, channel, frame: seen.append((source, target, frame)))
        await say(town, 10)

    in_town(body)
    assert seen == [("v0", "v1", frame) for frame in numbered(10)]


def test_twins_share_a_key_and_hear_the_same() -> None:
    async def body(town: Town) -> None:
        await town.settle("twin of v0", KEYS["v0"])
        await asyncio.sleep(1)
        town.links["v1"].send(KEYS["v0"], CONSENSUS, b"to both")
        town.links["twin of v0"].send(KEYS["v1"], CONSENSUS, b"from one")
        await asyncio.sleep(1)

    town = in_town(body)
    assert town.frames("v0") == town.frames("twin of v0") == [b"to both"]
    assert town.frames("v1") == [b"from one"]


def test_a_penalty_ends_and_doubles() -> None:
    async def body(town: Town) -> None:
        for waited in (6, 11, 21):
            town.links["v0"].punish(KEYS["v1"], "an invalid signature")
            await asyncio.sleep(waited - 2)
            assert town.turns("v0")[-1] == Down(KEYS["v1"])
            await asyncio.sleep(2)
            assert town.turns("v0")[-1] == Up(KEYS["v1"])

    town = in_town(body)
    assert town.network.punishments == [("v0", KEYS["v1"], "an invalid signature")] * 3


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_event_hash_and_another_seed_another(seed: int) -> None:
    assert gossip(seed) == gossip(seed)
    assert gossip(seed) != gossip(seed + 10)
