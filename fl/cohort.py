"""Who is in a job, and who may answer its rounds.

Each trainer who joins takes the lowest free *seat*, so a set of trainers is a short string of bits. A round's cohort is
everyone who had joined when it opened; with a check-in or a draw it is listed, as *candidates*. Whoever leaves without
having answered is not waited for, and whoever takes the seat meanwhile is in the rounds that open later.

An organisation's cap is divided by its members in the cohort as the round opened. They are counted when the first of
them is looked at: joining and leaving count them first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from fl.execution import Execution
from fl.records import (
    Answered,
    Candidates,
    EventKind,
    Job,
    JobRules,
    Joined,
    Member,
    Organisation,
    Phase,
    Round,
    Seated,
)
from fl.state import (
    State,
    answered_key,
    candidates_key,
    job_key,
    joined_key,
    member_key,
    organisation_key,
    round_key,
    rules_key,
    seated_key,
)
from fl.tensors.grid import MAX_UPDATES

_MILLION = 10**6
_NOBODY = Seated(b"")
_NO_MEMBERS = Organisation(b"", 0, 0)


def is_listed(rules: JobRules) -> bool:
    """Whether the cohort of a round may be fewer than those who have joined."""
    return bool(rules.cohort.size or rules.cohort.check_in_ms)


def cohort_size(rules: JobRules) -> int:
    """How many are drawn if there are as many: those wanted, and so many more that some may fall away."""
    return -(-rules.cohort.size * (_MILLION + rules.cohort.over_ppm) // _MILLION)


def seated(state: State, job_id: bytes) -> int:
    return read_seats((state.get(Seated, seated_key(job_id)) or _NOBODY).seats)


def candidates(state: State, job_id: bytes, number: int) -> int | None:
    """Of the newest round; None where that is everyone who joined before it."""
    seats = candidate_seats(state, job_id, number)
    return None if seats is None else read_seats(seats)


def candidate_seats(state: State, job_id: bytes, number: int) -> bytes | None:
    listed = state.get(Candidates, candidates_key(job_id))
    return listed.seats if listed is not None and listed.round == number else None


def answered(state: State, job_id: bytes, number: int) -> bytes:
    """Whose updates this round holds; nobody's, if a later one holds any."""
    found = state.get(Answered, answered_key(job_id))
    return found.seats if found is not None and found.round == number else b""


def has_answered(answered: Answered | None, number: int, joined: Joined) -> bool:
    """This member, to this round."""
    if answered is None or answered.round != number or number < joined.from_round:
        return False
    return has_seat(answered.seats, joined.seat)


def put_answered(state: State, job_id: bytes, number: int, seats: bytes) -> None:
    state.put(answered_key(job_id), Answered(number, seats))


def put_candidates(state: State, job_id: bytes, number: int, seats: int) -> None:
    state.put(candidates_key(job_id), Candidates(number, written_seats(seats)))


def join(
    execution: Execution, job_id: bytes, job: Job, account: bytes, dataset: bytes = b"", examples: int = 0
) -> None:
    """Into the cohorts of the rounds that open from here on."""
    state = execution.state
    taken = seated(state, job_id)
    seat = (~taken & (taken + 1)).bit_length() - 1
    state.put(seated_key(job_id), Seated(written_seats(taken | 1 << seat)))
    _seat_in_organisation(state, job_id, job, account, seat, taken=True)
    joined = Joined(from_round=job.round + 1, seat=seat, dataset=dataset, examples=examples)
    state.put(joined_key(job_id, account), joined)
    state.put(job_key(job_id), replace(job, members=job.members + 1))
    execution.touched.add(job_id)
    execution.event(EventKind.JOB_JOINED, job_id, subject=account)


