"""Every code of the table is met here at least once, where the table says that it is decided; those of answers to
evaluations are beside them, in `test_answers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chain.cid import TREE_PREFIX, raw_cid
from chain.codec import decode, encode
from chain.genesis import Params
from chain.transaction import Transaction, account_id, sign_transaction
from fl import jobs
from fl.accounts import RotateKey, rotation
from fl.check import check_transaction
from fl.datasets import RegisterDataset, WithdrawDataset, dataset_id
from fl.errors import CODES, DecidedBy, PendingJob, Refused
from fl.evaluation import SubmitEvaluation
from fl.jobs import CreateJob, JoinJob, LeaveJob, PauseJob, ResumeJob, StopJob
from fl.members import RegisterMember, RevokeMember
from fl.records import MAX_OPEN_JOBS, CohortRules, ConfigEntry, Kind, TensorGroup
from fl.rounds import CheckIn
from fl.state import EVENTS, META, RECEIPTS, account_key
from fl.tensors.layout import Schema, TensorSpec
from tests.fl.builders import (
    GENESIS_MS,
    HOUR_MS,
    Actor,
    Running,
    created_job,
    ledger,
    make_rules,
    result_item,
    running_job,
    signing_key,
)
from tests.fl.test_answers import REFUSED as OF_ANSWERS

IDENTITY_KEY = b"\x01\x01" + bytes(31)
"""The neutral point of the curve, under which one signature verifies for everything."""

F64_SCHEMA = Schema((TensorSpec("w", "F64", (2,), "averaged"),))

DATASET = RegisterDataset("scans", b"", 10**9, False, "", "", "")

Case = Callable[[Running], bytes]


def registrar(running: Running, body: object) -> bytes:
    return running.ledger.actor("registrar").sign(body)


def creation(running: Running, model: bytes = b"", **rules: object) -> bytes:
    return running.creator.sign(CreateJob(make_rules(**rules), model))


def with_values(running: Running, value: float) -> bytes:
    """An f32 update whose last value is put behind the encoder's back."""
    body = running.body(running.trainers[0])
    payload = body.payload[:-4] + np.float32(value).tobytes()
    return running.trainers[0].sign(replace(body, payload=payload, cid=raw_cid(payload)))


def beside(running: Running, **rules: object) -> Running:
    """Another job of the same people on the same chain."""
    chain = running.ledger
    job = created_job(chain, running.creator, make_rules(**{"name": "other", **rules}))
    accepted = chain.job(job).rules_hash
    chain.block(*(each.sign(JoinJob(job, accepted)) for each in running.trainers))
    return Running(chain, job, running.creator, running.trainers)


def with_index(running: Running, index: int) -> bytes:
    """An update of another job, in topk, whose second index is put behind the encoder's back."""
    sparse = beside(running, name="sparse", encoding="topk", share_ppm=1_000_000)
    body = sparse.body(sparse.trainers[0])
    header = 8 + int.from_bytes(body.payload[:8], "little")
    place = header + 4 + 4
    payload = body.payload[:place] + index.to_bytes(4, "little") + body.payload[place + 4 :]
    return sparse.trainers[0].sign(replace(body, payload=payload, cid=raw_cid(payload)))


def raw_transaction(running: Running, kind: int, body: bytes) -> bytes:
    who = running.trainers[0]
    return encode(sign_transaction(who.key, who.chain_id, who.account, 0, GENESIS_MS + HOUR_MS, kind, body))


def resigned(running: Running, **changes: Any) -> bytes:
    tx = decode(Transaction, running.update(running.trainers[0]), 2**20)
    return encode(replace(tx, **changes))


def update(running: Running, **changes: object) -> bytes:
    return running.update(running.trainers[0], **changes)


