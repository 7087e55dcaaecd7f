"""The servers of one node: the public one over TCP, the operator's over a Unix socket."""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version

from node.data.door.routes import BLOBS
from node.health import Health
from node.metrics import Metrics
from node.node import Node
from node.rpc import openapi
from node.rpc.api import Api
from node.rpc.connection import Door
from node.rpc.desk import Desk
from node.rpc.listening import RpcConfig, listen_tcp, listen_unix
from node.rpc.requests import to_json
from node.rpc.routes import ADMIN, PUBLIC
from node.rpc.schema import Schema
from node.rpc.sockets import Streams
from node.rpc.table import Table

__all__ = ["RpcConfig", "RpcServer", "start"]

log = logging.getLogger("quorate.rpc")


class RpcServer:
    """What `start` returns."""

    def __init__(self, api: Api, public: Door, admin: Door | None, streams: Streams) -> None:
        self.api = api
        self._public = public
        self._admin = admin
        self._streams = streams

    @property
    def address(self) -> tuple[str, int]:
        return self._public.address

    @property
    def port(self) -> int:
        return self._public.address[1]

    async def close(self, patience_s: float = 2.0) -> None:
        """Ends streams, gives answers under way a moment, and closes every connection."""
        await self._streams.close(patience_s)
        await self._public.close(patience_s)
        if self._admin is not None:
            await self._admin.close(patience_s)


async def start(node: Node, config: RpcConfig) -> RpcServer:
    """Answers from here on, whether the node runs or not. Raises CannotListen, and ssl.SSLError or OSError for TLS
    files that cannot be used."""
    health = Health(node)
    tls = config.tls()
    api = Api(
        node,
        health,
        Metrics(node, health, _version()),
        config.limits,
        _version(),
        tls=tls is not None,
        door_url=config.door_url,
    )
    api.openapi = to_json(public_document(api.version))
    streams = Streams(api)
    public = Desk(api, Table(PUBLIC), api.reception, config.cors, streaming=streams.serve)
    door = Door(listen_tcp(config.host, config.port), public.answer, config.limits, api.metrics, tls)
    admin = None
    if config.admin_socket is not None:
        try:
            listener = listen_unix(os.fspath(config.admin_socket))
        except Exception:
            await door.close(0)
            raise
        operator = Desk(api, Table(ADMIN), api.reception, trusted=True)
        admin = Door(listener, operator.answer, config.limits, api.metrics)
    if tls is None and config.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("clients are answered in the clear: no TLS is configured", extra={"host": config.host})
    return RpcServer(api, door, admin, streams)


def public_document(version: str) -> Schema:
    """Of all that clients may ask of a node, at either door."""
    return openapi.document([route for route in PUBLIC if not route.passed_on], version, BLOBS)


def _version() -> str:
    try:
        return version("quorate")
    except PackageNotFoundError:
        return "0"
