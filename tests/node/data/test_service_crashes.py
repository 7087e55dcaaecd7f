"""The power fails at one numbered operation of the disk after the other: what was acknowledged is there, and the work
goes on to the same end."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from fl.blobs import BlobKind
from fl.kernels import KERNEL_VERSION
from node.data.messages import Finding
from tests.node.data.houses import JOB, House, Street, demand, on_a_street, rules
from tests.node.data.test_summing import LOG_ROOT, given, model_of, put_all
from tests.simulation.loop import Crash

RULES = rules()
UPDATES = given(2)
STRIDE = 5
HANG_S = 300.0


async def work(near: House, far: House) -> list[bytes]:
    """Keeps, pulls, sums and sweeps, each step until it is acknowledged; what must be durable at the end."""
    plane = near.plane

    async def summed() -> bytes:
        await near.add([each.accepted for each in UPDATES], RULES)
        closed = await plane.close(JOB, 1, LOG_ROOT, len(UPDATES), KERNEL_VERSION, base, b"")
        return closed.model

    async def swept() -> tuple[int, int]:
        return await plane.sweep(await plane.mark(), wanted)

    record = await plane.insist(lambda: plane.keep(BlobKind.RECORD, b"a record"))
    for each in UPDATES:
        claim = demand(each.data, each.accepted.member, RULES)
        finding, _ = await plane.insist(partial(plane.judge, claim, (far.key,), wait=True))
        assert finding == Finding.OK
    base = await plane.insist(lambda: plane.zeros(RULES.schema))
    wanted = [record, base, *(each.accepted.cid for each in UPDATES)]
    for cid in wanted:
        assert near.machine.is_durable(cid)
    model = await plane.insist(summed)
    assert model == model_of(UPDATES)
    wanted.append(model)
    await plane.insist(swept)
    return wanted


def operations() -> int:
    async def story(street: Street) -> int:
        near, far = street.houses
        await put_all(far, UPDATES)
        await work(near, far)
        return near.machine.operations

    return on_a_street(2, story)


@pytest.mark.parametrize("first", range(STRIDE))
def test_nothing_acknowledged_is_lost_wherever_the_power_fails(first: int) -> None:
    for number in range(1 + first, operations(), STRIDE):
        on_a_street(2, partial(_cut_at, number))


async def _cut_at(number: int, street: Street) -> None:
    near, far = street.houses
    await put_all(far, UPDATES)

    def cut(operation: int, kind: str) -> None:
        if operation == number:
            raise Crash

    near.machine.on_operation = cut
    async with asyncio.timeout(HANG_S):
        wanted = await work(near, far)
        assert near.plane.life == 2
        for cid in wanted:
            assert near.machine.is_durable(cid), f"cut at {number}: {cid.hex()} is lost"