BYTES: dict[str, Case] = {
    "UNDECODABLE": lambda r: update(r) + b"\x00",
    "WRONG_CHAIN": lambda r: r.trainers[0].sign(r.body(r.trainers[0]), chain_id=bytes(32)),
    "BAD_SIGNATURE": lambda r: resigned(r, signature=bytes(64)),
    "WEAK_KEY": lambda r: resigned(r, key=IDENTITY_KEY),
    "OVERSIZE": lambda r: update(r, payload=bytes(r.ledger.genesis.params.inline_bytes + 1)),
    "UNKNOWN_KIND": lambda r: raw_transaction(r, 999, b""),
    "BAD_NAME": lambda r: registrar(r, RegisterMember("a b", signing_key("new").public, ())),
    "BAD_ROLES": lambda r: registrar(r, RegisterMember("new", signing_key("new").public, ("king",))),
    "BAD_PROOF": lambda r: r.creator.sign(RotateKey(signing_key("new").public, bytes(64))),
    "BAD_RULES": lambda r: creation(r, minimum=5),
    "BAD_SCHEMA": lambda r: creation(r, schema=F64_SCHEMA, initial=bytes(36)),
    "BAD_CONFIG": lambda r: creation(r, config=(ConfigEntry("lr", 1, "decimal", "1e-3"),)),
    "BAD_MODEL": lambda r: creation(r, model=b"not a model"),
    "BAD_GROUPS": lambda r: creation(r, groups=(TensorGroup("head", ("bias",)),)),
    "NOT_SUPPORTED": lambda r: creation(r, mode="whenever"),
    "PRIVACY_NOT_OFFERED": lambda r: creation(r, privacy="sealed"),
    "WRONG_HEADER": lambda r: r.trainers[0].sign(r.body(r.trainers[1])),
    "NON_FINITE": lambda r: with_values(r, float("nan")),
    "OUT_OF_RANGE": lambda r: with_values(r, 257.0),
    "BAD_INDEX": lambda r: with_index(r, 0),
    "BAD_EXAMPLES": lambda r: update(r, examples=10**12),
    "BAD_METRICS": lambda r: update(r, metrics=()),
    "UNKNOWN_GROUP": lambda r: update(r, group=1),
    "NO_CHECK_IN": lambda r: r.trainers[0].sign(CheckIn(r.job, 1)),
    "NO_EVALUATION": lambda r: r.trainers[0].sign(SubmitEvaluation(r.job, 1, r.round.base, 1, ())),
    "BAD_CID": lambda r: update(r, cid=raw_cid(b"another")),
    "BAD_DATASET": lambda r: r.creator.sign(replace(DATASET, stored=True)),
}


def after_failure_of_round_one(running: Running) -> bytes:
    """Round 1 fails for want of answers, and then one arrives."""
    data = update(running)
    running.ledger.block(after_ms=10_000)
    running.ledger.block(after_ms=10_000)
    running.ledger.blocks(2)
    assert running.ledger.job(running.job).round == 2
    return data


def many_open_jobs(running: Running) -> bytes:
    for index in range(MAX_OPEN_JOBS - 1):
        assert running.ledger.status_of(creation(running, name=f"job-{index}")) == "ok"
    return creation(running, name="one-more")


def revoked(running: Running) -> bytes:
    assert running.ledger.status_of(registrar(running, RevokeMember(running.trainers[0].account))) == "ok"
    return update(running)


def duplicate(running: Running) -> bytes:
    assert running.ledger.status_of(update(running)) == "ok"
    return update(running, value=0.25)


def after_stop(running: Running) -> bytes:
    assert running.ledger.status_of(running.creator.sign(StopJob(running.job))) == "ok"
    return update(running)


def newcomer(running: Running) -> Actor:
    """Registered as a trainer, in no job yet."""
    person = running.ledger.actor("newcomer")
    body = RegisterMember("newcomer", person.key.public, ("trainer",))
    assert running.ledger.status_of(registrar(running, body)) == "ok"
    return person


def not_joined(running: Running) -> bytes:
    person = newcomer(running)
    return person.sign(running.body(person))


def joining(running: Running, accepted: bytes | None = None) -> bytes:
    return newcomer(running).sign(JoinJob(running.job, accepted or running.ledger.job(running.job).rules_hash))


def more_than_is_stored(running: Running) -> bytes:
    most = Params().member_stored_bytes
    vast = RegisterDataset("vast", TREE_PREFIX + bytes(32), most, True, "", "", "")
    assert running.ledger.status_of(running.creator.sign(vast)) == "ok"
    return running.creator.sign(RegisterDataset("more", raw_cid(b"."), 1, True, "", "", ""))


def withdrawn(running: Running) -> bytes:
    """A data set's withdrawal, a second time."""
    data = running.creator.sign(DATASET)
    body = WithdrawDataset(dataset_id(running.ledger.check(data).reading.id))
    running.ledger.block(data, running.creator.sign(body))
    return running.creator.sign(body)


def in_check_in(running: Running) -> bytes:
    return update(beside(running, cohort=CohortRules(check_in_ms=1_000)))


def absent_from_check_in(running: Running) -> bytes:
    other = beside(running, cohort=CohortRules(check_in_ms=1_000), minimum=2)
    other.ledger.block(*(who.sign(CheckIn(other.job, 1)) for who in other.trainers[1:]))
    other.ledger.block(after_ms=1_000)
    other.ledger.blocks(2)
    return update(other)


def buffers(running: Running, closed: int) -> Running:
    """A job without rounds that has closed so many buffers, and whose next is full and being aggregated."""
    other = beside(running, mode="async", discounts=(1024, 724), maximum=2, target=2, rounds=9)
    for _ in range(closed):
        other.submit(*other.trainers[:2])
        other.ledger.block(items=[result_item(other.ledger.aggregations[-1])])
    return other


