"""What is said on a stream of transactions, `/v1/ingest`: by the client, many transactions a message; by the node, an
answer to each, by its number on the stream. The first transaction of a stream has number 0.

A message is the canonical encoding of one of these, less the byte that says that the record has one field: a msgpack
array of transactions, as `POST /v1/transactions` takes it, or an array of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from chain.codec import U32, U64, Count, Length, decode, encode
from chain.frozen import record
from chain.transaction import MAX_TRANSACTION_BYTES
from fl.records import MaybeDigest, Word

TRANSACTIONS_A_MESSAGE = 1024
MESSAGE_BYTES = 128 * 1024
"""Of a client's message: a few transactions of the largest sort, some eighty small updates."""
ANSWERS_BYTES = 4 * 1024 * 1024
RECEIPT_BYTES = 4096
DETAIL_BYTES = 1024
REFUSED = "refused"
"""In the place of a status: not taken, and `code` says why."""

_ONE_FIELD = b"\x91"


@dataclass(frozen=True, slots=True)
class _Transactions:
    transactions: Annotated[
        tuple[Annotated[bytes, Length(0, MAX_TRANSACTION_BYTES + 1)], ...], Count(1, TRANSACTIONS_A_MESSAGE)
    ]


@record
class Answer:
    """`status` is how far the transaction has come, and `receipt` its encoded Receipt once it is executed. What was
    refused has a `code` and a sentence instead, and no id if its bytes are no transaction; `retry_after_s` is not 0
    where the same bytes may be taken later."""

    number: U64
    id: MaybeDigest
    status: Word
    receipt: Annotated[bytes, Length(0, RECEIPT_BYTES)] = b""
    code: Annotated[str, Length(0, 32)] = ""
    detail: Annotated[str, Length(0, DETAIL_BYTES)] = ""
    retry_after_s: U32 = 0


@dataclass(frozen=True, slots=True)
class _Answers:
    answers: Annotated[tuple[Answer, ...], Count(1, TRANSACTIONS_A_MESSAGE)]


def submission(transactions: Sequence[bytes]) -> bytes:
    return encode(_Transactions(tuple(transactions)))[1:]


def read_submission(message: bytes) -> tuple[bytes, ...]:
    """Raises CodecError."""
    return decode(_Transactions, _ONE_FIELD + message, MESSAGE_BYTES + 1).transactions


def answers_message(answers: Sequence[Answer]) -> bytes:
    return encode(_Answers(tuple(answers)))[1:]


def read_answers(message: bytes) -> tuple[Answer, ...]:
    """Raises CodecError."""
    return decode(_Answers, _ONE_FIELD + message, ANSWERS_BYTES).answers
