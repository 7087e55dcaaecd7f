"""A request as handlers see it, the response that they give, and the parameters between: each read strictly, once.

Whatever a path, a query or a header holds that a route did not ask for, or not in this form, is refused with its
name. A parameter carries its own schema, so the OpenAPI document says what the reader does.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, cast
from urllib.parse import parse_qsl, unquote

from chain.cid import CidError, parse_cid
from node.ports import Buffer
from node.rpc.problems import MEDIA_TYPE, Problem
from node.rpc.schema import MAX_U64, Schema

T = TypeVar("T")
D = TypeVar("D")

JSON = "application/json"
MSGPACK = "application/msgpack"
OCTETS = "application/octet-stream"
TEXT = "text/plain"

MAX_QUERY_FIELDS = 32
_REQUIRED: Any = object()


class Unreadable(ValueError):
    """Why a parameter's text is no value of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Param(Generic[T]):
    name: str
    where: Literal["path", "query"]
    read: Callable[[str], T]
    schema: Mapping[str, object]
    about: str
    default: T = _REQUIRED

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED


class Incoming(Protocol):
    """A body that is still with its sender: nothing of it is read before it is asked for."""

    @property
    def size_bytes(self) -> int:
        """What the sender has declared; it cannot send more."""

    async def fill(self, buffer: memoryview, within_s: float) -> None:
        """The next bytes of it, as many as there is room for. Raises TOO_SLOW, and MALFORMED_BODY if it ends early."""


@dataclass(slots=True)
class Request:
    """`client` is the address that limits are counted by; `values` holds what `read_parameters` made."""

    method: str
    client: str
    values: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    media_type: str = ""
    target: str = ""
    """Path and query as they came, on routes that send them on."""
    held_bytes: int = 0
    """Of the body, counted at the turnstile."""
    incoming: Incoming | None = None
    """In place of `body`, on routes that read theirs in pieces."""

    def __getitem__(self, param: Param[T]) -> T:
        return cast(T, self.values[param.name])


@dataclass(slots=True)
class Response:
    body: bytes
    media_type: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    """Of `pieces` together; none if nobody knows before the end."""
    pieces: AsyncGenerator[Buffer, None] | None = None
    """In place of `body`: each is asked for when the client has taken the one before it."""


def json_response(value: object, status: int = 200, **headers: str) -> Response:
    return Response(to_json(value), JSON, status, dict(headers))


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def problem_response(problem: Problem, request_id: str = "") -> Response:
    document = problem.document()
    if request_id:
        document["request_id"] = request_id
    headers = dict(problem.headers)
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    return Response(to_json(document), MEDIA_TYPE, int(problem.kind.status), headers)


def raw(data: bytes, media_type: str = MSGPACK) -> Response:
    return Response(data, media_type)


# Reading


def split_target(target: str) -> tuple[list[str], str]:
    """The decoded segments of the path, and the query as it is."""
    path, _, query = target.partition("#")[0].partition("?")
    if not path.startswith("/"):
        scheme, separator, rest = path.partition("://")
        if not separator or scheme not in ("http", "https"):
            raise Problem("MALFORMED_REQUEST", "The request's target is no path.")
        path = "/" + rest.partition("/")[2]
    try:
        return [unquote(segment, errors="strict") for segment in path[1:].split("/")], query
    except UnicodeDecodeError:
        raise Problem("MALFORMED_REQUEST", "The path is not UTF-8.") from None


def read_parameters(params: Sequence[Param[Any]], path: Mapping[str, str], query: str) -> dict[str, object]:
    given = {**path, **read_query(query)} if query else dict(path)
    values: dict[str, object] = {}
    for param in params:
        text = given.pop(param.name, None)
        if text is None:
            if param.required:
                raise Problem("BAD_PARAMETER", f"'{param.name}' is missing.", parameter=param.name)
            values[param.name] = param.default
            continue
        try:
            values[param.name] = param.read(text)
        except Unreadable as error:
            raise Problem("BAD_PARAMETER", f"'{param.name}' {error}.", parameter=param.name) from None
    for name in given:
        raise Problem("BAD_PARAMETER", f"'{name[:64]}' is not a parameter here.", parameter=name[:64])
    return values


def read_query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except (ValueError, UnicodeDecodeError):
        raise Problem("BAD_PARAMETER", "The query is not of the form name=value&name=value.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Problem("BAD_PARAMETER", "A parameter is given twice.")
    return fields


_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


def integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if _DECIMAL.fullmatch(text) is None or not low <= int(text) <= high:
            raise Unreadable(f"must be an integer from {low} to {high}")
        return int(text)

    return read


def hex_bytes(low: int, high: int) -> Callable[[str], bytes]:
    def read(text: str) -> bytes:
        if len(text) % 2 or not low <= len(text) // 2 <= high or _HEX.fullmatch(text) is None:
            size = f"{low}" if low == high else f"{low} to {high}"
            raise Unreadable(f"must be {size} bytes in lower-case hex")
        return bytes.fromhex(text)

    return read


def read_cid(text: str) -> bytes:
    try:
        return parse_cid(text)
    except CidError as error:
        raise Unreadable(f"is no CID: {error}") from None


def read_flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise Unreadable("must be 0 or 1")
    return text == "1"


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise Unreadable("must be one of " + ", ".join(words))
        return text

    return read


def words_of(words: Sequence[str]) -> Callable[[str], frozenset[str]]:
    def read(text: str) -> frozenset[str]:
        named = text.split(",")
        unknown = sorted(set(named) - set(words))
        if unknown:
            raise Unreadable("must be a list, with commas, of " + ", ".join(words))
        return frozenset(named)

    return read


# Parameters that several routes share

LIMIT_MOST = 100

LIMIT = Param(
    "limit",
    "query",
    integer(1, LIMIT_MOST),
    {"type": "integer", "minimum": 1, "maximum": LIMIT_MOST, "default": 20},
    "The most entries that the answer may have.",
    20,
)


def u64_schema() -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": MAX_U64}


DIGEST_SCHEMA: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def digest_param(name: str, about: str) -> Param[bytes]:
    return Param(name, "path", hex_bytes(32, 32), DIGEST_SCHEMA, about)


def number_param(name: str, about: str) -> Param[int]:
    return Param(name, "path", integer(0, MAX_U64), u64_schema(), about)


def number_query(name: str, about: str, default: D) -> Param[int | D]:
    return Param(name, "query", integer(0, MAX_U64), u64_schema(), about, default)


def number_cursor(about: str) -> Param[int | None]:
    return number_query("cursor", about, None)


def digest_cursor() -> Param[bytes | None]:
    return Param("cursor", "query", hex_bytes(32, 32), DIGEST_SCHEMA, "`next` of the page before.", None)
