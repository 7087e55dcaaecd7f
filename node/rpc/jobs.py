"""Jobs, their members, their rounds and the updates in them, by the newest executed state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from chain.codec import decode, encode, pack
from fl.members import is_name
from fl.records import Answered, Entry, Job, JobRules, Joined, Named, Round
from fl.state import (
    answered_key,
    job_key,
    job_name_key,
    job_of,
    joined_key,
    read_record,
    round_of,
    rules_of,
    updates_log,
)
from node.rpc.api import Api
from node.rpc.fl_views import (
    JobMembersView,
    JobsView,
    JobWithRulesView,
    RoundsView,
    UpdatesView,
    job_member_view,
    job_view,
    round_view,
    update_view,
)
from node.rpc.problems import Problem
from node.rpc.requests import (
    LIMIT,
    Param,
    Request,
    Response,
    Unreadable,
    digest_cursor,
    digest_param,
    integer,
    json_response,
    number_cursor,
    number_param,
    raw,
)
from node.rpc.rules_views import rules_view
from node.rpc.state import member_of
from node.rpc.views import in_base64

T = TypeVar("T")

_ID = re.compile(r"[0-9a-f]{64}")


def _read_job(text: str) -> str:
    if not is_name(text):
        raise Unreadable("must be a job's id in hex, or its name")
    return text


JOB = Param(
    "job",
    "path",
    _read_job,
    {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    "The job's id in hex, or its name: then it is the newest job of that name.",
)
ROUND = number_param("round", "A round's number; the first is 1.")
ACCOUNT = digest_param("account", "A member's account.")
AFTER = digest_cursor()
BELOW = number_cursor("`next` of the page before.")
POSITION = number_cursor("`next` of the page before.")
FROM_POSITION = number_cursor("The position in the round's log to begin with; the first is 0.")
ENTRIES_MOST = 1_000
"""Some 150 bytes each."""
ENTRIES = Param(
    "limit",
    "query",
    integer(1, ENTRIES_MOST),
    {"type": "integer", "minimum": 1, "maximum": ENTRIES_MOST, "default": ENTRIES_MOST},
    "The most entries that the answer may have.",
    ENTRIES_MOST,
)

_JOBS = job_key(b"")


def find_job(api: Api, text: str) -> tuple[bytes, Job]:
    read = api.node.store.state
    if _ID.fullmatch(text):
        job = job_of(read, bytes.fromhex(text))
        if job is not None:
            return bytes.fromhex(text), job
    named = read_record(read, Named, job_name_key(text))
    job = job_of(read, named.holder) if named is not None else None
    if named is None or job is None:
        raise Problem.beside("UNKNOWN_JOB", "No job has this id or name.")
    return named.holder, job


def job_rules(api: Api, job: bytes) -> JobRules:
    rules = rules_of(api.node.store.state, job)
    assert rules is not None, "a job is created with its rules"
    return rules


def _round(api: Api, job: bytes, number: int) -> Round:
    found = round_of(api.node.store.state, job, number)
    if found is None:
        raise Problem("UNKNOWN_ROUND")
    return found


def _page(
    rows: Iterator[tuple[bytes, bytes]], prefix: bytes, limit: int, view: Callable[[bytes, bytes], T]
) -> tuple[list[T], str | None]:
    """So many rows made into views, and the key after the prefix at which the next page begins."""
    views: list[T] = []
    for key, data in rows:
        identity = key[len(prefix) :]
        if len(views) == limit:
            return views, identity.hex()
        views.append(view(identity, data))
    return views, None


async def jobs(api: Api, request: Request) -> Response:
    rows = api.node.store.state_rows(_JOBS, job_key(request[AFTER] or b""))
    views, following = _page(
        rows, _JOBS, request[LIMIT], lambda identity, data: job_view(identity, decode(Job, data, len(data)))
    )
    return json_response(JobsView(jobs=views, next=following, height=api.executed_height))


async def job(api: Api, request: Request) -> Response:
    identity, found = find_job(api, request[JOB])
    rules = job_rules(api, identity)
    return json_response(
        JobWithRulesView(**job_view(identity, found), rules=rules_view(rules), rules_raw=in_base64(encode(rules)))
    )


async def job_members(api: Api, request: Request) -> Response:
    identity, _ = find_job(api, request[JOB])
    prefix, answered = joined_key(identity, b""), _answered(api, identity)
    rows = api.node.store.state_rows(prefix, joined_key(identity, request[AFTER] or b""))
    views, following = _page(
        rows,
        prefix,
        request[LIMIT],
        lambda account, data: job_member_view(
            account, name_of(api, account), decode(Joined, data, len(data)), answered
        ),
    )
    return json_response(JobMembersView(members=views, next=following))


async def job_member(api: Api, request: Request) -> Response:
    identity, _ = find_job(api, request[JOB])
    account = request[ACCOUNT]
    joined = read_record(api.node.store.state, Joined, joined_key(identity, account))
    if joined is None:
        raise Problem.beside("NOT_JOINED", "This account has not joined the job.")
    return json_response(job_member_view(account, name_of(api, account), joined, _answered(api, identity)))


def _answered(api: Api, job: bytes) -> Answered | None:
    return read_record(api.node.store.state, Answered, answered_key(job))


def name_of(api: Api, account: bytes) -> str | None:
    member = member_of(api, account)
    return member.name if member is not None else None


async def rounds(api: Api, request: Request) -> Response:
    """The newest first."""
    identity, found = find_job(api, request[JOB])
    names = job_rules(api, identity).metrics
    top = found.round if request[BELOW] is None else min(found.round, request[BELOW] or 0)
    low = max(1, top - request[LIMIT] + 1)
    views = [round_view(_round(api, identity, number), names) for number in range(top, low - 1, -1)]
    return json_response(RoundsView(rounds=views, next=low - 1 if low > 1 else None))


async def round_(api: Api, request: Request) -> Response:
    identity, _ = find_job(api, request[JOB])
    current = _round(api, identity, request[ROUND])
    return json_response(round_view(current, job_rules(api, identity).metrics))


async def updates(api: Api, request: Request) -> Response:
    """In the order in which they were accepted."""
    current, rows, stop = _entries(api, request, request[POSITION] or 0, request[LIMIT])
    views = [update_view(position, decode(Entry, data, len(data))) for position, data in rows]
    return json_response(UpdatesView(updates=views, next=stop if stop < current.updates.size else None))


async def updates_raw(api: Api, request: Request) -> Response:
    """The leaves of the round's log, whose root the state holds."""
    _, rows, _ = _entries(api, request, request[FROM_POSITION] or 0, request[ENTRIES])
    return raw(pack(tuple(data for _, data in rows)))


def _entries(api: Api, request: Request, first: int, limit: int) -> tuple[Round, list[tuple[int, bytes]], int]:
    """The round, entries of its log with their positions, and where they end."""
    identity, _ = find_job(api, request[JOB])
    current = _round(api, identity, request[ROUND])
    stop = min(current.updates.size, first + limit)
    leaves = api.node.store.leaves(updates_log(identity, current.number), first, max(first, stop))
    return current, list(enumerate(leaves, first)), stop
