"""The core's end of its data process, against one that is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from chain.cid import raw_cid
from fl.blobs import BlobKind
from node.data.messages import (
    ROOTS,
    DataPeer,
    Failed,
    Figures,
    Finding,
    Forget,
    Judged,
    Keep,
    Kept,
    Obtain,
    Peers,
    Roots,
    Standing,
    Swept,
    WhoIs,
)
from node.dataplane import DataFault, DataGone, DataPlane
from node.ports import PipeUp
from tests.node.played import Played
from tests.simulation.loop import simulate
from tests.simulation.pipe import SimulatedPipe

CID = raw_cid(b"a blob")


Play = Callable[[DataPlane, SimulatedPipe], Coroutine[Any, Any, None]]


def played(play: Play) -> None:
    async def main() -> None:
        pipe = SimulatedPipe()
        plane = DataPlane(pipe.begin_core(), who=lambda account, key: (account[0] == key[0], ("trainer",)))
        running = asyncio.ensure_future(plane.run())
        await play(plane, pipe)
        running.cancel()

    simulate(main)


def test_an_answer_finds_the_one_who_asked() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        data = Played(pipe)
        await plane.up()
        first = asyncio.ensure_future(plane.keep(BlobKind.MODEL, b"first"))
        second = asyncio.ensure_future(plane.obtain(CID, BlobKind.MODEL))
        assert isinstance(await data.hears(), Peers)
        keep, obtain = await data.hears(), await data.hears()
        assert isinstance(keep, Keep) and keep.data == b"first" and isinstance(obtain, Obtain)
        data.say(Judged(obtain.id, Finding.OK, ""))
        data.say(Kept(keep.id, CID))
        assert await first == CID and await second is Finding.OK
        assert plane.waiting == 0

    played(play)


def test_who_waits_when_the_data_process_dies_is_told_and_nothing_is_asked_while_it_is_down() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        for ask in (lambda: plane.mark(), lambda: plane.keep(BlobKind.MODEL, b"x")):
            data = Played(pipe)
            await plane.up()
            asked = asyncio.ensure_future(ask())
            await asyncio.sleep(0.01)
            data.dies()
            (result,) = await asyncio.gather(asked, return_exceptions=True)
            assert isinstance(result, DataGone)
            assert plane.opened is None
            (result,) = await asyncio.gather(ask(), return_exceptions=True)
            assert isinstance(result, DataGone)

    played(play)


def test_who_insists_asks_each_life_of_the_data_process_until_there_is_an_answer() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        insisting = asyncio.ensure_future(plane.insist(lambda: plane.keep(BlobKind.MODEL, b"x")))
        for _ in range(3):
            data = Played(pipe)
            assert isinstance(await data.hears(), Peers)
            assert isinstance(await data.hears(), Keep)
            data.dies()
            await asyncio.sleep(0.01)
        data = Played(pipe)
        await data.hears()
        keep = await data.hears()
        data.say(Failed(keep.id, "DISK_FULL", "no room"))
        again = await data.hears()
        assert isinstance(again, Keep) and again.id != keep.id
        data.say(Kept(again.id, CID))
        assert await insisting == CID
        assert plane.life == 4

    played(play)


def test_a_fault_is_told_in_the_words_of_the_data_process() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        data = Played(pipe)
        await plane.up()
        asked = asyncio.ensure_future(plane.mark())
        await data.hears()
        data.say(Failed((await data.hears()).id, "FAULT", "so it is"))
        (result,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(result, DataFault) and result.fault == "FAULT" and str(result) == "so it is"

    played(play)


def test_what_nobody_waits_for_any_more_is_forgotten_over_there() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        data = Played(pipe)
        await plane.up()
        asked = asyncio.ensure_future(plane.obtain(CID, BlobKind.MODEL))
        await data.hears()
        obtain = await data.hears()
        asked.cancel()
        assert await data.hears() == Forget(obtain.id)
        data.say(Judged(obtain.id, Finding.OK, ""))
        await asyncio.sleep(0.01)
        assert plane.waiting == 0

    played(play)


def test_each_life_of_the_data_process_is_told_who_the_peers_are() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        peer = DataPeer(b"\x01" * 33, b"\x01" * 33, "there", 7001)
        plane.meet([peer])
        for _ in range(2):
            data = Played(pipe)
            assert await data.hears() == Peers((peer,))
            data.dies()
            await asyncio.sleep(0.01)
        data = Played(pipe)
        await data.hears()
        plane.meet([])
        assert await data.hears() == Peers(())

    played(play)


def test_the_data_process_learns_whose_a_key_is() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        data = Played(pipe)
        await data.hears()
        data.say(WhoIs(5, b"\x01" * 32, b"\x01" * 33))
        assert await data.hears() == Standing(5, True, ("trainer",))
        data.say(WhoIs(6, b"\x01" * 32, b"\x02" * 33))
        assert await data.hears() == Standing(6, False, ("trainer",))

    played(play)


def test_roots_without_number_go_in_pieces_each_after_the_answer_to_the_last() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        data = Played(pipe)
        await plane.up()
        await data.hears()
        cids = [raw_cid(number.to_bytes(4, "big")) for number in range(ROOTS + 1)]
        sweeping = asyncio.ensure_future(plane.sweep(9, cids))
        first = await data.hears()
        assert isinstance(first, Roots) and len(first.cids) == ROOTS and not first.last
        data.say(Swept(first.id, 0, 0))
        second = await data.hears()
        assert second.cids == tuple(cids[ROOTS:]) and second.last and second.token == 9
        data.say(Swept(second.id, 3, 4_000))
        assert await sweeping == (3, 4_000)
        empty = asyncio.ensure_future(plane.sweep(10, []))
        only = await data.hears()
        assert only.cids == () and only.last
        data.say(Swept(only.id, 0, 0))
        await empty

    played(play)


def test_what_cannot_be_read_is_passed_over() -> None:
    async def play(plane: DataPlane, pipe: SimulatedPipe) -> None:
        data = Played(pipe)
        data.end.send(b"\xff nothing of this kind")
        data.say(Figures(True, 10, ()))
        await asyncio.sleep(0.01)
        assert plane.full
        assert not plane.on_opened
        data.dies()
        await asyncio.sleep(0.01)
        assert not plane.full

    played(play)


async def test_a_pipe_without_a_process_says_nothing_for_ever() -> None:
    pipe = SimulatedPipe()
    end = pipe.begin_core()
    assert not end.send(b"frame")
    data = pipe.begin_data()
    assert isinstance(await end.receive(), PipeUp)
    assert end.send(b"frame") and await data.receive() == b"frame"
