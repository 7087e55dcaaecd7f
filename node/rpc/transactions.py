"""Submitting transactions, and asking what became of them.

An answer comes as soon as every transaction of the request is `available` (or as far as was asked for), at the
latest after ten seconds. Sending the same bytes again is harmless: they are answered as they stand.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from chain.codec import CodecError, Count, Length, decode, encode
from chain.light import RECEIPTS_KEY, ReceiptBundle
from chain.log import Frontier, prove
from fl.accounts import check_nonce, new_account
from fl.errors import Refused
from node.admission import Answer, Busy, Standing, Status
from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import (
    DIGEST_SCHEMA,
    JSON,
    Param,
    Request,
    Response,
    digest_param,
    hex_bytes,
    json_response,
    number_query,
    one_of,
)
from node.rpc.state import account_of, state_bundle
from node.rpc.views import (
    AnswersView,
    ReceiptProofView,
    RefusedView,
    TakenView,
    TransactionView,
    in_base64,
    receipt_view,
)

MOST = 1024
MAX_BODY_BYTES = 4 * 1024 * 1024
_FRONTIER_LIMIT_BYTES = 4096

WAITS = ("available", "executed", "proven")
WAIT = Param(
    "wait",
    "query",
    one_of(WAITS),
    {"type": "string", "enum": list(WAITS), "default": "available"},
    "How far the transactions are to have come before the answer; it comes after ten seconds at the latest.",
    "available",
)
ID = digest_param("id", "The transaction's id.")
SENDER: Param[bytes | None] = Param(
    "sender", "query", hex_bytes(32, 32), DIGEST_SCHEMA, "Its sender's account, to look up its nonce by.", None
)
NONCE = number_query("nonce", "Its nonce; goes with `sender`.", None)


@dataclass(frozen=True, slots=True)
class _Submission:
    transactions: Annotated[tuple[Annotated[bytes, Length(0, MAX_BODY_BYTES)], ...], Count(1, MOST)]


_ONE_FIELD = b"\x91"
"""Before an array, it makes of it the encoding of a record whose only field is that array."""


async def submit(api: Api, request: Request) -> Response:
    api.turnstile.submit(request.client, len(request.body), api.now_s())
    transactions = _from_json(request.body) if request.media_type == JSON else _from_msgpack(request.body)
    request.body = b""
    ends_s = api.now_s() + api.limits.wait_s
    answers = await taken(api, transactions)
    del transactions
    wanted = Status(request[WAIT])
    problems = [problem_of(answer) for answer in answers]
    if len(problems) == 1 and problems[0] is not None:
        raise problems[0]
    begun = [answer.standing for answer, problem in zip(answers, problems, strict=True) if problem is None]
    standings = await api.node.admission.wait(filter(None, begun), wanted, max(0.0, ends_s - api.now_s()))
    short = any(not standing.reached(wanted) for standing in standings)
    following = iter(standings)
    views: list[TakenView | RefusedView] = [
        _taken_view(next(following)) if problem is None else _refused_view(answer, problem)
        for answer, problem in zip(answers, problems, strict=True)
    ]
    return json_response(AnswersView(answers=views), 202 if short else 200)


async def taken(api: Api, transactions: Sequence[bytes]) -> list[Answer]:
    """What admission says to each; raises the problem if none is taken at this time."""
    if api.node.replica.me is None:
        raise Problem("BUSY", "This node is not a validator of this epoch; use another one.", retry_after_s=30)
    try:
        return await api.node.admission.submit(transactions)
    except Busy as busy:
        raise Problem(busy.code, str(busy), retry_after_s=busy.retry_after_s) from None


def _from_msgpack(body: bytes) -> tuple[bytes, ...]:
    try:
        return decode(_Submission, _ONE_FIELD + body, MAX_BODY_BYTES + 1).transactions
    except CodecError as error:
        raise Problem("MALFORMED_BODY", f"Not a msgpack array of encoded transactions: {error}.") from None


def _from_json(body: bytes) -> tuple[bytes, ...]:
    # Looked at before it is parsed: a megabyte of empty arrays holds the event loop for a second.
    if body.count(b"{") != 1 or body.count(b"[") != 1 or body.count(b",") >= MOST:
        raise Problem("MALFORMED_BODY", 'Not an object of the form {"transactions": [base64, …]}.')
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem("MALFORMED_BODY", "Not JSON.") from None
    if not isinstance(document, dict) or list(document) != ["transactions"]:
        raise Problem("MALFORMED_BODY", 'Not an object of the form {"transactions": [base64, …]}.')
    texts = document["transactions"]
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST:
        raise Problem("MALFORMED_BODY", f"'transactions' must be a list of 1 to {MOST}.")
    return tuple(_from_base64(text) for text in texts)


def _from_base64(text: object) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem("MALFORMED_BODY", "A transaction is not base64.") from None


def problem_of(answer: Answer) -> Problem | None:
    if answer.refused is not None:
        return Problem.of(answer.refused)
    if answer.busy is not None:
        return Problem(answer.busy.code, str(answer.busy), retry_after_s=answer.busy.retry_after_s)
    if answer.wait_s:
        return Problem("RATE_LIMITED", "This account sends too many transactions.", retry_after_s=answer.wait_s)
    if answer.standing is None or answer.standing.status is Status.UNKNOWN:
        return Problem("BUSY", "The node's pool of transactions is full.")
    return None


def _refused_view(answer: Answer, problem: Problem) -> RefusedView:
    view = RefusedView(code=problem.code, title=problem.kind.title, detail=problem.detail)
    if answer.id is not None:
        view["id"] = answer.id.hex()
    if problem.retry_after_s is not None:
        view["retry_after"] = problem.retry_after_s
    return view


def _taken_view(standing: Standing) -> TakenView:
    view = TakenView(
        id=standing.id.hex(), status=standing.status.value, location=f"/v1/transactions/{standing.id.hex()}"
    )
    if standing.receipt is not None:
        view["receipt"] = receipt_view(standing.receipt)
    return view


async def transaction(api: Api, request: Request) -> Response:
    sender, nonce = request[SENDER], request[NONCE]
    if (sender is None) != (nonce is None):
        raise Problem("BAD_PARAMETER", "'sender' and 'nonce' go together.", parameter="nonce")
    standing = api.node.admission.standing(request[ID])
    used = sender is not None and nonce is not None and _nonce_used(api, sender, nonce)
    if standing.status is Status.UNKNOWN and not used:
        raise Problem("UNKNOWN_TRANSACTION", "It is not known here, or not any more; sending it again is harmless.")
    view = TransactionView(id=standing.id.hex(), status=standing.status.value)
    if standing.receipt is not None:
        view["receipt"] = receipt_view(standing.receipt)
    elif sender is not None:
        view["nonce"] = "used" if used else "free"
    return json_response(view)


def _nonce_used(api: Api, sender: bytes, nonce: int) -> bool:
    account = account_of(api, sender) or new_account(b"")
    try:
        check_nonce(account, nonce, api.node.genesis.params.nonce_window)
    except Refused as refused:
        return refused.code == "NONCE_USED"
    return False


async def receipt(api: Api, request: Request) -> Response:
    standing = api.node.admission.standing(request[ID])
    index = api.node.store.receipt_index(standing.id)
    if standing.receipt is None or index is None:
        raise Problem("NO_RECEIPT", f"The transaction's status here is {standing.status.value}.")
    bundle = entry_bundle(api, RECEIPTS_KEY, encode(standing.receipt), index)
    return json_response(ReceiptProofView(receipt=receipt_view(standing.receipt), bundle=in_base64(encode(bundle))))


def entry_bundle(api: Api, log: bytes, entry: bytes, index: int) -> ReceiptBundle:
    """That this is entry `index` of the log whose frontier is the state's value of the key of the same name."""
    state = state_bundle(api, log)
    frontier = decode(Frontier, state.value, _FRONTIER_LIMIT_BYTES) if state.value is not None else None
    if frontier is None or index >= frontier.size:
        raise Problem("NOT_PROVEN_YET", f"The newest certified state is of height {state.height}.")
    store = api.node.store
    proof = prove(frontier.size, index, lambda level, place: store.log_node(log, level, place))
    return ReceiptBundle(entry, index, proof, frontier, state)
