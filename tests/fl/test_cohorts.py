"""Cohorts: seats, the check-in, the draw; who is asked, who is waited for, and who is told that it is not asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.cohort import candidates, has_answered, places_of, read_seats, seated, with_places, written_seats
from fl.jobs import JoinJob, LeaveJob
from fl.lots import drawn
from fl.machine import execute_block, wants_block_at
from fl.members import RegisterMember, RevokeMember
from fl.records import Answered, CohortRules, EventKind, JobStatus, Joined, Phase
from fl.rounds import CheckIn
from fl.state import State, answered_key, joined_key, read_record
from tests.fl.builders import Actor, Running, result_item, running_job, trainer_names

TRAINERS = 8


def drawn_job(size: int = 3, over_ppm: int = 0, check_in_ms: int = 0, **rules: object) -> Running:
    """With a round opened, whose target is the cohort's size."""
    given_ = {"target": size or 4, "minimum": 2, "cohort": CohortRules(size, over_ppm, check_in_ms), **rules}
    return running_job(trainers=TRAINERS, **given_)


def joined(running: Running, who: Actor) -> Joined:
    found = read_record(running.ledger.state.get, Joined, joined_key(running.job, who.account))
    assert found is not None
    return found


def answered(running: Running) -> Answered | None:
    return read_record(running.ledger.state.get, Answered, answered_key(running.job))


def cohort(running: Running) -> list[Actor]:
    """Those of whom the round wants an answer."""
    listed = candidates(State(running.ledger.state.get), running.job, running.round.number)
    assert listed is not None
    return [who for who in running.trainers if listed >> joined(running, who).seat & 1]


def check_in(running: Running, *people: Actor, round: int = 1) -> list[str]:
    before = len(running.ledger.receipts)
    running.ledger.block(*(who.sign(CheckIn(running.job, round)) for who in people))
    return [receipt.status for receipt in running.ledger.receipts[before:]]


# Seats


def test_who_joins_takes_the_lowest_free_seat() -> None:
    running = running_job(trainers=6)
    assert [joined(running, who).seat for who in running.trainers] == [0, 1, 2, 3, 4, 5]
    running.ledger.block(*(running.trainers[at].sign(LeaveJob(running.job)) for at in (4, 1)))
    assert seated(State(running.ledger.state.get), running.job) == 0b101101
    accepted = running.ledger.job(running.job).rules_hash
    running.ledger.block(*(running.trainers[at].sign(JoinJob(running.job, accepted)) for at in (4, 1)))
    assert [joined(running, running.trainers[at]).seat for at in (4, 1)] == [1, 4]


def test_who_takes_the_seat_of_one_who_has_answered_has_not() -> None:
    running = running_job()
    who, accepted = running.trainers[0], running.ledger.job(running.job).rules_hash
    running.submit(who)
    assert has_answered(answered(running), 1, joined(running, who))
    running.ledger.block(who.sign(LeaveJob(running.job)))
    running.ledger.block(who.sign(JoinJob(running.job, accepted)))
    assert joined(running, who).seat == 0 and not has_answered(answered(running), 1, joined(running, who))
    assert running.ledger.status_of(running.update(who)) == "NOT_JOINED"
    running.ledger.block(who.sign(LeaveJob(running.job)))
    assert running.round.cohort == 4, "the update that was given counts, so it is waited for"


def test_an_answer_in_an_earlier_block_is_remembered_until_another_round_takes_one() -> None:
    running = running_job()
    running.submit(*running.trainers[:2])
    again = [running.ledger.status_of(running.update(who)) for who in running.trainers[:3]]
    assert again == ["DUPLICATE", "DUPLICATE", "ok"]
    running.submit(running.trainers[3])
    running.ledger.block(items=[result_item(running.ledger.aggregations[-1])])
    assert running.round.number == 2
    first = joined(running, running.trainers[0])
    assert has_answered(answered(running), 1, first) and not has_answered(answered(running), 2, first)
    late = [running.update(who, round=1) for who in running.trainers[:2]]
    assert running.ledger.status_of(late[0]) == "DUPLICATE"
    running.submit(running.trainers[3])
    assert running.ledger.status_of(late[1]) == "LATE"


