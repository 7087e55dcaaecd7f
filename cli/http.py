"""One request to a node, over its URL or its admin socket. The SDK asks several nodes and believes none; this asks the
one that an operator looks after."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fl.client.errors import BadInput, QuorateError, Unreachable

LIMIT_BYTES = 16 * 1024 * 1024
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    data: dict[str, Any]

    @property
    def problem(self) -> str:
        return str(self.data.get("detail") or self.data.get("title") or f"status {self.status}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node answers: a URL or the path of its admin socket."""

    url: str = ""
    socket: Path | None = None

    def __str__(self) -> str:
        return self.url or str(self.socket)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(place: Place, method: str, path: str, body: object = None, timeout_s: float = TIMEOUT_S) -> Reply:
    """Raises Unreachable if there is no answer that makes sense."""
    connection = _connection(place, timeout_s)
    with unreachable(place), closing(connection):
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        data = json.loads(answer.read(LIMIT_BYTES) or b"{}")
    return Reply(answer.status, data if isinstance(data, dict) else {"value": data})


def fetch(place: Place, path: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The answer to a GET that has to succeed."""
    reply = ask(place, "GET", path, timeout_s=timeout_s)
    if reply.status != 200:
        code = str(reply.data.get("code", f"HTTP_{reply.status}"))
        raise QuorateError(code, f"{place} answers: {reply.problem}", "Try again in a moment, or ask another node.")
    return reply.data


def _connection(place: Place, timeout_s: float) -> HTTPConnection:
    if place.socket is not None:
        return _UnixConnection(place.socket, timeout_s)
    parts = urlsplit(place.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput("BAD_URL", f"'{place.url}' is no URL of a node.", "It begins with http:// or https://.")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname, parts.port, timeout=timeout_s)


@contextmanager
def unreachable(place: Place) -> Iterator[None]:
    """What goes wrong within is that the node there does not answer."""
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        raise _unreachable(place, error) from error


def _unreachable(place: Place, error: Exception) -> Unreachable:
    if place.socket is not None:
        what = f"No node answers on {place.socket}: {_reason(error)}."
        return Unreachable("NOT_RUNNING", what, "Start it with `quorate node start`, or look at the end of its log.")
    return Unreachable("UNREACHABLE", f"{place.url} does not answer: {_reason(error)}.", "Check that the node runs.")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