def leave(execution: Execution, job_id: bytes, job: Job, account: bytes, joined: Joined) -> None:
    """An update given before leaving still counts."""
    state = execution.state
    _seat_in_organisation(state, job_id, job, account, joined.seat, taken=False)
    state.put(seated_key(job_id), Seated(written_seats(seated(state, job_id) & ~(1 << joined.seat))))
    state.delete(joined_key(job_id, account), Joined)
    state.put(job_key(job_id), replace(job, members=job.members - 1))
    current = state.get(Round, round_key(job_id, job.round))
    if current is not None and joined.from_round <= current.number:
        seats = answered(state, job_id, current.number)
        if not has_seat(seats, joined.seat):
            _wait_no_longer(state, job_id, current, joined.seat)
    execution.touched.add(job_id)
    execution.event(EventKind.JOB_LEFT, job_id, subject=account)


def _wait_no_longer(state: State, job_id: bytes, current: Round, seat: int) -> None:
    if current.phase > Phase.COLLECTING:
        return
    listed, checking_in = candidates(state, job_id, current.number), current.phase == Phase.CHECK_IN
    is_candidate = listed is not None and bool(listed >> seat & 1)
    if listed is not None and is_candidate:
        put_candidates(state, job_id, current.number, listed & ~(1 << seat))
    if checking_in or listed is None or is_candidate:
        fewer = replace(
            current,
            cohort=current.cohort - 1,
            checked_in=current.checked_in - (checking_in and is_candidate),
        )
        state.put(round_key(job_id, current.number), fewer)


# Organisations


def members_in_cohort(state: State, job_id: bytes, current: Round, name: str) -> int:
    """How many members of this organisation were in the round's cohort when it was settled, whoever has left since."""
    return _counted(state, job_id, current, name).cohort


def _counted(state: State, job_id: bytes, current: Round | None, name: str) -> Organisation:
    known = state.get(Organisation, organisation_key(job_id, name)) or _NO_MEMBERS
    if current is None or known.round == current.number or current.phase <= Phase.DRAWING:
        return known
    seats, listed = read_seats(known.seats), candidates(state, job_id, current.number)
    cohort = seats if listed is None else seats & listed
    return replace(known, round=current.number, cohort=cohort.bit_count())


def _seat_in_organisation(state: State, job_id: bytes, job: Job, account: bytes, seat: int, taken: bool) -> None:
    member, rules = state.get(Member, member_key(account)), state.get(JobRules, rules_key(job_id))
    if member is None or rules is None or not member.organisation or not rules.organisation_cap:
        return
    counted = _counted(state, job_id, state.get(Round, round_key(job_id, job.round)), member.organisation)
    others = read_seats(counted.seats) & ~(1 << seat)
    seats = others | 1 << seat if taken else others
    state.put(organisation_key(job_id, member.organisation), replace(counted, seats=written_seats(seats)))


# Sets of seats


def read_seats(seats: bytes | bytearray) -> int:
    return int.from_bytes(seats, "little")


def written_seats(seats: int) -> bytes:
    return seats.to_bytes((seats.bit_length() + 7) // 8, "little")


def has_seat(seats: bytes, seat: int) -> bool:
    """Without reading the others."""
    place = seat >> 3
    return place < len(seats) and bool(seats[place] >> (seat & 7) & 1)


def with_seats(seats: bytes, more: Collection[int]) -> bytes:
    """These, of which there is one at least, and `more`."""
    table = bytearray(seats.ljust((max(more) >> 3) + 1, b"\0"))
    for seat in more:
        table[seat >> 3] |= 1 << (seat & 7)
    return bytes(table)


def places_of(seats: int) -> Iterator[int]:
    """Rising. By its digits: to shift a number of a hundred thousand bits for each of them takes a second."""
    return (place for place, digit in enumerate(reversed(f"{seats:b}")) if digit == "1")


def with_places(places: Iterable[int]) -> int:
    seats = bytearray(MAX_UPDATES // 8)
    for place in places:
        seats[place >> 3] |= 1 << (place & 7)
    return read_seats(seats)