def too_stale(running: Running) -> bytes:
    other = buffers(running, 2)
    return other.update(other.trainers[2], round=1, base=other.ledger.round(other.job, 1).base)


def between_buffers(running: Running) -> bytes:
    other = buffers(running, 1)
    other.submit(*other.trainers[:2])
    return other.update(other.trainers[2])


def to_be_paused(running: Running) -> bytes:
    assert running.ledger.status_of(running.creator.sign(PauseJob(running.job))) == "ok"
    return running.creator.sign(PauseJob(running.job))


def weightless(running: Running) -> bytes:
    """Of one of four members of an organisation that weighs 3 together."""
    chain = running.ledger
    people, by = [chain.actor(f"clinic-{number}") for number in range(4)], chain.actor("registrar")
    chain.block(*(by.sign(RegisterMember(who.name, who.key.public, ("trainer",), "clinic")) for who in people))
    other = beside(replace(running, trainers=people), organisation_cap=3, cap=3)
    return update(other)


STATE: dict[str, Case] = {
    "VALID_UNTIL_FAR": lambda r: r.creator.sign(StopJob(r.job), valid_until_ms=GENESIS_MS + 25 * HOUR_MS),
    "UNAUTHORISED": lambda r: r.trainers[0].sign(CreateJob(make_rules(name="mine"), b"")),
    "NOT_MEMBER": lambda r: r.ledger.actor("stranger").sign(r.body(r.ledger.actor("stranger"))),
    "REVOKED": revoked,
    "UNKNOWN_MEMBER": lambda r: registrar(r, RevokeMember(bytes(32))),
    "ALREADY_MEMBER": lambda r: registrar(r, RegisterMember("again", r.creator.key.public, ("creator",))),
    "NAME_TAKEN": lambda r: registrar(r, RegisterMember("creator", signing_key("new").public, ("creator",))),
    "UNKNOWN_JOB": lambda r: r.trainers[0].sign(LeaveJob(bytes(32))),
    "JOB_CLOSED": after_stop,
    "JOB_NOT_PAUSED": lambda r: r.creator.sign(ResumeJob(r.job)),
    "JOB_FULL": joining,
    "TOO_MANY_JOBS": many_open_jobs,
    "WRONG_RULES": lambda r: joining(r, bytes(32)),
    "ALREADY_JOINED": lambda r: r.trainers[0].sign(JoinJob(r.job, r.ledger.job(r.job).rules_hash)),
    "NOT_JOINED": not_joined,
    "WRONG_ROUND": lambda r: update(r, round=2),
    "LATE": after_failure_of_round_one,
    "DUPLICATE": duplicate,
    "JOB_PAUSED": to_be_paused,
    "NOT_COLLECTING": in_check_in,
    "NOT_CHECKED_IN": absent_from_check_in,
    "TOO_STALE": too_stale,
    "BUFFER_CLOSED": between_buffers,
    "NO_WEIGHT": weightless,
    "WRONG_BASE": lambda r: update(r, base=raw_cid(b"another model")),
    "STORED_LIMIT": more_than_is_stored,
    "UNKNOWN_DATASET": lambda r: r.creator.sign(WithdrawDataset(bytes(32))),
    "WITHDRAWN": withdrawn,
    "FAULT": update,
}


def codes(decided_by: DecidedBy) -> set[str]:
    return {code.name for code in CODES.values() if code.decided_by is decided_by}


def test_every_code_has_a_case_here() -> None:
    assert BYTES.keys() == codes(DecidedBy.BYTES) - {"BLOB_MISSING", "BLOB_FULL"}, "what a node holds it alone knows"
    assert STATE.keys() <= codes(DecidedBy.STATE) <= STATE.keys() | OF_ANSWERS.keys()
    assert codes(DecidedBy.NOBODY) == {"EXPIRED", "NONCE_USED", "NONCE_FAR", "WRONG_KEY"}


@pytest.mark.parametrize("code", BYTES)
def test_what_bytes_decide_is_refused_at_admission_and_consumes_nothing(code: str) -> None:
    running = running_job()
    data = BYTES[code](running)
    with pytest.raises(Refused) as refused:
        running.ledger.check(data)
    assert refused.value.code == code
    assert refused.value.decided_by is DecidedBy.BYTES
    assert refused.value.sentence


