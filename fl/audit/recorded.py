"""The evidence of a round: what an audit has fetched and compared with its names, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chain.transaction import Transaction
from fl.records import Entry, JobRules, Phase, Round
from fl.rounds import SubmitUpdate
from fl.tensors.layout import Bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """An entry of a round's log with the transaction that it names."""

    position: int
    entry: Entry
    tx: Transaction
    body: SubmitUpdate


@dataclass(frozen=True, slots=True)
class Contribution:
    """What of an entry the aggregation is made of, and where its payload is."""

    position: int
    member: bytes
    round: int
    """That its header names."""
    weight: int
    group: int
    payload: Callable[[], Bytes]


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that a round's result follows from."""

    job: bytes
    rules: JobRules
    round: Round
    contributions: Sequence[Contribution]
    base: Bytes
    moments: Bytes | None


@dataclass(frozen=True, slots=True)
class History:
    """What the rounds before a round say of what it began with."""

    base: bytes
    """CID of the newest model before it."""
    moments: bytes
    """CID of what the rule kept beside that model; empty if there is nothing yet, or the rule keeps nothing."""
    made_by: int
    """The round that left them; 0: the job's creation."""
    version: int
    """How many rounds were closed before."""


def history_of(rules: JobRules, before: Sequence[Round]) -> History:
    """`before` holds the rounds before, the newest first, down to the last that was closed, or to the first."""
    for each in before:
        if each.phase == Phase.CLOSED:
            return History(each.model, each.optimizer, each.number, each.version + 1)
    return History(rules.initial, b"", 0, 0)
