from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import pytest

from chain.batch import Batch, SignedBatch
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from consensus.availability import Verdict
from fl.members import RegisterMember
from fl.rounds import SubmitUpdate
from node import checking
from node.checking import SIGNATURES_TOGETHER, BatchChecks, Judged
from node.data.messages import Finding, Forget, Judge
from node.data.messages import Judged as Found
from node.dataplane import DataPlane
from node.ports.offload import ThreadOffload
from node.readings import ReadBatches
from tests.fl.builders import actor, make_genesis, make_rules, signing_key
from tests.node.played import Played
from tests.simulation.loop import simulate
from tests.simulation.pipe import SimulatedPipe

P = ParamSpec("P")
T = TypeVar("T")

GENESIS = make_genesis()
CHAIN = GENESIS.chain_id
JOB = b"\x07" * 32
RULES = make_rules()
CREATORS = {0: b"\x00" * 33, 1: b"\x01" * 33, 2: None}


class Inline:
    def __init__(self) -> None:
        self.calls = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.calls += 1
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    def spread(self, pieces: Sequence[Callable[[], T]]) -> list[T]:
        return [piece() for piece in pieces]

    def close(self) -> None:
        pass


def batch(creator: int, sequence: int, *transactions: bytes) -> SignedBatch:
    return SignedBatch(Batch(CHAIN, 0, creator, sequence, 0, 64, transactions), bytes(64))


def registration(number: int) -> bytes:
    key = signing_key(f"someone/{number}").public
    return actor("registrar", CHAIN).sign(RegisterMember(f"member-{number}", key, ("trainer",)), nonce=number)


def update_of_unknown_job() -> bytes:
    body = SubmitUpdate(bytes(32), 1, raw_cid(b"base"), 1, (), 0, raw_cid(b"x"), b"x")
    return actor("trainer-000", CHAIN).sign(body)


def update_body(number: int = 0) -> SubmitUpdate:
    return SubmitUpdate(JOB, 1, RULES.initial, 1, (0,), 0, raw_cid(b"blob %d" % number), b"")


def update_with_blob(number: int = 0) -> bytes:
    return actor("trainer-000", CHAIN).sign(update_body(number), nonce=number)


def spoilt(data: bytes) -> bytes:
    tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
    return encode(replace(tx, signature=bytes(64)))


def checks(
    answers: list[tuple[bytes, Verdict]],
    disk_full: bool = False,
    pipe: SimulatedPipe | None = None,
    members: frozenset[str] = frozenset({"trainer-000"}),
    offload: Inline | ThreadOffload | None = None,
) -> BatchChecks:
    pipe = pipe or SimulatedPipe()
    keys = {(each.account, each.key.public) for each in (actor(name, CHAIN) for name in members)}
    return BatchChecks(
        CHAIN,
        GENESIS.params,
        offload or Inline(),
        DataPlane(pipe.begin_core(), who=lambda account, key: (False, ())),
        lambda job: RULES if job == JOB else None,
        ReadBatches(),
        may_bring=lambda account, key: (account, key) in keys,
        creator_of=lambda signed: CREATORS[signed.batch.creator],
        disk_full=lambda: disk_full,
        checked=lambda digest, verdict: answers.append((digest, verdict)),
    )


def judge(signed: SignedBatch, members: frozenset[str] = frozenset({"trainer-000"}), look: bool = True) -> Judged:
    return checks([], members=members).judge(signed, look, lambda: True)


def test_an_unknown_job_is_noticed_before_any_signature_is_looked_at() -> None:
    judged = judge(batch(0, 0, spoilt(registration(1)), update_of_unknown_job()))
    assert judged.verdict is Verdict.PENDING


def test_a_bad_signature_spoils_a_batch_and_a_good_one_does_not() -> None:
    assert judge(batch(0, 0, registration(1), registration(2))) == Judged(Verdict.OK)
    assert judge(batch(0, 0, registration(1), spoilt(registration(2)))) == Judged(Verdict.BAD)


def test_the_blob_of_a_stranger_is_not_fetched_and_its_batch_waits_until_it_is_a_member() -> None:
    waiting = batch(0, 0, registration(1), update_with_blob())
    assert judge(waiting, members=frozenset()) == Judged(Verdict.PENDING)
    assert len(judge(waiting).demands) == 1
    # Before any signature is looked at: it is asked about again and again.
    unlooked = batch(0, 0, spoilt(registration(1)), update_with_blob())
    assert judge(unlooked, members=frozenset()) == Judged(Verdict.PENDING)


def test_nobody_has_blobs_fetched_in_the_name_of_a_member_whose_key_it_has_not() -> None:
    forged = actor("trainer-000", CHAIN).sign(update_body(), key=actor("trainer-001", CHAIN).key)
    assert judge(batch(0, 0, forged)) == Judged(Verdict.PENDING)


