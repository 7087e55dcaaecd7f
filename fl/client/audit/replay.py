"""Rounds of a job replayed from what is recorded of them, one after another, so that no more than one round's updates
are here at a time. Each is verified up to its aggregation; that is the caller's to bring, for it needs the kernels.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable
from typing import TYPE_CHECKING

from fl.audit.steps import Verdict
from fl.client.audit.roundaudit import RoundAudit
from fl.client.audit.verify import Course, gather
from fl.client.errors import RefusedByChain, Unreachable, Unverified
from fl.client.transfer.blobs import Progress
from fl.members import is_name
from fl.records import Named
from fl.state import member_name_key

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork

Play = Callable[[RoundAudit], None]


async def account_of(network: AsyncNetwork, name_or_account: str) -> bytes:
    """A member's account, by its id or by its name."""
    if len(name_or_account) == 64 and not set(name_or_account) - set(string.hexdigits):
        return bytes.fromhex(name_or_account)
    named = await network.record(Named, member_name_key(name_or_account)) if is_name(name_or_account) else None
    if named is None:
        raise RefusedByChain(
            "UNKNOWN_MEMBER", f"No member is named {name_or_account!r}.", "quorate explain JOB ROUND lists a round's."
        )
    return named.holder


async def replay_rounds(network: AsyncNetwork, job: str, rounds: range, play: Play, progress: Progress) -> None:
    """Each round in turn is given to `play`, in a thread, once all of it was brought and is what its record says."""
    for number in rounds:
        audit = RoundAudit(network, job, number, progress)
        await _bring(audit)
        await asyncio.to_thread(play, audit)
        audit.recordings.clear()


async def _bring(audit: RoundAudit) -> None:
    await audit.check_head()
    await audit.check_records()
    course = Course(lambda step: None)
    await gather(audit, course)
    for step in course.steps:
        where = f"Round {audit.number}, {step.name}: {step.sentence.removesuffix('.')}."
        if step.verdict == Verdict.FAILED:
            raise Unverified("NOT_VERIFIED", where, "See quorate verify.")
        if step.verdict == Verdict.MISSING:
            raise Unreachable("INCOMPLETE", where)
