from __future__ import annotations

import asyncio
from dataclasses import replace

from chain.batch import Batch, SignedBatch
from chain.cid import raw_cid
from chain.codec import decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from consensus.availability import Verdict
from fl.members import RegisterMember
from fl.rounds import SubmitUpdate
from node.checking import BatchChecks
from tests.fl.builders import actor, make_genesis, signing_key

GENESIS = make_genesis()
CHAIN = GENESIS.chain_id


class Inline:
    def __init__(self) -> None:
        self.calls = 0

    async def run(self, function, *arguments):  # type: ignore[no-untyped-def]
        self.calls += 1
        await asyncio.sleep(0)
        return function(*arguments)

    def close(self) -> None:
        pass


def batch(creator: int, sequence: int, *transactions: bytes) -> SignedBatch:
    return SignedBatch(Batch(CHAIN, 0, creator, sequence, 0, 64, transactions), bytes(64))


def registration(number: int) -> bytes:
    key = signing_key(f"someone/{number}").public
    return actor("registrar", CHAIN).sign(RegisterMember(f"member-{number}", key, ("trainer",)), nonce=number)


def update_of_unknown_job() -> bytes:
    body = SubmitUpdate(bytes(32), 1, raw_cid(b"base"), 1, (), raw_cid(b"x"), b"x")
    return actor("trainer-000", CHAIN).sign(body)


def spoilt(data: bytes) -> bytes:
    tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
    return encode(replace(tx, signature=bytes(64)))


def checks(answers: list[tuple[bytes, Verdict]], disk_full: bool = False) -> BatchChecks:
    return BatchChecks(
        CHAIN,
        GENESIS.params,
        Inline(),
        lambda job: None,
        disk_full=lambda: disk_full,
        checked=lambda digest, verdict: answers.append((digest, verdict)),
    )


def test_an_unknown_job_is_noticed_before_any_signature_is_looked_at() -> None:
    assert checks([]).judge(batch(0, 0, spoilt(registration(1)), update_of_unknown_job())) is Verdict.PENDING


def test_a_bad_signature_spoils_a_batch_and_a_good_one_does_not() -> None:
    assert checks([]).judge(batch(0, 0, registration(1), registration(2))) is Verdict.OK
    assert checks([]).judge(batch(0, 0, registration(1), spoilt(registration(2)))) is Verdict.BAD


async def test_creators_are_served_in_turn_however_much_one_of_them_offers() -> None:
    answers: list[tuple[bytes, Verdict]] = []
    judge = checks(answers)
    for number in range(8):
        judge.ask(b"greedy-%d" % number, batch(0, number, registration(number)))
    judge.ask(b"modest", batch(1, 0, registration(100)))
    task = asyncio.create_task(judge.run())
    while len(answers) < 9:
        await asyncio.sleep(0)
    task.cancel()
    assert [digest for digest, _ in answers][:3] == [b"greedy-0", b"modest", b"greedy-1"]


async def test_a_full_disk_promises_nothing_more() -> None:
    answers: list[tuple[bytes, Verdict]] = []
    judge = checks(answers, disk_full=True)
    judge.ask(b"batch", batch(0, 0, registration(1)))
    task = asyncio.create_task(judge.run())
    while not answers:
        await asyncio.sleep(0)
    task.cancel()
    assert answers == [(b"batch", Verdict.PENDING)]
