"""What updates weigh: by examples or data sets, with caps for members and for organisations, in groups of tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.codec import encode
from chain.genesis import GenesisError
from chain.log import Frontier
from fl.cohort import members_in_cohort
from fl.datasets import RegisterDataset, WithdrawDataset, dataset_id
from fl.jobs import JoinJob, LeaveJob
from fl.machine import genesis_state
from fl.members import RegisterMember
from fl.records import METRIC_NAN, CohortRules, MetricSum, Phase, TensorGroup
from fl.rounds import CheckIn, entries_of
from fl.state import State, round_key
from fl.tensors.grid import MAX_UPDATES
from fl.updates import form_of
from tests.fl.builders import (
    Actor,
    Ledger,
    Running,
    created_job,
    ledger,
    make_genesis,
    make_rules,
    result_item,
    running_job,
    trainer_names,
)

HALVES = (TensorGroup("head", ("bias",)), TensorGroup("trunk", ("weight",)))


def weights(running: Running, number: int = 1) -> list[int]:
    size = running.ledger.round(running.job, number).updates.size
    return [entry.weight for entry in entries_of(running.ledger.leaves, running.job, number, size)]


# Data sets


def registered(chain: Ledger, owner: Actor, examples: int, name: str = "scans") -> bytes:
    data = owner.sign(RegisterDataset(name, b"", 10, False, "", "", "", examples))
    dataset = dataset_id(chain.check(data).reading.id)
    assert chain.status_of(data) == "ok"
    return dataset


def by_dataset(examples: tuple[int, ...]) -> Running:
    """A job of which each trainer joined with a data set of so many examples."""
    chain = ledger(trainers=len(examples))
    creator, people = chain.actor("creator"), [chain.actor(name) for name in trainer_names(len(examples))]
    job = created_job(chain, creator, make_rules(weights="dataset", cap=100))
    accepted = chain.job(job).rules_hash
    named = [registered(chain, who, count) for who, count in zip(people, examples, strict=True)]
    joining = [who.sign(JoinJob(job, accepted, dataset=each)) for who, each in zip(people, named, strict=True)]
    chain.block(*joining)
    return Running(chain, job, creator, people)


def test_an_update_weighs_what_its_members_data_set_says_and_not_what_the_update_says() -> None:
    running = by_dataset((7, 60, 101, 2**32))
    running.ledger.block(*(running.update(who, examples=99) for who in running.trainers))
    assert weights(running) == [7, 60, 100, 100]
    assert running.round.examples == 4 * 99


def test_what_a_data_set_says_is_settled_when_its_owner_joins_with_it() -> None:
    running = by_dataset((7, 60, 70, 80))
    who = running.trainers[0]
    registered(running.ledger, who, 90, name="more")
    running.submit(*running.trainers)
    assert weights(running)[0] == 7


@pytest.mark.parametrize("code", ["UNKNOWN_DATASET", "UNAUTHORISED", "WITHDRAWN", "NO_WEIGHT"])
def test_one_joins_with_a_data_set_that_is_ones_own_and_there(code: str) -> None:
    chain = ledger()
    job = created_job(chain, chain.actor("creator"), make_rules(weights="dataset", cap=100))
    who, other = chain.actor("trainer-000"), chain.actor("trainer-001")
    accepted = chain.job(job).rules_hash
    dataset = registered(chain, other if code == "UNAUTHORISED" else who, 0 if code == "NO_WEIGHT" else 5)
    if code == "UNKNOWN_DATASET":
        assert chain.status_of(who.sign(JoinJob(job, accepted))) == code
        dataset = bytes(32)
    if code == "WITHDRAWN":
        chain.block(who.sign(WithdrawDataset(dataset)))
    assert chain.status_of(who.sign(JoinJob(job, accepted, dataset=dataset))) == code


def test_a_data_set_may_be_named_where_it_decides_nothing() -> None:
    chain = ledger()
    job = created_job(chain, chain.actor("creator"), make_rules())
    who = chain.actor("trainer-000")
    dataset = registered(chain, who, 0)
    assert chain.status_of(who.sign(JoinJob(job, chain.job(job).rules_hash, dataset=dataset))) == "ok"


def test_a_data_set_of_more_examples_than_can_be_counted_is_refused_by_its_bytes() -> None:
    chain = ledger()
    body = RegisterDataset("vast", b"", 0, False, "", "", "", 2**32 + 1)
    with pytest.raises(Exception, match="BAD_DATASET"):
        chain.check(chain.actor("creator").sign(body))


# Organisations

CLINICS = ("north", "north", "north", "south", "", "")


def of_clinics(**rules: object) -> Running:
    """Three members of one organisation, one of another, two that stand for themselves; an organisation weighs 90."""
    chosen = {"weights": "examples", "cap": 100, "organisation_cap": 90, "target": 6, **rules}
    return running_job(ledger(trainers=6, organisations=CLINICS), trainers=6, **chosen)


def test_the_members_of_an_organisation_share_its_cap() -> None:
    running = of_clinics()
    running.ledger.block(*(running.update(who, examples=1_000) for who in running.trainers))
    assert weights(running) == [30, 30, 30, 90, 90, 90]


def test_a_members_own_examples_and_cap_still_bound_it() -> None:
    running = of_clinics(cap=50)
    given_ = (10, 1_000, 29, 1_000, 49, 51)
    running.ledger.block(
        *(running.update(who, examples=count) for who, count in zip(running.trainers, given_, strict=True))
    )
    assert weights(running) == [10, 30, 29, 50, 49, 50]


def test_equal_weights_are_the_cap_less_what_organisations_divide() -> None:
    running = of_clinics(weights="equal", cap=45)
    running.submit(*running.trainers)
    assert weights(running) == [30, 30, 30, 45, 45, 45]


def test_who_joins_or_leaves_during_a_round_changes_no_cap_in_it() -> None:
    running = of_clinics()
    chain, (first, second, third, *_) = running.ledger, running.trainers
    accepted = chain.job(running.job).rules_hash
    chain.block(first.sign(LeaveJob(running.job)))
    chain.block(running.update(second, examples=1_000))
    chain.block(first.sign(JoinJob(running.job, accepted)))
    chain.block(running.update(third, examples=1_000))
    assert weights(running) == [30, 30]
    running.submit(*running.trainers[3:])
    chain.block(items=[result_item(chain.aggregations[-1])])
    chain.block(first.sign(LeaveJob(running.job)))
    chain.block(running.update(second, examples=1_000), running.update(third, examples=1_000))
    assert weights(running, 2) == [30, 30], "it was there when the round opened"


def test_a_newcomer_shares_its_organisations_cap_from_the_next_round_on() -> None:
    running = of_clinics()
    chain, newcomer = running.ledger, running.ledger.actor("newcomer")
    body = RegisterMember("newcomer", newcomer.key.public, ("trainer",), "south")
    chain.block(chain.actor("registrar").sign(body))
    chain.block(newcomer.sign(JoinJob(running.job, chain.job(running.job).rules_hash)))
    chain.block(*(running.update(who, examples=1_000) for who in running.trainers))
    assert weights(running)[3] == 90
    chain.block(items=[result_item(chain.aggregations[-1])])
    chain.block(running.update(running.trainers[3], examples=1_000), running.update(newcomer, examples=1_000))
    assert weights(running, 2) == [45, 45]


def test_of_a_cohort_that_is_drawn_those_drawn_share_the_cap() -> None:
    running = of_clinics(target=3, cohort=CohortRules(size=3))
    chain = running.ledger
    chain.block()
    asked = [who for who in running.trainers if chain.status_of(running.update(who, examples=1_000)) == "ok"]
    of_north = sum(who in running.trainers[:3] for who in asked)
    expected = {who.account: 90 // of_north if who in running.trainers[:3] else 90 for who in asked}
    found = {entry.member: entry.weight for entry in entries_of(chain.leaves, running.job, 1, 3)}
    assert found == expected


def test_of_a_round_with_check_in_those_who_checked_in_share_the_cap() -> None:
    running = of_clinics(minimum=2, cohort=CohortRules(check_in_ms=1_000))
    present = running.trainers[1:]
    running.ledger.block(*(who.sign(CheckIn(running.job, 1)) for who in present))
    running.ledger.block(after_ms=1_000)
    running.ledger.blocks(2)
    running.ledger.block(*(running.update(who, examples=1_000) for who in present))
    assert weights(running) == [45, 45, 90, 90, 90]


def test_who_leaves_before_the_check_in_is_over_takes_no_part_of_the_cap() -> None:
    running = of_clinics(minimum=2, cohort=CohortRules(check_in_ms=1_000))
    gone, *present = running.trainers
    running.ledger.block(*(who.sign(CheckIn(running.job, 1)) for who in present[2:]))
    running.ledger.block(gone.sign(LeaveJob(running.job)))
    running.ledger.block(*(who.sign(CheckIn(running.job, 1)) for who in present[:2]))
    running.ledger.block(*(running.update(who, examples=1_000) for who in present))
    assert weights(running) == [45, 45, 90, 90, 90]


def test_an_organisation_with_more_members_than_its_cap_has_none_that_weighs() -> None:
    running = of_clinics(organisation_cap=2)
    assert running.ledger.status_of(running.update(running.trainers[0])) == "NO_WEIGHT"
    assert running.ledger.status_of(running.update(running.trainers[3])) == "ok"


def test_only_a_registrar_says_who_belongs_to_an_organisation() -> None:
    chain = ledger(admission="open")
    newcomer = chain.actor("newcomer")
    body = RegisterMember("newcomer", newcomer.key.public, ("trainer",), "north")
    assert chain.status_of(newcomer.sign(body)) == "UNAUTHORISED"
    assert chain.status_of(chain.actor("registrar").sign(body)) == "ok"
    member = chain.member(newcomer.account)
    assert member is not None and member.organisation == "north"


def test_an_organisation_has_a_name_like_others() -> None:
    chain = ledger()
    with pytest.raises(Exception, match="BAD_NAME"):
        body = RegisterMember("newcomer", chain.actor("newcomer").key.public, (), "the north")
        chain.check(chain.actor("registrar").sign(body))
    genesis = make_genesis()
    odd = replace(genesis, members=(replace(genesis.members[0], organisation="the north"),))
    with pytest.raises(GenesisError, match="the north"):
        genesis_state(odd)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_organisation_ever_weighs_more_than_its_cap(choose: st.DataObject) -> None:
    """Whoever comes and goes, in whatever order, while rounds open and close."""
    running = of_clinics(minimum=1, rounds=9, cohort=CohortRules(check_in_ms=choose.draw(st.sampled_from((0, 400)))))
    chain, job = running.ledger, running.job
    accepted = chain.job(job).rules_hash
    for _ in range(choose.draw(st.integers(1, 25))):
        who = choose.draw(st.sampled_from(running.trainers))
        number = max(1, chain.job(job).round)
        update = running.body(who, examples=1_000, round=number)
        for body in choose.draw(st.permutations((JoinJob(job, accepted), LeaveJob(job), CheckIn(job, number), update)))[
            :2
        ]:
            chain.block(who.sign(body))
        current = chain.round(job)
        if current.phase == Phase.AGGREGATING:
            chain.block(items=[result_item(chain.aggregations[-1])])
    for number in range(1, chain.job(job).round + 1):
        size = chain.round(job, number).updates.size
        for organisation in ("north", "south"):
            own = {who.account for who, each in zip(running.trainers, CLINICS, strict=True) if each == organisation}
            entries = [each for each in entries_of(chain.leaves, job, number, size) if each.member in own]
            assert sum(entry.weight for entry in entries) <= 90
    state, current = State(chain.state.get), chain.round(job)
    if current.phase > Phase.DRAWING:
        assert members_in_cohort(state, job, current, "north") <= 3
    assert "FAULT" not in {receipt.status for receipt in chain.receipts}


# Groups of tensors


def test_weights_are_summed_for_each_group_of_tensors() -> None:
    running = running_job(groups=HALVES, weights="examples", cap=100)
    for who, group, examples in zip(running.trainers, (0, 1, 1, 0), (5, 7, 11, 13), strict=True):
        assert running.ledger.status_of(running.update(who, group=group, examples=examples)) == "ok"
    assert (running.round.weights, running.round.weight) == ((18, 18), 36)
    entries = list(entries_of(running.ledger.leaves, running.job, 1, 4))
    assert [(entry.group, entry.weight) for entry in entries] == [(0, 5), (1, 7), (1, 11), (0, 13)]


def test_a_member_answers_with_one_group() -> None:
    running = running_job(groups=HALVES)
    who = running.trainers[0]
    assert running.ledger.status_of(running.update(who, group=0)) == "ok"
    assert running.ledger.status_of(running.update(who, group=1)) == "DUPLICATE"


def test_a_group_that_the_job_has_not_is_refused_by_its_number_in_bytes_and_in_execution() -> None:
    running = running_job(groups=HALVES)
    body = replace(running.body(running.trainers[0], group=1), group=2)
    data = running.trainers[0].sign(body)
    with pytest.raises(Exception, match="UNKNOWN_GROUP"):
        running.ledger.check(data)
    assert running.ledger.status_of(data) == "UNKNOWN_GROUP"


def test_the_payload_of_one_group_is_none_of_another() -> None:
    running = running_job(groups=HALVES)
    rules, who = running.ledger.rules(running.job), running.trainers[0]
    assert form_of(rules, 0).layout.parameters == 3 and form_of(rules, 1).layout.parameters == 6
    body = replace(running.body(who, group=1), group=0)
    with pytest.raises(Exception, match=r"WRONG_HEADER|OVERSIZE"):
        running.ledger.check(who.sign(body))


# Nobody's update decides on another's


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 2**32), st.sampled_from((0, 1, -5, 2**62, METRIC_NAN)), st.floats(-256, 256)),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from((4, 16)),
)
def test_whether_an_update_is_taken_depends_on_no_other_updates_values(
    others: list[tuple[int, int, float]], maximum: int
) -> None:
    running = running_job(weights="examples", cap=2**20, maximum=maximum, minimum=1)
    for who, (examples, metric, value) in zip(running.trainers[:3], others, strict=True):
        data = running.update(who, examples=examples, metrics=(metric,), value=value)
        assert running.ledger.status_of(data) == "ok"
    last = running.trainers[3]
    assert running.ledger.status_of(running.update(last, examples=2**32, metrics=(2**63 - 2,), value=256.0)) == "ok"
    assert running.ledger.receipts[-1].weight == 2**20
    assert running.round.weight == sum(weights(running)) <= 4 * 2**20


# Bounds


@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_update_of_the_largest_round_overflows_nothing(sign: int) -> None:
    """All of 131,072 updates weigh 2^20, report 2^32 examples and a metric at the end of its range."""
    count, metric = MAX_UPDATES - 1, sign * (2**63 - 2)
    running = running_job(weights="examples", cap=2**20, maximum=MAX_UPDATES, groups=HALVES)
    total = (count * metric * 2**32).to_bytes(16, "big", signed=True)
    almost_full = replace(
        running.round,
        cohort=MAX_UPDATES,
        updates=Frontier(count, (bytes(32),) * count.bit_count()),
        weights=(0, count * 2**20),
        examples=count * 2**32,
        sums=(MetricSum(total, count * 2**32, 0),),
    )
    running.ledger.state[round_key(running.job, 1)] = encode(almost_full)
    last = running.update(running.trainers[0], group=1, examples=2**32, metrics=(metric,))
    assert running.ledger.status_of(last) == "ok"
    full = running.round
    assert (full.phase, full.updates.size, full.weights) == (Phase.AGGREGATING, MAX_UPDATES, (0, 2**37))
    assert (full.examples, full.means) == (2**49, (metric,))
    late = running.update(running.trainers[1], group=1)
    assert running.ledger.status_of(late) == "LATE"
