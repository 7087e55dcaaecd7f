"""The table of transaction kinds: number, body, what its bytes must satisfy, what it does.

A kind's body, byte check and handler stand together in the file of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Generic, NamedTuple, TypeVar

from chain.alike import decode_alike
from chain.codec import CodecError, decode
from chain.genesis import Params
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, id_of
from fl.accounts import RotateKey, check_rotation, rotate_key
from fl.blobs import Demand
from fl.datasets import (
    RegisterDataset,
    WithdrawDataset,
    check_dataset,
    register_dataset,
    withdraw_dataset,
)
from fl.errors import Refused
from fl.evaluation import SubmitEvaluation, check_evaluation, submit_evaluation
from fl.execution import Call, Effect, Execution
from fl.jobs import (
    CreateJob,
    JoinJob,
    LeaveJob,
    PauseJob,
    ResumeJob,
    StopJob,
    check_creation,
    check_joining,
    check_leaving,
    create_job,
    join_job,
    leave_job,
    pause_job,
    resume_job,
    stop_job,
)
from fl.members import RegisterMember, RevokeMember, check_registration, register_member, revoke_member
from fl.records import Kind
from fl.rounds import (
    CheckIn,
    SubmitUpdate,
    check_check_in,
    check_in,
    check_update,
    good_updates,
    submit_update,
    tell_refusal,
)
from fl.state import RulesOf

B = TypeVar("B")


def no_more(execution: Execution, call: Call, body: object, code: str) -> None:
    """Of a refusal that its receipt alone tells."""


def none_known(found: Sequence[tuple[object, Transaction]], params: Params, rules_of: RulesOf) -> list[bool]:
    """Of a kind of which each is checked alone."""
    return [False] * len(found)


@dataclass(frozen=True, slots=True)
class KindRow(Generic[B]):
    kind: Kind
    body: type[B]
    check: Callable[[B, Transaction, Params, RulesOf], Demand | None]
    execute: Callable[[Execution, Call, B], Effect]
    refused: Callable[[Execution, Call, B, str], None] = no_more
    """What is told beside the receipt, once what was done has been undone."""
    known_good: Callable[[Sequence[tuple[B, Transaction]], Params, RulesOf], list[bool]] = none_known
    """Of which of many `check` need not be asked: it would demand nothing, and refuse nothing."""


def any_bytes(body: object, tx: Transaction, params: Params, rules_of: RulesOf) -> None:
    """Of a kind whose bytes are good once they decode."""


KINDS: dict[int, KindRow[Any]] = {
    row.kind.value: row
    for row in (
        KindRow(Kind.ROTATE_KEY, RotateKey, check_rotation, rotate_key),
        KindRow(Kind.REGISTER_MEMBER, RegisterMember, check_registration, register_member),
        KindRow(Kind.REVOKE_MEMBER, RevokeMember, any_bytes, revoke_member),
        KindRow(Kind.REGISTER_DATASET, RegisterDataset, check_dataset, register_dataset),
        KindRow(Kind.WITHDRAW_DATASET, WithdrawDataset, any_bytes, withdraw_dataset),
        KindRow(Kind.CREATE_JOB, CreateJob, check_creation, create_job),
        KindRow(Kind.STOP_JOB, StopJob, any_bytes, stop_job),
        KindRow(Kind.PAUSE_JOB, PauseJob, any_bytes, pause_job),
        KindRow(Kind.RESUME_JOB, ResumeJob, any_bytes, resume_job),
        KindRow(Kind.JOIN_JOB, JoinJob, check_joining, join_job),
        KindRow(Kind.LEAVE_JOB, LeaveJob, check_leaving, leave_job),
        KindRow(Kind.CHECK_IN, CheckIn, check_check_in, check_in),
        KindRow(Kind.SUBMIT_UPDATE, SubmitUpdate, check_update, submit_update, tell_refusal, good_updates),
        KindRow(Kind.SUBMIT_EVALUATION, SubmitEvaluation, check_evaluation, submit_evaluation),
    )
}

KIND_OF_BODY: dict[type[object], Kind] = {row.body: row.kind for row in KINDS.values()}


class Reading(NamedTuple):
    """What a transaction's bytes say, whatever it is worth: it is read once, and asked often."""

    tx: Transaction
    id: bytes
    row: KindRow[Any]
    body: object


def read(data: bytes, params: Params) -> Reading:
    """Raises Refused for bytes that are no transaction, and nothing else."""
    if len(data) > params.transaction_bytes or len(data) > MAX_TRANSACTION_BYTES:
        raise Refused("OVERSIZE", f"A transaction may take {params.transaction_bytes} bytes, not {len(data)}.")
    try:
        tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
    except CodecError as error:
        raise Refused("UNDECODABLE", f"Not the canonical encoding of a transaction: {error}.") from None
    row, body = read_body(tx)
    return Reading(tx, id_of(data), row, body)


def read_body(tx: Transaction) -> tuple[KindRow[Any], object]:
    row = KINDS.get(tx.kind)
    if row is None:
        raise Refused("UNKNOWN_KIND")
    try:
        return row, decode(row.body, tx.body, MAX_TRANSACTION_BYTES)
    except CodecError as error:
        raise Refused("UNDECODABLE", f"Not the canonical encoding of {row.body.__name__}: {error}.") from None


def read_all(transactions: Sequence[bytes], params: Params) -> tuple[Reading | Refused, ...]:
    """What `read` says of each, or why it refuses it."""
    found: list[Any] = _read_alike(transactions, min(params.transaction_bytes, MAX_TRANSACTION_BYTES))
    for place, reading in enumerate(found):
        if reading is None:
            try:
                found[place] = read(transactions[place], params)
            except Refused as refused:
                found[place] = refused
    return tuple(found)


def _read_alike(transactions: Sequence[bytes], limit: int) -> list[Reading | None]:
    """Of transactions that are alike, bodies and all; None of the others."""
    txs = decode_alike(Transaction, transactions, limit)
    readings: list[Reading | None] = [None] * len(txs)
    of_kind: dict[int, list[int]] = {}
    for place, tx in enumerate(txs):
        if tx is not None and tx.kind in KINDS:
            of_kind.setdefault(tx.kind, []).append(place)
    for kind, places in of_kind.items():
        row, some = KINDS[kind], [txs[place] for place in places]
        bodies = decode_alike(row.body, [tx.body for tx in some if tx is not None], MAX_TRANSACTION_BYTES)
        ids = [id_of(transactions[place]) for place in places]
        for place, reading in zip(places, map(Reading._make, zip(some, ids, repeat(row), bodies)), strict=True):
            if reading.body is not None:
                readings[place] = reading
    return readings
