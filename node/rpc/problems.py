"""Every refusal of the RPC, by a stable code, as a problem document (RFC 9457).

The codes of refused transactions (`fl.errors`) appear here too: what their bytes decide is 400, what the state
decides 409. 429, 503 and 507 say when to come again.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

from fl.errors import CODES, DecidedBy, Refused

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    status: HTTPStatus
    title: str
    retry_after_s: int | None = None


PROBLEMS: dict[str, Kind] = {
    "MALFORMED_REQUEST": Kind(HTTPStatus.BAD_REQUEST, "The request is not well-formed HTTP."),
    "MALFORMED_BODY": Kind(HTTPStatus.BAD_REQUEST, "The body is not what this address takes."),
    "BAD_PARAMETER": Kind(HTTPStatus.BAD_REQUEST, "A parameter is missing, unknown, repeated or malformed."),
    "NOT_A_WEBSOCKET": Kind(HTTPStatus.UPGRADE_REQUIRED, "This address speaks WebSocket only."),
    "UNKNOWN_PATH": Kind(HTTPStatus.NOT_FOUND, "There is nothing at this path."),
    "UNKNOWN_TRANSACTION": Kind(HTTPStatus.NOT_FOUND, "This node knows no such transaction."),
    "NO_RECEIPT": Kind(HTTPStatus.NOT_FOUND, "The transaction has not been executed."),
    "UNKNOWN_BLOCK": Kind(HTTPStatus.NOT_FOUND, "No block of this height is executed here."),
    "NO_FINALIZATION": Kind(HTTPStatus.NOT_FOUND, "The block has no finalization of its own."),
    "UNKNOWN_BATCH": Kind(HTTPStatus.NOT_FOUND, "This node holds no such batch."),
    "UNKNOWN_EPOCH": Kind(HTTPStatus.NOT_FOUND, "The epoch has not begun."),
    "UNKNOWN_ROUND": Kind(HTTPStatus.NOT_FOUND, "The job has no such round."),
    "UNKNOWN_BLOB": Kind(HTTPStatus.NOT_FOUND, "This node holds no blob of this CID."),
    "UNKNOWN_EVENT": Kind(HTTPStatus.NOT_FOUND, "There is no event of this index."),
    "METHOD_NOT_ALLOWED": Kind(HTTPStatus.METHOD_NOT_ALLOWED, "The path does not take this method."),
    "TOO_SLOW": Kind(HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive."),
    "NOT_PROVEN_YET": Kind(HTTPStatus.CONFLICT, "No execution certificate covers it yet.", 1),
    "BODY_TOO_LARGE": Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is larger than this address takes."),
    "UNSUPPORTED_MEDIA_TYPE": Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is of a type not taken here."),
    "BAD_RANGE": Kind(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The blob has no such range."),
    "EXPECTATION_FAILED": Kind(HTTPStatus.EXPECTATION_FAILED, "Only 100-continue can be expected."),
    "RATE_LIMITED": Kind(HTTPStatus.TOO_MANY_REQUESTS, "More is sent than this node takes from one sender.", 1),
    "INTERNAL": Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The node met a fault of its own; its log says more."),
    "BUSY": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The node takes no more at this time.", 1),
    "TOO_MANY_CONNECTIONS": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open.", 1),
    "NOT_READY": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The node cannot serve clients well at this time.", 1),
    "DISK_FULL": Kind(HTTPStatus.INSUFFICIENT_STORAGE, "The node's disk is full up to its reserve.", 30),
}

_NOT_FOUND = frozenset({"UNKNOWN_JOB", "UNKNOWN_MEMBER", "NOT_JOINED"})
"""Of transactions' codes, those that reads answer too."""


def kind_of(code: str) -> Kind:
    own = PROBLEMS.get(code)
    if own is not None:
        return own
    refusal = CODES[code]
    bytes_decide = refusal.decided_by is DecidedBy.BYTES
    return Kind(HTTPStatus.BAD_REQUEST if bytes_decide else HTTPStatus.CONFLICT, refusal.sentence)


def missing(code: str) -> Kind:
    return Kind(HTTPStatus.NOT_FOUND, CODES[code].sentence) if code in _NOT_FOUND else kind_of(code)


class Problem(Exception):
    """An answer that is not what was asked for: raised by handlers, written out by whoever called them."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
        kind: Kind | None = None,
        **more: object,
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.kind = kind or kind_of(code)
        self.detail = detail or self.kind.title
        after = self.kind.retry_after_s if retry_after_s is None else retry_after_s
        self.retry_after_s = None if after is None else max(1, ceil(after))
        self.headers = headers or {}
        self.more = more

    @classmethod
    def of(cls, refused: Refused) -> Problem:
        return cls(refused.code, refused.sentence)

    @classmethod
    def unknown(cls, code: str, detail: str = "") -> Problem:
        """That what a path names is not there."""
        return cls(code, detail, kind=missing(code))

    def document(self) -> dict[str, object]:
        document: dict[str, object] = {
            "type": f"about:blank#{self.code}",
            "title": self.kind.title,
            "status": int(self.kind.status),
            "detail": self.detail,
            "code": self.code,
        }
        if self.retry_after_s is not None:
            document["retry_after"] = self.retry_after_s
        return document | self.more
