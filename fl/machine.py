"""The state machine: a block in, what it changes out.

In a block the transactions come first, in the order in which the batches list them, then the items, then what
time brings about, job by job. Nothing that a block holds can raise: bytes that the availability votes should
have kept out are skipped with an event, what the state forbids leaves a receipt with its code.

Execution checks neither signatures nor tensors; a batch is ordered only after honest validators did.
"""

from __future__ import annotations

from collections.abc import Sequence

from chain.codec import packed
from chain.genesis import Genesis, GenesisError
from chain.hashing import ZERO_DIGEST
from chain.transaction import account_id
from fl.accounts import free_account, with_nonce_used
from fl.epochs import announce_due_set, begin_epoch, write_genesis_sets
from fl.errors import Refused
from fl.execution import NO_EFFECT, OK, AggregationTask, BlockInput, BlockOutcome, Call, Execution
from fl.members import ROLES, add_member, is_name
from fl.records import NEVER, EventKind, Member, Registrars
from fl.results import apply_item
from fl.state import NEXT_VALIDATORS, REGISTRARS, Known, Read, account_key, open_jobs
from fl.transactions import Reading
from fl.transitions import advance_jobs

__all__ = [
    "AggregationTask",
    "BlockInput",
    "BlockOutcome",
    "check_members",
    "execute_block",
    "genesis_state",
    "wants_block_at",
]

_SILENT = frozenset({"EXPIRED", "NONCE_USED"})
"""Ordinary when one transaction went to several validators; an event for each would double the log."""


def execute_block(read: Read, block: BlockInput, known: Known | None = None) -> BlockOutcome:
    """`known` says no more than `read` does, and faster."""
    execution = Execution(read, block, known)
    begin_epoch(execution)
    for batch, transactions in block.batches:
        _execute_batch(execution, batch, transactions)
    for item in block.items:
        apply_item(execution, item)
    advance_jobs(execution)
    announce_due_set(execution)
    return execution.outcome()


def wants_block_at(read: Read) -> int | None:
    """The block time at which something falls due; 0 when the next block is wanted at once, None when only
    transactions or items can change anything."""
    if read(NEXT_VALIDATORS) is not None:
        return 0
    due_ms = min((each.due_ms for each in open_jobs(read).jobs), default=NEVER)
    return None if due_ms == NEVER else due_ms


def check_members(genesis: Genesis) -> None:
    """What `chain.genesis.check_genesis` cannot know: names and roles as this machine has them."""
    for member in genesis.members:
        if not is_name(member.name):
            raise GenesisError(f"The member name '{member.name}' is not 1 to 64 of A-Z a-z 0-9 . _ and -.")
        if member.organisation and not is_name(member.organisation):
            raise GenesisError(f"The organisation '{member.organisation}' is not 1 to 64 of A-Z a-z 0-9 . _ and -.")
        unknown = set(member.roles) - ROLES
        if unknown or len(set(member.roles)) != len(member.roles):
            raise GenesisError(
                f"The roles of member '{member.name}' must be distinct and among: {', '.join(sorted(ROLES))}."
            )


def genesis_state(genesis: Genesis) -> dict[bytes, bytes]:
    """The state before the first block. Raises GenesisError for members that no transaction could register."""
    check_members(genesis)
    execution = Execution(lambda key: None, _before_the_first_block(genesis))
    registrars = tuple(sorted({account_id(key) for key in genesis.registrars}))
    execution.state.put(REGISTRARS, Registrars(registrars, genesis.admission == "open"))
    for member in genesis.members:
        known = Member(member.name, tuple(sorted(member.roles)), False, 0, member.organisation)
        add_member(execution, account_id(member.key), known)
    write_genesis_sets(execution.state, genesis)
    return {key: value for key, value in execution.state.changes().writes.items() if value is not None}


def _before_the_first_block(genesis: Genesis) -> BlockInput:
    return BlockInput(
        chain_id=genesis.chain_id,
        params=genesis.params,
        height=0,
        digest=ZERO_DIGEST,
        time_ms=genesis.time_ms,
        epoch=genesis.validator_set.epoch,
        proposer=0,
        f=genesis.validator_set.f,
        within_window=False,
        beacon=ZERO_DIGEST,
        batches=(),
        items=(),
    )


def _skip(execution: Execution, batch: bytes, index: int, refused: Refused) -> None:
    """What nobody pays for."""
    if refused.code not in _SILENT:
        execution.event(EventKind.TRANSACTION_SKIPPED, subject=batch, code=refused.code, value=index)


def _execute_batch(execution: Execution, batch: bytes, transactions: Sequence[Reading | Refused]) -> None:
    block, state, call = execution.block, execution.state, Call(batch)
    now_ms, window, height = block.time_ms, block.params.nonce_window, block.height
    latest_ms = now_ms + block.params.max_validity_ms
    for index, reading in enumerate(transactions):
        if isinstance(reading, Refused):
            _skip(execution, batch, index, reading)
            continue
        tx, row, body = reading.tx, reading.row, reading.body
        try:
            if tx.chain != block.chain_id:
                raise Refused("WRONG_CHAIN")
            account = free_account(state, tx, now_ms, window)
        except Refused as refused:
            _skip(execution, batch, index, refused)
            continue
        state.settle(account_key(tx.sender), with_nonce_used(account, tx.nonce))
        execution.mark()
        call.tx_id, call.sender, call.key, call.place = reading.id, tx.sender, tx.key, index
        status, effect = OK, NO_EFFECT
        try:
            if tx.valid_until_ms > latest_ms:
                raise Refused("VALID_UNTIL_FAR")
            effect = row.execute(execution, call, body)
        except Refused as refused:
            status = refused.code
        except (ArithmeticError, LookupError, TypeError, ValueError):
            # A mistake of ours that one transaction reaches must not halt every validator at every restart.
            status = "FAULT"
        if status != OK:
            execution.roll_back()
            execution.refused += 1
            row.refused(execution, call, body, status)
        execution.ids.append(call.tx_id)
        # The fields of a `Receipt`.
        receipt = (call.tx_id, height, batch, index, tx.sender, tx.nonce, tx.kind, status, *effect)
        execution.receipts.append(packed(receipt))
