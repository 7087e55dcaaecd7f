"""Events: in pages, with proofs, and as a stream that can be taken up again where it broke off."""

from __future__ import annotations

import asyncio
from functools import partial

from chain.codec import encode
from chain.light import EVENTS_KEY
from node.rpc.api import Api
from node.rpc.event_log import KINDS, Filter
from node.rpc.fl_views import EventProofView, EventsView, HeadView, event_view
from node.rpc.jobs import JOB, find_job
from node.rpc.problems import Problem
from node.rpc.requests import (
    LIMIT,
    Param,
    Request,
    Response,
    json_response,
    number_param,
    number_query,
    read_flag,
    to_json,
    words_of,
)
from node.rpc.table import Line, Talk
from node.rpc.transactions import entry_bundle
from node.rpc.views import in_base64

SENT_TOGETHER = 100
HEARTBEAT_S = 15.0
"""Of looking for something new although nobody said that there was; WebSocket pings are the server's."""

INDEX = number_param("index", "Of an event; the first is 0.")
FROM = number_query("from", "The index to begin with.", 0)
KINDS_WANTED: Param[frozenset[str]] = Param(
    "kinds",
    "query",
    words_of(KINDS),
    {"type": "string", "pattern": f"^({'|'.join(KINDS)})(,({'|'.join(KINDS)}))*$"},
    "Kinds of events, with commas between them; all unless named.",
    frozenset(),
)
JOB_WANTED: Param[str | None] = Param("job", "query", JOB.read, JOB.schema, "A job's id or name.", None)
FROM_INDEX = number_query("from_index", "The index to begin with; what comes next unless named.", None)
FROM_HEIGHT = number_query("from_height", "The height to begin with.", None)
HEADS: Param[bool] = Param(
    "heads", "query", read_flag, {"type": "string", "enum": ["0", "1"]}, "1: heights too, as they change.", False
)


def _filter(api: Api, request: Request) -> Filter:
    job = request[JOB_WANTED]
    return Filter(request[KINDS_WANTED], None if job is None else find_job(api, job)[0])


async def events(api: Api, request: Request) -> Response:
    first, height = request[FROM], request[FROM_HEIGHT]
    if height is not None:
        first = max(first, api.events.first_at(height))
    rows, following = api.events.page(first, request[LIMIT], _filter(api, request))
    view = EventsView(events=[event_view(row.index, row.event) for row in rows], next=following, head=api.events.head)
    return json_response(view)


async def event_proof(api: Api, request: Request) -> Response:
    row = api.events.row(request[INDEX])
    if row is None:
        raise Problem("UNKNOWN_EVENT", f"There are {api.events.head}.")
    bundle = entry_bundle(api, EVENTS_KEY, encode(row.event), row.index)
    return json_response(EventProofView(event=event_view(row.index, row.event), bundle=in_base64(encode(bundle))))


def begin(api: Api, request: Request) -> Talk:
    _filter(api, request)
    _first(api, request)
    return partial(_stream, api, request)


async def _stream(api: Api, request: Request, line: Line) -> None:
    """Tells events for ever, from where the request says. Waits while the client does, and holds nothing back."""
    wanted = _filter(api, request)
    place = _first(api, request)
    heads: HeadView | None = None
    while True:
        if request[HEADS] and (now := _heads(api)) != heads:
            heads = now
            await line.say(to_json(heads).decode())
        rows, place = api.events.page(place, SENT_TOGETHER, wanted)
        for row in rows:
            await line.say(row.text)
        if place >= api.events.head and not (request[HEADS] and _heads(api) != heads):
            await api.node.progress.wait(HEARTBEAT_S)
        else:
            await asyncio.sleep(0)


def _first(api: Api, request: Request) -> int:
    index, height = request[FROM_INDEX], request[FROM_HEIGHT]
    if index is not None and height is not None:
        raise Problem("BAD_PARAMETER", "'from_index' and 'from_height' exclude each other.", parameter="from_height")
    if height is not None:
        return api.events.first_at(height)
    return api.events.head if index is None else index


def _heads(api: Api) -> HeadView:
    replica = api.node.replica
    return HeadView(
        type="head",
        final_height=replica.ordering.tree.root.height,
        executed_height=api.executed_height,
        certified_height=replica.attestation.certified_height(),
    )
