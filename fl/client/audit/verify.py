"""A round verified with nothing taken on trust but the network file: step by step, from a quorum's signatures to the
model that its updates add up to.

    head ─▶ records ─▶ history                                        what the certified state says of the round
              └─▶ log ─▶ transactions ─▶ signatures, weights ─▶ payloads    each entry of it, down to the bytes
    base, moments, record                                what the round began with, and the record that closed it
    model, optimiser, closing                            the aggregation again, and what it comes to

A step that fails is named, and the next ones go on as far as they do not rest on it. The aggregation itself needs the
kernels and is the caller's to bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from fl.audit.steps import Finding, Step, Verdict, judged, skipped
from fl.client.audit.roundaudit import (
    BASE,
    HEAD,
    HISTORY,
    LOG,
    MOMENTS,
    PAYLOADS,
    RECORD,
    RECORDS,
    SIGNATURES,
    TRANSACTIONS,
    WEIGHTS,
    RoundAudit,
)
from fl.client.errors import RefusedByChain, Unreachable, Unverified
from fl.rules import rule_of

MODEL = "model"
_BELOW_MINIMUM = "BELOW_MINIMUM"
_UNKNOWN = frozenset({"UNKNOWN_JOB", "UNKNOWN_ROUND"})
"""The caller's mistakes."""

Told = Callable[[Step], None]
Recompute = Callable[[RoundAudit], Iterator[Step]]
"""The steps that need the kernels, the first of them named MODEL."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of each step, in order, and what none of them can show."""

    steps: tuple[Step, ...]
    rests: tuple[str, ...]

    @property
    def verified(self) -> bool:
        return all(each.verdict == Verdict.OK for each in self.steps)

    def first(self, verdict: Verdict) -> Step | None:
        return next((each for each in self.steps if each.verdict == verdict), None)


class Course:
    """The steps that were taken, each told as it ends."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self.steps: list[Step] = []

    def tell(self, step: Step) -> None:
        self.steps.append(step)
        self._told(step)

    async def take(self, name: str, work: Callable[[], Awaitable[Step]], *rests_on: str) -> bool:
        """Whether what the step looks at was there. It is skipped if it rests on one where it was not."""
        lacking = self.lacking(*rests_on)
        step = skipped(name, lacking) if lacking else await _judged(name, work)
        self.tell(step)
        return _has_looked(step)

    def lacking(self, *names: str) -> str:
        """The first of these steps that had nothing to look at; empty if all had."""
        return next((each.name for each in self.steps if each.name in names and not _has_looked(each)), "")


def _has_looked(step: Step) -> bool:
    return step.verdict == Verdict.OK or bool(step.findings)


async def _judged(name: str, work: Callable[[], Awaitable[Step]]) -> Step:
    try:
        return await work()
    except Unverified as error:
        return Step(name, Verdict.FAILED, str(error))
    except (Unreachable, RefusedByChain) as error:
        if error.code in _UNKNOWN:
            raise
        return Step(name, Verdict.MISSING, str(error))


async def verify_round(audit: RoundAudit, recompute: Recompute, told: Told) -> Report:
    """All steps, as far as they go. Raises what is the matter with a job or a round that is not, or not over."""
    course = Course(told)
    if await course.take(HEAD, audit.check_head) and await course.take(RECORDS, audit.check_records):
        await gather(audit, course)
        await _compute(audit, recompute, course)
    return Report(tuple(course.steps), tuple(audit.rests))


async def gather(audit: RoundAudit, course: Course) -> None:
    """What the records of a round lead to, but for the aggregation."""
    await course.take(HISTORY, audit.check_history)
    await course.take(LOG, audit.check_log)
    await course.take(TRANSACTIONS, audit.check_transactions, LOG)
    await course.take(SIGNATURES, audit.check_signatures, LOG, TRANSACTIONS)
    await course.take(WEIGHTS, audit.check_weights, LOG, TRANSACTIONS)
    await course.take(PAYLOADS, audit.check_payloads, LOG, TRANSACTIONS)
    if not audit.current.record:
        return
    await course.take(BASE, audit.check_base)
    if rule_of(audit.job.rules.rule).moments:
        await course.take(MOMENTS, audit.check_moments, HISTORY)
    await course.take(RECORD, audit.check_record, LOG)


async def _compute(audit: RoundAudit, recompute: Recompute, course: Course) -> None:
    if not audit.current.record:
        course.tell(_without_result(audit))
        return
    lacking = course.lacking(HISTORY, LOG, TRANSACTIONS, PAYLOADS, BASE, MOMENTS)
    if lacking or not audit.is_whole:
        course.tell(skipped(MODEL, lacking or PAYLOADS))
        return
    for step in await asyncio.to_thread(lambda: list(recompute(audit))):
        course.tell(step)


def _without_result(audit: RoundAudit) -> Step:
    """The round failed before anything was computed."""
    current, minimum = audit.current, audit.job.rules.minimum
    found = []
    if current.code == _BELOW_MINIMUM and current.updates.size >= minimum:
        found.append(Finding("updates", f"fewer than {minimum}", str(current.updates.size)))
    return judged(MODEL, f"there is no result: {current.code}", found)
