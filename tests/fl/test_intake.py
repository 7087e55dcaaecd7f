"""The updates of a block share what is the same for all of them, and are counted up together: whatever comes between
them, the block is the same as if each had been looked at and counted alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.log import Frontier
from fl.accounts import rotation
from fl.cohort import has_seat, read_seats, with_seats, written_seats
from fl.execution import BlockInput, BlockOutcome, Execution
from fl.jobs import JoinJob, LeaveJob, PauseJob, ResumeJob, StopJob
from fl.machine import execute_block
from fl.records import Joined, Round, Seated
from fl.state import Gathering, State, joined_key, seated_key
from tests.fl.builders import Actor, Running, ledger, running_job, signing_key

TRAINERS = 6
JOBS: tuple[dict[str, Any], ...] = (
    {},
    {"target": 3, "maximum": 3, "minimum": 2},
    {"organisation_cap": 900, "weights": "examples", "cap": 500},
    {"mode": "async", "discounts": (1_024, 512), "rounds": 20, "target": 4, "minimum": 2},
)


def leave(running: Running, who: Actor) -> bytes:
    return who.sign(LeaveJob(running.job))


def join(running: Running, who: Actor) -> bytes:
    return who.sign(JoinJob(running.job, running.ledger.job(running.job).rules_hash))


def rotate(running: Running, who: Actor) -> bytes:
    new = signing_key(f"{who.name}/{who.nonce}")
    data = who.sign(rotation(new, running.ledger.chain_id, who.account))
    who.key = new
    return data


ACTIONS: dict[str, Callable[[Running, Actor], bytes]] = {
    "update": lambda running, who: running.update(who, examples=600 + who.nonce),
    "another update": lambda running, who: running.update(who, examples=7),
    "a third": lambda running, who: running.update(who, value=0.25),
    "of no weight": lambda running, who: running.update(who, examples=0),
    "early": lambda running, who: running.update(who, round=running.round.number + 1),
    "of another base": lambda running, who: running.update(who, base=bytes(36)),
    "nonce used": lambda running, who: who.sign(running.body(who), nonce=0),
    "of a stranger": lambda running, who: running.ledger.actor("stranger").sign(running.body(who)),
    "of another chain": lambda running, who: who.sign(running.body(who), chain_id=bytes(32)),
    "no longer valid": lambda running, who: who.sign(running.body(who), valid_until_ms=1),
    "no bytes of ours": lambda running, who: b"\x00",
    "leave": leave,
    "join": join,
    "rotate": rotate,
    "pause": lambda running, who: running.creator.sign(PauseJob(running.job)),
    "resume": lambda running, who: running.creator.sign(ResumeJob(running.job)),
    "stop": lambda running, who: running.creator.sign(StopJob(running.job)),
}
OFTEN = ["update"] * 12 + ["another update"] * 2 + list(ACTIONS)

STEPS = st.lists(st.tuples(st.integers(0, TRAINERS - 1), st.sampled_from(OFTEN)), min_size=1, max_size=16)


def executed(running: Running, block: BlockInput, before_each: Callable[[State], None]) -> BlockOutcome:
    mark = Execution.mark

    def marked(self: Execution) -> None:
        before_each(self.state)
        mark(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "mark", marked)
        return execute_block(running.ledger.read, block)


def look_up_again(state: State) -> None:
    state.derived.clear()


def count_up(state: State) -> None:
    for key in sorted(state._gatherings):
        state.get(Round, key)


def come_to(outcome: BlockOutcome) -> tuple[object, ...]:
    """Without where a log's growth, or what a round took, is divided."""
    logs: dict[bytes, list[bytes]] = {}
    taken: dict[tuple[bytes, int], list[object]] = {}
    for growth in outcome.logs:
        logs.setdefault(growth.log, []).extend(growth.leaves)
    for each in outcome.accepted:
        taken.setdefault((each.job, each.round), []).extend(zip(each.entries, each.payloads, strict=True))
    nodes = sorted((growth.log, node) for growth in outcome.logs for node in growth.nodes)
    return outcome.changes, outcome.receipts, outcome.ids, outcome.events, logs, nodes, taken, outcome.aggregations


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(JOBS), st.lists(STEPS, min_size=1, max_size=3))
def test_a_block_comes_to_what_it_would_if_each_transaction_were_alone(
    rules: dict[str, Any], blocks: list[list[tuple[int, str]]]
) -> None:
    chain = ledger(trainers=TRAINERS, organisations=("north", "north", "north", "south"))
    running = running_job(chain, TRAINERS, **rules)
    for steps in blocks:
        sent = [ACTIONS[action](running, running.trainers[who]) for who, action in steps]
        block = chain.input(*sent)
        outcome = execute_block(chain.read, block)
        assert executed(running, block, look_up_again) == outcome
        assert come_to(executed(running, block, count_up)) == come_to(outcome)
        assert outcome.changes.replaced == {key: chain.state.get(key) for key in outcome.writes}
        chain.execute(block)
    assert "FAULT" not in {receipt.status for receipt in chain.receipts}


def test_what_was_made_of_records_is_dropped_when_one_of_them_changes() -> None:
    state, key = State(lambda key: None), seated_key(bytes(32))

    class Standing(Gathering):
        def gathered(self) -> Seated:
            return Seated(b"\x02")

    def is_dropped(change: Callable[[], object]) -> bool:
        state.derived[b"job"] = "what was made"
        change()
        return not state.derived

    assert is_dropped(lambda: state.put(key, Seated(b"\x01")))
    assert is_dropped(state.roll_back)
    assert is_dropped(lambda: state.delete(joined_key(bytes(32), bytes(32)), Joined))
    state.mark()
    assert not is_dropped(lambda: state.settle(b"another", Frontier(0, ())))
    assert not is_dropped(lambda: state.gather(Seated, key, Standing()))
    assert not is_dropped(lambda: state.get(Joined, joined_key(bytes(32), bytes(32))))
    assert is_dropped(lambda: state.get(Seated, key))
    assert is_dropped(state.changes)


@given(st.sets(st.integers(0, 2_000)), st.sets(st.integers(0, 2_000), min_size=1))
def test_seats_are_added_without_reading_the_others(seats: set[int], more: set[int]) -> None:
    written = written_seats(sum(1 << seat for seat in seats))
    added = with_seats(written, more)
    assert added == written_seats(read_seats(written) | sum(1 << seat for seat in more))
    assert {seat for seat in range(2_010) if has_seat(added, seat)} == seats | more
