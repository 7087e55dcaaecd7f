"""A round is verified down to its bytes, and whatever is wrong with it is named by the step that finds it.

Nodes lie here, or a whole quorum of validators does; the verifier is the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chain.batch import SignedBatch
from chain.codec import decode, encode
from chain.transaction import Transaction
from fl.aggregation import in_turn
from fl.audit.recompute import verified
from fl.audit.steps import Step, Verdict
from fl.client.audit.roundaudit import RoundAudit
from fl.client.audit.verify import Report, verify_round
from fl.client.errors import Unreachable
from fl.client.network import connect_async
from fl.records import Entry
from fl.state import job_key
from tests.fl.client.chainlet import Running
from tests.fl.client.trained import LARGE, Trained, settings


def recompute(audit: RoundAudit) -> Iterator[Step]:
    return verified(audit.recorded(), audit.record, audit.recordings.keep, in_turn, lambda done, total: None)


def verify(running: Running, number: int, key: str | None = "auditor", **settings: Any) -> Report:
    """As the command does it."""

    async def work() -> Report:
        async with await connect_async(**running.settings(key, **settings)) as network:
            audit = RoundAudit(network, "digits", number)
            report = await verify_round(audit, recompute, lambda step: None)
            if report.verified:
                audit.recordings.clear()
            return report

    return asyncio.run(work())


def verdicts(report: Report) -> dict[str, str]:
    return {each.name: each.verdict.value for each in report.steps}


def failed(report: Report) -> set[str]:
    return {each.name for each in report.steps if each.verdict == Verdict.FAILED}


def step(report: Report, name: str) -> Step:
    return next(each for each in report.steps if each.name == name)


STEPS = [
    *("head", "records", "history", "log", "transactions", "signatures", "weights", "payloads"),
    *("base", "record", "model", "closing"),
]


def test_honest_rounds_are_verified_step_by_step(chain: Running) -> None:
    job = Trained(chain)
    for number in (1, 2, 3):
        assert job.train() == number
        report = verify(chain, number, key=None)
        assert report.verified, report
        assert [each.name for each in report.steps] == STEPS
    assert step(report, "log").sentence.startswith("4 entries under the root")
    assert "; 100 in all" in step(report, "weights").sentence, "10 + 20 + 30 + 40 examples"


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi"])
def test_a_rule_with_a_memory_is_verified_from_what_it_kept(chain: Running, rule: str) -> None:
    job = Trained(chain, **settings(rule, learning_rate=0.1))
    job.auditor()
    for number in (1, 2, 3):
        job.train()
        report = verify(chain, number)
        assert report.verified, report
        assert {"moments", "optimiser"} <= {each.name for each in report.steps}
    all_nodes(chain, wrong_leaves=True)
    assert step(verify(chain, 3), "moments").verdict == Verdict.FAILED


@pytest.mark.parametrize(
    "rule",
    [settings("median"), settings("trimmed_mean", share=25), settings("multi_krum", faulty=0, chosen=2)],
    ids=lambda rule: str(rule["rule"]),
)
def test_a_rule_that_looks_at_all_updates_is_verified(chain: Running, rule: dict[str, Any]) -> None:
    job = Trained(chain, **rule, weights="equal", cap=1, minimum=4)
    report = verify(chain, job.train(), key=None)
    assert report.verified, report


def test_a_round_that_failed_is_verified_as_far_as_it_went(chain: Running) -> None:
    job = Trained(chain, trainers=3)
    number = job.round.number
    job.block(job.answer(0))
    job.running.do(job.chain.block, after_ms=job.rules.deadline_ms)
    for _ in range(8):
        job.running.do(job.chain.block, after_ms=job.rules.deadline_ms)
    report = verify(chain, number, key=None)
    assert report.verified and step(report, "model").sentence == "there is no result: BELOW_MINIMUM"
    assert step(report, "log").sentence.startswith("1 entry")


def test_a_round_of_large_updates_is_verified_by_whoever_may_read_them(chain: Running) -> None:
    job = Trained(chain, schema=LARGE)
    job.auditor()
    number = job.train()
    report = verify(chain, number)
    assert report.verified, report
    report = verify(chain, number, key="trainer-000", home="other")
    assert step(report, "payloads").verdict == Verdict.MISSING and step(report, "model").verdict == Verdict.SKIPPED
    assert "auditors" in step(report, "payloads").sentence, "who may read them is said"
    assert failed(report) == set()


def test_what_is_not_kept_any_more_is_said_to_be_so(chain: Running) -> None:
    job = Trained(chain, schema=LARGE)
    job.auditor()
    number = job.train()
    gone = job.entries(number)[1].cid
    for face in chain.faces:
        face.door.whole.pop(gone)
    report = verify(chain, number)
    payloads = step(report, "payloads")
    assert payloads.verdict == Verdict.MISSING and "1 of 4 updates" in payloads.sentence
    assert "keep_update_rounds" in payloads.sentence and "--archive" in payloads.sentence
    assert failed(report) == set() and step(report, "weights").verdict == Verdict.OK


def test_one_node_that_lies_is_passed_over(chain: Running) -> None:
    job = Trained(chain, schema=LARGE)
    job.auditor()
    number = job.train()
    for face in chain.faces[:3]:
        face.forges = face.door.wrong_leaves = True
        face.tells_entries = lambda leaves: leaves[:-1]
        face.tells_batch = lambda signed: replace(signed, batch=replace(signed.batch, created=77))
    assert verify(chain, number).verified


async def test_an_archive_is_no_validator_and_vouches_for_no_head(chain: Running) -> None:
    """Of four validators' nodes two have to prove the newest state; the others and an archive do not make up for it."""
    archive = chain.run(chain.chain.open_archive())
    async with await connect_async(**chain.settings(None)) as network:
        network.nodes.add(archive.url)
        for face in chain.faces[:3]:
            face.down = True
        with pytest.raises(Unreachable) as caught:
            await network.head()
        assert caught.value.code == "TOO_FEW_NODES"
        chain.faces[0].down = False
        assert await network.head() == chain.chain.height


