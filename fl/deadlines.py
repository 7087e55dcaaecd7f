"""When answers are waited for no longer. A deadline alone ends nothing: the proposer of the block that passes it could
have left out what arrived in time. So there is a count of the distinct validators who have proposed since, free to
include batches; with f + 1 of them one is honest. `fl.transitions` has the rule whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from fl.execution import Execution
from fl.records import NEVER, Evaluation, Round

Awaited = TypeVar("Awaited", Round, Evaluation)


def later(time_ms: int, span_ms: int) -> int:
    """Never beyond what a record holds: a header's time may be any 64-bit number."""
    return min(time_ms + span_ms, NEVER)


def with_proposer(execution: Execution, awaited: Awaited) -> Awaited:
    """Indices mean other validators in another epoch, so a new epoch counts afresh."""
    block = execution.block
    before: tuple[int, ...] = awaited.closing_proposers if block.epoch == awaited.closing_epoch else ()
    if block.within_window and block.proposer not in before:
        before = (*before, block.proposer)
    return replace(awaited, closing_epoch=block.epoch, closing_proposers=before)
