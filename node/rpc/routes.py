"""The table of routes. Requests are matched against it, and the OpenAPI document is made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from node.rpc import admin, events, fl_views, jobs, ledger, models, state, status, transactions, views
from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import JSON, LIMIT, MSGPACK, OCTETS, TEXT, Param, Request, Response
from node.rpc.schema import Schema

Handler = Callable[[Api, Request], Awaitable[Response]]
Stream = Callable[[Api, Request, Callable[[str], Awaitable[None]]], Awaitable[None]]

LIST_COST = 5
PROOF_COST = 2
"""How many requests one of these counts for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`view` is the type of a JSON answer; other media are bytes."""

    media_type: str
    view: Any = None
    about: str = "What was asked for."


@dataclass(frozen=True, slots=True)
class Body:
    """Media types that a route takes, with the schema of each and the most bytes of it."""

    media: Mapping[str, tuple[Schema, int]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: Handler | None
    summary: str
    answers: Mapping[int, Answer]
    params: tuple[Param[Any], ...] = ()
    problems: tuple[str, ...] = ()
    body: Body | None = None
    cost: int = 1
    stream: Stream | None = None

    @property
    def tag(self) -> str:
        return self.path.split("/")[2] if self.path.count("/") > 1 else self.path.strip("/")


def _get(
    path: str,
    handler: Handler,
    summary: str,
    view: Any,
    *params: Param[Any],
    problems: tuple[str, ...] = (),
    cost: int = 1,
    media_type: str = JSON,
) -> Route:
    return Route("GET", path, handler, summary, {200: Answer(media_type, view)}, params, problems, cost=cost)


_NOT_PROVEN = ("NOT_PROVEN_YET",)
_JOB = ("UNKNOWN_JOB",)
_ROUND = ("UNKNOWN_JOB", "UNKNOWN_ROUND")

_SUBMISSION = Body(
    {
        MSGPACK: (
            {
                "type": "string",
                "contentMediaType": MSGPACK,
                "description": "A canonical msgpack array of 1 to 1024 encoded transactions (byte strings).",
            },
            transactions.MAX_BODY_BYTES,
        ),
        JSON: (
            {
                "type": "object",
                "properties": {
                    "transactions": {
                        "type": "array",
                        "items": {"type": "string", "contentEncoding": "base64"},
                        "minItems": 1,
                        "maxItems": transactions.MOST,
                    }
                },
                "required": ["transactions"],
                "additionalProperties": False,
            },
            1024 * 1024,
        ),
    }
)

_SUBMIT = Route(
    "POST",
    "/v1/transactions",
    transactions.submit,
    "Submit transactions; a repeat is harmless.",
    {
        200: Answer(JSON, views.AnswersView, "Each has come as far as was asked for, or was refused."),
        202: Answer(JSON, views.AnswersView, "Some have not come that far within ten seconds; ask again."),
    },
    (transactions.WAIT,),
    ("MALFORMED_BODY", "UNDECODABLE", "NONCE_USED", "BUSY", "DISK_FULL"),
    _SUBMISSION,
)

_STREAM = Route(
    "GET",
    "/v1/events/ws",
    None,
    "Events as they happen, over WebSocket; each message is an event, or heights if asked for.",
    {101: Answer(JSON, None, "The stream begins.")},
    (events.FROM_INDEX, events.FROM_HEIGHT, events.KINDS_WANTED, events.JOB_WANTED, events.HEADS),
    ("NOT_A_WEBSOCKET", "UNKNOWN_JOB", "BUSY"),
    cost=LIST_COST,
    stream=events.stream,
)

_MODEL = Route(
    "GET",
    "/v1/models/{cid}",
    models.model,
    "A model, or another blob, by its CID; ranges and ETag as usual.",
    {
        200: Answer(OCTETS, None, "The whole blob."),
        206: Answer(OCTETS, None, "The range that was asked for."),
        304: Answer(OCTETS, None, "The client has it."),
    },
    (models.CID,),
    ("UNKNOWN_BLOB", "BAD_RANGE"),
    cost=PROOF_COST,
)

PUBLIC: tuple[Route, ...] = (
    _SUBMIT,
    _get(
        "/v1/transactions/{id}",
        transactions.transaction,
        "Where a transaction is.",
        views.TransactionView,
        transactions.ID,
        transactions.SENDER,
        transactions.NONCE,
        problems=("UNKNOWN_TRANSACTION",),
    ),
    _get(
        "/v1/transactions/{id}/receipt",
        transactions.receipt,
        "What became of a transaction, with proof.",
        views.ReceiptProofView,
        transactions.ID,
        problems=("NO_RECEIPT", "NOT_PROVEN_YET"),
        cost=PROOF_COST,
    ),
    _get("/v1/status", status.status, "How the node is.", views.NodeStatusView),
    _get("/v1/health", status.alive, "Whether the process answers.", views.AliveView),
    _get("/v1/ready", status.ready, "Whether clients should come here.", views.ReadyView, problems=("NOT_READY",)),
    _get("/metrics", status.metrics, "Numbers for Prometheus.", None, media_type=TEXT, cost=LIST_COST),
    _get("/v1/openapi.json", status.openapi, "This document.", dict[str, object], cost=PROOF_COST),
    _get("/v1/genesis", ledger.genesis, "The encoded Genesis.", None, media_type=MSGPACK, cost=PROOF_COST),
    _get("/v1/params", ledger.params, "The on-chain parameters.", views.ParamsView),
    _get(
        "/v1/validators",
        ledger.validators,
        "The validators of an epoch.",
        views.ValidatorsView,
        ledger.EPOCH,
        problems=("UNKNOWN_EPOCH",),
    ),
    _get(
        "/v1/checkpoint",
        ledger.checkpoint,
        "The newest execution certificate, and how the set that signed it follows from the genesis.",
        views.CheckpointView,
        problems=_NOT_PROVEN,
        cost=PROOF_COST,
    ),
    _get("/v1/blocks", ledger.blocks, "Blocks, newest first.", views.BlocksView, ledger.BELOW, LIMIT, cost=LIST_COST),
    _get(
        "/v1/blocks/{height}",
        ledger.block,
        "A block.",
        views.BlockView,
        ledger.HEIGHT,
        problems=("UNKNOWN_BLOCK",),
    ),
    _get(
        "/v1/blocks/{height}/raw",
        ledger.block_raw,
        "The encoded Block.",
        None,
        ledger.HEIGHT,
        problems=("UNKNOWN_BLOCK",),
        media_type=MSGPACK,
    ),
    _get(
        "/v1/blocks/{height}/finalization/raw",
        ledger.finalization_raw,
        "The encoded Certificate that made this block final.",
        None,
        ledger.HEIGHT,
        problems=("UNKNOWN_BLOCK", "NO_FINALIZATION"),
        media_type=MSGPACK,
    ),
    _get(
        "/v1/blocks/{height}/proof",
        ledger.block_proof,
        "That a block is in the chain, by the newest certificate.",
        views.BlockProofView,
        ledger.HEIGHT,
        problems=("UNKNOWN_BLOCK", "NOT_PROVEN_YET"),
        cost=PROOF_COST,
    ),
    _get(
        "/v1/batches/{digest}/raw",
        ledger.batch_raw,
        "The encoded SignedBatch.",
        None,
        ledger.BATCH,
        problems=("UNKNOWN_BATCH",),
        media_type=MSGPACK,
        cost=PROOF_COST,
    ),
    _get(
        "/v1/state/{key}",
        state.state,
        "A value of the newest provable state, or that there is none, with proof.",
        fl_views.StateView,
        state.KEY,
        problems=_NOT_PROVEN,
        cost=PROOF_COST,
    ),
    _get("/v1/accounts/{account}", state.account, "An account and its nonces.", fl_views.AccountView, state.ACCOUNT),
    _get("/v1/members", state.members, "Members.", fl_views.MembersView, state.AFTER, LIMIT, cost=LIST_COST),
    _get(
        "/v1/members/{account}",
        state.member,
        "A member.",
        fl_views.MemberView,
        state.ACCOUNT,
        problems=("UNKNOWN_MEMBER",),
    ),
    _get("/v1/jobs", jobs.jobs, "Jobs.", fl_views.JobsView, jobs.AFTER, LIMIT, cost=LIST_COST),
    _get("/v1/jobs/{job}", jobs.job, "A job and its rules.", fl_views.JobWithRulesView, jobs.JOB, problems=_JOB),
    _get(
        "/v1/jobs/{job}/members",
        jobs.job_members,
        "Who has joined a job.",
        fl_views.JobMembersView,
        jobs.JOB,
        jobs.AFTER,
        LIMIT,
        problems=_JOB,
        cost=LIST_COST,
    ),
    _get(
        "/v1/jobs/{job}/members/{account}",
        jobs.job_member,
        "A member's place in a job.",
        fl_views.JobMemberView,
        jobs.JOB,
        jobs.ACCOUNT,
        problems=("UNKNOWN_JOB", "NOT_JOINED"),
    ),
    _get(
        "/v1/jobs/{job}/rounds",
        jobs.rounds,
        "A job's rounds, newest first.",
        fl_views.RoundsView,
        jobs.JOB,
        jobs.BELOW,
        LIMIT,
        problems=_JOB,
        cost=LIST_COST,
    ),
    _get(
        "/v1/jobs/{job}/rounds/{round}",
        jobs.round_,
        "A round.",
        fl_views.RoundView,
        jobs.JOB,
        jobs.ROUND,
        problems=_ROUND,
    ),
    _get(
        "/v1/jobs/{job}/rounds/{round}/updates",
        jobs.updates,
        "The updates that a round has accepted.",
        fl_views.UpdatesView,
        jobs.JOB,
        jobs.ROUND,
        jobs.POSITION,
        LIMIT,
        problems=_ROUND,
        cost=LIST_COST,
    ),
    _MODEL,
    _get(
        "/v1/events",
        events.events,
        "Events, oldest first.",
        fl_views.EventsView,
        events.FROM,
        LIMIT,
        events.KINDS_WANTED,
        events.JOB_WANTED,
        problems=_JOB,
        cost=LIST_COST,
    ),
    _STREAM,
    _get(
        "/v1/events/{index}/proof",
        events.event_proof,
        "An event, with proof.",
        fl_views.EventProofView,
        events.INDEX,
        problems=("UNKNOWN_EVENT", "NOT_PROVEN_YET"),
        cost=PROOF_COST,
    ),
)

_DRAIN = Body({JSON: ({"type": "object"}, 1024)})

ADMIN: tuple[Route, ...] = (
    _get("/v1/admin/status", status.status, "How the node is.", views.NodeStatusView),
    Route(
        "POST",
        "/v1/admin/drain",
        admin.drain,
        "Take no more transactions, and wait until those taken are final.",
        {200: Answer(JSON, views.DrainedView)},
        problems=("MALFORMED_BODY",),
        body=_DRAIN,
    ),
    Route("POST", "/v1/admin/stop", admin.stop, "Stop the node.", {202: Answer(JSON, views.StoppingView)}),
)


@dataclass(slots=True)
class _Place:
    """In the tree of path segments."""

    literals: dict[str, _Place] = field(default_factory=dict)
    named: tuple[str, _Place] | None = None
    routes: dict[str, Route] = field(default_factory=dict)


class Table:
    """Finds the route of a path; a literal segment goes before a parameter."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._root = _Place()
        for route in routes:
            place = self._root
            for segment in route.path[1:].split("/"):
                if segment.startswith("{"):
                    name = segment.strip("{}")
                    place.named = place.named or (name, _Place())
                    if place.named[0] != name:
                        raise ValueError(f"{route.path}: this segment is called {place.named[0]} in another route")
                    place = place.named[1]
                else:
                    place = place.literals.setdefault(segment, _Place())
            place.routes[route.method] = route

    def find(self, method: str, segments: list[str]) -> tuple[Route, dict[str, str]]:
        """Raises UNKNOWN_PATH or METHOD_NOT_ALLOWED. HEAD is found where GET is."""
        place: _Place | None = self._root
        values: dict[str, str] = {}
        for segment in segments:
            if place is None:
                break
            if segment in place.literals:
                place = place.literals[segment]
            elif place.named is not None and segment:
                values[place.named[0]] = segment
                place = place.named[1]
            else:
                place = None
        if place is None or not place.routes:
            raise Problem("UNKNOWN_PATH")
        route = place.routes.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted({*place.routes, *(["HEAD"] if "GET" in place.routes else [])})
            raise Problem("METHOD_NOT_ALLOWED", headers={"Allow": ", ".join(allowed)})
        return route, values
