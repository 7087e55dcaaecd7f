"""Who may speak for an account, and as what: the data process asks, the newest state answers. And
who validates in which epoch, as genesis says."""

from __future__ import annotations

from chain.certificate import ValidatorSet
from chain.genesis import Genesis
from chain.transaction import account_id
from fl.accounts import account_for
from fl.errors import Refused
from fl.records import Member
from fl.state import Read, State, member_key, read_record

VALIDATOR = "validator"
"""The role of those who operate a validator of the set in office."""


def validator_sets(genesis: Genesis) -> dict[int, ValidatorSet]:
    sets = {genesis.validator_set.epoch: genesis.validator_set}
    for number, change in enumerate(genesis.set_changes):
        epoch = genesis.validator_set.epoch + number + 1
        sets[epoch] = ValidatorSet(epoch, change.validators)
    return sets


def standing_of(read: Read, validators: ValidatorSet, account: bytes, key: bytes) -> tuple[bool, tuple[str, ...]]:
    """Whether the key is the account's present one, and the account's roles."""
    member = read_record(read, Member, member_key(account))
    roles = () if member is None or member.revoked else member.roles
    if any(account_id(each.operator_key) == account for each in validators.members):
        roles = (*roles, VALIDATOR)
    return _speaks_for(read, account, key), roles


def is_member(read: Read, account: bytes, key: bytes) -> bool:
    """Whether the key speaks for a member in good standing."""
    member = read_record(read, Member, member_key(account))
    return member is not None and not member.revoked and _speaks_for(read, account, key)


def _speaks_for(read: Read, account: bytes, key: bytes) -> bool:
    try:
        account_for(State(read), account, key)
    except Refused:
        return False
    return True
