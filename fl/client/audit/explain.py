"""Who was in a round, what each answered, how far that lay from what came of it, and who was refused.

Answers, weights, scores and copies come from what the state and the closing record hold; refusals from events and names
from records, each with its proof. Who else was in the cohort is what a node lists, each with the proof that it had
joined. A node can keep silent about a refusal, and about somebody who never answered; it cannot invent either.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from fl.audit.measures import Measure, arrays_of, measure, ranks
from fl.audit.recorded import Contribution
from fl.audit.steps import Verdict
from fl.client.audit.roundaudit import BASE, PAYLOADS, RoundAudit
from fl.client.audit.verify import Course, gather
from fl.client.errors import QuorateError
from fl.client.nodes import Reply, Request
from fl.client.transfer.blobs import Progress
from fl.cohort import is_listed, read_seats
from fl.records import Candidates, Event, EventKind, Joined, Member, Phase
from fl.state import candidates_key, joined_key, member_key

ANSWERED, REFUSED, SILENT = "answered", "refused", "silent"

_ACCOUNT = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 8
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """What was accepted of a member. `copies` are the positions of updates with the same values."""

    position: int
    weight: int
    examples: int
    group: int
    measure: Measure | None
    rank: int | None
    score: int | None
    copies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A member's part in a round."""

    account: bytes
    name: str
    standing: str
    answer: Answer | None
    refusals: tuple[str, ...]
    """Codes, in their order."""


@dataclass(frozen=True, slots=True)
class Explanation:
    parts: tuple[Part, ...]
    """Answers in the order of the log, then those refused, then those silent."""
    remarks: tuple[str, ...]
    """What could not be said, and why."""


async def explain_round(audit: RoundAudit, progress: Progress) -> Explanation:
    """Raises what keeps the round's record from being proven. What else cannot be had is remarked."""
    await audit.check_head()
    await audit.check_records()
    course = Course(lambda step: None)
    await gather(audit, course)
    remarks = [f"{each.name}: {each.sentence}" for each in course.steps if each.verdict == Verdict.MISSING]
    if any(each.verdict == Verdict.FAILED for each in course.steps):
        remarks.append("This round does not verify: `quorate verify` says where.")
    answers = await _answers(audit, course, remarks, progress)
    refusals = await _refusals(audit)
    silent = await _silent(audit, {*answers, *refusals}, remarks)
    names = await _names(audit, [*answers, *refusals, *silent])
    return Explanation(tuple(_parts(answers, refusals, silent, names)), tuple(remarks))


def _parts(
    answers: dict[bytes, Answer], refusals: dict[bytes, list[str]], silent: Iterable[bytes], names: dict[bytes, str]
) -> Iterable[Part]:
    for account, answer in answers.items():
        yield Part(account, names[account], ANSWERED, answer, tuple(refusals.get(account, ())))
    for account, codes in refusals.items():
        if account not in answers:
            yield Part(account, names[account], REFUSED, None, tuple(codes))
    for account in silent:
        yield Part(account, names[account], SILENT, None, ())


# Answers


async def _answers(audit: RoundAudit, course: Course, remarks: list[str], progress: Progress) -> dict[bytes, Answer]:
    signed = audit.log.signed
    measures: list[Measure | None] = [None] * len(signed)
    if not course.lacking(PAYLOADS, BASE) and audit.is_whole and audit.current.record:
        measures = list(await asyncio.to_thread(_measured, audit, await _model(audit, remarks), progress))
    known = [(each.entry.group, found) for each, found in zip(signed, measures, strict=True) if found is not None]
    ranked = ranks(known) if len(known) == len(signed) else [None] * len(signed)
    record = audit.record
    scores = [int.from_bytes(each, "big") for each in record.scores] if record is not None else []
    copies = {position: some for some in (record.copies if record is not None else ()) for position in some}
    return {
        each.entry.member: Answer(
            each.position,
            each.entry.weight,
            each.body.examples,
            each.entry.group,
            measures[place],
            ranked[place],
            scores[each.position] if each.position < len(scores) else None,
            tuple(other for other in copies.get(each.position, ()) if other != each.position),
        )
        for place, each in enumerate(signed)
    }


async def _model(audit: RoundAudit, remarks: list[str]) -> memoryview | None:
    if audit.current.phase != Phase.CLOSED:
        return None
    try:
        return await audit.recordings.model(audit.current.model)
    except QuorateError as error:
        remarks.append(f"the new model: {error}")
        return None


def _measured(audit: RoundAudit, model: memoryview | None, progress: Progress) -> list[Measure]:
    rules, job = audit.job.rules, bytes.fromhex(audit.job.id)
    base = arrays_of(rules.schema, audit.base)
    after = None if model is None else arrays_of(rules.schema, model)
    found: list[Measure] = []
    contributions: list[Contribution] = audit.log.contributions()
    for each in contributions:
        found.append(measure(job, rules, each, base, after))
        progress("measured", len(found), len(contributions))
    return found


# The others


async def _refusals(audit: RoundAudit) -> dict[bytes, list[str]]:
    """By account: the codes."""
    found: defaultdict[bytes, list[str]] = defaultdict(list)
    events: list[tuple[int, Event]] = await audit.recordings.events(audit.current, [EventKind.UPDATE_REFUSED])
    for _, event in events:
        found[event.subject].append(event.code)
    return found


async def _silent(audit: RoundAudit, others: set[bytes], remarks: list[str]) -> list[bytes]:
    """Who might have answered and was not heard of."""
    job, drawn, found = bytes.fromhex(audit.job.id), await _drawn(audit), []
    async for account in _listed(audit):
        if account in others:
            continue
        joined = await audit.network.record(Joined, joined_key(job, account))
        if joined is not None and joined.from_round <= audit.number and (drawn is None or drawn >> joined.seat & 1):
            found.append(account)
    if found and drawn is None and is_listed(audit.job.rules):
        remarks.append("Of those who are silent, some may not have been drawn, or not have checked in.")
    return found


async def _drawn(audit: RoundAudit) -> int | None:
    """The seats of those who could answer, where the state has them: for a job's newest round."""
    listed = await audit.network.record(Candidates, candidates_key(bytes.fromhex(audit.job.id)))
    return read_seats(listed.seats) if listed is not None and listed.round == audit.number else None


async def _listed(audit: RoundAudit) -> AsyncIterator[bytes]:
    """The job's members of today, as a node lists them; no more than there are."""
    query = {"limit": str(_PAGE)}
    left = (await audit.job.status()).members
    while left > 0:
        asked = Request("GET", f"/v1/jobs/{audit.job.id}/members", query)
        page = await audit.network.nodes.ask(asked, Reply.fields)
        members, following = page.get("members"), page.get("next")
        for each in members if isinstance(members, list) else []:
            text = each.get("account") if isinstance(each, dict) else None
            if isinstance(text, str) and _ACCOUNT.fullmatch(text) and left > 0:
                left -= 1
                yield bytes.fromhex(text)
        if not isinstance(following, str) or following <= query.get("cursor", ""):
            return
        query["cursor"] = following


async def _names(audit: RoundAudit, accounts: Iterable[bytes]) -> dict[bytes, str]:
    """Proven."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def name(account: bytes) -> tuple[bytes, str]:
        async with places:
            member = await audit.network.record(Member, member_key(account))
        return account, member.name if member is not None else ""

    return dict(await asyncio.gather(*(name(each) for each in set(accounts))))