@given(st.sets(st.integers(0, 2**17 - 1), max_size=20))
def test_sets_of_seats_are_written_in_the_fewest_bytes(places: set[int]) -> None:
    seats = sum(1 << place for place in places)
    written = written_seats(seats)
    assert read_seats(written) == seats and len(written) <= 2**14
    assert not written or written[-1]
    assert list(places_of(seats)) == sorted(places) and with_places(places) == seats


# The draw


def test_a_cohort_is_drawn_by_the_beacon_of_the_block_after_the_one_that_opened_the_round() -> None:
    running = drawn_job(size=3)
    assert (running.round.phase, running.round.cohort) == (Phase.DRAWING, TRAINERS)
    assert wants_block_at(running.ledger.state.get) == 0
    assert running.ledger.status_of(running.update(running.trainers[0])) == "NOT_COLLECTING"
    assert (running.round.phase, running.round.cohort) == (Phase.COLLECTING, 3)
    assert len(cohort(running)) == 3
    assert running.round.deadline_ms == running.ledger.time_ms + 10_000


def test_another_beacon_draws_another_cohort_and_the_same_one_the_same() -> None:
    running = drawn_job(size=3)
    block, read = running.ledger.input(), running.ledger.state.get
    outcomes = [execute_block(read, replace(block, beacon=sha256(b"%d" % at).digest())).writes for at in (1, 2, 1)]
    assert outcomes[0] == outcomes[2] != outcomes[1]


@pytest.mark.parametrize(("size", "over_ppm", "expected"), [(3, 0, 3), (3, 1, 4), (4, 500_000, 6), (7, 10**6, 8)])
def test_so_many_more_are_drawn_that_some_may_fall_away(size: int, over_ppm: int, expected: int) -> None:
    running = drawn_job(size=size, over_ppm=over_ppm)
    running.ledger.block()
    assert running.round.cohort == len(cohort(running)) == expected


def test_those_beyond_the_wanted_ones_hold_no_round_up() -> None:
    running = drawn_job(size=3, over_ppm=10**6)
    running.ledger.block()
    assert running.round.cohort == 6
    running.submit(*cohort(running)[:3])
    running.ledger.blocks(2)
    assert (running.round.phase, running.round.updates.size) == (Phase.AGGREGATING, 3)


def test_who_is_not_drawn_is_told_so() -> None:
    running = drawn_job(size=3)
    running.ledger.block()
    asked = cohort(running)
    for who in running.trainers:
        assert running.ledger.status_of(running.update(who)) == ("ok" if who in asked else "NOT_DRAWN")
    told = [event for event in running.ledger.events if event.kind == EventKind.UPDATE_REFUSED]
    assert {event.subject for event in told} == {who.account for who in running.trainers if who not in asked}
    assert {(event.job, event.round, event.code) for event in told} == {(running.job, 1, "NOT_DRAWN")}


def test_everybody_drawn_has_answered_and_the_round_is_decided_at_once() -> None:
    running = drawn_job(size=3)
    running.ledger.block()
    running.submit(*cohort(running))
    assert running.round.phase == Phase.AGGREGATING


def test_each_round_draws_anew() -> None:
    running = drawn_job(size=3, rounds=20)
    seen = set()
    for _ in range(12):
        running.ledger.block()
        seen.add(tuple(who.name for who in cohort(running)))
        running.submit(*cohort(running))
        running.ledger.block(items=[result_item(running.ledger.aggregations[-1])])
    assert len(seen) > 6


def test_who_leaves_before_the_draw_is_not_drawn_and_who_takes_its_seat_neither() -> None:
    running = drawn_job(size=TRAINERS - 1)
    gone, newcomer = running.trainers[0], running.ledger.actor("newcomer")
    accepted = running.ledger.job(running.job).rules_hash
    body = RegisterMember("newcomer", newcomer.key.public, ("trainer",))
    running.ledger.block(
        gone.sign(LeaveJob(running.job)),
        running.ledger.actor("registrar").sign(body),
        newcomer.sign(JoinJob(running.job, accepted)),
    )
    assert joined(running, newcomer).seat == 0
    running.trainers.remove(gone)
    assert running.round.cohort == len(cohort(running)) == TRAINERS - 1
    assert running.ledger.status_of(running.update(newcomer)) == "NOT_JOINED"