def test_whoever_does_not_look_reads_all_and_verifies_only_who_brings_a_blob() -> None:
    held = judge(batch(0, 0, spoilt(registration(1)), registration(2)), look=False)
    assert held == Judged(Verdict.OK) and len(held.readings) == 2
    assert judge(batch(0, 0, registration(1), b"\x90"), look=False) == Judged(Verdict.BAD)
    assert judge(batch(0, 0, registration(1), update_of_unknown_job()), look=False) == Judged(Verdict.PENDING)
    brought = judge(batch(0, 0, spoilt(registration(1)), update_with_blob()), look=False)
    assert brought.verdict is Verdict.OK and len(brought.demands) == 1
    assert judge(batch(0, 0, registration(1), spoilt(update_with_blob())), look=False) == Judged(Verdict.BAD)


@pytest.mark.parametrize("place", [0, SIGNATURES_TOGETHER - 1, SIGNATURES_TOGETHER, 2 * SIGNATURES_TOGETHER])
def test_one_bad_signature_spoils_a_batch_wherever_it_is(place: int) -> None:
    transactions = [registration(number) for number in range(2 * SIGNATURES_TOGETHER + 1)]
    assert judge(batch(0, 0, *transactions)) == Judged(Verdict.OK)
    transactions[place] = spoilt(transactions[place])
    assert judge(batch(0, 0, *transactions)) == Judged(Verdict.BAD)


def test_a_bad_signature_spoils_a_batch_with_blobs_before_any_is_fetched() -> None:
    assert judge(batch(0, 0, spoilt(registration(1)), update_with_blob())) == Judged(Verdict.BAD)


@pytest.mark.parametrize("workers", [1, 2])
def test_on_threads_it_is_the_same(workers: int) -> None:
    """One thread alone may be free: whoever judges does the groups itself."""
    offload = ThreadOffload(workers)
    made = checks([], offload=offload)
    good = [registration(number) for number in range(3 * SIGNATURES_TOGETHER)]
    bad = [*good[:-1], spoilt(good[-1])]
    assert made.judge(batch(0, 0, *good), True, lambda: True) == Judged(Verdict.OK)
    assert made.judge(batch(0, 0, *bad), True, lambda: True) == Judged(Verdict.BAD)
    offload.close()


def test_no_further_signature_is_looked_at_once_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Transaction] = []

    def verify(tx: Transaction, identifier: bytes) -> bool:
        looked_at.append(tx)
        return True

    monkeypatch.setattr(checking, "verify_transaction", verify)
    transactions = [registration(number) for number in range(4 * SIGNATURES_TOGETHER)]
    judged = checks([]).judge(batch(0, 0, *transactions), True, lambda: len(looked_at) <= SIGNATURES_TOGETHER)
    assert judged == Judged(Verdict.PENDING), "whatever was not looked at is not called good"
    assert len(looked_at) == 2 * SIGNATURES_TOGETHER


