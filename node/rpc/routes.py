"""The routes of the core process: its public ones and the operator's."""

from __future__ import annotations

from typing import Any

from node.rpc import (
    admin,
    blobs,
    datasets,
    evaluations,
    events,
    fl_views,
    ingest,
    jobs,
    ledger,
    state,
    status,
    transactions,
    views,
)
from node.rpc.api import Api
from node.rpc.requests import JSON, LIMIT, MSGPACK, TEXT, Param
from node.rpc.table import LIST_COST, PROOF_COST, Answer, Body, Handler, Route, Stream


def _get(
    path: str,
    handler: Handler[Api],
    summary: str,
    view: Any,
    *params: Param[Any],
    problems: tuple[str, ...] = (),
    cost: int = 1,
    media_type: str = JSON,
) -> Route[Api]:
    return Route("GET", path, handler, summary, {200: Answer(media_type, view)}, params, problems, cost=cost)


_NOT_PROVEN = ("NOT_PROVEN_YET",)
_JOB = ("UNKNOWN_JOB",)
_ROUND = ("UNKNOWN_JOB", "UNKNOWN_ROUND")
_EVALUATION = ("UNKNOWN_JOB", "UNKNOWN_EVALUATION")

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

_SUBMIT: Route[Api] = Route(
    "POST",
    "/v1/transactions",
    transactions.submit,
    "Submit transactions; a repeat is harmless.",
    {
        200: Answer(JSON, views.AnswersView, "Each has come as far as was asked for, or was refused."),
        202: Answer(JSON, views.AnswersView, "Some have not come that far within ten seconds; ask again."),
    },
    (transactions.WAIT,),
    ("MALFORMED_BODY", "UNDECODABLE", "NONCE_USED", "BLOB_MISSING", "BLOB_FULL", "DATA_DOWN", "BUSY", "DISK_FULL"),
    _SUBMISSION,
)

_STREAM: Route[Api] = Route(
    "GET",
    "/v1/events/ws",
    None,
    "Events as they happen, over WebSocket; each message is an event, or heights if asked for.",
    {101: Answer(JSON, None, "The stream begins.")},
    (events.FROM_INDEX, events.FROM_HEIGHT, events.KINDS_WANTED, events.JOB_WANTED, events.HEADS),
    ("NOT_A_WEBSOCKET", "UNKNOWN_JOB", "BUSY"),
    cost=LIST_COST,
    stream=Stream(
        events.begin,
        lambda api: api.subscribers,
        "Nothing may be said on it. The node closes it with 1001 when it stops, and with 4008 when the client does not "
        "read.",
    ),
)

_INGEST: Route[Api] = Route(
    "GET",
    "/v1/ingest",
    None,
    "Submit transactions by the stream, over WebSocket; each is answered by its number.",
    {101: Answer(JSON, None, "The stream begins.")},
    (transactions.WAIT,),
    ("NOT_A_WEBSOCKET", "BUSY"),
    cost=LIST_COST,
    stream=Stream(
        ingest.begin,
        lambda api: api.ingests,
        "Messages of both sides are binary. The client's: a canonical msgpack array of 1 to 1024 encoded "
        f"transactions, as `POST /v1/transactions` takes it, of at most {ingest.LONGEST_MESSAGE} bytes. The node's: "
        "an array of answers, each `[number, id, status, receipt, code, detail, retry_after_s]`. The number counts "
        "the transactions of the stream, from 0. `status` is that of a transaction, or `refused`, and then there "
        "are a code and a sentence, and seconds if the same bytes may be taken later; `receipt` is the encoded "
        "Receipt, or empty. An answer comes when the transaction has come as far as `wait` says, after ten seconds "
        "as it stands, and at once if it is refused; they come in any order. The node reads no further while 1024 "
        "transactions, or 4 MiB of them, are unanswered, or the client is over its rates. It closes the stream with"
        " 1001 when it stops, 1008 and a code for what is no such message, 1009 for one that is too long, and 4008 "
        "when the client does not read.",
        ingest.LONGEST_MESSAGE,
    ),
)


def _elsewhere(method: str, path: str, summary: str) -> Route[Api]:
    params = (blobs.PLACE,) if path.endswith("}") else ()
    answers = {307: Answer(JSON, None, "The same target behind the other door, in `Location`.")}
    return Route(method, path, blobs.elsewhere, summary, answers, params, ("DATA_DOWN",), passed_on=True)


_BLOBS = (
    _elsewhere("GET", "/v1/blobs", "The blobs that this node holds."),
    _elsewhere("GET", "/v1/blobs/{place...}", "A blob, or what is known of it."),
    _elsewhere("POST", "/v1/blobs/{place...}", "Begin to put a blob here."),
    _elsewhere("PUT", "/v1/blobs/{place...}", "Put a blob here, or a part of one."),
    _elsewhere("GET", "/v1/leases", "What one has put here that no block names yet."),
    _elsewhere("GET", "/v1/models/{place...}", "A model, or another public blob, by its CID."),
    _elsewhere("GET", "/ipfs/{place...}", "A public blob, as a trustless gateway serves it."),
)

PUBLIC: tuple[Route[Api], ...] = (
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
    _get("/v1/datasets", datasets.datasets, "Data sets.", datasets.DatasetsView, datasets.AFTER, LIMIT, cost=LIST_COST),
    _get(
        "/v1/datasets/{dataset}",
        datasets.dataset,
        "A data set.",
        datasets.DatasetView,
        datasets.DATASET,
        problems=("UNKNOWN_DATASET",),
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
    _get(
        "/v1/jobs/{job}/rounds/{round}/updates/raw",
        jobs.updates_raw,
        "A msgpack array of encoded Entries, the leaves of the round's log.",
        None,
        jobs.JOB,
        jobs.ROUND,
        jobs.FROM_POSITION,
        jobs.ENTRIES,
        problems=_ROUND,
        media_type=MSGPACK,
        cost=LIST_COST,
    ),
    _get(
        "/v1/jobs/{job}/metrics",
        evaluations.metrics,
        "What was reported and measured, by rounds, oldest first.",
        evaluations.CurvesView,
        jobs.JOB,
        evaluations.FROM_ROUND,
        LIMIT,
        problems=_JOB,
        cost=LIST_COST,
    ),
    _get(
        "/v1/jobs/{job}/evaluators",
        evaluations.evaluators,
        "Who evaluates a job's models.",
        evaluations.EvaluatorsView,
        jobs.JOB,
        jobs.AFTER,
        LIMIT,
        problems=_JOB,
        cost=LIST_COST,
    ),
    _get(
        "/v1/jobs/{job}/evaluations/{round}",
        evaluations.evaluation,
        "What evaluators measured of a round's model.",
        evaluations.EvaluationView,
        jobs.JOB,
        jobs.ROUND,
        problems=_EVALUATION,
    ),
    _get(
        "/v1/jobs/{job}/evaluations/{round}/answers",
        evaluations.answers,
        "The answers that an evaluation has accepted.",
        evaluations.AnswersView,
        jobs.JOB,
        jobs.ROUND,
        jobs.POSITION,
        LIMIT,
        problems=_EVALUATION,
        cost=LIST_COST,
    ),
    *_BLOBS,
    _INGEST,
    _get(
        "/v1/events",
        events.events,
        "Events, oldest first.",
        fl_views.EventsView,
        events.FROM,
        events.FROM_HEIGHT,
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

ADMIN: tuple[Route[Api], ...] = (
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