def test_who_is_drawn_and_leaves_is_not_waited_for_whether_by_itself_or_revoked() -> None:
    running = drawn_job(size=4)
    running.ledger.block()
    first, second, third, fourth = cohort(running)
    running.submit(first, second)
    revocation = running.ledger.actor("registrar").sign(RevokeMember(third.account))
    running.ledger.block(revocation)
    assert running.round.cohort == 3
    assert running.ledger.status_of(third.sign(running.body(third))) == "REVOKED"
    running.ledger.block(fourth.sign(LeaveJob(running.job)))
    assert (running.round.phase, running.round.updates.size) == (Phase.AGGREGATING, 2)


def test_who_is_not_drawn_and_leaves_changes_nothing_for_the_round() -> None:
    running = drawn_job(size=3)
    running.ledger.block()
    bystander = next(who for who in running.trainers if who not in cohort(running))
    running.ledger.block(bystander.sign(LeaveJob(running.job)))
    assert running.round.cohort == 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 80), st.binary(min_size=32, max_size=32))
def test_a_draw_is_of_exactly_so_many_and_depends_on_no_order(people: int, count: int, beacon: bytes) -> None:
    seats = [place.to_bytes(4, "big") for place in range(people)]
    chosen = drawn(beacon, b"purpose", seats, count)
    assert len(set(chosen)) == len(chosen) == min(count, people)
    assert drawn(beacon, b"purpose", reversed(seats), count) == chosen


def test_every_seat_is_drawn_about_as_often_as_any_other() -> None:
    """2,000 draws of 10 among 40: 500 each, with a standard deviation of 19.4; five of those are allowed."""
    seats = [place.to_bytes(4, "big") for place in range(40)]
    often = Counter(seat for at in range(2_000) for seat in drawn(sha256(b"%d" % at).digest(), b"r", seats, 10))
    assert all(abs(often[seat] - 500) < 97 for seat in seats)
    low, high = (sum(often[seat] for seat in half) for half in (seats[:20], seats[20:]))
    assert abs(low - high) < 2_000


# The check-in


def test_a_round_collects_at_once_when_all_have_checked_in() -> None:
    running = drawn_job(size=0, check_in_ms=5_000)
    assert (running.round.phase, running.round.cohort) == (Phase.CHECK_IN, TRAINERS)
    assert running.ledger.status_of(running.update(running.trainers[0])) == "NOT_COLLECTING"
    assert check_in(running, *running.trainers) == ["ok"] * TRAINERS
    assert (running.round.phase, running.round.cohort, running.round.checked_in) == (Phase.COLLECTING, 8, 8)


def test_who_has_not_checked_in_is_not_waited_for_and_is_told_so() -> None:
    running = drawn_job(size=0, check_in_ms=5_000)
    present = running.trainers[2:6]
    check_in(running, *present)
    running.ledger.block(after_ms=5_000)
    assert running.round.closing_height == running.ledger.height, "who checks in as the time ends is not shut out"
    assert check_in(running, running.trainers[6]) == ["ok"]
    running.ledger.block()
    assert (running.round.phase, running.round.cohort) == (Phase.COLLECTING, 5)
    assert running.ledger.status_of(running.update(running.trainers[0])) == "NOT_CHECKED_IN"
    running.submit(*present, running.trainers[6])
    assert (running.round.phase, running.round.updates.size) == (Phase.AGGREGATING, 5)


def test_a_cohort_is_drawn_among_those_who_checked_in() -> None:
    running = drawn_job(size=3, check_in_ms=5_000)
    present = running.trainers[:5]
    check_in(running, *present)
    running.ledger.block(after_ms=5_000)
    running.ledger.blocks(2)
    assert (running.round.phase, running.round.cohort) == (Phase.DRAWING, 5)
    running.ledger.block()
    asked = cohort(running)
    assert len(asked) == 3 and all(who in present for who in asked)
    passed_over = next(who for who in present if who not in asked)
    assert running.ledger.status_of(running.update(passed_over)) == "NOT_DRAWN"
    assert running.ledger.status_of(running.update(running.trainers[7])) == "NOT_CHECKED_IN"


def test_a_check_in_below_the_minimum_is_extended_once_and_then_the_round_fails() -> None:
    running = drawn_job(size=0, check_in_ms=5_000)
    check_in(running, running.trainers[0])
    running.ledger.block(after_ms=5_000)
    assert running.round.extended and running.round.deadline_ms == running.ledger.time_ms + 5_000
    running.ledger.block(after_ms=5_000)
    running.ledger.blocks(2)
    failed = running.ledger.round(running.job, 1)
    assert (failed.phase, failed.code) == (Phase.FAILED, "BELOW_MINIMUM")
    assert (running.round.number, running.round.phase, running.round.checked_in) == (2, Phase.CHECK_IN, 0)


