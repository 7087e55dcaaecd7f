"""Any order of steps, losses, doublings, crashes and restarts: what was promised holds, then and at the end."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain.availability import AvailabilityCertificate
from chain.certificate import Available, Vote, VoteKind, read_subject, seats_in
from chain.genesis import Params
from consensus.availability import Need
from consensus.effects import Tick
from tests.consensus.availability.world import World, submit

PARAMS = replace(Params(), creator_quota_batches=6)

Move = tuple[str, int]
PAUSES = (1, 10, 250, 1_000, 3_000)
NODE_MOVES = ("submit", "flush", "check", "crash", "restart", "order")
LIKELY = (
    *("submit", "deliver all", "wait", "drop", "double", "status", "order"),
    *("flush", "check") * 6,
    *("deliver",) * 10,
    *("restart", "crash"),
)


def clip(move: Move) -> Move:
    name, number = move
    if name in NODE_MOVES:
        return name, number % 4
    return (name, PAUSES[number % len(PAUSES)]) if name == "wait" else move


moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 3)),
        st.tuples(st.just("flush"), st.integers(0, 3)),
        st.tuples(st.just("check"), st.integers(0, 3)),
        st.tuples(st.just("deliver"), st.integers(0, 30)),
        st.tuples(st.just("deliver all"), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("double"), st.integers(0, 30)),
        st.tuples(st.just("crash"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from(PAUSES)),
        st.tuples(st.just("status"), st.just(0)),
        st.tuples(st.just("order"), st.integers(0, 3)),
    ),
    max_size=80,
)


class WatchedWorld(World):
    """Looks at everything that leaves a machine: a vote stands for a batch on its signer's disk."""

    def _post(self, source: int, target: int, message: object) -> None:
        if isinstance(message, Vote):
            assert self.holds_voted(source, message.subject)
        if isinstance(message, AvailabilityCertificate):
            assert all(self.holds_voted(signer, message.subject) for signer in seats_in(message.signers))
            assert message in self.certificates(source)
        super()._post(source, target, message)

    def holds_voted(self, node: int, subject: bytes) -> bool:
        statement = read_subject(VoteKind.AVAILABLE, subject)
        assert isinstance(statement, Available)
        return any(record.voted and record.signed.reference == statement for record in self.stored(node))

    def lacks(self, node: int) -> tuple[bytes, ...]:
        held = {record.signed.reference.batch for record in self.stored(node)}
        return tuple(digest for block in self.blocks for digest in block if digest not in held)


def play(world: World, schedule: list[Move]) -> None:
    nonce = 0
    for move, number in schedule:
        if move == "wait":
            world.now_ms += number
            for node in world.alive:
                deadline = world.core(node).deadline()
                if deadline is not None and world.now_ms >= deadline:
                    world.step(node, Tick())
        elif move == "deliver all":
            while world.wire:
                world.deliver()
        elif move == "deliver" and world.wire:
            world.deliver(number % len(world.wire))
        elif move == "double" and world.wire:
            world.deliver(number % len(world.wire), keep=True)
        elif move == "drop" and world.wire:
            del world.wire[number % len(world.wire)]
        elif move == "status":
            world.exchange_status()
        elif move == "restart" and number not in world.alive:
            world.restart(number)
        elif number not in world.alive or move in ("deliver", "double", "drop", "restart"):
            continue
        elif move == "submit":
            nonce += 1
            world.step(number, submit(nonce))
        elif move == "flush":
            world.flush(number)
        elif move == "check":
            world.answer_checks(number)
        elif move == "crash":
            world.crash(number)
        elif move == "order":
            world.order_from(number)


def hold(schedule: list[Move], gone: int | None) -> World:
    world = WatchedWorld(4, PARAMS)
    play(world, schedule)

    for node in range(4):
        if node == gone:
            if node in world.alive:
                world.crash(node)
        elif node not in world.alive:
            world.restart(node)
    world.run(12_000)
    while any(world.order_from(leader) for leader in world.alive):
        # Blocks free the quotas, and what waited for them in the pools is packed.
        world.run(3_000)
    for node in world.alive:
        world.step(node, Need(world.lacks(node)))
    world.run(10_000)

    ordered = {digest for block in world.blocks for digest in block}
    assert {ack.batch for machine in world.machines for ack in machine.acks} <= ordered
    assert sum(len(block) for block in world.blocks) == len(ordered)
    for node in world.alive:
        assert world.lacks(node) == ()
        assert set(world.core(node).counts().values()) == {0}
    assert world.all_faults() == []
    for node in range(4):
        own = [record.signed.batch for record in world.stored(node) if record.signed.batch.creator == node]
        assert len({batch.sequence for batch in own}) == len(own)
    return world


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=moves, gone=st.none() | st.integers(0, 3))
def test_what_is_acknowledged_is_held_by_a_quorum_and_ordered_even_if_one_never_returns(
    schedule: list[Move], gone: int | None
) -> None:
    hold(schedule, gone)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))])
def test_long_schedules_too(seed: int) -> None:
    chance = Random(seed)
    schedule = [(chance.choice(LIKELY), chance.randrange(31)) for _ in range(400)]
    hold([clip(move) for move in schedule], chance.choice([None, 0, 1, 2, 3]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=moves)
def test_one_schedule_always_gives_the_same_messages(schedule: list[Move]) -> None:
    one, other = World(4, PARAMS), World(4, PARAMS)
    play(one, schedule)
    play(other, schedule)
    assert one.sent == other.sent
    assert [machine.disk for machine in one.machines] == [machine.disk for machine in other.machines]
