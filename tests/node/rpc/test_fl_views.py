"""What the answers say of jobs and rounds of every sort, without a node around them."""

from __future__ import annotations

import json

from fl.jobs import PauseJob
from fl.records import Answered, CohortRules, Joined, TensorGroup
from fl.rounds import CheckIn, entries_of
from fl.state import answered_key, joined_key, read_record
from node.rpc.fl_views import job_member_view, job_view, member_view, round_view, update_view
from node.rpc.rules_views import rules_view
from tests.fl.builders import Running, ledger, running_job

HALVES = (TensorGroup("head", ("bias",)), TensorGroup("trunk", ("weight",)))


def rules_of(running: Running) -> dict[str, object]:
    view = rules_view(running.ledger.rules(running.job))
    return dict(json.loads(json.dumps(view)))


def test_rules_say_what_their_rule_reads_with_its_defaults() -> None:
    adam = rules_of(running_job(rule="fedadam"))
    names = [each["name"] for each in adam["settings"]]
    assert names == sorted(names) and {"beta_1", "beta_2"} <= set(names)
    assert all(str(float(each["value"])) == each["value"] for each in adam["settings"])
    assert rules_of(running_job())["settings"] == []


def test_rules_say_who_is_asked_and_how_groups_organisations_and_ages_weigh() -> None:
    asked = rules_of(running_job(cohort=CohortRules(4, 500_000, 1_000), organisation_cap=9, cap=3, groups=HALVES))
    assert asked["cohort"] == {"size": 4, "over_ppm": 500_000, "check_in_ms": 1_000}
    assert (asked["organisation_cap"], asked["discounts"]) == (9, [])
    assert asked["groups"][1] == {"name": "trunk", "tensors": ["weight"]}
    assert rules_of(running_job(mode="async", discounts=(1024, 512)))["discounts"] == [1024, 512]


def test_a_round_has_a_deadline_only_in_a_phase_that_has_one() -> None:
    running = running_job(cohort=CohortRules(4, 0, 1_000))
    phases = []
    for _ in range(3):
        view = round_view(running.round, ("loss",))
        phases.append((view["phase"], view["checked_in"], view["cohort"], view["deadline_ms"] is None))
        running.ledger.block(*(who.sign(CheckIn(running.job, 1)) for who in running.trainers))
    assert phases == [("check_in", 0, 4, False), ("drawing", 4, 4, True), ("collecting", 4, 4, False)]


def test_a_round_a_job_and_an_update_say_what_groups_weigh_and_that_a_pause_is_due() -> None:
    running = running_job(ledger(trainers=4, organisations=("clinic",)), groups=HALVES)
    who = running.trainers[0]
    running.ledger.block(running.update(who, group=1), running.creator.sign(PauseJob(running.job)))
    view = round_view(running.round, ("loss",))
    assert (view["weight"], view["weights"], view["version"]) == (1, [0, 1], 0)
    assert job_view(running.job, running.ledger.job(running.job))["pausing"] is True
    entry = next(entries_of(running.ledger.leaves, running.job, 1, 1))
    assert (update_view(0, entry)["group"], update_view(0, entry)["round"]) == (1, 1)
    member = running.ledger.member(who.account)
    assert member is not None and member_view(who.account, member, False)["organisation"] == "clinic"
    joined = read_record(running.ledger.state.get, Joined, joined_key(running.job, who.account))
    assert joined is not None
    answered = read_record(running.ledger.state.get, Answered, answered_key(running.job))
    seen = job_member_view(who.account, who.name, joined, answered)
    assert (seen["seat"], seen["checked_in"], seen["dataset"], seen["answered"]) == (0, 0, None, 1)