# What nodes tell


def all_nodes(chain: Running, **lies: Any) -> None:
    for face in chain.faces:
        for name, lie in lies.items():
            setattr(face if hasattr(face, name) else face.door, name, lie)


def heavier(leaves: list[bytes]) -> list[bytes]:
    first = decode(Entry, leaves[0], 1000)
    return [encode(replace(first, weight=first.weight + 1)), *leaves[1:]]


def unsigned(signed: SignedBatch) -> SignedBatch:
    """The first transaction's signature is another one."""
    first, *rest = signed.batch.transactions
    tx = decode(Transaction, first, 40_000)
    other = encode(replace(tx, signature=bytes(64)))
    return replace(signed, batch=replace(signed.batch, transactions=(other, *rest)))


@pytest.mark.parametrize(
    ("lies", "named"),
    [
        ({"forges_heads": True}, "head"),
        ({"forges": True}, "records"),
        ({"tells_entries": heavier}, "log"),
        ({"tells_entries": lambda leaves: leaves[:-1]}, "log"),
        ({"tells_entries": lambda leaves: leaves[1:]}, "log"),
        ({"tells_entries": lambda leaves: leaves[::-1]}, "log"),
        ({"tells_batch": unsigned}, "transactions"),
        ({"wrong_leaves": True}, "payloads"),
        ({"wrong_manifest": True}, "payloads"),
    ],
    ids=["head", "proof", "entry", "dropped last", "dropped first", "reordered", "batch", "leaves", "manifest"],
)
def test_what_all_nodes_lie_about_is_named_by_its_step(chain: Running, lies: dict[str, Any], named: str) -> None:
    job = Trained(chain, schema=LARGE)
    job.auditor()
    number = job.train()
    honest = verify(chain, number)
    assert honest.verified
    all_nodes(chain, **lies)
    report = verify(chain, number)
    assert not report.verified
    first = report.first(Verdict.FAILED)
    assert first is not None and first.name == named, report
    later = report.steps[report.steps.index(first) + 1 :]
    also = {"base", "record"} if "wrong_leaves" in lies else set()
    assert {each.name for each in later if each.verdict == Verdict.FAILED} <= also, "and nothing else is blamed"


