"""Rounds summed by data processes: the same model everywhere, whatever came when and from where, within a budget."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from chain.codec import decode
from fl.aggregation import Aggregation, AggregationOutcome, AggregationRules, Bundle, Update
from fl.blobs import BlobKind
from fl.jobrules import zero_model
from fl.kernels import KERNEL_VERSION
from fl.records import JobRules
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord, payload_fingerprint
from fl.tensors.encodings import Place
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.updates import form_of
from node.data.blobs import Blob, BlobLimits, BlobStore, Draft
from node.data.bundles import told
from node.data.errors import NoSpace
from node.data.messages import Closed
from node.data.service import DataLimits
from node.dataplane import DataFault
from tests.node.data.houses import JOB, PARAMETERS, Accepted, House, Street, cid_of, on_a_street, rules, update

RULES = rules()
SMALL = rules(schema=Schema((TensorSpec("w", "F32", (1_000,), AVERAGED),)))
"""Its updates are inline."""
LOG_ROOT = b"r" * 32
OTHER_JOB = b"k" * 32
SUM_BYTES = 8 * PARAMETERS


@dataclass(frozen=True, slots=True)
class Given:
    accepted: Accepted
    data: bytes


def given(count: int, of: JobRules = RULES, *, inline: bool = False, round: int = 1, job: bytes = JOB) -> list[Given]:
    made = []
    for index in range(count):
        member = bytes([index + 1]) * 32
        data = update(member, (index - 3) / 64, of, round=round, job=job)
        made.append(Given(Accepted(index, round, member, 0, cid_of(data), data if inline else b""), data))
    return made


def model_of(updates: Sequence[Given], of: JobRules = RULES, job: bytes = JOB) -> bytes:
    """The CID of what these updates make of the model of zeros."""
    sums = Aggregation(AggregationRules(job, 1, of, 1))
    for each in updates:
        offset = len(form_of(of, 0).header(Place(job, 1, each.accepted.member)))
        print_ = payload_fingerprint(each.data, offset)
        sums.add(Update(each.accepted.index, 1, each.accepted.member, 1, 0, each.data, print_))
    return cid_of(b"".join(sums.finish(LOG_ROOT, zero_model(of.schema)).model()))


async def put_all(house: House, updates: Sequence[Given]) -> None:
    for each in updates:
        await house.put(each.data, account=b"")


async def add(house: House, updates: Sequence[Given], of: JobRules = RULES, job: bytes = JOB) -> None:
    await house.add([each.accepted for each in updates], of, job=job)


async def close(house: House, size: int, of: JobRules = RULES, job: bytes = JOB) -> Closed:
    base = await house.plane.zeros(of.schema)
    return await house.plane.close(job, 1, LOG_ROOT, size, KERNEL_VERSION, base, b"")


def test_every_validator_writes_the_same_model_whatever_order_updates_came_in() -> None:
    updates = given(7)

    async def story(street: Street) -> None:
        expected = model_of(updates)
        for seed, house in enumerate(street.houses):
            await put_all(house, updates)
            mixed = random.Random(seed).sample(updates, len(updates))
            for start in range(0, len(mixed), seed + 1):
                await add(house, mixed[start : start + seed + 1])
            closed = await close(house, len(updates))
            assert closed.ok and closed.model == expected
            assert house.machine.is_durable(closed.model) and house.machine.is_durable(closed.record)

    on_a_street(3, story)


def test_a_round_that_is_summed_over_what_another_left_makes_its_own_model() -> None:
    first, second = given(5), given(3, job=OTHER_JOB)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, [*first, *second])
        await add(house, first)
        assert (await close(house, 5)).model == model_of(first)
        assert house.machine.node is not None
        assert house.machine.node.sums._spare.held_bytes == SUM_BYTES
        await add(house, second, job=OTHER_JOB)
        assert (await close(house, 3, job=OTHER_JOB)).model == model_of(second, job=OTHER_JOB)

    on_a_street(1, story)


def test_sums_that_two_have_asked_the_end_of_are_no_other_round_s_before_both_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = given(5)

    async def story(street: Street) -> None:
        house = street.houses[0]
        assert house.machine.node is not None
        sums = house.machine.node.sums
        write, second = sums._written, asyncio.Event()
        begun: list[None] = []

        async def written(*given: Any) -> AggregationOutcome:
            begun.append(None)
            if len(begun) == 2:
                await second.wait()
            return await write(*given)

        monkeypatch.setattr(sums, "_written", written)
        await put_all(house, updates)
        await add(house, updates)
        asked = [asyncio.ensure_future(close(house, 5)) for _ in range(2)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert len(begun) == 2 and not sums._spare.held_bytes
        second.set()
        assert {(await each).model for each in asked} == {model_of(updates)}
        assert sums._spare.held_bytes == SUM_BYTES

    on_a_street(1, story)


def test_the_record_says_what_the_model_was_made_from() -> None:
    updates = given(5)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        await add(house, updates)
        closed = await close(house, len(updates))
        data = house.machine.read(closed.record)
        assert data is not None
        record = decode(ClosingRecord, data, MAX_CLOSING_BYTES)
        assert record.model == closed.model and record.base == cid_of(zero_model(RULES.schema))
        assert record.weights == (1,) * 5 and record.log_root == LOG_ROOT

    on_a_street(1, story)


def test_inline_updates_and_blobs_are_summed_alike() -> None:
    inline, blobs = given(6, SMALL, inline=True), given(6, SMALL)

    async def story(street: Street) -> None:
        first, second = street.houses
        await add(first, inline, SMALL)
        await put_all(second, blobs)
        await add(second, [*inline[:3], *blobs[3:]], SMALL)
        expected = model_of(inline, SMALL)
        assert [(await close(house, 6, SMALL)).model for house in street.houses] == [expected, expected]

    on_a_street(2, story)


def test_an_update_that_is_said_twice_counts_once() -> None:
    updates = given(4, SMALL, inline=True)

    async def story(street: Street) -> None:
        house = street.houses[0]
        for each in (updates[:3], updates, updates[1:]):
            await add(house, each, SMALL)
        assert (await close(house, 4, SMALL)).model == model_of(updates, SMALL)

    on_a_street(1, story)


def test_updates_that_are_not_here_are_fetched_and_so_is_the_base() -> None:
    updates = given(6)

    async def story(street: Street) -> None:
        near, far = street.houses
        await put_all(far, updates)
        await add(near, updates)
        base = await far.plane.zeros(RULES.schema)
        closed = await near.plane.close(JOB, 1, LOG_ROOT, len(updates), KERNEL_VERSION, base, b"")
        assert closed.model == model_of(updates)

    on_a_street(2, story)


def test_a_round_that_waits_for_an_update_holds_up_no_other() -> None:
    lacking, small = given(4), given(4, SMALL, inline=True, job=OTHER_JOB)

    async def story(street: Street) -> None:
        near, far = street.houses
        await put_all(near, lacking[:3])
        await add(near, lacking)
        waiting = asyncio.create_task(close(near, 4))
        await add(near, small, SMALL, OTHER_JOB)
        assert (await close(near, 4, SMALL, OTHER_JOB)).model == model_of(small, SMALL, OTHER_JOB)
        await asyncio.sleep(10)
        assert not waiting.done()
        await put_all(far, lacking)
        assert (await waiting).model == model_of(lacking)

    on_a_street(2, story)


@pytest.mark.parametrize("budget_bytes", [0, SUM_BYTES, 2 * SUM_BYTES])
def test_a_round_without_room_for_its_sums_is_summed_when_it_closes(budget_bytes: int) -> None:
    rounds = {job: given(5, job=job) for job in (b"1" * 32, b"2" * 32, b"3" * 32)}

    async def story(street: Street) -> None:
        house = street.houses[0]
        held: list[int] = []
        for job, updates in rounds.items():
            await put_all(house, updates)
            await add(house, updates, RULES, job)
        await asyncio.sleep(5)
        held.append(house.figure("sums_bytes"))
        assert held[0] == budget_bytes

        async def watch() -> None:
            while True:
                held.append(house.figure("sums_bytes"))
                await asyncio.sleep(0.0005)

        watching = asyncio.create_task(watch())
        closed = await asyncio.gather(*(close(house, 5, RULES, job) for job in reversed(rounds)))
        watching.cancel()
        models = {each.model for each in closed}
        assert models == {model_of(updates, RULES, job) for job, updates in rounds.items()}
        # The budget, and the sums of one round more.
        assert max(held) <= budget_bytes + SUM_BYTES

    on_a_street(1, story, limits=DataLimits(BlobLimits(reserve_bytes=0), sums_bytes=budget_bytes))


def test_a_round_that_is_dropped_gives_back_its_memory() -> None:
    updates = given(4)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        await add(house, updates)
        await asyncio.sleep(1)
        assert house.figure("sums_bytes") == SUM_BYTES
        house.plane.drop(JOB, 1)
        await asyncio.sleep(1)
        assert house.figure("sums") == house.figure("sums_bytes") == 0

    on_a_street(1, story)


def test_a_round_that_is_dropped_while_it_closes_is_answered() -> None:
    updates = given(4)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates[:3])
        await add(house, updates)
        closing = asyncio.create_task(close(house, 4))
        await asyncio.sleep(1)
        house.plane.drop(JOB, 1)
        with pytest.raises(DataFault) as fault:
            await closing
        assert fault.value.fault == "DROPPED"

    on_a_street(1, story)


def test_a_closed_round_holds_no_sums_and_answers_again() -> None:
    updates = given(4)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        await add(house, updates)
        first = await close(house, 4)
        assert house.figure("sums_bytes") == 0
        second = await close(house, 4)
        assert (second.model, second.record) == (first.model, first.record)

    on_a_street(1, story)


def test_a_data_process_that_was_killed_in_mid_round_sums_it_anew() -> None:
    updates = given(6)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        await add(house, updates[:4])
        await asyncio.sleep(0.5)
        house.machine.kill()
        await house.plane.insist(lambda: add(house, updates))
        assert (await close(house, 6)).model == model_of(updates)

    on_a_street(1, story)


def test_a_model_for_which_there_is_no_room_is_written_once_there_is() -> None:
    updates = given(4)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        base = await house.plane.zeros(RULES.schema)
        await add(house, updates)
        house.machine.traits.capacity_bytes = 5 * len(updates[0].data) + 100_000
        closing = asyncio.create_task(house.plane.close(JOB, 1, LOG_ROOT, 4, KERNEL_VERSION, base, b""))
        await asyncio.sleep(10)
        assert not closing.done()
        house.machine.traits.capacity_bytes = None
        assert (await closing).model == model_of(updates)
        assert house.plane.life == 1

    on_a_street(1, story)


def test_a_record_for_which_there_is_no_room_leaves_no_models_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = given(4)
    refused: list[int] = []

    async def story(street: Street) -> None:
        house = street.houses[0]
        assert house.machine.node is not None
        store, disk = house.machine.node.store, house.machine.node._ports.disk
        write = store.write

        def without_room(kind: BlobKind, *args: Any, **options: Any) -> Draft:
            if kind == BlobKind.RECORD and len(refused) < 5:
                refused.append(sum("draft" in name for name in disk.list("blobs/")))
                raise NoSpace("no room for a record")
            return write(kind, *args, **options)

        monkeypatch.setattr(store, "write", without_room)
        await put_all(house, updates)
        await add(house, updates)
        assert (await close(house, 4)).model == model_of(updates)
        # Each time, that of the attempt.
        assert refused == [1] * 5

    on_a_street(1, story)


def test_the_disk_is_waited_for_once_for_all_that_a_round_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = given(4)
    under_way: list[int] = [0]

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        base = await house.plane.zeros(RULES.schema)
        await add(house, updates)
        keep = BlobStore.keep

        async def counted(store: BlobStore, draft: Draft) -> Blob:
            under_way.append(under_way[-1] + 1)
            try:
                return await keep(store, draft)
            finally:
                under_way.append(under_way[-1] - 1)

        monkeypatch.setattr(BlobStore, "keep", counted)
        closed = await house.plane.close(JOB, 1, LOG_ROOT, 4, KERNEL_VERSION, base, b"")
        assert house.machine.is_durable(closed.model) and house.machine.is_durable(closed.record)
        assert under_way == [0, 1, 2, 1, 0]

    on_a_street(1, story)


def test_a_model_outlives_the_sweep_of_a_core_that_could_not_know_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = given(4)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await put_all(house, updates)
        await add(house, updates)
        assert house.machine.node is not None
        store, record = house.machine.node.store, asyncio.Event()
        keep = store.keep

        async def kept(draft: Draft) -> Blob:
            if draft.kind == BlobKind.RECORD:
                await record.wait()
            return await keep(draft)

        monkeypatch.setattr(store, "keep", kept)
        closing = asyncio.create_task(close(house, 4))
        model = model_of(updates)
        while house.machine.read(model) is None:
            await asyncio.sleep(0.0005)
        assert not closing.done()
        swept, _ = await house.plane.sweep(await house.plane.mark(), [])
        assert swept > 0 and not closing.done()
        token = await house.plane.mark()
        record.set()
        closed = await closing
        house.plane.drop(JOB, 1)
        await house.plane.sweep(token, [])
        assert closed.model == model
        assert house.machine.is_durable(model) and house.machine.is_durable(closed.record)

    on_a_street(1, story)


def test_updates_of_a_round_that_did_not_begin_are_not_taken() -> None:
    updates = given(2, SMALL, inline=True)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await add(house, updates, SMALL)
        house.plane.drop(JOB, 1)
        for each in updates:
            with pytest.raises(DataFault) as fault:
                await house.plane.add(JOB, 1, told([0], [each.accepted.entry.fields], [each.accepted.payload]))
            assert fault.value.fault == "UNKNOWN_ROUND"
        assert house.figure("sums") == 0
        await add(house, updates, SMALL)
        assert (await close(house, 2, SMALL)).model == model_of(updates, SMALL)

    on_a_street(1, story)


def test_many_updates_in_one_message_are_one_call_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = given(40, SMALL, inline=True)
    calls: list[int] = []
    add_rows = Aggregation.add_rows

    def counted(sums: Aggregation, bundle: Bundle) -> None:
        calls.append(len(bundle.indices))
        add_rows(sums, bundle)

    monkeypatch.setattr(Aggregation, "add_rows", counted)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await add(house, updates[:30], SMALL)
        await add(house, updates[20:], SMALL)
        assert calls == [30, 10]
        assert (await close(house, 40, SMALL)).model == model_of(updates, SMALL)

    on_a_street(1, story)


def test_kernels_of_another_version_give_no_result() -> None:
    updates = given(2, SMALL, inline=True)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await add(house, updates, SMALL)
        base = await house.plane.zeros(SMALL.schema)
        with pytest.raises(DataFault) as fault:
            await house.plane.close(JOB, 1, LOG_ROOT, 2, KERNEL_VERSION + 1, base, b"")
        assert fault.value.fault == "KERNEL_VERSION"

    on_a_street(1, story)


def test_a_machine_that_computes_other_numbers_gives_no_result_and_is_asked_to_compute_once() -> None:
    updates = given(2, SMALL, inline=True)
    checks: list[None] = []

    def other_numbers() -> None:
        checks.append(None)
        raise ArithmeticError("two and two are five")

    async def story(street: Street) -> None:
        house = street.houses[0]
        assert house.machine.node is not None
        house.machine.node.sums.check_kernels = other_numbers
        await add(house, updates, SMALL)
        for _ in range(2):
            with pytest.raises(DataFault, match="two and two") as fault:
                await close(house, 2, SMALL)
            assert fault.value.fault == "KERNELS_DIFFER"
        assert len(checks) == 1
        assert await house.plane.keep(BlobKind.RECORD, b"a record")

    on_a_street(1, story)


def test_kernels_are_looked_at_when_a_job_begins_and_not_when_its_first_round_ends() -> None:
    checks: list[None] = []

    async def story(street: Street) -> None:
        house = street.houses[0]
        assert house.machine.node is not None
        house.machine.node.sums.check_kernels = lambda: checks.append(None)
        await house.plane.keep(BlobKind.RECORD, b"no model")
        assert not checks
        await house.plane.zeros(SMALL.schema)
        await asyncio.sleep(1)
        assert len(checks) == 1

    on_a_street(1, story)


def test_an_update_that_breaks_the_rules_spoils_its_own_round_alone() -> None:
    wrong, small = given(4, SMALL, inline=True), given(4, SMALL, inline=True, job=OTHER_JOB)
    stolen = Accepted(0, 1, b"z" * 32, 0, wrong[0].accepted.cid, wrong[0].data)

    async def story(street: Street) -> None:
        house = street.houses[0]
        await house.add([stolen], SMALL)
        with pytest.raises(DataFault) as fault:
            await close(house, 1, SMALL)
        assert fault.value.fault == "WRONG_HEADER"
        await add(house, small, SMALL, OTHER_JOB)
        assert (await close(house, 4, SMALL, OTHER_JOB)).ok

    on_a_street(1, story)
