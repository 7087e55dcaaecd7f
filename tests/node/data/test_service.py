"""The data process as its core knows it: what is judged, kept, fetched and swept, and what becomes of it when it dies
or its disk does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from chain.unixfs import LEAF_BYTES
from fl.blobs import BlobClaim, BlobKind, Demand, dataset_demand
from fl.jobrules import zero_model
from fl.tensors.encodings import Place
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.updates import form_of
from node.data import judging
from node.data.blobs import BlobLimits
from node.data.messages import DataPeer, Finding
from node.data.service import DataLimits
from node.dataplane import DataFault, DataGone
from node.ports import DiskFailure
from tests.fl.builders import signing_key
from tests.node.data.houses import (
    ALICE,
    BOB,
    JOB,
    SCHEMA,
    Street,
    cid_of,
    demand,
    on_a_street,
    rules,
    update,
    with_bad_last_leaf,
)

RULES = rules()
SMALL = rules(schema=Schema((TensorSpec("w", "F32", (10_000,), AVERAGED),)))
"""Its updates are blobs of one leaf."""
GOOD = update(ALICE, 0.5, RULES)
BAD = with_bad_last_leaf(GOOD)
LONG_S = 60.0


# Judging


def test_an_update_that_was_put_here_is_good_at_once() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.ABSENT, "")
        await house.put(GOOD)
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.OK, "")

    on_a_street(1, story)


def test_a_blob_that_is_neither_here_nor_could_be_is_told_apart_from_one_that_is_absent() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        house.machine.traits.capacity_bytes = 50_000
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.FULL, "")
        house.machine.traits.capacity_bytes = None
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.ABSENT, "")

    on_a_street(1, story, limits=DataLimits(BlobLimits(reserve_bytes=100_000)))


def test_half_an_update_is_absent() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.put_some(GOOD, 2)
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.ABSENT, "")

    on_a_street(1, story)


def test_an_update_that_breaks_the_rules_is_bad_for_good() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.put(BAD)
        for wait in (False, True, False):
            assert await house.plane.judge(demand(BAD, ALICE, RULES), wait=wait) == (Finding.BAD, "NON_FINITE")

    on_a_street(1, story)


def test_another_members_update_is_bad_under_ones_own_name() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.put(GOOD)
        assert await house.plane.judge(demand(GOOD, BOB, RULES), wait=False) == (Finding.BAD, "WRONG_HEADER")
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.OK, "")

    on_a_street(1, story)


def test_a_blob_of_another_size_than_was_told_is_bad() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        data = bytes(2 * LEAF_BYTES)
        claim = dataset_demand(cid_of(data), LEAF_BYTES + 1, ALICE)
        await far.put(data, BlobKind.DATASET)
        finding, _ = await near.plane.judge(claim, (far.key,), wait=True)
        assert finding == Finding.BAD
        assert not near.holds(data)

    on_a_street(2, story)


def test_an_update_that_others_have_is_pulled_checked_and_durable_before_it_is_good() -> None:
    async def story(street: Street) -> None:
        near, far, _ = street.houses
        await far.put(GOOD)
        assert await near.plane.judge(demand(GOOD, ALICE, RULES), (far.key,), wait=True) == (Finding.OK, "")
        assert near.machine.is_durable(cid_of(GOOD))

    on_a_street(3, story)


def test_what_was_put_here_and_what_is_pulled_make_one_checked_update() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        await near.put_some(BAD, 1)
        await far.put(BAD)
        assert await near.plane.judge(demand(BAD, ALICE, RULES), wait=True) == (Finding.BAD, "NON_FINITE")
        await near.put_some(GOOD, 2)
        await far.put(GOOD)
        assert await near.plane.judge(demand(GOOD, ALICE, RULES), wait=True) == (Finding.OK, "")

    on_a_street(2, story)


def test_what_no_leaf_alone_shows_is_found_once_the_blob_is_whole() -> None:
    """Two leaves of an update in topk, each with rising indices: those of the second begin anew."""

    async def story(street: Street) -> None:
        near, far = street.houses
        sparse = rules(encoding="topk", share_ppm=600_000)
        good = update(ALICE, 0.5, sparse)
        start = form_of(sparse, 0).size_bytes(Place(JOB, 1, ALICE)) - 5 * 360_000
        before = (LEAF_BYTES - start) // 4
        indices = np.arange(360_000, dtype="<u4")
        indices[before:] -= 1
        broken = good[:start] + indices.tobytes() + good[start + indices.nbytes :]
        await far.put(broken)
        assert await near.plane.judge(demand(broken, ALICE, sparse), wait=True) == (Finding.BAD, "BAD_INDEX")
        await near.put_some(good, 1)
        await far.put(good)
        assert await near.plane.judge(demand(good, ALICE, sparse), wait=True) == (Finding.OK, "")

    on_a_street(2, story)


def test_the_wait_goes_on_until_somebody_has_the_blob() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        judging = asyncio.create_task(near.plane.judge(demand(GOOD, ALICE, RULES), (far.key,), wait=True))
        await asyncio.sleep(LONG_S)
        assert not judging.done()
        await far.put(GOOD)
        assert await judging == (Finding.OK, "")

    on_a_street(2, story)


def test_what_a_client_brings_meanwhile_ends_the_wait() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        judging = asyncio.create_task(house.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        await asyncio.sleep(1)
        await house.put(GOOD)
        async with asyncio.timeout(LONG_S):
            assert await judging == (Finding.OK, "")

    on_a_street(1, story)


def test_a_wait_that_is_given_up_ends_the_download() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        judging = asyncio.create_task(house.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        await asyncio.sleep(1)
        assert house.figure("arrivals") == house.figure("requests") == 1
        judging.cancel()
        await asyncio.sleep(1)
        assert house.figure("arrivals") == house.figure("requests") == 0

    on_a_street(2, story)


def test_one_who_gives_up_takes_nothing_from_another_who_waits() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        first = asyncio.create_task(near.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        second = asyncio.create_task(near.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        await asyncio.sleep(1)
        first.cancel()
        await far.put(GOOD)
        assert await second == (Finding.OK, "")

    on_a_street(2, story)


def test_blobs_that_nobody_has_hold_up_none_that_somebody_has() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        invented = [
            asyncio.create_task(near.plane.judge(demand(bytes([n]) + GOOD, ALICE, RULES), wait=True)) for n in range(40)
        ]
        await asyncio.sleep(1)
        await far.put(GOOD)
        async with asyncio.timeout(LONG_S):
            assert await near.plane.judge(demand(GOOD, ALICE, RULES), (far.key,), wait=True) == (Finding.OK, "")
        assert not any(each.done() for each in invented)
        for each in invented:
            each.cancel()

    on_a_street(2, story)


def test_a_blob_for_which_there_is_no_room_comes_once_there_is() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        near.machine.traits.capacity_bytes = len(GOOD) // 2
        await far.put(GOOD)
        judging = asyncio.create_task(near.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        await asyncio.sleep(10)
        assert not judging.done()
        assert near.figure("arrivals_without_room") <= 1
        near.machine.traits.capacity_bytes = None
        assert await judging == (Finding.OK, "")

    on_a_street(2, story)


def test_one_accounts_quota_delays_that_account_alone() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        greedy = update(ALICE, 0.25, RULES)
        modest = update(BOB, 0.25, RULES)
        for data in (GOOD, greedy, modest):
            await far.put(data, account=b"")
        assert await near.plane.judge(demand(GOOD, ALICE, RULES), wait=True) == (Finding.OK, "")
        waiting = asyncio.create_task(near.plane.judge(demand(greedy, ALICE, RULES), wait=True))
        assert await near.plane.judge(demand(modest, BOB, RULES), wait=True) == (Finding.OK, "")
        await asyncio.sleep(5)
        assert not waiting.done()
        # The state names the first one from here on, so it is no longer counted.
        await near.plane.sweep(await near.plane.mark(), [cid_of(GOOD)])
        assert await waiting == (Finding.OK, "")

    on_a_street(
        2,
        story,
        limits=DataLimits(BlobLimits(reserve_bytes=0, member_bytes=2 * len(GOOD) - 1)),
    )


def test_a_validator_that_is_named_by_two_keys_is_reached_by_the_one_with_an_address() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        link_key, port = signing_key(far.name).public, 2
        other = signing_key("an earlier key").public
        near.plane.meet([DataPeer(far.key, link_key, "far", port), DataPeer(other, link_key, "", 0)])
        await far.put(GOOD)
        assert await near.plane.judge(demand(GOOD, ALICE, RULES), wait=True) == (Finding.OK, "")
        assert near.plane.life == 1

    on_a_street(2, story)


def test_who_announces_another_members_update_as_a_model_makes_nothing_public() -> None:
    """The CID of an update of one leaf, which a transaction tells everybody, is all that it takes to announce it."""
    data = update(ALICE, 0.5, SMALL)

    async def story(street: Street) -> None:
        here, there = street.houses
        await there.put(data)
        here.announce(data, BlobKind.MODEL, BOB)
        assert await here.plane.judge(demand(data, ALICE, SMALL), wait=True) == (Finding.OK, "")
        blob = here.found(data)
        assert (blob.kind, blob.account) == (BlobKind.UPDATE, ALICE)

    on_a_street(2, story)


def test_who_announces_another_members_update_by_a_false_size_spoils_nothing() -> None:
    data = update(ALICE, 0.5, SMALL)

    async def story(street: Street) -> None:
        here, there = street.houses
        await there.put(data)
        here.announce(data, BlobKind.MODEL, BOB, size_bytes=len(data) - 8)
        assert await here.plane.judge(demand(data, ALICE, SMALL), wait=True) == (Finding.OK, "")
        assert here.found(data).account == ALICE

    on_a_street(2, story)


def test_a_blob_is_looked_through_to_its_end_by_those_who_have_no_patience() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.put(GOOD)
        house.machine.traits = replace(house.machine.traits, offload_ms=(30, 30))
        asked = 0
        while True:
            asked += 1
            try:
                async with asyncio.timeout(0.05):
                    assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.OK, "")
                    break
            except TimeoutError:
                assert asked < 10
        assert asked > 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "STRETCH_BYTES", LEAF_BYTES)
        on_a_street(1, story)


# Keeping, fetching, sweeping


def test_what_is_kept_is_durable_when_it_is_answered() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        cid = await house.plane.keep(BlobKind.RECORD, b"a record")
        assert house.machine.is_durable(cid)
        assert house.machine.read(cid) == b"a record"

    on_a_street(1, story)


def test_a_model_of_zeros_is_written_from_its_schema_alone() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        cid = await house.plane.zeros(SCHEMA)
        assert house.machine.read(cid) == zero_model(SCHEMA)
        assert await house.plane.zeros(SCHEMA) == cid

    on_a_street(1, story)


def test_a_blob_that_the_state_names_is_fetched_from_whoever_has_it() -> None:
    async def story(street: Street) -> None:
        near, _, far = street.houses
        cid = await far.plane.zeros(SCHEMA)
        assert await near.plane.obtain(cid, BlobKind.MODEL) == Finding.OK
        assert near.machine.is_durable(cid)

    on_a_street(3, story)


def test_what_the_state_names_is_public_whoever_has_brought_it_as_what() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        cid = await house.put(GOOD)
        assert not house.found(GOOD).public
        assert await house.plane.obtain(cid, BlobKind.DATASET) == Finding.OK
        assert house.found(GOOD).public

    on_a_street(1, story)


def test_a_sweep_takes_what_is_older_than_its_mark_and_not_named() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        named, forgotten = [await house.plane.keep(BlobKind.RECORD, data) for data in (b"named", b"forgotten")]
        again = await house.plane.keep(BlobKind.RECORD, b"again")
        token = await house.plane.mark()
        newer = await house.plane.keep(BlobKind.RECORD, b"newer")
        assert await house.plane.keep(BlobKind.RECORD, b"again") == again
        blobs, size_bytes = await house.plane.sweep(token, [named] + [cid_of(b"%d" % n) for n in range(20_000)])
        assert (blobs, size_bytes) == (1, len(b"forgotten"))
        assert house.machine.read(forgotten) is None
        assert all(house.machine.read(each) is not None for each in (named, newer, again))

    on_a_street(1, story)


def test_what_is_judged_good_after_the_mark_outlives_the_sweep() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.put(GOOD, account=b"")
        token = await house.plane.mark()
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.OK, "")
        assert await house.plane.sweep(token, []) == (0, 0)
        assert await house.plane.sweep(await house.plane.mark(), []) == (1, len(GOOD))
        assert await house.plane.judge(demand(GOOD, ALICE, RULES), wait=False) == (Finding.ABSENT, "")

    on_a_street(1, story)


# Dying


def test_a_data_process_that_was_killed_has_what_it_acknowledged() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        cid = await house.plane.keep(BlobKind.RECORD, b"a record")
        house.machine.kill()
        await house.plane.insist(lambda: house.plane.obtain(cid, BlobKind.RECORD))
        assert house.plane.life == 2

    on_a_street(1, story)


def test_whoever_waits_is_told_when_the_data_process_dies_and_asks_the_next_one() -> None:
    async def story(street: Street) -> None:
        near, far = street.houses
        judging = asyncio.create_task(near.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        await asyncio.sleep(1)
        near.machine.kill()
        with pytest.raises(DataGone):
            await judging
        await far.put(GOOD)
        ask = near.plane.insist(lambda: near.plane.judge(demand(GOOD, ALICE, RULES), wait=True))
        assert await ask == (Finding.OK, "")

    on_a_street(2, story)


def test_a_disk_that_fails_ends_the_process_after_it_has_said_so() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        failures: list[DiskFailure] = []
        house.machine.troubled = failures.append
        house.machine.traits.failing.add("blobs/")
        with pytest.raises(DataFault) as fault:
            await house.plane.keep(BlobKind.RECORD, b"a record")
        assert fault.value.fault == "DISK_FAILURE"
        await asyncio.sleep(0.1)
        assert failures
        house.machine.traits.failing.clear()
        await house.plane.insist(lambda: house.plane.keep(BlobKind.RECORD, b"a record"))

    on_a_street(1, story)


def test_a_disk_that_fails_a_client_ends_the_process_too() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        failures: list[DiskFailure] = []
        house.machine.troubled = failures.append
        house.machine.traits.failing.add("blobs/")
        with pytest.raises(DiskFailure):
            await house.put(GOOD)
        await asyncio.sleep(0.1)
        assert failures
        house.machine.traits.failing.clear()
        await house.plane.insist(lambda: house.plane.keep(BlobKind.RECORD, b"a record"))
        assert house.plane.life == 2

    on_a_street(1, story)


def test_a_full_disk_is_said_and_ends_nothing() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        house.machine.traits.capacity_bytes = 100_000
        with pytest.raises(DataFault) as fault:
            await house.plane.zeros(SCHEMA)
        assert fault.value.fault == "DISK_FULL"
        house.machine.traits.capacity_bytes = None
        assert await house.plane.zeros(SCHEMA)
        assert house.plane.life == 1

    on_a_street(1, story)


def test_a_fault_in_one_request_is_the_answer_to_that_one_alone() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        nonsense = Demand(BlobClaim(cid_of(GOOD), len(GOOD), 200, ALICE, b"", 0, 0), None)
        with pytest.raises(DataFault) as fault:
            await house.plane.judge(nonsense, wait=True)
        assert fault.value.fault == "FAULT"
        assert await house.plane.keep(BlobKind.RECORD, b"a record")

    on_a_street(1, story)


# What it asks and says itself


def test_the_core_is_asked_for_whom_a_key_speaks_and_not_again_within_a_moment() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        node = house.machine.node
        assert node is not None
        for _ in range(3):
            standing = await node.questions.standing(ALICE, b"\x01" * 33)
            assert standing.current_key and standing.roles == ("trainer",)
        assert len(house.asked) == 1
        await asyncio.sleep(3)
        await node.questions.standing(ALICE, b"\x01" * 33)
        assert len(house.asked) == 2

    on_a_street(1, story)


def test_figures_are_said_each_second_and_say_when_the_reserve_is_reached() -> None:
    async def story(street: Street) -> None:
        house = street.houses[0]
        await asyncio.sleep(1.5)
        assert not house.plane.full
        house.machine.traits.capacity_bytes = 50_000
        await asyncio.sleep(1.5)
        assert house.plane.full
        house.machine.traits.capacity_bytes = None
        await asyncio.sleep(1.5)
        assert not house.plane.full

    on_a_street(1, story, limits=replace(DataLimits(BlobLimits(reserve_bytes=100_000)), downloads=2))