def test_a_log_that_is_too_short_is_said_to_be(chain: Running) -> None:
    number = Trained(chain).train()
    all_nodes(chain, tells_entries=lambda leaves: leaves[:-1])
    assert "3 of 4 entries" in step(verify(chain, number, key=None), "log").sentence


# What a quorum certifies that lies


def false(job: Trained, how: str) -> int:
    """A round in which a quorum has certified what an honest one would not have; its number."""
    ledger, first, number = job.chain.ledger, job.people[0], job.round.number
    if how == "signature":
        tx = decode(Transaction, job.answer(0), 40_000)
        return job.train({0: encode(replace(tx, signature=bytes(64)))})
    if how == "payload":
        body = job.body(0)
        return job.train({0: job.sign(first, replace(body, payload=body.payload[:-1] + b"\0"))})
    if how == "model":
        job.chain.miscomputes = lambda model: model[:-4] + b"\0\0\0\0"
        return job.train()
    job.train()
    entries = job.entries(number)
    rest = entries[1:]
    if how == "weight":
        job.lie_of_entries(number, [replace(entries[0], weight=99), *rest])
    elif how == "dropped":
        job.lie_of_entries(number, rest)
    elif how == "twice":
        job.lie_of_entries(number, [*entries, entries[0]])
    elif how == "other place":
        job.lie_of_entries(number, [replace(entries[0], index=1), *rest])
    elif how == "no place":
        job.lie_of_entries(number, [replace(entries[0], index=7), *rest])
    elif how == "member":
        job.lie_of_entries(number, [replace(entries[0], member=entries[1].member), *rest])
    elif how in ("tx_id", "cid", "round"):
        other: dict[str, Any] = {"tx_id": bytes(32), "cid": rest[0].cid, "round": number + 1}
        job.lie_of_entries(number, [replace(entries[0], **{how: other[how]}), *rest])
    elif how == "base":
        job.lie(number, base=job.round.base)
    elif how == "version":
        job.lie(number, version=5)
    elif how == "examples":
        job.lie(number, examples=7)
    elif how == "means":
        job.lie(number, means=(7,))
    elif how == "record":
        job.lie(number, record=ledger.round(job.job, number - 1).record)
    elif how == "rules":
        known = ledger.job(job.job)
        job.running.do(job.chain.certify, {job_key(job.job): replace(known, rules_hash=bytes(32))})
    return number


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("signature", {"signatures"}),
        ("payload", {"payloads"}),
        ("model", {"model", "closing"}),
        ("weight", {"weights", "record", "model", "closing"}),
        ("dropped", {"weights", "record", "model", "closing"}),
        ("twice", {"transactions", "weights", "record", "model", "closing"}),
        ("other place", {"transactions", "weights", "record", "model"}),
        ("no place", {"transactions", "weights", "record"}),
        ("member", {"transactions", "record", "model"}),
        ("tx_id", {"transactions", "record", "closing"}),
        ("cid", {"transactions", "record", "closing"}),
        ("round", {"transactions", "record", "closing"}),
        ("base", {"history", "transactions", "record", "model", "closing"}),
        ("version", {"history"}),
        ("examples", {"weights"}),
        ("means", {"weights"}),
        ("record", {"record", "closing"}),
        ("rules", {"records"}),
    ],
)
def test_what_a_lying_quorum_certifies_is_named_by_its_steps(chain: Running, how: str, named: set[str]) -> None:
    job = Trained(chain)
    job.train()
    number = false(job, how)
    report = verify(chain, number, key=None)
    assert failed(report) == named, verdicts(report)
