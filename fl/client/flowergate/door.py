"""The HTTP door: Flower's fleet calls as `POST /v1/fleet/<call>`, protobuf in and out.

In this order, and nothing of a later step before an earlier one holds: the path is known, the length is within the
call's bounds, the headers are signed by a key, the key is listed, the body is read as far as its bound, it is a
message, it speaks of the node that signed it. Every refusal is the JSON that a SuperNode shows its operator.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from fl.client.flowergate import wire
from fl.client.flowergate.desk import Desk, Refusal
from fl.client.flowergate.objects import MOST_OBJECT_BYTES
from fl.client.flowergate.protobuf import Malformed, decode, encode
from fl.client.flowergate.visitors import Stranger, Visitor

log = logging.getLogger("quorate.flower")

MEDIA_TYPE = "application/protobuf"
_FEW = 16 * 1024
_MOST_MESSAGE = 8 * 1024 * 1024
_AT_ONCE = 4
"""Large bodies in memory at a time; a SuperNode sends two."""

_BEFORE_LISTED = (wire.RegisterNode, wire.ActivateNode)
"""What a stranger may ask: these two tell its operator why it is refused."""

Call = Callable[[Desk, Visitor, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Fleet:
    form: type[Any]
    most_bytes: int
    answer: Call


class Door:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._large = asyncio.Semaphore(_AT_ONCE)
        self.application = web.Application()
        self.application.router.add_post("/v1/fleet/{call}", self._serve)

    async def _serve(self, request: web.Request) -> web.Response:
        try:
            return web.Response(body=await self._answered(request), content_type=MEDIA_TYPE)
        except Refusal as refusal:
            told = {"code": refusal.code, "detail": refusal.what, "extra": None}
            return web.json_response(told, status=refusal.status)

    async def _answered(self, request: web.Request) -> bytes:
        call = _CALLS.get(request.match_info["call"])
        if call is None:
            raise Refusal(404, 9404, "There is no such call.")
        if (request.content_length or 0) > call.most_bytes:
            raise _too_long(call.most_bytes)
        if "content-encoding" in request.headers:
            raise Refusal(415, 9415, "A body is sent as it is.")
        try:
            visitor = self._desk.visitors.check(request.headers)
        except Stranger as stranger:
            log.info("a call from %s is refused: %s", request.remote, stranger)
            raise Refusal(401, 9401, f"Not let in: {stranger}.") from None
        if call.form not in _BEFORE_LISTED and not self._desk.visitors.is_listed(visitor):
            raise Refusal(401, 9401, "Its key is not among those that this gateway knows.")
        if call.most_bytes <= _FEW:
            asked = await self._read(request, call)
            return encode(await _told(call, self._desk, visitor, asked))
        async with self._large:
            asked = await self._read(request, call)
            return encode(await _told(call, self._desk, visitor, asked))

    async def _read(self, request: web.Request, call: _Fleet) -> Any:
        body = bytearray()
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > call.most_bytes:
                raise _too_long(call.most_bytes)
        try:
            return decode(call.form, memoryview(body).toreadonly())
        except Malformed as error:
            raise Refusal(400, 9400, f"The body is no {call.form.__name__}: {error}.") from None


def _too_long(most: int) -> Refusal:
    return Refusal(413, 9413, f"This call's body has up to {most} bytes.")


async def _told(call: _Fleet, desk: Desk, visitor: Visitor, asked: Any) -> Any:
    """A node speaks for itself alone."""
    node = getattr(asked, "node", None)
    named = node.node_id if isinstance(node, wire.Node) else getattr(asked, "node_id", None)
    if call.form not in _BEFORE_LISTED and named != visitor.node_id:
        raise Refusal(401, 9401, "The node in the call is not the one that signed it.")
    return await call.answer(desk, visitor, asked)


async def _register(desk: Desk, visitor: Visitor, asked: wire.RegisterNode) -> wire.NodeIs:
    return wire.NodeIs(desk.register(visitor, asked.public_key))


async def _activate(desk: Desk, visitor: Visitor, asked: wire.ActivateNode) -> wire.NodeIs:
    return wire.NodeIs(desk.activate(visitor, asked.public_key, asked.heartbeat_interval))


async def _leave(desk: Desk, visitor: Visitor, asked: wire.NodeIs) -> wire.Nothing:
    desk.leave(visitor.node_id)
    return wire.Nothing()


async def _heartbeat(desk: Desk, visitor: Visitor, asked: wire.Heartbeat) -> wire.Heard:
    return wire.Heard(desk.heartbeat(visitor.node_id, asked.heartbeat_interval))


async def _pull(desk: Desk, visitor: Visitor, asked: wire.PullMessages) -> wire.PulledMessages:
    shipment = await desk.pull(visitor.node_id)
    if shipment is None:
        return wire.PulledMessages()
    return wire.PulledMessages((wire.Message(shipment.metadata, wire.Content()),), (shipment.tree,))


async def _push(desk: Desk, visitor: Visitor, asked: wire.PushMessages) -> wire.PushedMessages:
    wanted, session = await desk.push(visitor.node_id, asked)
    metadata = asked.messages[0].metadata
    named = metadata.message_id if metadata is not None else ""
    return wire.PushedMessages((wire.Result(named, 0),), tuple(wanted), session)


async def _run(desk: Desk, visitor: Visitor, asked: wire.GetRun) -> wire.RunIs:
    _check_run(desk, asked.run_id)
    return wire.RunIs(desk.run)


async def _fab(desk: Desk, visitor: Visitor, asked: wire.GetFab) -> wire.FabIs:
    _check_run(desk, asked.run_id)
    if asked.hash_str != desk.run.fab_hash:
        raise Refusal(404, 9404, "This run's app has another hash.")
    return wire.FabIs(wire.Fab(desk.run.fab_hash, desk.fab))


async def _put(desk: Desk, visitor: Visitor, asked: wire.PushObject) -> wire.PushedObject:
    return wire.PushedObject(asked.run_id == desk.run.run_id and await desk.put(visitor.node_id, asked))


async def _get(desk: Desk, visitor: Visitor, asked: wire.PullObject) -> wire.PulledObject:
    content = await asyncio.to_thread(desk.content, visitor.node_id, asked.object_id)
    return wire.PulledObject(content is not None, content is not None, content or b"")


async def _confirm(desk: Desk, visitor: Visitor, asked: wire.Confirm) -> wire.Nothing:
    """The message stays until its reply is here: a SuperNode that dies in between gets it again."""
    return wire.Nothing()


def _check_run(desk: Desk, run_id: int) -> None:
    if run_id != desk.run.run_id:
        raise Refusal(404, 9404, "There is no such run here.")


_CALLS = {
    "register-node": _Fleet(wire.RegisterNode, _FEW, _register),
    "activate-node": _Fleet(wire.ActivateNode, _FEW, _activate),
    "deactivate-node": _Fleet(wire.NodeIs, _FEW, _leave),
    "unregister-node": _Fleet(wire.NodeIs, _FEW, _leave),
    "send-node-heartbeat": _Fleet(wire.Heartbeat, _FEW, _heartbeat),
    "pull-messages": _Fleet(wire.PullMessages, _FEW, _pull),
    "push-messages": _Fleet(wire.PushMessages, _MOST_MESSAGE, _push),
    "get-run": _Fleet(wire.GetRun, _FEW, _run),
    "get-fab": _Fleet(wire.GetFab, _FEW, _fab),
    "push-object": _Fleet(wire.PushObject, MOST_OBJECT_BYTES + _FEW, _put),
    "pull-object": _Fleet(wire.PullObject, _FEW, _get),
    "confirm-message-received": _Fleet(wire.Confirm, _FEW, _confirm),
}


async def opened_door(desk: Desk, host: str, port: int, tls: ssl.SSLContext | None) -> web.AppRunner:
    """Whoever opens it closes it, with `cleanup`. Raises OSError."""
    # A held call whose SuperNode is gone has to end, or it would be given the next message.
    runner = web.AppRunner(
        Door(desk).application, access_log=None, auto_decompress=False, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner
