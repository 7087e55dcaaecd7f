"""A chainlet whose nodes speak of themselves as well: their status, their clocks' dates, the blocks that they have."""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import formatdate
from importlib.metadata import version
from typing import Any

from aiohttp import web

from chain.block import EMPTY_BODY, Block, Header, block_digest
from chain.certificate import Certificate, Executed, VoteKind
from chain.codec import encode
from chain.genesis import genesis_header
from tests.fl.client.chainlet import Chainlet, Face


class Watched(Chainlet):
    def __init__(self) -> None:
        super().__init__()
        self.ahead_s = 0.0
        """Of the nodes' clocks."""
        self.dates = True
        self.status: dict[str, Any] = {"version": version("quorate"), "kernel_version": 1, "reasons": []}
        self.times: dict[int, int] = {}

    def block(self, *transactions: bytes, **changes: Any) -> None:
        super().block(*transactions, **changes)
        self.times[self.height] = self.ledger.time_ms

    def header(self, height: int) -> Header:
        first = genesis_header(self.genesis)
        return replace(first, height=height, time_ms=self.times.get(height, first.time_ms))

    def certificate(self, height: int, root: bytes | None = None) -> Certificate:
        root = self.tree.root_at(height) if root is None else root
        return self._signed(VoteKind.EXECUTED, Executed(height, block_digest(self.header(height)), root))

    def _routes(self, face: Face) -> list[web.RouteDef]:
        async def status(request: web.Request) -> web.Response:
            if face.down:
                assert request.transport is not None
                request.transport.abort()
            date = formatdate(time.time() + self.ahead_s, usegmt=True) if self.dates else "unknown"
            return web.json_response(self.status, headers={"Date": date})

        async def block(request: web.Request) -> web.Response:
            header = self.header(int(request.match_info["height"]))
            return web.Response(body=encode(Block(header, EMPTY_BODY)))

        return [
            *super()._routes(face),
            web.get("/v1/status", status),
            web.get("/v1/blocks/{height}/raw", block),
        ]
