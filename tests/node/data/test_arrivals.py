"""Where a blob comes from when no validator has it, and which blobs are never asked for elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from fl.blobs import BlobKind
from node.data.arrivals import STILL_S, Arrivals, Elsewhere
from node.data.errors import NoSpace
from tests.node.data.houses import House, Street, cid_of, on_a_street

DATA = bytes(range(256)) * 10_000
CID = cid_of(DATA)


def arrivals(house: House, elsewhere: Elsewhere) -> Arrivals:
    assert house.machine.node is not None
    return Arrivals(house.machine.node.store, house.machine.node.swarm, elsewhere)


class Gateway:
    """Answers after a while, with what it is told to."""

    def __init__(self, house: House, *answers: bool | Exception, after_s: float = 1.0) -> None:
        self.asked = 0
        self._house = house
        self._answers = answers
        self._after_s = after_s

    async def obtain(self, cid: bytes, kind: BlobKind) -> bool:
        assert self._house.machine.node is not None
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        await asyncio.sleep(self._after_s)
        if isinstance(answer, Exception):
            raise answer
        if answer:
            await self._house.machine.node.store.put(kind, DATA)
        return answer


@pytest.mark.parametrize("kind", [BlobKind.MODEL, BlobKind.DATASET, BlobKind.RECORD])
def test_a_public_blob_that_no_validator_has_is_looked_for_elsewhere(kind: BlobKind) -> None:
    async def story(street: Street) -> None:
        near = street.houses[0]
        gateway = Gateway(near, False, True)
        blob = await arrivals(near, gateway.obtain).obtain(CID, kind)
        assert (blob.cid, gateway.asked) == (CID, 2)
        assert near.machine.is_durable(CID)

    on_a_street(2, story)


@pytest.mark.parametrize("kind", [BlobKind.UPDATE, BlobKind.OPTIMIZER])
def test_what_is_not_public_is_nobody_elses_business(kind: BlobKind) -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        gateway = Gateway(near, True)
        coming = asyncio.create_task(arrivals(near, gateway.obtain).obtain(CID, kind))
        await asyncio.sleep(100)
        assert gateway.asked == 0 and not coming.done()
        await far.put(DATA, kind)
        await coming

    on_a_street(2, story)


def test_a_validator_that_has_it_meanwhile_is_not_waited_past() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        gateway = Gateway(near, True, after_s=10_000)
        coming = asyncio.create_task(arrivals(near, gateway.obtain).obtain(CID, BlobKind.MODEL))
        await asyncio.sleep(STILL_S + 1)
        assert gateway.asked == 1
        await far.put(DATA, BlobKind.MODEL)
        async with asyncio.timeout(60):
            await coming

    on_a_street(2, story)


def test_a_gateways_blob_for_which_there_is_no_room_is_tried_again() -> None:
    async def story(street: Street) -> None:
        near = street.houses[0]
        gateway = Gateway(near, NoSpace("no room"), True)
        await arrivals(near, gateway.obtain).obtain(CID, BlobKind.MODEL)
        assert gateway.asked == 2

    on_a_street(2, story)


def test_gateways_that_have_nothing_are_asked_ever_more_seldom() -> None:
    async def story(street: Street) -> None:
        near = street.houses[0]
        gateway = Gateway(near, False, after_s=0.1)
        coming = asyncio.create_task(arrivals(near, gateway.obtain).obtain(CID, BlobKind.MODEL))
        await asyncio.sleep(3600)
        assert gateway.asked < 20
        coming.cancel()

    on_a_street(1, story)