async def test_what_is_spared_is_not_judged_and_not_answered() -> None:
    answers: list[tuple[bytes, Verdict]] = []
    offload = Inline()
    made = checks(answers, offload=offload)
    batches = [batch(0, number, registration(number), registration(number + 10)) for number in range(3)]
    for signed in batches:
        made.ask(signed.reference.batch, signed, True)
    made.spare(batches[1].reference.batch)
    made.spare(b"never asked about")
    task = asyncio.create_task(made.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert answers == [(batches[place].reference.batch, Verdict.OK) for place in (0, 2)] and offload.calls == 2
    # Asked about again, it is judged like any other.
    made.ask(batches[1].reference.batch, batches[1], True)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    assert answers[2:] == [(batches[1].reference.batch, Verdict.OK)]


async def test_what_is_spared_while_it_is_judged_is_not_answered() -> None:
    answers: list[tuple[bytes, Verdict]] = []
    made = checks(answers)
    signed = batch(0, 0, registration(1), registration(2))
    made.ask(signed.reference.batch, signed, True)
    task = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    made.spare(signed.reference.batch)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    assert answers == []


async def test_what_was_asked_first_does_not_answer_what_is_asked_since() -> None:
    """It was read, spared, and is to be looked at after all."""
    answers: list[tuple[bytes, Verdict]] = []
    made = checks(answers)
    signed = batch(0, 0, spoilt(registration(1)), registration(2))
    made.ask(signed.reference.batch, signed, False)
    task = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    made.spare(signed.reference.batch)
    made.ask(signed.reference.batch, signed, True)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    assert answers == [(signed.reference.batch, Verdict.BAD)]


async def test_creators_are_served_in_turn_however_much_one_of_them_offers() -> None:
    answers: list[tuple[bytes, Verdict]] = []
    made = checks(answers)
    for number in range(8):
        made.ask(b"greedy-%d" % number, batch(0, number, registration(number)), True)
    made.ask(b"modest", batch(1, 0, registration(100)), True)
    task = asyncio.create_task(made.run())
    while len(answers) < 9:
        await asyncio.sleep(0)
    task.cancel()
    assert [digest for digest, _ in answers][:3] == [b"greedy-0", b"modest", b"greedy-1"]


async def test_a_full_disk_promises_nothing_more() -> None:
    answers: list[tuple[bytes, Verdict]] = []
    made = checks(answers, disk_full=True)
    made.ask(b"batch", batch(0, 0, registration(1)), True)
    task = asyncio.create_task(made.run())
    while not answers:
        await asyncio.sleep(0)
    task.cancel()
    assert answers == [(b"batch", Verdict.PENDING)]


def with_data(
    play: Callable[[BatchChecks, Played, list[tuple[bytes, Verdict]], SimulatedPipe], Coroutine[Any, Any, None]],
) -> None:
    """Batches with blobs, whose verdicts a played data process gives."""

    async def main() -> None:
        answers: list[tuple[bytes, Verdict]] = []
        pipe = SimulatedPipe()
        made = checks(answers, pipe=pipe)
        running = [asyncio.ensure_future(made.run()), asyncio.ensure_future(made._data.run())]
        await play(made, Played(pipe), answers, pipe)
        for task in running:
            task.cancel()

    simulate(main)


def test_a_batch_with_a_blob_is_judged_when_the_blob_is_here_and_holds_up_no_other() -> None:
    async def play(made: BatchChecks, data: Played, answers: list[tuple[bytes, Verdict]], pipe: SimulatedPipe) -> None:
        made.ask(b"blob", batch(1, 0, update_with_blob()), True)
        made.ask(b"small", batch(1, 1, registration(1)), True)
        made.ask(b"blob", batch(1, 0, update_with_blob()), True)
        asked = await data.hears_of(Judge)
        assert asked.wait and asked.sources == (CREATORS[1],) and asked.rules == RULES
        await asyncio.sleep(30)
        assert answers == [(b"small", Verdict.OK)] and made.awaited == 1
        data.say(Found(asked.id, Finding.OK, ""))
        await asyncio.sleep(0.1)
        assert answers[1:] == [(b"blob", Verdict.OK)] and made.awaited == 0

    with_data(play)


def test_a_bad_blob_spoils_its_batch_and_one_without_room_waits() -> None:
    async def play(made: BatchChecks, data: Played, answers: list[tuple[bytes, Verdict]], pipe: SimulatedPipe) -> None:
        made.ask(b"bad", batch(1, 0, update_with_blob(1)), True)
        data.say(Found((await data.hears_of(Judge)).id, Finding.BAD, "NON_FINITE"))
        made.ask(b"full", batch(1, 1, update_with_blob(2)), True)
        data.say(Found((await data.hears_of(Judge)).id, Finding.FULL, ""))
        await asyncio.sleep(0.1)
        assert answers == [(b"bad", Verdict.BAD), (b"full", Verdict.PENDING)]

    with_data(play)


def test_a_batch_of_several_blobs_stands_when_all_of_them_do() -> None:
    async def play(made: BatchChecks, data: Played, answers: list[tuple[bytes, Verdict]], pipe: SimulatedPipe) -> None:
        made.ask(b"both", batch(0, 0, update_with_blob(1), registration(1), update_with_blob(2)), True)
        for _ in range(2):
            assert answers == []
            data.say(Found((await data.hears_of(Judge)).id, Finding.OK, ""))
            await asyncio.sleep(0.1)
        assert answers == [(b"both", Verdict.OK)]

    with_data(play)


def test_a_blob_is_asked_for_again_when_the_data_process_comes_back() -> None:
    async def play(made: BatchChecks, data: Played, answers: list[tuple[bytes, Verdict]], pipe: SimulatedPipe) -> None:
        made.ask(b"blob", batch(2, 0, update_with_blob()), True)
        first = await data.hears_of(Judge)
        assert first.sources == ()
        data.dies()
        await asyncio.sleep(1)
        again = Played(pipe)
        second = await again.hears_of(Judge)
        assert answers == [] and second.claim == first.claim
        again.say(Found(second.id, Finding.OK, ""))
        await asyncio.sleep(0.1)
        assert answers == [(b"blob", Verdict.OK)]

    with_data(play)


def test_a_blob_is_no_longer_waited_for_once_nobody_may_vote_for_its_batch() -> None:
    async def play(made: BatchChecks, data: Played, answers: list[tuple[bytes, Verdict]], pipe: SimulatedPipe) -> None:
        made.ask(b"blob", batch(0, 0, update_with_blob()), True)
        asked = await data.hears_of(Judge)
        half = GENESIS.params.horizon // 2
        made.advanced(half)
        await asyncio.sleep(0.1)
        assert made.awaited == 1
        made.advanced(half + 1)
        assert await data.hears() == Forget(asked.id)
        assert made.awaited == 0 and answers == []

    with_data(play)
