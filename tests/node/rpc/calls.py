"""Requests to a node's routes without HTTP: for virtual time, where there are no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from chain.codec import pack
from node.health import Health
from node.metrics import Metrics
from node.node import Node
from node.rpc.api import Api
from node.rpc.limits import RpcLimits
from node.rpc.problems import Problem
from node.rpc.requests import JSON, MSGPACK, Request, Response, problem_response, read_parameters, split_target
from node.rpc.routes import PUBLIC
from node.rpc.table import Line, Route, Table

TABLE = Table(PUBLIC)


@dataclass
class Listening:
    """The line of a client who says nothing."""

    say: Callable[[Any], Awaitable[None]]

    async def hear(self) -> bytes:
        return await asyncio.get_running_loop().create_future()


@dataclass
class Reply:
    status: int
    response: Response

    def __getitem__(self, name: str) -> Any:
        return self.json()[name]

    def json(self) -> Any:
        return json.loads(self.response.body)


class Caller:
    def __init__(self, node: Node, limits: RpcLimits | None = None) -> None:
        self.node = node
        self.health = Health(node)
        self.metrics = Metrics(node, self.health, "test")
        self.api = Api(node, self.health, self.metrics, limits or RpcLimits(), "test")

    def request(self, method: str, target: str, body: bytes = b"", media_type: str = "") -> tuple[Route[Api], Request]:
        segments, query = split_target(target)
        route, path = TABLE.find(method, segments)
        values = read_parameters(route.params, path, query)
        return route, Request(method, "client", values, {}, body, media_type)

    async def call(self, method: str, target: str, body: bytes = b"", media_type: str = "") -> Reply:
        try:
            route, request = self.request(method, target, body, media_type)
            assert route.handler is not None
            response = await route.handler(self.api, request)
        except Problem as problem:
            response = problem_response(problem)
        return Reply(response.status, response)

    async def get(self, target: str) -> Reply:
        return await self.call("GET", target)

    async def submit(self, *transactions: bytes, wait: str = "available") -> Reply:
        return await self.call("POST", f"/v1/transactions?wait={wait}", pack(transactions), MSGPACK)

    async def submit_json(self, body: object) -> Reply:
        return await self.call("POST", "/v1/transactions", json.dumps(body).encode(), JSON)

    async def stream(self, target: str, line: Line) -> None:
        route, request = self.request("GET", target)
        assert route.stream is not None
        await route.stream.begin(self.api, request)(line)
