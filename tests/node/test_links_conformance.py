"""What Links promise, asked of the real ones and of the simulated ones alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from consensus.messages import FRAME_LIMIT
from node.ports import (
    Channel,
    Down,
    Frame,
    LinkEvent,
    Links,
    Up,
)
from tests.node.port_worlds import CONSENSUS, DATA, PEERS, World


async def next_of(links: Links, *kinds: type[LinkEvent]) -> Any:
    while True:
        event = await links.receive()
        if isinstance(event, kinds):
            return event


async def connected(world: World, *numbers: int) -> list[Links]:
    """Started, and every pair up on both channels."""
    links = [world.links(number) for number in numbers]
    for each in links:
        await each.start(world.addresses())
    for each in links:
        turns = {
            (each_up.peer, each_up.channel)
            for each_up in [await next_of(each, Up) for _ in range(2 * (len(numbers) - 1))]
        }
        assert len(turns) == 2 * (len(numbers) - 1)
    return links


async def closed(*links: Links) -> None:
    for each in links:
        await each.close()


def test_every_pair_comes_up_on_both_channels_and_frames_name_their_sender(world: World) -> None:
    async def body() -> None:
        links = await connected(world, 0, 1, 2)
        for source in range(3):
            for target in range(3):
                if source != target:
                    frame = b"from %d" % source
                    assert links[source].send(PEERS[target], CONSENSUS, frame)
                    assert await next_of(links[target], Frame) == Frame(PEERS[source], CONSENSUS, frame)
        await closed(*links)

    world.run(body)


def test_thousands_of_frames_keep_their_order(world: World) -> None:
    async def body() -> None:
        a, b = await connected(world, 0, 1)
        sent = [number.to_bytes(4, "big") * (1 + number % 50) for number in range(3_000)]
        for frame in sent:
            assert a.send(PEERS[1], CONSENSUS, frame)
        assert [(await next_of(b, Frame)).data for _ in sent] == sent
        await closed(a, b)

    world.run(body)


def test_the_largest_frames_pass_and_larger_ones_are_the_senders_fault(world: World) -> None:
    async def body() -> None:
        a, b = await connected(world, 0, 1)
        for channel in Channel:
            frame = bytes(range(256)) * (FRAME_LIMIT[channel] // 256)
            frame += bytes(FRAME_LIMIT[channel] - len(frame))
            for source, target, number in ((a, b, 1), (b, a, 0)):
                assert source.send(PEERS[number], channel, frame)
                assert (await next_of(target, Frame)).data == frame
            with pytest.raises(ValueError, match="over the limit"):
                a.send(PEERS[1], channel, frame + b"x")
        await closed(a, b)

    world.run(body)


def test_nothing_is_sent_to_strangers_or_to_oneself(world: World) -> None:
    async def body() -> None:
        a = world.links(0)
        await a.start(world.addresses())
        assert not a.send(PEERS[1], CONSENSUS, b"nobody there")
        assert not a.send(PEERS[0], CONSENSUS, b"me")
        assert not a.send(bytes(33), CONSENSUS, b"a stranger")
        await a.close()

    world.run(body)


def test_a_peer_that_leaves_is_reported_and_linked_again_when_it_returns(world: World) -> None:
    async def body() -> None:
        a, b = await connected(world, 0, 1)
        await b.close()
        gone = {(await next_of(a, Down)).channel for _ in Channel}
        assert gone == set(Channel)
        assert not a.send(PEERS[1], CONSENSUS, b"lost")
        again = world.links(1)
        await again.start(world.addresses())
        back = {(await next_of(a, Up)).channel for _ in Channel}
        assert back == set(Channel)
        for _ in Channel:
            await next_of(again, Up)
        assert a.send(PEERS[1], DATA, b"welcome")
        assert (await next_of(again, Frame)).data == b"welcome"
        await closed(a, again)

    world.run(body)


def test_a_peer_that_is_no_longer_in_the_set_loses_its_links(world: World) -> None:
    async def body() -> None:
        a, b, c = await connected(world, 0, 1, 2)
        remaining = {peer: address for peer, address in world.addresses().items() if peer != PEERS[1]}
        await a.update(remaining)
        assert {(await next_of(a, Down)).peer for _ in Channel} == {PEERS[1]}
        assert {(await next_of(b, Down)).peer for _ in Channel} == {PEERS[0]}
        assert a.send(PEERS[2], CONSENSUS, b"we stay")
        assert (await next_of(c, Frame)).data == b"we stay"
        await a.update(world.addresses())
        assert {(await next_of(a, Up)).peer for _ in Channel} == {PEERS[1]}
        await closed(a, b, c)

    world.run(body)


def test_a_punished_peer_loses_its_links(world: World) -> None:
    async def body() -> None:
        a, b = await connected(world, 0, 1)
        b.punish(PEERS[0], "an invalid signature")
        assert {(await next_of(a, Down)).channel for _ in Channel} == set(Channel)
        assert {(await next_of(b, Down)).channel for _ in Channel} == set(Channel)
        assert not b.send(PEERS[0], CONSENSUS, b"nothing")
        await asyncio.sleep(0.5)
        assert not b.send(PEERS[0], CONSENSUS, b"nothing")
        await closed(a, b)

    world.run(body)


def test_a_peer_that_does_not_read_costs_bounded_memory(world: World) -> None:
    async def body() -> None:
        a, b = await connected(world, 0, 1)
        frame = bytes(FRAME_LIMIT[DATA])
        offered = 10_000
        accepted = 0
        for _ in range(offered):
            if not a.send(PEERS[1], DATA, frame):
                break
            accepted += 1
        assert 0 < accepted < offered
        for _ in range(100):
            assert a.send(PEERS[1], CONSENSUS, b"votes are not held up")
        received = await next_of(b, Frame)
        while received.channel is DATA:
            received = await next_of(b, Frame)
        assert received.data == b"votes are not held up"
        await closed(a, b)

    world.run(body)