@pytest.mark.parametrize("code", STATE)
def test_what_state_decides_leaves_one_receipt_and_consumes_the_nonce(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = running_job()
    if code == "JOB_FULL":
        monkeypatch.setattr(jobs, "MAX_UPDATES", 4)
    data = STATE[code](running)
    checked = running.ledger.check(data)
    if code == "FAULT":
        # The last that is done with an update, when its round already counts it.
        monkeypatch.setattr("fl.rounds.Effect", lambda *given: 1 // 0)
    before, sender = len(running.ledger.receipts), checked.reading.tx.sender
    state = dict(running.ledger.state)
    outcome = running.ledger.block(data)
    assert [receipt.status for receipt in running.ledger.receipts[before:]] == [code]
    account = running.ledger.account(sender)
    assert account is not None and account.floor == checked.reading.tx.nonce + 1
    assert outcome.writes.keys() - {EVENTS} == {account_key(sender), RECEIPTS, META}
    assert running.ledger.state.items() - state.items() == outcome.writes.items()
    assert not outcome.accepted
    assert running.ledger.status_of(data) is None
    assert len(running.ledger.receipts) == before + 1


def test_a_refused_update_is_told_of() -> None:
    running = running_job()
    running.ledger.block(update(running, base=raw_cid(b"another model")))
    told = running.ledger.events[-1]
    assert (told.kind, told.subject, told.code) == ("update_refused", running.trainers[0].account, "WRONG_BASE")


def test_an_update_for_a_job_that_is_not_known_yet_is_pending() -> None:
    running = running_job()
    with pytest.raises(PendingJob) as pending:
        running.ledger.check(update(running, job=bytes(32)))
    assert pending.value.job == bytes(32)


def test_an_expired_transaction_leaves_no_receipt_and_no_trace() -> None:
    running = running_job()
    trainer = running.trainers[0]
    data = trainer.sign(running.body(trainer), valid_until_ms=running.ledger.time_ms + 99)
    outcome = running.ledger.block(data, after_ms=100)
    assert not outcome.receipts and not outcome.events and not outcome.writes


def test_a_transaction_is_still_good_in_the_block_at_its_valid_until() -> None:
    running = running_job()
    trainer = running.trainers[0]
    data = trainer.sign(running.body(trainer), valid_until_ms=running.ledger.time_ms + 100)
    assert running.ledger.status_of(data, after_ms=100) == "ok"


def test_a_signature_by_another_key_cannot_burn_the_accounts_nonces() -> None:
    running = running_job()
    thief, victim = signing_key("thief"), running.trainers[0]
    before = running.ledger.account(victim.account)
    data = victim.sign(running.body(victim), key=thief, nonce=5)
    running.ledger.check(data)
    outcome = running.ledger.block(data)
    assert not outcome.receipts
    assert running.ledger.events[-1].code == "WRONG_KEY"
    assert running.ledger.account(victim.account) == before


def test_a_rotated_key_speaks_for_the_account_and_the_old_one_no_more() -> None:
    running = running_job()
    trainer, new = running.trainers[0], signing_key("new key of trainer 0")
    body = rotation(new, running.ledger.chain_id, trainer.account)
    rotated = trainer.sign(body)
    running.ledger.check(rotated)
    assert running.ledger.status_of(rotated) == "ok"
    assert running.ledger.status_of(trainer.sign(running.body(trainer), nonce=2)) is None
    assert running.ledger.events[-1].code == "WRONG_KEY"
    trainer.key = new
    assert running.ledger.status_of(trainer.sign(running.body(trainer), nonce=2)) == "ok"
    assert account_id(new.public) != trainer.account


def test_a_rotation_signed_for_one_account_cannot_be_used_by_another() -> None:
    running = running_job()
    body = rotation(signing_key("new"), running.ledger.chain_id, running.trainers[0].account)
    with pytest.raises(Refused, match="BAD_PROOF"):
        running.ledger.check(running.trainers[1].sign(body))


def test_bytes_that_do_not_decode_inside_a_batch_are_skipped_with_an_event() -> None:
    running = running_job()
    good = update(running)
    outcome = running.ledger.block(b"garbage", good, good[:-1])
    assert len(outcome.receipts) == 1
    skipped = [(each.code, each.value) for each in running.ledger.events[-2:]]
    assert skipped == [("UNDECODABLE", 0), ("UNDECODABLE", 2)]


def test_a_transaction_over_the_chains_own_limit_is_oversize() -> None:
    params = Params(transaction_bytes=2_048, inline_bytes=1_024)
    chain = ledger(params=params)
    data = chain.actor("creator").sign(CreateJob(make_rules(), bytes(2_048)))
    with pytest.raises(Refused, match="OVERSIZE"):
        chain.check(data)


def test_the_signature_can_be_left_to_the_caller() -> None:
    running = running_job()
    data = resigned(running, signature=bytes(64))
    rules = running.ledger.rules(running.job)
    checked = check_transaction(
        data, running.ledger.chain_id, running.ledger.genesis.params, lambda job: rules, verify_signature=False
    )
    assert checked.reading.tx.kind == Kind.SUBMIT_UPDATE
