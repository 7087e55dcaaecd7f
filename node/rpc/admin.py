"""What the operator may do, through a socket in the data directory that nobody else can open."""

from __future__ import annotations

import json

from node.rpc.api import Api
from node.rpc.problems import Problem
from node.rpc.requests import Request, Response, json_response
from node.rpc.views import DrainedView, StoppingView

LONGEST_DRAIN_S = 600


async def drain(api: Api, request: Request) -> Response:
    """Answers once everything that was accepted is final, or the time is over. Nothing more is taken meanwhile or
    afterwards."""
    drained = await api.node.drain(_timeout_s(request.body))
    return json_response(DrainedView(drained=drained, unsettled=api.node.admission.unsettled))


def _timeout_s(body: bytes) -> float:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem("MALFORMED_BODY", "Not JSON.") from None
    timeout_s: object = None
    if isinstance(document, dict) and list(document) == ["timeout_s"]:
        timeout_s = document["timeout_s"]
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= LONGEST_DRAIN_S:
        raise Problem("MALFORMED_BODY", f'Not {{"timeout_s": …}} with a number from 0 to {LONGEST_DRAIN_S}.')
    return float(timeout_s)


async def stop(api: Api, request: Request) -> Response:
    api.node.stop()
    return json_response(StoppingView(status="stopping"), 202)
