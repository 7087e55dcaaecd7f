"""The table of transaction kinds: number, body, what its bytes must satisfy, what it does.

A kind's body, byte check and handler stand together in the file of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Generic, NamedTuple, TypeVar

from chain.alike import decode_each
from chain.codec import CodecError
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
from fl.errors import PendingJob, Refused
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
from fl.rounds import CheckIn, SubmitUpdate, check_check_in, check_in, check_updates, submit_update, tell_refusal
from fl.state import RulesOf

B = TypeVar("B")


def no_more(execution: Execution, call: Call, body: object, code: str) -> None:
    """Of a refusal that its receipt alone tells."""


Verdict = Demand | Refused | PendingJob | None
"""On bytes: what they demand, or why they are not good."""


@dataclass(frozen=True, slots=True)
class KindRow(Generic[B]):
    kind: Kind
    body: type[B]
    check: Callable[[Sequence[tuple[B, Transaction]], Params, RulesOf], list[Verdict]]
    """Of each of some transactions of this kind."""
    execute: Callable[[Execution, Call, B], Effect]
    refused: Callable[[Execution, Call, B, str], None] = no_more
    """What is told beside the receipt, once what was done has been undone."""


def any_bytes(found: Sequence[tuple[object, Transaction]], params: Params, rules_of: RulesOf) -> list[Verdict]:
    """Of a kind whose bytes are good once they decode."""
    return [None] * len(found)


def each(
    check: Callable[[B, Transaction, Params, RulesOf], Demand | None],
) -> Callable[[Sequence[tuple[B, Transaction]], Params, RulesOf], list[Verdict]]:
    """Of a kind of which one transaction is checked after the other."""

    def check_each(found: Sequence[tuple[B, Transaction]], params: Params, rules_of: RulesOf) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for body, tx in found:
            try:
                verdicts.append(check(body, tx, params, rules_of))
            except (Refused, PendingJob) as refused:
                verdicts.append(refused)
        return verdicts

    return check_each


KINDS: dict[int, KindRow[Any]] = {
    row.kind.value: row
    for row in (
        KindRow(Kind.ROTATE_KEY, RotateKey, each(check_rotation), rotate_key),
        KindRow(Kind.REGISTER_MEMBER, RegisterMember, each(check_registration), register_member),
        KindRow(Kind.REVOKE_MEMBER, RevokeMember, any_bytes, revoke_member),
        KindRow(Kind.REGISTER_DATASET, RegisterDataset, each(check_dataset), register_dataset),
        KindRow(Kind.WITHDRAW_DATASET, WithdrawDataset, any_bytes, withdraw_dataset),
        KindRow(Kind.CREATE_JOB, CreateJob, each(check_creation), create_job),
        KindRow(Kind.STOP_JOB, StopJob, any_bytes, stop_job),
        KindRow(Kind.PAUSE_JOB, PauseJob, any_bytes, pause_job),
        KindRow(Kind.RESUME_JOB, ResumeJob, any_bytes, resume_job),
        KindRow(Kind.JOIN_JOB, JoinJob, each(check_joining), join_job),
        KindRow(Kind.LEAVE_JOB, LeaveJob, each(check_leaving), leave_job),
        KindRow(Kind.CHECK_IN, CheckIn, each(check_check_in), check_in),
        KindRow(Kind.SUBMIT_UPDATE, SubmitUpdate, check_updates, submit_update, tell_refusal),
        KindRow(Kind.SUBMIT_EVALUATION, SubmitEvaluation, each(check_evaluation), submit_evaluation),
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
    (found,) = read_all((data,), params)
    if isinstance(found, Refused):
        raise found
    return found


def read_all(transactions: Sequence[bytes], params: Params) -> tuple[Reading | Refused, ...]:
    """What each of them says; why not, of bytes that are no transaction."""
    limit = min(params.transaction_bytes, MAX_TRANSACTION_BYTES)
    found: list[Any] = decode_each(Transaction, transactions, limit)
    of_kind: dict[int, list[int]] = {}
    for place, tx in enumerate(found):
        if type(tx) is Transaction:
            of_kind.setdefault(tx.kind, []).append(place)
        else:
            found[place] = _no_transaction(transactions[place], params, limit, tx)
    for kind, places in of_kind.items():
        txs = [found[place] for place in places]
        row, bodies = _read_bodies(kind, [tx.body for tx in txs])
        ids = [id_of(transactions[place]) for place in places]
        for place, reading in zip(places, map(Reading._make, zip(txs, ids, repeat(row), bodies)), strict=True):
            found[place] = reading.body if isinstance(reading.body, Refused) else reading
    return tuple(found)


def _no_transaction(data: bytes, params: Params, limit: int, error: CodecError) -> Refused:
    if len(data) > limit:
        return Refused("OVERSIZE", f"A transaction may take {params.transaction_bytes} bytes, not {len(data)}.")
    return Refused("UNDECODABLE", f"Not the canonical encoding of a transaction: {error}.")


def read_body(tx: Transaction) -> tuple[KindRow[Any], object]:
    row, (body,) = _read_bodies(tx.kind, [tx.body])
    if row is None or isinstance(body, Refused):
        raise body
    return row, body


def _read_bodies(kind: int, bodies: Sequence[bytes]) -> tuple[KindRow[Any] | None, list[Any]]:
    """Of transactions of one kind; why not, of bytes that are no body of it."""
    row = KINDS.get(kind)
    if row is None:
        return None, [Refused("UNKNOWN_KIND") for _ in bodies]
    found: list[Any] = decode_each(row.body, bodies, MAX_TRANSACTION_BYTES)
    for place, body in enumerate(found):
        if type(body) is CodecError:
            found[place] = Refused("UNDECODABLE", f"Not the canonical encoding of {row.body.__name__}: {body}.")
    return row, found
