"""A round is explained: who was in it, with what, how far from what came of it; who was refused, who was silent."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from chain.cid import raw_cid
from fl.client.audit.explain import ANSWERED, REFUSED, SILENT, Explanation, Part, explain_round
from fl.client.audit.roundaudit import RoundAudit
from fl.client.network import connect_async
from fl.tensors.encodings import Place, decode_update, encode_update
from fl.tensors.model import parse_model
from fl.updates import form_of
from tests.fl.client.chainlet import Running
from tests.fl.client.trained import LARGE, Trained, settings


def explain(running: Running, number: int, key: str | None = None) -> Explanation:
    async def work() -> Explanation:
        async with await connect_async(**running.settings(key)) as network:
            return await explain_round(RoundAudit(network, "digits", number), lambda what, done, total: None)

    return asyncio.run(work())


def copied(job: Trained, of: int, by: int) -> bytes:
    """The values of another's update, under one's own header."""
    form, number = form_of(job.rules, 0), job.round.number
    theirs = decode_update(form, Place(job.job, number, job.people[of].account), job.body(of).payload)
    payload = encode_update(form, Place(job.job, number, job.people[by].account), theirs)
    return job.answer(by, payload=payload, cid=raw_cid(payload))


def by_name(found: Explanation) -> dict[str, Part]:
    return {each.name: each for each in found.parts}


def test_who_answered_who_was_refused_and_who_was_silent(chain: Running) -> None:
    job = Trained(chain, trainers=4, target=3)
    number = job.round.number
    first = job.body(0)
    again = job.sign(job.people[1], job.body(1))
    job.block(job.answer(0), job.answer(1), again, copied(job, of=0, by=2))
    late = job.sign(job.people[0], replace(first, base=raw_cid(b"another")))
    job.block(late)
    for _ in range(3):
        job.block()
    assert job.chain.ledger.round(job.job, number).model, "the round is closed"
    parts = by_name(explain(chain, number))
    assert {name: part.standing for name, part in parts.items()} == {
        "trainer-000": ANSWERED,
        "trainer-001": ANSWERED,
        "trainer-002": ANSWERED,
        "trainer-003": SILENT,
    }
    assert parts["trainer-001"].refusals == ("DUPLICATE",) and parts["trainer-000"].refusals == ("DUPLICATE",)
    answers = {name: part.answer for name, part in parts.items()}
    zero, one, two = (answers[f"trainer-00{place}"] for place in range(3))
    assert zero is not None and one is not None and two is not None and answers["trainer-003"] is None
    assert (zero.copies, one.copies, two.copies) == ((2,), (), (0,))
    assert (zero.weight, one.weight, two.weight) == (10, 20, 30)
    assert zero.measure is not None and two.measure is not None
    assert zero.measure.norm == two.measure.norm and zero.measure.distance == two.measure.distance
    assert sorted(each.rank or 0 for each in (zero, one, two)) == [1, 2, 3]


def test_norms_and_distances_are_those_of_the_updates(chain: Running) -> None:
    job = Trained(chain)
    bodies = [job.body(place) for place in range(4)]
    number = job.train()
    closed = job.chain.ledger.round(job.job, number)
    base, model = (parse_model(job.rules.schema, job.chain.blob(cid)) for cid in (closed.base, closed.model))
    change = np.concatenate([(model[name].astype(float) - base[name]).ravel() for name in sorted(model)])
    found = explain(chain, number)
    assert found.remarks == ()
    distances = []
    for part, body, member in zip(found.parts, bodies, job.people, strict=True):
        place = Place(job.job, number, member.account)
        update = decode_update(form_of(job.rules, 0), place, body.payload)
        flat = np.concatenate([update[name].astype(float).ravel() for name in sorted(update)])
        assert part.answer is not None and part.answer.measure is not None
        measure = part.answer.measure
        assert measure.norm == pytest.approx(float(np.sqrt(np.dot(flat, flat))))
        assert measure.distance == pytest.approx(float(np.sqrt(np.dot(flat - change, flat - change))))
        cosine = float(np.dot(flat, change) / np.sqrt(np.dot(flat, flat) * np.dot(change, change)))
        assert measure.cosine == pytest.approx(cosine)
        distances.append((measure.distance, part.answer.rank))
    assert [rank for _, rank in sorted(distances, key=lambda each: each[0] or 0)] == [1, 2, 3, 4]


def test_the_scores_are_those_of_the_rule(chain: Running) -> None:
    job = Trained(chain, **settings("krum", faulty=0), weights="equal", cap=1, target=4, minimum=4)
    found = explain(chain, job.train())
    scored = [part.answer for part in found.parts if part.answer is not None]
    assert all(each.score for each in scored)
    best = min(scored, key=lambda each: (each.score or 0, each.position))
    assert best.rank == 1, "krum moves the model by the one of the lowest score"
    assert best.measure is not None and best.measure.distance == pytest.approx(0, abs=1e-6)


def test_without_the_updates_the_rest_is_said(chain: Running) -> None:
    job = Trained(chain, schema=LARGE)
    number = job.train()
    found = explain(chain, number, key="trainer-000")
    assert [part.standing for part in found.parts] == [ANSWERED] * 4
    answers = [part.answer for part in found.parts]
    assert all(each is not None and each.measure is None and each.rank is None for each in answers)
    assert any("auditors" in remark for remark in found.remarks)


def test_a_stranger_who_was_refused_is_told(chain: Running) -> None:
    job = Trained(chain, trainers=3, target=3)
    outsider = chain.chain.ledger.actor("trainer-003")
    outsider.nonce = 0
    foreign = replace(job.body(0), payload=b"", cid=raw_cid(b"none"))
    number = job.round.number
    job.block(job.sign(outsider, foreign))
    job.train()
    parts = by_name(explain(chain, number))
    assert parts["trainer-003"].standing == REFUSED and parts["trainer-003"].refusals == ("NOT_JOINED",)
