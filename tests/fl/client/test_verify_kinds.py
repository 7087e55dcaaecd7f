"""Jobs of every kind are verified, explained and replayed: encodings, groups, buffers, caps, lots."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from chain.keys import SigningKey
from fl.accounts import rotation
from fl.client.audit.explain import ANSWERED, REFUSED, SILENT
from fl.records import CohortRules, Phase, TensorGroup
from tests.fl.builders import SCHEMA, signing_key
from tests.fl.client.chainlet import Running
from tests.fl.client.test_explain import explain
from tests.fl.client.test_replay import replay
from tests.fl.client.test_verify import failed, verify
from tests.fl.client.trained import Trained

CODINGS = [*({"encoding": name} for name in ("f16", "bf16", "q8")), {"encoding": "topk", "share_ppm": 250_000}]


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: str(coding["encoding"]))
def test_updates_of_every_encoding_are_verified(chain: Running, coding: dict[str, Any]) -> None:
    job = Trained(chain, **coding)
    for _ in range(2):
        report = verify(chain, job.train(), key=None)
        assert report.verified, report
    assert all(part.answer is not None and part.answer.measure is not None for part in explain(chain, 2).parts)


def test_updates_of_groups_are_verified(chain: Running) -> None:
    names = sorted(each.name for each in SCHEMA.tensors)
    job = Trained(chain, groups=tuple(TensorGroup(name, (name,)) for name in names))
    number = job.round.number
    job.block(*(job.answer(place, group=place % 2) for place in range(4)))
    report = verify(chain, number, key=None)
    assert report.verified, report
    found = explain(chain, number)
    answers = [part.answer for part in found.parts]
    assert [each.group for each in answers if each is not None] == [0, 1, 0, 1]
    assert sorted(each.rank or 0 for each in answers if each is not None) == [1, 1, 2, 2], "ranks are of a group"
    without = replay(chain, range(number, number + 1), "trainer-001", "trainer-003")
    assert without.rounds[0].tensors[names[1]].to_change == pytest.approx(1), "nobody is left to change that group"


def test_buffers_are_verified_with_updates_of_older_models(chain: Running) -> None:
    job = Trained(chain, mode="async", discounts=(1024, 700, 1), target=3, minimum=1, rounds=9, grace_ms=60_000)

    def buffer(*bases: int) -> int:
        number = job.round.number
        job.block(*(job.answer(place, of=of or number) for place, of in enumerate(bases)))
        while job.chain.ledger.round(job.job, number).phase == Phase.COLLECTING:
            job.block()
        return number

    numbers = [buffer(0, 0, 0), buffer(0, 0, 1), buffer(3, 2, 1)]
    for number in numbers:
        report = verify(chain, number, key=None)
        assert report.verified, report
    weights = [each.weight for each in job.entries(3)]
    assert weights == [10, 20 * 700 >> 10, 1]
    job.lie_of_entries(3, [replace(each, weight=each.weight + 1) for each in job.entries(3)])
    assert "weights" in failed(verify(chain, 3, key=None))
    courses = replay(chain, range(1, 3), "trainer-002")
    assert [each.left_out for each in courses.rounds] == [1, 1]


@pytest.mark.parametrize(
    "rules",
    [{"organisation_cap": 15}, {"weights": "equal", "cap": 8, "organisation_cap": 5}],
    ids=["examples", "equal"],
)
def test_weights_that_the_state_has_divided_are_bounded(chain: Running, rules: dict[str, Any]) -> None:
    job = Trained(chain, **rules)
    number = job.train()
    report = verify(chain, number, key=None)
    assert report.verified and any("organisation" in each for each in report.rests)
    entries = job.entries(number)
    job.lie_of_entries(number, [replace(entries[0], weight=101), *entries[1:]])
    assert "weights" in failed(verify(chain, number, key=None))


@pytest.mark.parametrize(("failures", "silent"), [(1, 1), (2, 3)], ids=["newest", "older"])
def test_who_was_not_drawn_is_not_silent_as_long_as_the_state_knows(chain: Running, failures: int, silent: int) -> None:
    """Who was drawn is in the state until the next round opens."""
    job = Trained(chain, target=2, cohort=CohortRules(size=2), max_failed=failures)
    while job.round.phase != Phase.COLLECTING:
        job.block()
    number = job.round.number
    for place in range(4):
        if not job.round.updates.size:
            job.block(job.answer(place))
    for _ in range(8):
        if job.chain.ledger.round(job.job, number).phase != Phase.FAILED:
            job.running.do(job.chain.block, after_ms=job.rules.deadline_ms + 1)
    found = explain(chain, number)
    by_standing = Counter(part.standing for part in found.parts)
    refused = by_standing[REFUSED] if silent > 1 else 0
    assert (by_standing[ANSWERED], by_standing[SILENT]) == (1, silent - refused)
    assert any("not have been drawn" in remark for remark in found.remarks) == (silent > 1)
    assert all(part.refusals == ("NOT_DRAWN",) for part in found.parts if part.standing == REFUSED)


def test_a_round_of_an_earlier_epoch_is_verified(chain: Running) -> None:
    """By the validators of today, who have signed the state anew."""
    job = Trained(chain)
    number = job.train()
    chain.do(job.chain.hand_over)
    chain.do(job.chain.hand_over)
    report = verify(chain, number, key=None)
    assert report.verified and "of epoch 2" in report.steps[0].sentence
    assert len(explain(chain, number).parts) == 4


def test_a_key_that_was_rotated_since_rests_on_the_state(chain: Running) -> None:
    job = Trained(chain)
    who, second, third = job.people[0], signing_key("second"), signing_key("third")
    rotate(job, second)
    number = job.train()
    report = verify(chain, number, key=None)
    assert report.verified and not any("rotated" in each for each in report.rests), "the state says whose key it is"
    rotate(job, third)
    report = verify(chain, number, key=None)
    assert report.verified and any("1 member has rotated" in each for each in report.rests)
    assert who.key == third


def rotate(job: Trained, new: SigningKey) -> None:
    who = job.people[0]
    job.block(job.sign(who, rotation(new, who.chain_id, who.account)))
    assert job.chain.ledger.receipts[-1].status == "ok"
    who.key = new
