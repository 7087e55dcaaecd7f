"""Validator sets in the state: the one in force, the next once its change has fallen due, and the changes
that the genesis lists. The last block of an epoch names the next set's digest, and light clients follow it."""

from __future__ import annotations

from chain.certificate import ValidatorSet
from chain.genesis import Genesis, SetChange
from fl.execution import Execution
from fl.records import NEVER, EventKind, SetSchedule
from fl.state import NEXT_VALIDATORS, SET_SCHEDULE, VALIDATORS, Read, State, read_record, set_change_key


def write_genesis_sets(state: State, genesis: Genesis) -> None:
    state.put(VALIDATORS, genesis.validator_set)
    for number, change in enumerate(genesis.set_changes):
        state.put(set_change_key(number), change)
    if genesis.set_changes:
        state.put(SET_SCHEDULE, SetSchedule(0, genesis.set_changes[0].due_height))


def begin_epoch(execution: Execution) -> None:
    """The first block of an epoch puts its set in force."""
    state = execution.state
    following = state.get(ValidatorSet, NEXT_VALIDATORS)
    if following is not None and execution.block.epoch >= following.epoch:
        state.put(VALIDATORS, following)
        state.delete(NEXT_VALIDATORS, ValidatorSet)
        execution.event(EventKind.EPOCH_BEGUN, subject=following.digest(), value=following.epoch)


def announce_due_set(execution: Execution) -> None:
    """A change that has fallen due becomes the next set, one at a time."""
    state = execution.state
    schedule = state.get(SetSchedule, SET_SCHEDULE)
    if schedule is None or schedule.due_height > execution.block.height:
        return
    if state.get(ValidatorSet, NEXT_VALIDATORS) is not None:
        return
    change = state.get(SetChange, set_change_key(schedule.number))
    present = state.get(ValidatorSet, VALIDATORS)
    if change is None or present is None:
        return
    following = ValidatorSet(present.epoch + 1, change.validators)
    state.put(NEXT_VALIDATORS, following)
    after = state.get(SetChange, set_change_key(schedule.number + 1))
    state.put(SET_SCHEDULE, SetSchedule(schedule.number + 1, after.due_height if after else NEVER))
    execution.event(EventKind.EPOCH_DUE, subject=following.digest(), value=following.epoch)


def validators_of(read: Read) -> ValidatorSet | None:
    return read_record(read, ValidatorSet, VALIDATORS)


def next_validators_of(read: Read) -> ValidatorSet | None:
    """The set that takes over after the last block of this epoch; None while no change is due."""
    return read_record(read, ValidatorSet, NEXT_VALIDATORS)