def test_rounds_for_which_nobody_checks_in_pause_the_job() -> None:
    running = drawn_job(size=3, check_in_ms=1_000, max_failed=2)
    running.ledger.blocks(12, after_ms=1_000)
    job = running.ledger.job(running.job)
    assert (job.status, job.round) == (JobStatus.PAUSED, 2)


def test_a_check_in_counts_for_its_round_alone_and_once() -> None:
    running = drawn_job(size=0, check_in_ms=5_000)
    who = running.trainers[0]
    assert check_in(running, who, round=2) == ["WRONG_ROUND"]
    assert check_in(running, who, who) == ["ok", "DUPLICATE"]
    check_in(running, *running.trainers[1:7])
    running.ledger.block(after_ms=5_000)
    running.ledger.blocks(2)
    assert running.round.phase == Phase.COLLECTING
    assert check_in(running, running.trainers[7]) == ["LATE"]
    running.submit(*running.trainers[:7])
    running.ledger.block(items=[result_item(running.ledger.aggregations[-1])])
    assert (running.round.number, running.round.checked_in) == (2, 0)
    assert check_in(running, running.trainers[7], round=1) == ["LATE"]


def test_a_job_without_check_in_has_nobody_check_in() -> None:
    running = running_job()
    assert check_in(running, running.trainers[0]) == ["NO_CHECK_IN"]


def test_who_joins_during_the_check_in_is_in_the_next_round() -> None:
    running = running_job(trainers=5, target=4, cohort=CohortRules(check_in_ms=5_000))
    late = running.trainers[4]
    running.ledger.block(late.sign(LeaveJob(running.job)))
    running.ledger.block(late.sign(JoinJob(running.job, running.ledger.job(running.job).rules_hash)))
    assert running.round.cohort == 4
    assert check_in(running, late) == ["NOT_JOINED"]


def test_who_leaves_during_the_check_in_is_not_waited_for_whether_it_checked_in_or_not() -> None:
    running = running_job(trainers=5, target=5, cohort=CohortRules(check_in_ms=5_000))
    check_in(running, *running.trainers[:3])
    running.ledger.block(*(running.trainers[at].sign(LeaveJob(running.job)) for at in (0, 4)))
    assert (running.round.phase, running.round.checked_in, running.round.cohort) == (Phase.CHECK_IN, 2, 3)
    check_in(running, running.trainers[3])
    assert (running.round.phase, running.round.cohort) == (Phase.COLLECTING, 3)


def test_a_check_in_that_was_extended_leaves_the_round_its_own_extension() -> None:
    running = drawn_job(size=0, check_in_ms=5_000)
    running.ledger.block(after_ms=5_000)
    assert running.round.extended
    check_in(running, *running.trainers)
    assert (running.round.phase, running.round.extended, running.round.closing_height) == (Phase.COLLECTING, False, 0)
    running.ledger.block(after_ms=10_000)
    assert running.round.extended and running.round.phase == Phase.COLLECTING


def test_who_leaves_once_a_round_is_settled_still_was_in_its_cohort() -> None:
    running = drawn_job(size=4, target=2)
    running.ledger.block()
    first, second, third, fourth = cohort(running)
    running.submit(first, second)
    running.ledger.blocks(2)
    assert running.round.phase == Phase.AGGREGATING
    running.ledger.block(third.sign(LeaveJob(running.job)))
    running.ledger.block(items=[result_item(running.ledger.aggregations[-1])])
    running.ledger.block(fourth.sign(LeaveJob(running.job)))
    assert running.ledger.round(running.job, 1).cohort == 4


def test_a_crowd_is_seated_and_drawn_from() -> None:
    people = 300
    running = running_job(trainers=people, target=100, maximum=100, cohort=CohortRules(size=100))
    running.ledger.block()
    asked = cohort(running)
    assert len(asked) == 100
    assert [who.name for who in asked] != trainer_names(people)[:100]
    running.submit(*asked)
    assert running.round.phase == Phase.AGGREGATING
