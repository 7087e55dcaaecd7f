"""Rounds replayed: with everybody they give the chain's models, without a member what the rules make of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fl.aggregation import in_turn
from fl.audit.replay import TOO_FEW, Courses, Diverged
from fl.client.audit.replay import account_of, replay_rounds
from fl.client.audit.roundaudit import RoundAudit
from fl.client.errors import RefusedByChain, Unverified
from fl.client.network import connect_async
from fl.tensors.encodings import Place, decode_update
from fl.tensors.model import parse_model
from fl.updates import form_of
from tests.fl.client.chainlet import Running
from tests.fl.client.trained import LARGE, Trained, settings


def replay(running: Running, rounds: range, *without: str) -> Courses:
    async def work() -> Courses:
        async with await connect_async(**running.settings("auditor")) as network:
            members = frozenset([await account_of(network, each) for each in without])
            courses = Courses(members, in_turn, lambda done, total: None)

            def play(audit: RoundAudit) -> None:
                courses.play(audit.recorded(), audit.recordings.keep)

            await replay_rounds(network, "digits", rounds, play, lambda what, done, total: None)
            return courses

    return asyncio.run(work())


@pytest.mark.parametrize(
    "rule", [settings("fedavg"), settings("fedadam", learning_rate=0.1)], ids=["fedavg", "fedadam"]
)
def test_with_everybody_the_chain_s_models_come_about(chain: Running, rule: dict[str, Any]) -> None:
    job = Trained(chain, **rule)
    job.auditor()
    for _ in range(3):
        job.train()
    courses = replay(chain, range(1, 4))
    certified = [job.chain.ledger.round(job.job, number).model for number in (1, 2, 3)]
    assert [each.actual for each in courses.rounds] == [each.other for each in courses.rounds] == certified
    assert all(each.apart.absolute == 0 for each in courses.rounds)
    assert [each.actual for each in replay(chain, range(2, 4)).rounds] == certified[1:]


def test_without_a_member_the_model_is_the_mean_of_the_others(chain: Running) -> None:
    job = Trained(chain)
    job.auditor()
    bodies = [[job.body(place) for place in range(4)], []]
    base = parse_model(job.rules.schema, job.chain.blob(job.round.base))
    job.train()
    bodies[1] = [job.body(place) for place in range(4)]
    job.train()
    courses = replay(chain, range(1, 3), "trainer-003")
    assert [each.left_out for each in courses.rounds] == [1, 1]
    expected = {name: array.astype(float) for name, array in base.items()}
    for number, answers in enumerate(bodies, 1):
        for place in range(3):
            where = Place(job.job, number, job.people[place].account)
            update = decode_update(form_of(job.rules, 0), where, answers[place].payload)
            for name, values in update.items():
                expected[name] += (place + 1) * 10 / 60 * values.astype(float)
    found = parse_model(job.rules.schema, courses.other.model)
    for name, values in expected.items():
        assert np.allclose(found[name], values, atol=1e-6)
    actual = parse_model(job.rules.schema, courses.actual.model)
    apart = np.sqrt(sum(np.square(actual[name].astype(float) - found[name]).sum() for name in actual))
    last = courses.rounds[-1]
    assert last.apart.absolute == pytest.approx(float(apart)) and last.apart.absolute > 0
    assert sum(each.absolute**2 for each in last.tensors.values()) == pytest.approx(last.apart.absolute**2)


def test_large_updates_are_replayed_round_by_round(chain: Running) -> None:
    job = Trained(chain, schema=LARGE)
    job.auditor()
    for _ in range(2):
        job.train()
    courses = replay(chain, range(1, 3), job.people[0].account.hex())
    assert [each.left_out for each in courses.rounds] == [1, 1]
    homes = chain.directory / "home"
    assert not [path for path in homes.rglob("*") if path.is_file() and "audit" in path.parts], "nothing is left there"


def test_where_the_rule_cannot_do_with_fewer_the_model_stays(chain: Running) -> None:
    job = Trained(chain, **settings("krum", faulty=0), weights="equal", cap=1, target=4, minimum=4)
    job.auditor()
    base = job.round.base
    job.train()
    courses = replay(chain, range(1, 2), "trainer-000", "trainer-001")
    assert (courses.rounds[0].code, courses.rounds[0].other) == (TOO_FEW, base)
    assert replay(chain, range(1, 2), "trainer-000").rounds[0].code == ""


def miscomputed(job: Trained) -> None:
    job.chain.miscomputes = lambda model: model[:-4] + bytes(4)


def dropped(job: Trained) -> None:
    for face in job.chain.faces:
        face.tells_entries = lambda leaves: leaves[1:]


@pytest.mark.parametrize(("lie", "error"), [(miscomputed, Diverged), (dropped, Unverified)])
def test_nothing_is_left_out_of_rounds_that_do_not_verify(
    chain: Running, lie: Callable[[Trained], None], error: type[Exception]
) -> None:
    job = Trained(chain)
    job.auditor()
    lie(job)
    job.train()
    with pytest.raises(error):
        replay(chain, range(1, 2), "trainer-000")


def test_a_member_is_named_by_account_or_name(chain: Running) -> None:
    job = Trained(chain)
    job.auditor()
    job.train()
    by_name = replay(chain, range(1, 2), "trainer-001")
    by_account = replay(chain, range(1, 2), job.people[1].account.hex())
    assert by_name.rounds[0].other == by_account.rounds[0].other != by_name.rounds[0].actual
    with pytest.raises(RefusedByChain):
        replay(chain, range(1, 2), "nobody")
