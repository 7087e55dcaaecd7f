"""Rounds whose rule looks at all updates at once, and those whose rule has a memory, in data processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from chain.codec import decode
from fl.aggregation import Aggregation, AggregationRules, Update, Work
from fl.blobs import PUBLIC_KINDS, BlobKind
from fl.jobrules import zero_model
from fl.kernels import KERNEL_VERSION
from fl.records import JobRules, TensorGroup
from fl.rules import RULES
from fl.rules.rule import written_settings
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord, payload_fingerprint
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Bytes, Schema, TensorSpec
from fl.updates import form_of, schema_of
from node.data.blobs import BlobLimits
from node.data.messages import Closed
from node.data.service import DataLimits
from node.dataplane import DataFault
from tests.node.data.houses import JOB, PARAMETERS, Accepted, House, Street, cid_of, on_a_street, rules

LOG_ROOT = b"r" * 32
SMALL = Schema((TensorSpec("v", "F32", (50,), AVERAGED), TensorSpec("w", "F32", (1_000,), AVERAGED)))
"""Its updates are inline."""
MEDIAN = rules(rule="median", schema=SMALL)
KRUM = rules(rule="krum", schema=SMALL, settings=written_settings(RULES["krum"], {"faulty": 1}), minimum=5, target=5)
LARGE = rules(rule="median")
ADAM = rules(rule="fedadam", schema=SMALL)


def given(count: int, of: JobRules, round: int = 1, group: int = 0, job: bytes = JOB) -> list[tuple[Accepted, bytes]]:
    made = []
    form = form_of(of, group)
    for index in range(count):
        member = bytes([index + 1]) * 32
        draw = np.random.default_rng([index, round])
        delta = {
            each.name: draw.standard_normal(each.shape)
            for each in schema_of(of, group).tensors
            if each.role == AVERAGED
        }
        data = encode_update(form, Place(job, round, member), delta)
        made.append((Accepted(index, round, member, group, cid_of(data), b""), data))
    return made


def inline(updates: Sequence[tuple[Accepted, bytes]]) -> list[Accepted]:
    return [replace(each, payload=data) for each, data in updates]


def expected(
    updates: Sequence[tuple[Accepted, bytes]],
    of: JobRules,
    base: bytes,
    round: int = 1,
    step: int = 1,
    moments: Bytes | None = None,
) -> tuple[bytes, bytes]:
    """The model and the moments."""
    sums = Aggregation(AggregationRules(JOB, round, of, step))
    for each, data in updates:
        offset = len(form_of(of, each.group).header(Place(JOB, round, each.member)))
        values = payload_fingerprint(data, offset)
        sums.add(Update(each.index, round, each.member, 1, each.group, data, values))
    closing = sums.finish(LOG_ROOT, base, moments)
    made = b"".join(closing.moments() or ())
    return b"".join(closing.model(made or None)), made


async def close(
    house: House,
    of: JobRules,
    size: int,
    *,
    round: int = 1,
    base: bytes = b"",
    optimizer: bytes = b"",
    job: bytes = JOB,
) -> Closed:
    base = base or await house.plane.zeros(of.schema)
    return await house.plane.close(job, round, LOG_ROOT, size, KERNEL_VERSION, base, optimizer)


@pytest.mark.parametrize("of", [MEDIAN, KRUM])
def test_inline_updates_and_blobs_are_looked_at_alike(of: JobRules) -> None:
    updates = given(7, of)
    model, _ = expected(updates, of, zero_model(of.schema))

    async def story(street: Street) -> None:
        first, second, third = street.houses
        await first.add(inline(updates), of)
        for _, data in updates:
            await second.put(data)
        await second.add([each for each, _ in updates], of)
        for each in reversed(inline(updates[2:])):
            await third.add([each], of)
        # These two have to be fetched.
        await third.add([each for each, _ in updates[:2]], of)
        for house in street.houses:
            closed = await close(house, of, 7)
            assert closed.ok and closed.model == cid_of(model) and not closed.optimizer
            assert house.figure("sums_bytes") == 0

    on_a_street(3, story)


def test_inline_updates_wait_on_the_disk_and_leave_it_with_their_round() -> None:
    updates = given(5, MEDIAN)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.add(inline(updates), MEDIAN)
        await asyncio.sleep(1)
        piles = [name for name in files(house) if "pile" in name]
        assert len(piles) == 1 and house.figure("sums_bytes") == 0
        await close(house, MEDIAN, 5)
        assert not [name for name in files(house) if "pile" in name]
        await house.add(inline(given(2, MEDIAN, round=2)), MEDIAN, round=2)
        house.plane.drop(JOB, 2)
        await asyncio.sleep(1)
        assert not [name for name in files(house) if "pile" in name]

    on_a_street(1, story)


def test_a_round_dropped_at_any_moment_of_its_end_ends_nothing_else() -> None:
    updates = given(5, MEDIAN)

    async def story(street: Street) -> None:
        house = street.houses[0]
        life = house.plane.life
        for tenth_ms in range(60):
            await house.add(inline(updates), MEDIAN)
            closing = asyncio.create_task(close(house, MEDIAN, 5))
            await asyncio.sleep(tenth_ms / 10_000)
            house.plane.drop(JOB, 1)
            await asyncio.gather(closing, return_exceptions=True)
            assert house.plane.life == life and house.plane.opened is not None
        assert not [name for name in files(house) if "pile" in name]

    on_a_street(1, story)


def files(house: House) -> list[str]:
    assert house.machine.node is not None
    return house.machine.node._ports.disk.list("blobs/")


def test_inline_updates_for_which_there_is_no_room_are_taken_once_there_is() -> None:
    updates = given(5, MEDIAN)

    async def story(street: Street) -> None:
        house = street.houses[0]
        base = await house.plane.zeros(MEDIAN.schema)
        house.machine.traits.capacity_bytes = 0
        adding = asyncio.create_task(house.add(inline(updates), MEDIAN))
        await asyncio.sleep(10)
        assert not adding.done()
        house.machine.traits.capacity_bytes = None
        await adding
        model, _ = expected(updates, MEDIAN, zero_model(MEDIAN.schema))
        assert (await close(house, MEDIAN, 5, base=base)).model == cid_of(model)

    on_a_street(1, story)


def test_such_rounds_take_their_room_when_they_close_one_beyond_the_budget() -> None:
    size_bytes = 8 * PARAMETERS

    async def story(street: Street) -> None:
        house = street.houses[0]
        rounds = {round: given(3, LARGE, round=round) for round in (1, 2, 3)}
        for round, updates in rounds.items():
            for _, data in updates:
                await house.put(data)
            await house.add([each for each, _ in updates], LARGE, round=round)
        await asyncio.sleep(2)
        held = [house.figure("sums_bytes")]
        assert held == [0]

        async def watch() -> None:
            while True:
                held.append(house.figure("sums_bytes"))
                await asyncio.sleep(0.0005)

        watching = asyncio.create_task(watch())
        closed = await asyncio.gather(*(close(house, LARGE, 3, round=round) for round in rounds))
        watching.cancel()
        for (round, updates), each in zip(rounds.items(), closed, strict=True):
            assert each.model == cid_of(expected(updates, LARGE, zero_model(LARGE.schema), round)[0])
        assert max(held) == size_bytes

    on_a_street(1, story, limits=DataLimits(BlobLimits(reserve_bytes=0), sums_bytes=0))


def test_an_update_that_breaks_the_rules_spoils_its_own_round_alone() -> None:
    wrong, right = given(3, MEDIAN), given(3, MEDIAN, round=2)
    stolen = Accepted(0, 1, b"z" * 32, 0, wrong[0][0].cid, wrong[0][1])

    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.add([stolen, *inline(wrong[1:])], MEDIAN)
        with pytest.raises(DataFault) as fault:
            await close(house, MEDIAN, 3)
        assert fault.value.fault == "WRONG_HEADER"
        await house.add(inline(right), MEDIAN, round=2)
        assert (await close(house, MEDIAN, 3, round=2)).ok

    on_a_street(1, story)


def test_what_a_rule_remembers_is_kept_certified_and_fetched_by_whoever_lacks_it() -> None:
    first, second = given(4, ADAM), given(4, ADAM, round=2)
    model, moments = expected(first, ADAM, zero_model(SMALL))
    later, remembered = expected(second, ADAM, model, 2, 2, moments)

    async def story(street: Street) -> None:
        near, far = street.houses
        await far.add(inline(first), ADAM)
        closed = await close(far, ADAM, 4)
        assert (closed.model, closed.optimizer) == (cid_of(model), cid_of(moments))
        assert far.machine.is_durable(closed.optimizer)
        for house in (near, far):
            await house.add(inline(second), ADAM, round=2, step=2)
            after = await close(house, ADAM, 4, round=2, base=closed.model, optimizer=closed.optimizer)
            assert (after.model, after.optimizer) == (cid_of(later), cid_of(remembered))
            assert house.machine.is_durable(after.optimizer)
            record = house.machine.read(after.record)
            assert record is not None
            assert decode(ClosingRecord, record, MAX_CLOSING_BYTES).optimizer == after.optimizer
        blob = near.machine.node.store.find(closed.optimizer) if near.machine.node is not None else None
        assert blob is not None and blob.kind not in PUBLIC_KINDS and blob.kind == BlobKind.OPTIMIZER

    on_a_street(2, story)


def test_an_update_counts_for_the_group_that_it_names() -> None:
    groups = (TensorGroup("first", ("v",)), TensorGroup("second", ("w",)))
    of = rules(schema=SMALL, groups=groups)
    own = given(3, of, group=1)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.add(inline(own), of)
        closed = await close(house, of, 3)
        assert closed.model == cid_of(expected(own, of, zero_model(SMALL))[0])
        record = house.machine.read(closed.record)
        assert record is not None
        first, second = decode(ClosingRecord, record, MAX_CLOSING_BYTES).denominators
        assert first == 0 < second

    on_a_street(1, story)


def test_a_round_that_is_dropped_while_its_updates_are_compared_takes_no_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = given(3, LARGE)
    done: list[int] = []

    async def story(street: Street) -> None:
        house = street.houses[0]
        assert house.machine.node is not None
        node = house.machine.node

        def spread(pieces: Sequence[Work]) -> list[int]:
            for piece in pieces:
                done.append(piece())
                node.sums.drop(JOB, 1)
            return done

        monkeypatch.setattr(node._ports.offload, "spread", spread)
        for _, data in updates:
            await house.put(data)
        await house.add([each for each, _ in updates], LARGE)
        with pytest.raises(DataFault) as fault:
            await close(house, LARGE, 3)
        assert fault.value.fault == "DROPPED"

    on_a_street(1, story)
    assert len(done) == 1


def test_one_round_at_a_time_holds_all_of_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    other = b"k" * 32
    first, second = given(3, LARGE), given(3, LARGE, job=other)
    held: list[int] = []

    async def story(street: Street) -> None:
        house = street.houses[0]
        assert house.machine.node is not None
        node = house.machine.node

        def spread(pieces: Sequence[Work]) -> list[int]:
            held.append(node.sums.held_bytes)
            return [piece() for piece in pieces]

        monkeypatch.setattr(node._ports.offload, "spread", spread)
        for _, data in (*first, *second):
            await house.put(data)
        await house.add([each for each, _ in first], LARGE)
        await house.add([each for each, _ in second], LARGE, job=other)
        for closed in await asyncio.gather(close(house, LARGE, 3), close(house, LARGE, 3, job=other)):
            assert closed.ok

    on_a_street(1, story)
    assert held == [8 * PARAMETERS] * 2
