"""The state machine as a whole: genesis, epochs, logs, order, and that it is a function of what enters."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest

from chain.certificate import ValidatorSet
from chain.codec import decode, encode
from chain.genesis import SetChange
from chain.log import Frontier, frontier_at, leaf_digest, prove, verify_log
from chain.tree import StateTree, verify_state
from fl.epochs import next_validators_of, validators_of
from fl.execution import OK, BlockInput, BlockOutcome, Effect
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob, job_id
from fl.machine import execute_block, genesis_state, wants_block_at
from fl.records import EventKind, Kind, Meta, Seated
from fl.state import (
    EVENTS,
    META,
    RECEIPTS,
    CorruptState,
    Known,
    State,
    account_key,
    job_name_key,
    read_record,
    rules_key,
    seated_key,
)
from tests.fl.builders import Ledger, ledger, make_genesis, make_rules, running_job, validator
from tests.fl.scenario import Play, executed_kinds, play

NEXT_SET = tuple(validator(index, "second/") for index in range(7))


def test_the_genesis_state_holds_members_registrars_and_validators_and_no_logs() -> None:
    genesis = make_genesis()
    state = genesis_state(genesis)
    assert validators_of(state.get) == genesis.validator_set
    assert read_record(state.get, Meta, META) == Meta(members=5, jobs=0, executed=0, refused=0)
    assert RECEIPTS not in state
    assert wants_block_at(state.get) is None


def test_an_empty_block_on_an_idle_chain_writes_nothing() -> None:
    outcome = ledger().block()
    assert not outcome.writes and not outcome.events and not outcome.logs


def test_execution_leaves_the_state_that_it_reads_alone() -> None:
    running = running_job()
    block = running.ledger.input(*(running.update(each) for each in running.trainers))
    before = dict(running.ledger.state)
    first = execute_block(running.ledger.state.get, block)
    assert running.ledger.state == before
    assert execute_block(running.ledger.state.get, block) == first


def test_a_block_leaves_nothing_to_the_garbage_collector() -> None:
    running = running_job()
    sent = [running.update(each) for each in running.trainers]
    blocks = [running.ledger.input(*sent), running.ledger.input(*sent[:3], running.update(running.trainers[0]))]
    gc.collect()
    gc.disable()
    try:
        for block in blocks:
            execute_block(running.ledger.state.get, block)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_row_that_every_transaction_of_a_block_puts_is_held_once() -> None:
    state, key = State(lambda key: None), seated_key(bytes(32))
    tracemalloc.start()
    for number in range(512):
        state.mark()
        state.put(key, Seated(number.to_bytes(2**14, "little")))
        state.put(key, Seated(b""))
        state.roll_back() if number % 2 else state.put(key, Seated(number.to_bytes(2**14, "big")))
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert state.get(Seated, key) == Seated((510).to_bytes(2**14, "big"))
    assert held_bytes < 2**17


def test_writes_are_only_what_changed() -> None:
    running = running_job()
    outcome = running.submit(*running.trainers)
    for key, value in outcome.writes.items():
        assert running.ledger.state.get(key) == value
    before = dict(running.ledger.state)
    outcome = running.ledger.block()
    assert all(before.get(key) != value for key, value in outcome.writes.items())


def test_receipts_come_in_the_order_of_the_batches_and_prove_themselves() -> None:
    running = running_job()
    chain = running.ledger
    sent = [running.update(each) for each in running.trainers]
    chain.block(batches=((sent[2], sent[0]), (sent[3],), (sent[1],)))
    made = chain.receipts[-4:]
    assert [receipt.sender for receipt in made] == [running.trainers[at].account for at in (2, 0, 3, 1)]
    assert [receipt.index for receipt in made] == [0, 1, 0, 0]
    assert [receipt.position for receipt in made] == [0, 1, 2, 3]
    frontier = decode(Frontier, chain.state[RECEIPTS], 4_096)
    encoded = [data for outcome in chain.outcomes for data in outcome.receipts]
    assert frontier.size == len(encoded)

    def node(level: int, index: int) -> bytes:
        return chain.node(RECEIPTS, level, index)

    assert frontier_at(frontier.size, node) == frontier
    for index, data in enumerate(encoded):
        proof = prove(frontier.size, index, node)
        assert verify_log(frontier.root(), frontier.size, index, leaf_digest(data), proof)


def test_the_state_tree_proves_what_the_machine_wrote() -> None:
    running = running_job()
    chain = running.ledger
    tree = StateTree(chain.state.items())
    before = dict(chain.state)
    outcome = running.submit(*running.trainers)
    root = tree.apply(chain.height, outcome.writes, {key: before.get(key) for key in outcome.writes})
    assert root == StateTree(chain.state.items()).root
    key = job_name_key("digits")
    value, proof = tree.prove(chain.height, key, chain.state.get)
    assert verify_state(root, key, value, proof) and value is not None


def test_counts_add_up() -> None:
    chain = play(seed=1, blocks=40)
    meta = read_record(chain.state.get, Meta, META)
    assert meta is not None
    assert meta.executed == sum(receipt.status == OK for receipt in chain.receipts)
    assert meta.executed + meta.refused == len(chain.receipts)
    assert meta.members == sum(key.startswith(b"member/") for key in chain.state)
    assert meta.jobs == sum(key.startswith(b"job/") for key in chain.state)


def test_a_damaged_row_stops_this_node_instead_of_refusing_a_transaction() -> None:
    running = running_job()
    damaged = {**running.ledger.state, rules_key(running.job): b"garbage"}
    with pytest.raises(CorruptState):
        execute_block(damaged.get, running.ledger.input(running.update(running.trainers[0])))


def test_a_fault_late_in_a_transaction_leaves_neither_rows_nor_nodes_nor_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = running_job()
    chain = running.ledger

    def failing(*given: object) -> Effect:
        raise ZeroDivisionError

    creation = running.creator.sign(CreateJob(make_rules(name="second"), b""))
    updates = [running.update(each) for each in running.trainers[:2]]
    monkeypatch.setattr("fl.jobs.Effect", failing)
    monkeypatch.setattr("fl.rounds.Effect", failing)
    outcome = chain.block(creation, *updates)
    assert [receipt.status for receipt in chain.receipts[-3:]] == ["FAULT"] * 3
    assert {growth.log for growth in outcome.logs} == {RECEIPTS, EVENTS}
    assert not outcome.accepted and not outcome.models
    assert [event.kind for event in chain.events[-len(outcome.events) :]] == [EventKind.UPDATE_REFUSED] * 2
    assert outcome.writes.keys() == {
        RECEIPTS,
        EVENTS,
        META,
        account_key(running.creator.account),
        *(account_key(each.account) for each in running.trainers[:2]),
    }


def with_set_change(due_height: int = 3) -> Ledger:
    return ledger(set_changes=(SetChange(due_height, NEXT_SET),))


def test_a_set_change_is_announced_at_its_height_and_in_force_with_the_next_epochs_first_block() -> None:
    chain = with_set_change()
    chain.blocks(2)
    assert next_validators_of(chain.state.get) is None
    chain.block()
    assert next_validators_of(chain.state.get) == ValidatorSet(1, NEXT_SET)
    assert wants_block_at(chain.state.get) == 0
    chain.blocks(2)
    assert validators_of(chain.state.get) == chain.genesis.validator_set
    chain.epoch = 1
    chain.block()
    assert validators_of(chain.state.get) == ValidatorSet(1, NEXT_SET)
    assert next_validators_of(chain.state.get) is None
    assert wants_block_at(chain.state.get) is None
    assert chain.event_kinds() == [EventKind.EPOCH_DUE, EventKind.EPOCH_BEGUN]


def test_set_changes_are_announced_one_at_a_time() -> None:
    third = NEXT_SET[:5]
    chain = ledger(set_changes=(SetChange(1, NEXT_SET), SetChange(2, third)))
    chain.blocks(4)
    assert next_validators_of(chain.state.get) == ValidatorSet(1, NEXT_SET)
    chain.epoch = 1
    chain.block()
    assert next_validators_of(chain.state.get) == ValidatorSet(2, third)
    chain.epoch = 2
    chain.block()
    assert validators_of(chain.state.get) == ValidatorSet(2, third)
    assert wants_block_at(chain.state.get) is None


def test_a_job_is_created_joined_and_opened_within_one_block() -> None:
    chain = ledger()
    creator = chain.actor("creator")
    data = creator.sign(CreateJob(make_rules(target=1, minimum=1), b""))
    job = job_id(chain.check(data).reading.id)
    joining = chain.actor("trainer-000").sign(JoinJob(job, rules_hash(make_rules(target=1, minimum=1))))
    chain.block(data, joining)
    assert [receipt.kind for receipt in chain.receipts] == [Kind.CREATE_JOB, Kind.JOIN_JOB]
    assert chain.round(job).cohort == 1


def test_the_same_blocks_give_the_same_bytes_under_every_hash_seed() -> None:
    program = "from tests.fl.scenario import fingerprint, play; print(fingerprint(play(seed=7, blocks=60)))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(printed) == 1
    assert len(printed.pop().strip()) == 64


@pytest.mark.parametrize("known_bytes", [2**12, 2**24])
def test_records_kept_from_block_to_block_change_nothing(known_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl.state.KNOWN_BYTES", known_bytes)
    run = Play(seed=5)
    chain, known, execute = run.ledger, Known(), run.ledger.execute

    def twice(block: BlockInput) -> BlockOutcome:
        kept = execute_block(chain.state.get, block, known)
        outcome = execute(block)
        assert kept == outcome
        known.follow(outcome.changes)
        for key, (data, record) in known.rows.items():
            assert chain.state.get(key) == data
            assert data == (None if record is None else encode(record))
        return outcome

    chain.execute = twice  # type: ignore[method-assign]
    for _ in range(80):
        run.block()
    assert len(executed_kinds(chain)) > 5 and known.rows


def test_what_the_machine_makes_of_a_played_chain_stays_the_same() -> None:
    """Rows, receipts, events and what is beside the state, to the byte: another machine would be another chain."""
    fingerprints = []
    for seed in (1, 2, 3):
        chain = play(seed, blocks=60)
        whole = sha256()
        for key in sorted(chain.state):
            whole.update(key + chain.state[key])
        for log in sorted(chain.logs):
            whole.update(log + b"".join(chain.logs[log]))
        fingerprints.append(whole.hexdigest())
    assert fingerprints == [
        "aecda66c756f7a96684fce096da0c88a65b91615ad7bbcaf50bdf35d942e8c96",
        "5014429d6fc89bdf18531cc34256f63078d5f2be05b5525ff89501f08eff5be5",
        "1f1e81964f46ac4d8a35a00a6614eebeb57625f55df0fbf8dbec0025f60bb247",
    ]
