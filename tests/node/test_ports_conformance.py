"""What every Disk, Kv, Offload, Clock and Links promises, asked of the real ones and of the simulated ones
alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop

from chain.keys import SigningKey
from consensus.messages import FRAME_LIMIT
from node.ports import (
    AlreadyLocked,
    Channel,
    Clock,
    Disk,
    DiskFailure,
    Down,
    Frame,
    Kv,
    LinkEvent,
    Links,
    NoSuchFile,
    Offload,
    PeerAddress,
    Up,
)
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.links import LinkLimits, TlsLinks
from node.ports.offload import ThreadOffload
from tests.node.doors import free_port
from tests.simulation.loop import simulate
from tests.simulation.network import Network, SimulatedLinks
from tests.simulation.ports import (
    Machine,
    Power,
    SimulatedClock,
    SimulatedDisk,
    SimulatedKv,
    SimulatedOffload,
)

CONSENSUS, DATA = Channel.CONSENSUS, Channel.DATA
KEYS = sorted((SigningKey.from_seed(bytes([n]) * 32) for n in range(1, 4)), key=lambda key: key.public)
PEERS = [key.public for key in KEYS]
PATIENCE_SECONDS = 30.0


class World(Protocol):
    """Where a test runs. Ports of one kind opened twice see the same medium."""

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None: ...
    def disk(self) -> Disk: ...
    def kv(self) -> Kv: ...
    def offload(self) -> Offload: ...
    def clock(self) -> Clock: ...
    def links(self, number: int) -> Links: ...
    def addresses(self) -> dict[bytes, PeerAddress]: ...


class Real:
    def __init__(self, root: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._root = root
        self._loop_factory = loop_factory
        self._ports = [free_port() for _ in PEERS]

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(asyncio.wait_for(body(), PATIENCE_SECONDS))

    def disk(self) -> Disk:
        return FileDisk(self._root / "files")

    def kv(self) -> Kv:
        return LevelKv(self._root / "rows")

    def offload(self) -> Offload:
        return ThreadOffload()

    def clock(self) -> Clock:
        return SystemClock()

    def links(self, number: int) -> Links:
        limits = LinkLimits(retry_s=(0.02, 0.2))
        return TlsLinks(KEYS[number], PEERS[number], bytes(32), ("127.0.0.1", self._ports[number]), limits)

    def addresses(self) -> dict[bytes, PeerAddress]:
        return {peer: PeerAddress(peer, "127.0.0.1", port) for peer, port in zip(PEERS, self._ports, strict=True)}


class Simulated:
    def __init__(self) -> None:
        self._machines: list[Machine] = []
        self._network: Network | None = None

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            network = self._network = Network(seed=1)
            for number, peer in enumerate(PEERS):
                name = f"v{number}"
                self._machines.append(Machine(name, 1, network, network.join(name, peer)))
            await body()

        simulate(main)

    def disk(self) -> Disk:
        return SimulatedDisk(self._machines[0], Power(self._machines[0]))

    def kv(self) -> Kv:
        return SimulatedKv(self._machines[0].kv, Power(self._machines[0]))

    def offload(self) -> Offload:
        return SimulatedOffload(self._machines[0], Power(self._machines[0]))

    def clock(self) -> Clock:
        return SimulatedClock(self._machines[0], Power(self._machines[0]))

    def links(self, number: int) -> Links:
        assert self._network is not None
        return SimulatedLinks(self._network, self._machines[number].endpoint)

    def addresses(self) -> dict[bytes, PeerAddress]:
        return {peer: PeerAddress(peer, "", 0) for peer in PEERS}

    def break_syncs(self, broken: bool) -> None:
        self._machines[0].traits.failing = {"journal/"} if broken else set()


@pytest.fixture(params=["asyncio", "uvloop", "simulated"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "simulated":
        yield Simulated()
    else:
        factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop
        yield Real(tmp_path, factory)


# Disk


def test_appends_follow_one_another_and_are_read_in_part(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("log/1", b"hello ")
        disk.append("log/1", b"world")
        assert disk.read("log/1") == b"hello world"
        assert disk.read("log/1", 6) == b"world"
        assert disk.read("log/1", 4, 3) == b"o w"
        assert disk.read("log/1", 9, 100) == b"ld"
        assert disk.size("log/1") == 11

    world.run(body)


def test_what_was_synced_is_there_for_the_next_process(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("log/1", b"kept")
        await disk.sync("log/1")
        disk.close()
        assert world.disk().read("log/1") == b"kept"

    world.run(body)


def test_a_file_is_written_at_any_place_and_in_any_order(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.write_at("blobs/b", 6, memoryview(b"world"))
        assert disk.read("blobs/b") == bytes(6) + b"world"
        disk.write_at("blobs/b", 0, bytearray(b"hello "))
        disk.write_at("blobs/b", 4, b"O")
        await disk.sync("blobs/b")
        assert disk.read("blobs/b") == b"hellO world"
        assert disk.size("blobs/b") == 11
        disk.append("blobs/b", b"!")
        assert disk.read("blobs/b", 6) == b"world!"
        disk.close()
        assert world.disk().read("blobs/b") == b"hellO world!"

    world.run(body)


def test_nothing_written_anywhere_is_an_empty_file(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.write_at("empty", 0, b"")
        await disk.sync("empty")
        assert disk.size("empty") == 0
        assert disk.view("empty") == b""

    world.run(body)


def test_a_view_is_the_whole_file_and_outlives_its_name(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.write_at("blobs/b.part", 0, b"some bytes")
        await disk.sync("blobs/b.part")
        disk.rename("blobs/b.part", "blobs/b")
        view = disk.view("blobs/b")
        assert view.readonly and view[5:] == b"bytes" and len(view) == 10
        disk.unlink("blobs/b")
        assert view == b"some bytes"
        with pytest.raises(NoSuchFile):
            disk.view("blobs/b")

    world.run(body)


def test_a_missing_file_is_missed(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        assert disk.size("none") is None
        with pytest.raises(NoSuchFile):
            disk.read("none")
        with pytest.raises(NoSuchFile):
            await disk.sync("none")
        with pytest.raises(NoSuchFile):
            disk.unlink("none")
        with pytest.raises(NoSuchFile):
            disk.rename("none", "other")

    world.run(body)


def test_truncated_files_go_on_from_their_new_end(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"0123456789")
        disk.truncate("f", 4)
        disk.append("f", b"x")
        await disk.sync("f")
        assert disk.read("f") == b"0123x"
        with pytest.raises(ValueError, match="cannot be cut"):
            disk.truncate("f", 100)

    world.run(body)


def test_a_rename_replaces_and_carries_the_file(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("d/new", b"new")
        disk.append("d/old", b"old")
        assert disk.read("d/old") == b"old"
        disk.rename("d/new", "d/old")
        await disk.sync("d/old")
        disk.append("d/old", b"er")
        assert disk.read("d/old") == b"newer"
        assert disk.size("d/new") is None
        with pytest.raises(ValueError, match="different directories"):
            disk.rename("d/old", "old")

    world.run(body)


def test_an_unlinked_file_is_gone_and_its_name_free(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"one")
        disk.unlink("f")
        assert disk.size("f") is None
        disk.append("f", b"two")
        assert disk.read("f") == b"two"

    world.run(body)


def test_lists_are_sorted_and_by_prefix(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        for name in ("b", "journal/2", "journal/1", "jot", "a"):
            disk.append(name, b".")
        assert disk.list() == ["a", "b", "jot", "journal/1", "journal/2"]
        assert disk.list("journal/") == ["journal/1", "journal/2"]
        assert disk.list("journal/2") == ["journal/2"]
        assert disk.list("jo") == ["jot", "journal/1", "journal/2"]
        assert disk.list("none/") == []

    world.run(body)


def test_a_file_written_whole_replaces_the_old_one(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        await disk.write_whole("d/f", b"first")
        await disk.write_whole("d/f", b"second")
        assert disk.read("d/f") == b"second"
        assert disk.list() == ["d/f"]
        disk.append("d/f", b"!")
        assert disk.read("d/f") == b"second!"

    world.run(body)


def test_the_second_process_does_not_get_the_lock(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.lock("lock")
        with pytest.raises(AlreadyLocked):
            world.disk().lock("lock")
        disk.close()
        world.disk().lock("lock")

    world.run(body)


@pytest.mark.parametrize("name", ["../f", "/f", "a/b/c", "", "a/", ".f", "a b", "f.tmp"])
def test_no_name_leads_out_of_the_disk(world: World, name: str) -> None:
    async def body() -> None:
        disk = world.disk()
        with pytest.raises(ValueError, match="file name"):
            disk.append(name, b"x")
        with pytest.raises(ValueError, match="file name"):
            disk.write_at(name, 0, b"x")
        with pytest.raises(ValueError, match="file name"):
            await disk.write_whole(name, b"x")

    world.run(body)


def test_free_space_is_known(world: World) -> None:
    async def body() -> None:
        assert world.disk().free_bytes() > 0

    world.run(body)


def test_two_syncs_of_one_file_at_once_are_both_true(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"one")
        first = asyncio.ensure_future(disk.sync("f"))
        await asyncio.sleep(0)
        disk.append("f", b"two")
        await asyncio.gather(first, disk.sync("f"))
        assert disk.read("f") == b"onetwo"

    world.run(body)


def test_a_cancelled_sync_leaves_the_file_usable(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"one")
        task = asyncio.ensure_future(disk.sync("f"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        disk.append("f", b"two")
        await disk.sync("f")
        disk.unlink("f")

    world.run(body)


# Kv


def test_rows_are_put_deleted_and_found(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({b"a": b"1", b"b": b"", b"c": b"3"})
        kv.write({b"a": b"2"}, deletes=[b"c", b"never"])
        assert kv.get(b"a") == b"2"
        assert kv.get(b"b") == b""
        assert kv.get(b"c") is None
        kv.close()

    world.run(body)


def test_ranges_are_ordered_and_exclude_their_stop(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({bytes([n]): b"%d" % n for n in (5, 1, 9, 3, 7)})
        assert [key[0] for key, _ in kv.iterate(b"\x03", b"\x09")] == [3, 5, 7]
        assert [key[0] for key, _ in kv.iterate(b"\x03", b"\x09", reverse=True)] == [7, 5, 3]
        assert list(kv.iterate(b"\x06", b"\x06")) == []
        kv.close()

    world.run(body)


def test_a_range_shows_the_rows_of_the_moment_when_it_was_asked_for(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({b"a": b"1", b"b": b"1"})
        rows = kv.iterate(b"a", b"z")
        kv.write({b"b": b"2", b"c": b"2"}, deletes=[b"a"])
        assert list(rows) == [(b"a", b"1"), (b"b", b"1")]
        kv.close()

    world.run(body)


def test_a_key_cannot_be_put_and_deleted_at_once(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        with pytest.raises(ValueError, match="both put and deleted"):
            kv.write({b"a": b"1"}, deletes=[b"a"])
        assert kv.get(b"a") is None
        kv.close()

    world.run(body)


def test_synced_rows_are_there_for_the_next_process(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({b"a": b"1"})
        kv.write({b"b": b"2"}, sync=True)
        kv.close()
        kv = world.kv()
        assert (kv.get(b"a"), kv.get(b"b")) == (b"1", b"2")
        kv.close()

    world.run(body)


# Offload and clock


def test_offloaded_work_returns_and_raises_as_called(world: World) -> None:
    async def body() -> None:
        offload = world.offload()
        assert await offload.run(divmod, 17, 5) == (3, 2)
        with pytest.raises(ZeroDivisionError):
            await offload.run(divmod, 1, 0)
        results = await asyncio.gather(*(offload.run(pow, n, 2) for n in range(100)))
        assert results == [n * n for n in range(100)]
        offload.close()

    world.run(body)


def test_the_loop_goes_on_while_work_is_offloaded(world: World) -> None:
    async def body() -> None:
        offload = world.offload()
        work = asyncio.ensure_future(offload.run(sum, range(1000)))
        await asyncio.sleep(0)
        assert not work.done()
        assert await work == 499_500
        offload.close()

    world.run(body)


def test_time_passes_and_never_goes_back(world: World) -> None:
    async def body() -> None:
        clock = world.clock()
        before = clock.now()
        await asyncio.sleep(0.02)
        after = clock.now()
        assert after.mono_ms - before.mono_ms >= 19
        assert before.wall_ms > 1_700_000_000_000

    world.run(body)


def test_entropy_does_not_repeat(world: World) -> None:
    async def body() -> None:
        clock = world.clock()
        drawn = {clock.entropy(16) for _ in range(100)}
        assert len(drawn) == 100
        assert {len(each) for each in drawn} == {16}

    world.run(body)


# Links


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


def test_a_failed_sync_is_failed_for_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("journal/1", b"vote")
        break_syncs(world, monkeypatch, broken=True)
        with pytest.raises(DiskFailure):
            await disk.sync("journal/1")
        break_syncs(world, monkeypatch, broken=False)
        with pytest.raises(DiskFailure):
            await disk.sync("journal/1")
        with pytest.raises(DiskFailure):
            disk.append("journal/1", b"vote")
        disk.append("other/1", b"fine")
        await disk.sync("other/1")

    world.run(body)


def break_syncs(world: World, monkeypatch: pytest.MonkeyPatch, *, broken: bool) -> None:
    if isinstance(world, Simulated):
        world.break_syncs(broken)
        return

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    if broken:
        monkeypatch.setattr("os.fdatasync", fail)
    else:
        monkeypatch.undo()
