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
    "UNKNOWN_EVALUATION": Kind(HTTPStatus.NOT_FOUND, "Evaluators have not been asked about this round's model."),
    "UNKNOWN_ROUND": Kind(HTTPStatus.NOT_FOUND, "The job has no such round."),
    "UNKNOWN_BLOB": Kind(HTTPStatus.NOT_FOUND, "This node holds no blob of this CID."),
    "UNKNOWN_EVENT": Kind(HTTPStatus.NOT_FOUND, "There is no event of this index."),
    "NO_MANIFEST": Kind(HTTPStatus.CONFLICT, "Nothing of this CID is being uploaded here; send its manifest first."),
    "NO_LEAVE": Kind(HTTPStatus.UNAUTHORIZED, "This needs a leave that a member has signed, and none that fits came."),
    "LEAVE_EXPIRED": Kind(HTTPStatus.UNAUTHORIZED, "The leave has run out, or runs for longer than a day."),
    "LEAVE_MISMATCH": Kind(HTTPStatus.FORBIDDEN, "The leave is for something else than what is asked for."),
    "BLOB_NOT_YOURS": Kind(HTTPStatus.FORBIDDEN, "The blob is its owner's, and not public."),
    "KIND_NOT_TAKEN": Kind(HTTPStatus.FORBIDDEN, "Blobs of this kind are made by validators, not uploaded."),
    "QUOTA_EXCEEDED": Kind(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The member has as many bytes here as it may, that no block names yet."
    ),
    "WRONG_MANIFEST": Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The manifest is not that of this CID and size."),
    "WRONG_LEAF": Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The bytes are not those of this leaf."),
    "WRONG_CID": Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The bytes do not hash to this CID; nothing of them is kept."),
    "METHOD_NOT_ALLOWED": Kind(HTTPStatus.METHOD_NOT_ALLOWED, "The path does not take this method."),
    "NOT_ACCEPTABLE": Kind(HTTPStatus.NOT_ACCEPTABLE, "Raw blocks and archives (CAR) are all that is given here."),
    "NOT_CACHED": Kind(HTTPStatus.PRECONDITION_FAILED, "The block is not here, and was asked for only if it is."),
    "TOO_SLOW": Kind(HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive."),
    "NOT_PROVEN_YET": Kind(HTTPStatus.CONFLICT, "No execution certificate covers it yet.", 1),
    "LENGTH_REQUIRED": Kind(HTTPStatus.LENGTH_REQUIRED, "The body's length must be said beforehand."),
    "BODY_TOO_LARGE": Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is larger than this address takes."),
    "UNSUPPORTED_MEDIA_TYPE": Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is of a type not taken here."),
    "BAD_RANGE": Kind(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The blob has no such range."),
    "EXPECTATION_FAILED": Kind(HTTPStatus.EXPECTATION_FAILED, "Only 100-continue can be expected."),
    "RATE_LIMITED": Kind(HTTPStatus.TOO_MANY_REQUESTS, "More is sent than this node takes from one sender.", 1),
    "INTERNAL": Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The node met a fault of its own; its log says more."),
    "BUSY": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The node takes no more at this time.", 1),
    "TOO_MANY_CONNECTIONS": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open.", 1),
    "DATA_DOWN": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The node cannot look at blobs at this time.", 2),
    "CORE_DOWN": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The node's other process does not answer at this time.", 2),
    "NOT_READY": Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The node cannot serve clients well at this time.", 1),
    "BLOB_MISSING": Kind(HTTPStatus.CONFLICT, CODES["BLOB_MISSING"].sentence),
    "BLOB_FULL": Kind(HTTPStatus.INSUFFICIENT_STORAGE, CODES["BLOB_FULL"].sentence, 30),
    "DISK_FULL": Kind(HTTPStatus.INSUFFICIENT_STORAGE, "The node's disk is full up to its reserve.", 30),
}

_NOT_FOUND = frozenset({"UNKNOWN_DATASET", "UNKNOWN_JOB", "UNKNOWN_MEMBER", "NOT_JOINED"})
_FORBIDDEN = frozenset({"NOT_MEMBER", "WRONG_KEY"})
"""Of transactions' codes, those that other routes answer too, and as what."""


def kind_of(code: str) -> Kind:
    own = PROBLEMS.get(code)
    if own is not None:
        return own
    refusal = CODES[code]
    bytes_decide = refusal.decided_by is DecidedBy.BYTES
    return Kind(HTTPStatus.BAD_REQUEST if bytes_decide else HTTPStatus.CONFLICT, refusal.sentence)


def kind_beside(code: str) -> Kind:
    """As what it is answered where no transaction is submitted."""
    if code in _NOT_FOUND:
        return Kind(HTTPStatus.NOT_FOUND, CODES[code].sentence)
    return Kind(HTTPStatus.FORBIDDEN, CODES[code].sentence) if code in _FORBIDDEN else kind_of(code)


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
    def beside(cls, code: str, detail: str = "") -> Problem:
        """A transaction's code, where none is submitted: what the path names is not there, or the sender may not."""
        return cls(code, detail, kind=kind_beside(code))

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
