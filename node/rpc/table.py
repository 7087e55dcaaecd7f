"""What a table of routes is made of. Requests are matched against it, and the OpenAPI document is made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from node.rpc.limits import Places
from node.rpc.problems import Problem
from node.rpc.requests import Param, Request, Response
from node.rpc.schema import Schema

A = TypeVar("A")
"""What the handlers of a table work with."""

Handler: TypeAlias = Callable[[A, Request], Awaitable[Response]]


class Line(Protocol):
    """The node's end of a WebSocket."""

    async def say(self, message: str | bytes) -> None:
        """Returns once the client has taken it. Raises TimeoutError if that takes too long."""

    async def hear(self) -> bytes:
        """The next message. Raises HungUp when there will be none, and Problem for what is no message here."""


class HungUp(Exception):
    """The client has gone."""


Talk: TypeAlias = Callable[[Line], Awaitable[None]]

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
    streamed: bool = False
    """The handler reads it from `Request.incoming`, once it has decided that it wants to."""


@dataclass(frozen=True, slots=True)
class Stream(Generic[A]):
    """`begin` raises what is wrong with the request while it can still be answered in HTTP; what it returns goes on
    until either side has had enough. Clients may say nothing unless there is a `longest_message`, in bytes."""

    begin: Callable[[A, Request], Talk]
    places: Callable[[A], Places]
    about: str
    longest_message: int = 0


@dataclass(frozen=True, slots=True)
class Route(Generic[A]):
    method: str
    path: str
    handler: Handler[A] | None
    summary: str
    answers: Mapping[int, Answer]
    params: tuple[Param[Any], ...] = ()
    problems: tuple[str, ...] = ()
    body: Body | None = None
    cost: int = 1
    stream: Stream[A] | None = None
    passed_on: bool = False
    """Its query is for others to read: the handler finds the target as it came."""
    leave: bool = False
    """Whether it takes, or asks for, a member's signed leave."""

    @property
    def tag(self) -> str:
        return self.path.split("/")[2] if self.path.count("/") > 1 else self.path.strip("/")


@dataclass(slots=True)
class _Place(Generic[A]):
    """In the tree of path segments."""

    literals: dict[str, _Place[A]] = field(default_factory=dict)
    named: tuple[str, _Place[A]] | None = None
    rest: tuple[str, _Place[A]] | None = None
    """The name of the rest of the path, which is matched whole, where there is one."""
    routes: dict[str, Route[A]] = field(default_factory=dict)


class Table(Generic[A]):
    """Finds the route of a path; a literal segment goes before a parameter. `{name...}` at the end takes one segment or
    more."""

    def __init__(self, routes: tuple[Route[A], ...]) -> None:
        self.routes = routes
        self._root: _Place[A] = _Place()
        for route in routes:
            place = self._root
            for segment in route.path[1:].split("/"):
                if segment.endswith("...}"):
                    place.rest = place.rest or (segment[1:-4], _Place())
                    place = place.rest[1]
                elif segment.startswith("{"):
                    name = segment.strip("{}")
                    place.named = place.named or (name, _Place())
                    if place.named[0] != name:
                        raise ValueError(f"{route.path}: this segment is called {place.named[0]} in another route")
                    place = place.named[1]
                else:
                    place = place.literals.setdefault(segment, _Place())
            place.routes[route.method] = route

    def find(self, method: str, segments: list[str]) -> tuple[Route[A], dict[str, str]]:
        """Raises UNKNOWN_PATH or METHOD_NOT_ALLOWED. HEAD is found where GET is."""
        place: _Place[A] | None = self._root
        values: dict[str, str] = {}
        for number, segment in enumerate(segments):
            if place is None:
                break
            if place.rest is not None and segment:
                name, place = place.rest
                values[name] = "/".join(segments[number:])
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
