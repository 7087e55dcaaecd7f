"""Small servers on a port of this machine: a gateway over blocks in memory, a Kubo node's RPC API, and worse ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from chain.cid import parse_cid
from node.data.gateway import Blocks, Request, answer
from node.rpc.problems import MEDIA_TYPE, Problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The URL where every request is handled so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def gateway(blocks: Blocks) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            got = answer(Request(request.method, request.path, dict(request.query), headers), blocks)
        except Problem as problem:
            document = problem.document()
            return web.json_response(document, status=problem.kind.status, content_type=MEDIA_TYPE)
        response = web.StreamResponse(status=got.status, headers=dict(got.headers))
        await response.prepare(request)
        for piece in got.body:
            await response.write(bytes(piece))
        await response.write_eof()
        return response

    return handle


def kubo(blocks: Mapping[bytes, bytes]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        assert (request.method, request.path) == ("POST", "/api/v0/block/get")
        block = blocks.get(parse_cid(request.query["arg"]))
        if block is None:
            return web.json_response({"Message": "block was not found locally", "Code": 0}, status=500)
        return web.Response(body=block)

    return handle


def saying(status: int, body: bytes = b"") -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    return handle
